"""The course of image sizes over a run, as the config spells it; imports nothing heavy."""

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from lion_fast.errors import UserError

# A compiled function takes eight shapes before torch refuses more, and full size is one.
_MOST_STAGES = 6
_EXAMPLE = "give pixels:steps, one after another, like 16:250,24:100"


class Stage(NamedTuple):
    """Steps on images that are reduced to one size."""

    side: int
    """Height and width in pixels."""
    steps: int


@dataclass(frozen=True)
class Resolutions:
    """Sizes of the images a run begins with, in order; then they come as they are, at full size.

    Steps are counted from 0. A size is its side in pixels, and None where it is the full one.
    """

    stages: tuple[Stage, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Resolutions":
        """Return the course that `text` spells, such as 16:250,24:100; an empty one has no stage.

        Raises UserError on anything else.
        """
        stages: list[Stage] = []
        for part in text.split(",") if text.strip() else []:
            found = re.fullmatch(r"\s*(-?[0-9]+)\s*:\s*(-?[0-9]+)\s*", part)
            if found is None:
                raise UserError(f"resolutions has {part.strip()!r}: {_EXAMPLE}")
            stage = Stage(*map(int, found.groups()))
            if min(stage) < 1:
                raise UserError(
                    f"resolutions has {stage.side}:{stage.steps}: pixels and steps must be at"
                    f" least 1; {_EXAMPLE}"
                )
            if stage.side in (earlier.side for earlier in stages):
                raise UserError(
                    f"resolutions has {stage.side} pixels twice: give all steps of a size together"
                )
            stages.append(stage)
        if len(stages) > _MOST_STAGES:
            raise UserError(
                f"resolutions has {len(stages)} sizes, each with a compiled step of its own: give"
                f" at most {_MOST_STAGES}"
            )
        return cls(tuple(stages))

    def __str__(self) -> str:
        return ",".join(f"{side}:{steps}" for side, steps in self.stages)

    def check_length(self, max_steps: int) -> None:
        """Raise UserError unless a run of `max_steps` has a step at full size."""
        if self.stages and self.num_reduced >= max_steps:
            raise UserError(
                f"resolutions {self} takes {self.num_reduced} steps, and max_steps is {max_steps}:"
                f" raise max_steps above {self.num_reduced}, or give fewer steps (--resolutions ''"
                " gives none)"
            )

    @property
    def num_reduced(self) -> int:
        """Steps before the first at full size."""
        return sum(stage.steps for stage in self.stages)

    @cached_property
    def changes(self) -> dict[int, int | None]:
        """First step of every size but the first, and that size, in order."""
        ends = accumulate(stage.steps for stage in self.stages)
        return dict(zip(ends, [*(stage.side for stage in self.stages[1:]), None], strict=False))

    def change_words(self) -> dict[int, str]:
        """Return what a picture says of every change, by the number of steps before it."""
        return {
            step: "full size" if side is None else f"{side} px"
            for step, side in self.changes.items()
        }

    def side_at(self, step: int) -> int | None:
        """Return the size of the images of `step`."""
        return self.sides_from(step)[0]

    def sides_from(self, step: int) -> list[int | None]:
        """Return the sizes of `step` and of all that follow, in order."""
        ends = accumulate(stage.steps for stage in self.stages)
        ahead = [s.side for s, end in zip(self.stages, ends, strict=True) if step < end]
        return [*ahead, None]

    def steps_to_change(self, step: int) -> int | None:
        """Return how many steps from `step` on have its size; None where all have."""
        return next((change - step for change in self.changes if change > step), None)

    def cost(self, num_steps: int, full: int) -> float:
        """Return how many steps at full size, `full` pixels, compute as much as the first ones.

        A step at another size counts as (side / full)^2 of one.
        """
        left, squares = num_steps, 0
        for side, steps in self.stages:
            taken = min(left, steps)
            squares += taken * side**2
            left -= taken
        return left + squares / full**2


FULL_SIZE = Resolutions()
"""Every image as it is."""
