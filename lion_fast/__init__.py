"""lion-fast: fast, trustworthy training of deeply-supervised classifiers with LION-DG.

Names load on first use (PEP 562), so that `lion-fast --help` does not wait for torch. What a type
checker and an editor see of them stands in `__init__.pyi`; a test holds the two together.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOME = {
    "lion_fast.config": ("TrainConfig",),
    "lion_fast.data.images": ("ImageSet",),
    "lion_fast.data.masks": ("MaskSet",),
    "lion_fast.data.open": ("load_image_set",),
    "lion_fast.data.plan": ("BatchPlan",),
    "lion_fast.errors": ("UserError",),
    "lion_fast.init": (
        "LionDGReport",
        "fixup_",
        "gradinit_",
        "he_",
        "initialize_",
        "lion_dg_",
        "lion_dg_report",
        "lion_lsuv_",
        "log_frequencies",
        "lsuv_",
        "prior_bias_",
        "rezero_",
        "whiten_stem_",
        "xavier_",
    ),
    "lion_fast.kernels": (
        "DenseLosses",
        "HeadLosses",
        "deep_supervision_loss",
        "deep_supervision_loss_ref",
        "dense_supervision_loss",
        "dense_supervision_loss_ref",
    ),
    "lion_fast.models": (
        "DeeplySupervised",
        "DenseNetDS",
        "ResNetDS",
        "UNetDS",
        "densenet_ds",
        "resnet_ds",
        "unet_ds",
    ),
    "lion_fast.presets": ("PRESETS",),
    "lion_fast.training": (
        "LoadedRun",
        "Prediction",
        "Summary",
        "Validation",
        "evaluate",
        "load_run",
        "predict",
        "train",
    ),
}
_MODULES = (
    *("arguments", "cli", "config", "data", "errors", "figures", "init", "kernels", "models"),
    *("output", "places", "presets", "report", "resolutions", "study", "training", "values"),
)
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"lion_fast.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'lion_fast' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF, *_MODULES})
