"""How many seeds a test needs, and what the seeds at hand can show, from the spread seen.

The spread of a few seeds is itself uncertain: that of three may be half or six times the true one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from lion_fast.report.paired import Bounds

POWER = 0.8
_LEVEL = 0.05
_MOST_SEEDS = 1 << 20
_QUANTILES = (np.arange(1024) + 0.5) / 1024


class Spread(NamedTuple):
    """Variances that a mean difference is measured against: one if paired, else one a side."""

    variances: tuple[float, ...]

    def error(self, n: int) -> float:
        """Return the standard error of the difference of means over n seeds."""
        return math.sqrt(sum(self.variances) / n)

    def freedom(self, n: int) -> float:
        """Return the degrees of freedom: n - 1 if paired, else Welch and Satterthwaite's."""
        return (n - 1) * sum(self.variances) ** 2 / sum(v**2 for v in self.variances)


def power_of_difference(effect: float, spread: Spread, n: int) -> float:
    """Return how often a two-sided t-test at 5 % of n seeds shows a true difference `effect`."""
    shift = effect / spread.error(n)
    bound = _bounds(spread.freedom(n), _LEVEL / 2)
    return float(np.mean(stats.norm.sf(bound - shift) + stats.norm.cdf(-bound - shift)))


def power_of_equivalence(bounds: Bounds, spread: Spread, n: int) -> float:
    """Return how often TOST at 5 % of n seeds shows equivalence where there is no difference."""
    error = spread.error(n)
    bound = _bounds(spread.freedom(n), _LEVEL)
    within = stats.norm.cdf(bounds.high / error - bound) - stats.norm.cdf(
        bounds.low / error + bound
    )
    return float(np.mean(np.maximum(within, 0.0)))


def _bounds(freedom: float, level: float) -> NDArray[np.float64]:
    """Return t's critical value in true standard errors, over the errors that may be seen.

    Averaging over them is the noncentral t distribution, which scipy's own gives as NaN here.
    """
    seen = np.sqrt(stats.chi2.ppf(_QUANTILES, freedom) / freedom)
    return float(stats.t.isf(level, freedom)) * seen


def seeds_needed(power_of: Callable[[int], float], power: float = POWER) -> int | None:
    """Return the least n whose power suffices; None where a million seeds would not."""
    high = 2
    while power_of(high) < power:
        high *= 2
        if high > _MOST_SEEDS:
            return None
    low = high // 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle) >= power else (middle, high)
    return high


def smallest_shown(spread: Spread, n: int, power: float = POWER) -> float:
    """Return the smallest true difference that n seeds show with that power."""
    error = spread.error(n)
    most = 4 * error * (1 + float(stats.t.isf(_LEVEL / 2, spread.freedom(n))))
    return float(
        optimize.brentq(lambda effect: power_of_difference(effect, spread, n) - power, 0.0, most)
    )
