"""Image sets, the batch plan and its loaders."""

from lion_fast.data.batches import make_loader

__all__ = ["make_loader"]
