"""Which values the fields of a config take: their types, and the least and most of its numbers."""

import dataclasses
import math
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from lion_fast.errors import UserError
from lion_fast.places import place

LEAST: dict[str, float] = {
    "image_size": 8,
    "num_classes": 2,
    "growth_rate": 1,
    "block_layers": 1,
    "base_width": 1,
    "unet_width": 1,
    "dice": 0,
    "whiten": 0,
    "aux_weight": 0,
    "aux_warmup_steps": 0,
    "label_smoothing": 0,
    "lr": 0,
    "weight_decay": 0,
    "muon_lr": 0,
    "muon_momentum": 0,
    "muon_weight_decay": 0,
    "lr_warmup_steps": 0,
    "lr_cooldown_steps": 0,
    "lr_floor": 0,
    "batch_size": 1,
    "virtual_shards": 0,
    "max_steps": 1,
    "crop_padding": 0,
    "window": 1,
    "seed": 0,
    "steps_per_replay": 1,
    "steps_per_run": 1,
    "num_workers": 0,
    "eval_every": 0,
    "checkpoint_every": 0,
    "log_every": 1,
    "gradient_ratio_every": 0,
    "rendezvous_timeout": 1,
}

# An image of more pixels than 4096x4096 is 50 MB, and a batch of them no network here can be meant
# to see; nor are layers beyond these numbers meant, which would be built for hours.
_MOST: dict[str, int] = {
    "image_size": 4096,
    "crop_padding": 4096,
    "growth_rate": 4096,
    "block_layers": 1000,
    "base_width": 4096,
    "num_workers": 1024,
    "lr_floor": 1,
}
# What torch's counters and generators take, and what a weight of float32 holds.
_MOST_WHOLE, _MOST_REAL = 2**63 - 1, 1e38

_WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def typed(field: "dataclasses.Field[Any]", value: Any) -> Any:
    """Return `value` as the type of its field; raise UserError where it is of another."""
    if get_origin(field.type) is Literal:
        choices = get_args(field.type)
        if isinstance(value, str) and value in choices:
            return value
        raise UserError(f"{field.name} is {value!r}: take one of {', '.join(choices)}")
    types = get_args(field.type) or (field.type,)
    if value is None and NoneType in types:
        return None
    wanted, words = types[0], [word for kind in types[1:] for word in get_args(kind)]
    if isinstance(value, str) and value in words:
        return value
    if wanted is bool and isinstance(value, bool):
        return value
    # A bool is an int to Python; numpy's numbers are Integral and Real.
    if wanted is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if wanted is float and isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    if wanted is Path and isinstance(value, str | Path):
        return place(value)
    if wanted is str and isinstance(value, str | Path):
        return str(value)
    described = " or ".join([_WANTED.get(wanted, "a path"), *words])
    raise UserError(f"{field.name} is {value!r}: it must be {described}")


def check_range(name: str, value: object) -> None:
    """Raise UserError unless the number of that field is finite, and within its least and most.

    A field that may be None, or a word, is not checked where it has no number.
    """
    if not isinstance(value, int | float):
        return
    least = LEAST[name]
    if not (math.isfinite(value) and value >= least):
        raise UserError(f"{name} is {value}: it must be a finite number of at least {least}")
    most = _MOST.get(name, _MOST_WHOLE if isinstance(value, int) else _MOST_REAL)
    if value > most:
        raise UserError(f"{name} is {value}: it must be at most {most}")
