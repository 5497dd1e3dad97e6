"""The trainer: the front and rooms, each using only those below it.

run: `train`. stages: settle, supply, equip. loop: the hot loop. together: what several processes do
otherwise. outcome: a summary. saved: what can be done with a run folder.

screen: what a run says. folder: what it leaves on disk. measure: validation and probes. step: a
step and what executes it. ranks: several processes. machine: what `auto` means here.

Names load on first use (PEP 562), so that a console can say that torch is being loaded; a test
holds the table and what a type checker reads together.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lion_fast.training.folder.summary import Summary
    from lion_fast.training.machine.guards import Interrupted
    from lion_fast.training.measure.validate import Validation
    from lion_fast.training.run import train
    from lion_fast.training.saved import LoadedRun, Prediction, evaluate, load_run, predict
    from lion_fast.training.step.reuse import StepCache, setup_key

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
    "folder.summary": ("Summary",),
    "machine.guards": ("Interrupted",),
    "measure.validate": ("Validation",),
    "run": ("train",),
    "saved": ("LoadedRun", "Prediction", "evaluate", "load_run", "predict"),
    "step.reuse": ("StepCache", "setup_key"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
