"""Initialisers: in place, returning the model, named as in `torch.nn.init`.

`lion_dg_` zeroes the auxiliary heads and `whiten_stem_` sets a stem's filters, and both leave all
else; every other function sets all weights anew. `initialize_` takes a method by its name in
METHODS. A CPU generator gives the same weights on every device, up to that device's rounding where
a method looks at data. Batch norm's running statistics and the modules' training modes are left as
they were.
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lion_fast.errors import UserError
from lion_fast.init.calibration import unwrapped
from lion_fast.init.example import Example
from lion_fast.init.gradinit import HeadLoss, gradinit_
from lion_fast.init.heads import HeadChoice
from lion_fast.init.lion_dg import HeadReport, LionDGReport, lion_dg_, lion_dg_report
from lion_fast.init.lsuv import NUM_SAMPLES, lion_lsuv_, lsuv_
from lion_fast.init.output_layer import Bias
from lion_fast.init.outputs import Main
from lion_fast.init.plan import plan_heads, zero_
from lion_fast.init.prior import log_frequencies, prior_bias_
from lion_fast.init.residual import fixup_, rezero_
from lion_fast.init.variance import he_, xavier_
from lion_fast.init.whitening import find_stem, set_filters_, whiten_stem_, whitening_filters
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
    "log_frequencies",
    "lsuv_",
    "prior_bias_",
    "rezero_",
    "whiten_stem_",
    "xavier_",
]


class Method(NamedTuple):
    """One row of METHODS."""

    description: str
    run: Callable[..., nn.Module]
    """Takes model, images, labels, generator, loss, and `options` by keyword."""
    num_images: int = 0
    """Training images that it wants; 0 for a method that looks at none."""
    needs_labels: bool = False
    options: tuple[str, ...] = ()
    """What of heads, main, bias and example it takes."""


def _he_lion_dg_(model: nn.Module, generator: torch.Generator | None, **options: Any) -> nn.Module:
    # Planned first, so that a model that is refused is left as it was.
    plan = plan_heads(model, **options)
    he_(model, generator)
    zero_(model, plan)
    return model


_OPTIONS = ("heads", "main", "bias", "example")

METHODS: dict[str, Method] = {
    "he": Method("He everywhere, heads included", lambda m, x, y, g, loss: he_(m, g)),
    "xavier": Method("Xavier everywhere", lambda m, x, y, g, loss: xavier_(m, g)),
    "lion_dg": Method(
        "He, then auxiliary heads to zero",
        lambda m, x, y, g, loss, **options: _he_lion_dg_(m, g, **options),
        options=_OPTIONS,
    ),
    "lsuv": Method(
        "unit output variance of every layer, on data",
        lambda m, x, y, g, loss: lsuv_(m, x, generator=g),
        NUM_SAMPLES,
    ),
    "lion_lsuv": Method(
        "LSUV, then auxiliary heads to zero",
        lambda m, x, y, g, loss, **options: lion_lsuv_(m, x, generator=g, **options),
        NUM_SAMPLES,
        options=_OPTIONS,
    ),
    "fixup": Method(
        "scaled residual branches that end in zero, zero main head",
        lambda m, x, y, g, loss: fixup_(m, g),
    ),
    "rezero": Method("He, with zero residual scales", lambda m, x, y, g, loss: rezero_(m, g)),
    "gradinit": Method(
        "He, with learnt scales of every tensor",
        lambda m, x, y, g, loss, **options: gradinit_(m, x, y, loss=loss, generator=g, **options),
        4096,
        needs_labels=True,
        options=("main",),
    ),
}


def initialize_(
    model: nn.Module,
    method: str,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    loss: HeadLoss | None = None,
    *,
    heads: HeadChoice = None,
    main: Main = None,
    bias: Bias = "zero",
    example: Example = None,
    whiten: int = 0,
) -> nn.Module:
    """Set all weights of a network anew by the method of that name in METHODS.

    images: (N, 3, height, width) normalised training images, N at least METHODS[method].num_images
    for the method as published; labels: (N,) int64. Methods that need none ignore them. heads,
    main, bias and example are those of `lion_dg_`, for methods that zero heads; main is also
    gradinit's. whiten: so many filters of the stem are then those of `whiten_stem_`, which every
    method goes with; all other weights are those of the method without it.

    Raises UserError on an unknown method, on missing images or labels, on options that the method
    does not take, and as `whiten_stem_` does, before any weight is set.
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
    given = {"heads": heads, "main": main, "example": example}
    options = {name: value for name, value in given.items() if value is not None}
    if isinstance(bias, Tensor) or bias != "zero":
        options["bias"] = bias
    for name in options:
        if name not in row.options:
            takers = ", ".join(key for key, other in METHODS.items() if name in other.options)
            raise UserError(f"{method} takes no {name}=: it is for {takers}")
    if not whiten:
        return row.run(model, images, labels, generator, loss, **options)
    if images is None:
        raise UserError("whitening looks at data: pass training images")
    stem = find_stem(model, images, whiten)
    # Drawn from a copy, so that the method's own draws are as they are without whitening.
    own = None if generator is None else generator.clone_state()
    filters = whitening_filters(images, stem.kernel_size[0], whiten, own)
    row.run(model, images, labels, generator, loss, **options)
    set_filters_(stem, filters)
    return model
