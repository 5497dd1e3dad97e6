"""A batch gathered, cropped, mirrored, normalised, reduced and cast as one op."""

from .op import augment_batch, augment_batch_ref

__all__ = ["augment_batch", "augment_batch_ref"]
