"""Confidence sequences: limits of the difference of two agents' mean scores that hold at every number of seeds at once,
so that one may look after each seed and stop when the limits say enough.

A mean is tested by betting on it (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by
betting", JRSS B 86, 1-27): whoever bets at odds that are fair if the mean is m keeps, on average, at most what he has,
so the capital exceeds 1 / error ever with a probability of at most `error` (Ville). Scores of the two agents are bet on
apart, and the capitals multiplied: of any pair of means (Turner, Ly and Gruenwald 2024, "Generic e-variables for exact
sequential k-sample tests", JSPI 230, 106116). That takes scores in [0, 1], and nothing else of their distribution;
runs of different seeds must be independent, those of the two agents by the same seed not negatively correlated. Equal
evaluation episodes, or a shared offline phase, correlate them positively if at all.
"""

import math
from dataclasses import dataclass

import numpy as np

from analysis.statistics.metrics import CONFIDENCE, Array

STAKES = (0.5, 1.0)  # of the capital, each by half of it: all of it wins most where runs differ little
STEP = 0.001  # between means that are tested; limits are rounded outward
MEANS = np.linspace(STEP, 1.0, round(1.0 / STEP))


@dataclass(frozen=True)
class Sequence:
    """Limits of a difference of means after k seeds of each agent, at place k; each errs ever, at any k, with the
    probability of 1 - CONFIDENCE at most."""

    low: Array  # (K + 1,) not decreasing; -1 at place 0
    high: Array  # (K + 1,) not increasing; 1 at place 0

    @property
    def decided(self) -> int | None:
        """The first number of seeds at which 0 is no longer between the limits; None: it still is."""
        apart = (self.low > 0.0) | (self.high < 0.0)
        return int(apart.argmax()) if apart.any() else None


def difference_sequence(first: Array, second: Array) -> Sequence:
    """Of mean(first) - mean(second), for scores (K,) of each in [0, 1] in the order of their seeds.

    As many of one as of the other: limits by 5 and 2 seeds would be on another way than those by 3 and 3 that follow,
    and the capital of several ways together exceeds 1 / error more often.
    """
    if len(first) != len(second):
        raise ValueError(f"as many scores of each agent are needed, not {len(first)} and {len(second)}")
    for scores in (first, second):
        if not np.all((scores >= 0.0) & (scores <= 1.0)):
            raise ValueError("scores must lie in [0, 1]")
    low = lower_limits(capital(first), capital(1.0 - second))
    high = -lower_limits(capital(second), capital(1.0 - first))
    return Sequence(low, high)


def capital(scores: Array) -> Array:
    """Logarithm of what a bettor on a higher mean than m has after k scores, (K + 1, M), m in MEANS; it falls
    with m.

    A stake c is multiplied by 1 + c (x / m - 1) by a score x.
    """
    with np.errstate(divide="ignore"):  # all is lost
        won = np.log1p(np.array(STAKES)[:, None, None] * (scores[:, None] / MEANS - 1.0)).cumsum(1)
    total = np.logaddexp.reduce(won, 0) - math.log(len(STAKES))
    return np.concatenate([np.zeros((1, len(MEANS))), total])


def lower_limits(above: Array, below: Array) -> Array:
    """The least difference of means that is not refuted so far, (K + 1,).

    Args:
        above: capital of bets that the first mean is higher than m, (K + 1, M).
        below: capital of bets that the second one is lower: that 1 minus it is higher than m.
    """
    enough = -math.log(1.0 - CONFIDENCE)
    limits = np.empty(len(above))
    for number, (rising, falling) in enumerate(zip(above, below[:, ::-1], strict=True)):
        # Between two neighbours there is at least the capital of the end where it is lower: the upper one for the first
        # mean, the lower one for the second.
        first = np.searchsorted(-rising, falling - enough, side="right")  # first interval that is not refuted
        limits[number] = (np.append(MEANS - STEP, np.inf)[first] - MEANS).min()
    return np.maximum.accumulate(np.clip(limits, -1.0, 1.0))
