"""How the weights of zeroed heads grow over the first steps of a run (the paper's equation 5)."""

import numpy as np

from lion_fast.report.results import Run
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
