"""The trainer: step, engines, clock, record, checkpoints, and the loop that joins them."""

from lion_fast.training.guards import Interrupted
from lion_fast.training.loop import train
from lion_fast.training.saved import evaluate
from lion_fast.training.summary import Summary
from lion_fast.training.validate import Validation

__all__ = ["Interrupted", "Summary", "Validation", "evaluate", "train"]
