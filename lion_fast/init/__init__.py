"""Initialisers: in place, returning the model, named as in `torch.nn.init`.

`lion_dg_` zeroes the auxiliary heads and leaves all else; every other function sets all weights
anew. `initialize_` takes a method by its name in METHODS. A CPU generator gives the same weights on
every device, up to that device's rounding where a method looks at data. Batch norm's running
statistics and the modules' training modes are left as they were.
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lion_fast.errors import UserError
from lion_fast.init.calibration import unwrapped
from lion_fast.init.gradinit import HeadLoss, gradinit_
from lion_fast.init.lion_dg import HeadReport, LionDGReport, lion_dg_, lion_dg_report
from lion_fast.init.lsuv import NUM_SAMPLES, lion_lsuv_, lsuv_
from lion_fast.init.residual import fixup_, rezero_
from lion_fast.init.variance import he_, xavier_
from lion_fast.models import DeeplySupervised

__all__ = [
    "METHODS",
    "HeadLoss",
    "HeadReport",
    "LionDGReport",
    "Method",
    "fixup_",
    "gradinit_",
    "he_",
    "initialize_",
    "lion_dg_",
    "lion_dg_report",
    "lion_lsuv_",
    "lsuv_",
    "rezero_",
    "xavier_",
]


class Method(NamedTuple):
    """One row of METHODS."""

    description: str
    run: Callable[..., nn.Module]
    """Takes model, images, labels, generator, loss."""
    num_images: int = 0
    """Training images that it wants; 0 for a method that looks at none."""
    needs_labels: bool = False


METHODS: dict[str, Method] = {
    "he": Method("He everywhere, heads included", lambda m, x, y, g, loss: he_(m, g)),
    "xavier": Method("Xavier everywhere", lambda m, x, y, g, loss: xavier_(m, g)),
    "lion_dg": Method(
        "He, then auxiliary heads to zero", lambda m, x, y, g, loss: lion_dg_(he_(m, g))
    ),
    "lsuv": Method(
        "unit output variance of every layer, on data",
        lambda m, x, y, g, loss: lsuv_(m, x, generator=g),
        NUM_SAMPLES,
    ),
    "lion_lsuv": Method(
        "LSUV, then auxiliary heads to zero",
        lambda m, x, y, g, loss: lion_lsuv_(m, x, generator=g),
        NUM_SAMPLES,
    ),
    "fixup": Method(
        "scaled residual branches that end in zero, zero main head",
        lambda m, x, y, g, loss: fixup_(m, g),
    ),
    "rezero": Method("He, with zero residual scales", lambda m, x, y, g, loss: rezero_(m, g)),
    "gradinit": Method(
        "He, with learnt scales of every tensor",
        lambda m, x, y, g, loss: gradinit_(m, x, y, loss=loss, generator=g),
        4096,
        needs_labels=True,
    ),
}


def initialize_(
    model: nn.Module,
    method: str,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    loss: HeadLoss | None = None,
) -> nn.Module:
    """Set all weights of a network anew by the method of that name in METHODS.

    images: (N, 3, height, width) normalised training images, N at least METHODS[method].num_images
    for the method as published; labels: (N,) int64. Methods that need none ignore them.

    Raises UserError on an unknown method and on missing images or labels.
    """
    if method not in METHODS:
        close = get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"take one of {', '.join(METHODS)}"
        raise UserError(f"unknown initialisation {method!r}: {hint}")
    row = METHODS[method]
    if row.num_images and images is None:
        raise UserError(f"{method} looks at data: pass {row.num_images} training images")
    if row.needs_labels and labels is None:
        raise UserError(f"{method} looks at data: pass the labels of its images")
    foreign = not isinstance(unwrapped(model), DeeplySupervised)
    if method == "lion_dg" and foreign:
        raise UserError(
            f"initialize_ would set the whole {type(unwrapped(model)).__name__} anew: call "
            "lion_dg_(model) to zero its heads alone, after he_(model) if you mean that"
        )
    return row.run(model, images, labels, generator, loss)
