"""The trainer: step, engines, clock, record, checkpoints, and the loop that joins them."""

from lion_fast.train.evaluate import evaluate
from lion_fast.train.loop import train
from lion_fast.train.summary import Summary
from lion_fast.train.validate import Validation

__all__ = ["Summary", "Validation", "evaluate", "train"]
