"""The trainer: step, engines, clock, record, checkpoints, and the loop that joins them.

Names load on first use, so that a console can say that torch is being loaded.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lion_fast.training.guards import Interrupted
    from lion_fast.training.loop import train
    from lion_fast.training.reuse import StepCache, setup_key
    from lion_fast.training.saved import LoadedRun, Prediction, evaluate, load_run, predict
    from lion_fast.training.summary import Summary
    from lion_fast.training.validate import Validation

__all__ = [
    "Interrupted",
    "LoadedRun",
    "Prediction",
    "StepCache",
    "Summary",
    "Validation",
    "evaluate",
    "load_run",
    "predict",
    "setup_key",
    "train",
]

_HOME = {
    "Interrupted": "guards",
    "train": "loop",
    "StepCache": "reuse",
    "setup_key": "reuse",
    "Summary": "summary",
    "Validation": "validate",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = import_module(f"{__name__}.{_HOME.get(name, 'saved')}")
        globals()[name] = getattr(module, name)
        return globals()[name]
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
