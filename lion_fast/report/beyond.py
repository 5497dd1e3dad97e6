"""Statements of ours, which the paper leaves open; bars were committed before the studies ran."""

from lion_fast.report.dense_judges import (
    MANY,
    RANK_ONE,
    as_good_as_he,
    behind_he,
    leaves_rank_one,
    stays_of_rank_one,
)
from lion_fast.report.judges import (
    COMPARABLE_POINTS,
    DENSENET_10,
    Judge,
    fewer_steps,
)
from lion_fast.report.paper import NUM_STEPS
from lion_fast.report.recipe_judges import (
    COST_SHARE,
    LOST_POINTS,
    NUM_SEEDS,
    SECONDS_SHARE,
    cheaper,
    faster,
    no_less_accurate_at_the_target,
    no_less_accurate_in_the_end,
)
from lion_fast.report.statement import Statement

_NONE = "\N{EN DASH}"
"""Of a statement of ours, on which the paper has no figure."""


def _dense(text: str, judge: Judge, **fields: object) -> Statement:
    """Return a statement on mIoU after 1,500 steps, or on heads, of study `dense`."""
    return Statement("Beyond the paper", text, ("dense",), judge, (fields,), paper="asked here")


_SCENES = {"dataset": "scenes", "dice": 0.0, "aux_weight": 0.5}
_WITH_DICE = {**_SCENES, "dice": 1.0}
_FOREGROUND = {**_SCENES, "dataset": "scenes_foreground"}
_PLAIN = {"init": "lion_dg", "head_bias": "zero"}
_PRIOR = {"init": "lion_dg", "head_bias": "prior"}
_BY_SEED = "(bar: mIoU after 1,500 steps, by seed, Holm over the study"

BEYOND = (
    Statement(
        "Table 1, whitened stem",
        "LION-DG reaches 70 % sooner than He-init on a whitened stem: DenseNet-DS, CIFAR-10.",
        ("whitening",),
        fewer_steps(**DENSENET_10, init="lion_dg", whiten=24),
        ({"whiten": 24},),
        _NONE,
    ),
    *(
        Statement(
            "Preset fast",
            f"Preset fast, against the one before: {text}.",
            (study,),
            judge,
            paper=_NONE,
        )
        for text, study, judge in (
            (
                f"at most {COST_SHARE:g} of its computation to 70 % (bar: mean ratio of {NUM_SEEDS}"
                " seeds)",
                "speedrun2",
                cheaper,
            ),
            (f"at most {SECONDS_SHARE:g} of its seconds (bar: the same)", "speedrun2", faster),
            (
                f"at the crossing at most {LOST_POINTS:g} points less accurate (bar: paired"
                f" one-sided test at 5 %, {NUM_SEEDS} seeds)",
                "speedrun2",
                no_less_accurate_at_the_target,
            ),
            (
                f"not less accurate after {NUM_STEPS:,} steps cooled to zero (bar: at most"
                f" {COMPARABLE_POINTS:g} point, none shown)",
                "speedrun2_whole",
                no_less_accurate_in_the_end,
            ),
        )
    ),
    *(
        _dense(
            f"LION-DG is behind He-init on UNet-DS where most pixels are background, {loss}"
            f" {_BY_SEED}).",
            behind_he(**setting, **_PLAIN),
            **setting,
        )
        for setting, loss in ((_SCENES, "cross-entropy"), (_WITH_DICE, "cross-entropy and Dice"))
    ),
    *(
        _dense(
            f"A class prior as the heads' bias restores LION-DG, {loss} {_BY_SEED}: within 5 % of"
            " He-init's).",
            as_good_as_he(**setting, **_PRIOR),
            **setting,
        )
        for setting, loss in ((_SCENES, "cross-entropy"), (_WITH_DICE, "cross-entropy and Dice"))
    ),
    _dense(
        f"Imbalance is the cause: with the background ignored LION-DG is as good {_BY_SEED}: within"
        " 5 % of He-init's).",
        as_good_as_he(**_FOREGROUND, **_PLAIN),
        **_FOREGROUND,
    ),
    _dense(
        "Zeroed heads stay of rank 1 where most pixels are background (bar: effective rank at most"
        f" {RANK_ONE:g} after 50, 150 and 600 steps in every head and run, He-init's at least"
        f" {MANY:g}).",
        stays_of_rank_one(**_SCENES, head_bias="zero"),
        **_SCENES,
    ),
    Statement(
        "Beyond the paper",
        "On balanced digits the zeroed heads of DenseNet-DS do not (bar: effective rank at least"
        f" {MANY:g} after 50, 150 and 600 steps in every head and run).",
        ("head_ranks",),
        leaves_rank_one(),
        paper="asked here",
    ),
)
"""What the paper leaves open, asked here: the bars were committed before the studies ran."""
