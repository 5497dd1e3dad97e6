"""Image sets, the batch plan and its loaders; `open` is the front door.

`make_loader` loads on first use (PEP 562): which data a study has is told without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lion_fast.data.make import make_loader

__all__ = ["make_loader"]


def __getattr__(name: str) -> Any:
    if name != "make_loader":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.make").make_loader
