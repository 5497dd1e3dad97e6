"""The backbone of DenseNet-DS as dense blocks that share each channel's batch statistics."""

from .reference import dense_backbone_ref, dense_block_ref

__all__ = ["dense_backbone_ref", "dense_block_ref"]
