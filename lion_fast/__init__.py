"""lion-fast: fast, trustworthy training of deeply-supervised classifiers with LION-DG.

Names load on first use (PEP 562), so that `lion-fast --help` does not wait for torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "TrainConfig": "lion_fast.config",
    "PRESETS": "lion_fast.config",
    "UserError": "lion_fast.errors",
    "BatchPlan": "lion_fast.data.plan",
    "ImageSet": "lion_fast.data.images",
    "load_image_set": "lion_fast.data.images",
    "densenet_ds": "lion_fast.models",
    "resnet_ds": "lion_fast.models",
    "initialize_": "lion_fast.init",
    "lion_dg_": "lion_fast.init",
    "deep_supervision_loss": "lion_fast.kernels",
    "Summary": "lion_fast.training",
    "train": "lion_fast.training",
    "evaluate": "lion_fast.training",
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lion_fast' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
