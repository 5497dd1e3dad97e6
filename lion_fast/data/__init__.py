"""Image sets, the batch plan and its loaders; `open` is the front door."""

from lion_fast.data.make import make_loader

__all__ = ["make_loader"]
