"""How the weights of zeroed heads grow over the first steps of a run (the paper's equation 5)."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lion_fast.report.markdown import ABSENT, significant, table
from lion_fast.report.results import Run, StudyResults
from lion_fast.report.stats import LinearFit, linear_fit

EARLY_STEPS = 100
"""The first part of the paper's Figure 1, in which head weights are to grow linearly."""


def growth_fits(run: Run, num_steps: int = EARLY_STEPS) -> dict[str, LinearFit]:
    """Return each auxiliary head's fitted line of weight norm over the first steps."""
    steps = run.probes["step"]
    early = steps <= num_steps
    return {
        name: linear_fit(steps[early], values[early])
        for name, values in run.head_norms.items()
        if np.count_nonzero(early) > 2
    }


ON_THE_LINE = 0.10
"""Share of the predicted norm that a norm on the line may be off."""


class Line(NamedTuple):
    """A zeroed head's weight norm beside Proposition 2's eta t C after t updates."""

    constant: float
    """C: the norm of the loss's gradient with respect to the head at zero, its weight alpha
    included. One step of gradient descent makes the norm eta C, which is how it is measured."""
    updates: NDArray[np.float64]
    """t = 1, 2, ..."""
    ratio: NDArray[np.float64]
    """norm / (eta t C)"""

    def leaves_after(self, tolerance: float = ON_THE_LINE) -> int | None:
        """Return the first t whose norm is off the line by more; None where there is none."""
        off = np.flatnonzero(np.abs(self.ratio - 1) > tolerance)
        return int(self.updates[off[0]]) if len(off) else None


def lines(run: Run) -> dict[str, Line]:
    """Return each head's line, of heads that start at zero in a run probed at every step.

    A probe is taken before its step's update, so that of step t + 1 shows the norm after t.
    """
    updates = run.probes["step"] - 1
    if len(updates) < 2 or not np.array_equal(updates, np.arange(len(updates))):
        return {}
    return {
        name: Line(norms[1] / run.config.lr, updates[1:], norms[1:] / (updates[1:] * norms[1]))
        for name, norms in run.head_norms.items()
        if norms[0] == 0 < norms[1]
    }


def shows_lines(results: StudyResults) -> bool:
    """Whether a run trained zeroed heads by gradient descent."""
    return any(run.config.optimizer == "sgd" and lines(run) for run in results.runs)


def line_table(results: StudyResults) -> Iterator[str]:
    """Yield a table of every head's line, the seeds side by side."""
    yield (
        "Norm of a head's weight over t times its norm after one update, which under gradient"
        " descent is Proposition 2's eta t C; C is the gradient's norm at zero heads, alpha"
        f" included. Off the line: by more than {100 * ON_THE_LINE:g} %."
    )
    yield ""
    header = ("run", "head", "n", "C", "updates", "off the line after", "ratio at the end")
    rows = []
    for variant in results.study.variants:
        found = [lines(run) for run in results.of(variant)]
        for index, name in enumerate(found[0] if found else ()):
            of_head = [each[name] for each in found]
            has_constant = results.of(variant)[0].config.optimizer == "sgd"
            constants = [significant(line.constant) for line in of_head if has_constant]
            left = [line.leaves_after() for line in of_head]
            rows.append(
                (
                    results.study.label(variant),
                    str(index),
                    str(len(of_head)),
                    ", ".join(constants) or ABSENT,
                    str(int(of_head[0].updates[-1])),
                    ", ".join("never" if t is None else str(t) for t in left),
                    ", ".join(f"{line.ratio[-1]:.3f}" for line in of_head),
                )
            )
    yield from table(header, rows)
