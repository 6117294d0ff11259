"""Are two sets of runs equal? The runs behind a published number, and the exact permutation test on both sides' runs.

If runs of both sides come from one distribution, every split of them into two sides was as likely as the one that was
seen. Splits are counted, not drawn, so that a verdict is a pure function of the numbers. That is exact for few seeds,
for success that is all or nothing, and without any spread, where a t test is not.

Where only a mean and a spread are published, runs that have both stand for the published ones: half of them on either
side of the mean (fewer on one side where success has no room), the spread of a bootstrap interval corrected for the
number of seeds. Without a spread it is the widest that the mean allows: runs that either solve the task or do not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.published.points import PublishedPoint
from analysis.published.sources import protocol_of
from analysis.statistics.metrics import Array

RATE_GRID = 1_000  # success rates are counted in thousandths
DIFFERENCE_GRID = 500  # differences of a task, where they are summed over tasks, in steps of 0.002
BOOTSTRAP_Z = 1.959964  # half width of a 95 % bootstrap interval in standard errors


@dataclass(frozen=True)
class Sample:
    """Success rates, or normalised returns, of the runs of one side at one point, or runs that stand for them."""

    mean: float
    values: Array  # (n,)
    eval_episodes: int | None  # per run; None: not known
    bounds: tuple[float, float] = (0.0, 1.0)  # of a run's number; none for returns

    @property
    def squared_error(self) -> float:
        """Of the mean; not below what the evaluation episodes alone would give. NaN for a single run."""
        n = len(self.values)
        if n < 2:
            return math.nan
        if not np.isfinite(self.bounds).all():
            return float(self.values.var(ddof=1) / n)
        episodes = self.eval_episodes or 50
        likely = (self.values.sum() * episodes + 1) / (n * episodes + 2)
        return float(max(self.values.var(ddof=1), likely * (1 - likely) / episodes) / n)


def published_sample(point: PublishedPoint) -> Sample:
    """The runs of a published point; where only mean and spread are known, runs that have both."""
    episodes = protocol_of(point.source, point.method).eval_episodes
    n = point.num_seeds
    if point.values or n == 1:
        return Sample(point.mean, np.array(point.values or [point.mean]), episodes, point.bounds)
    if not math.isnan(point.low):
        error = (point.high - point.low) / 2 / BOOTSTRAP_Z
        spread = error * math.sqrt(n) * math.sqrt(n / (n - 1))  # resamples of n runs are too close to each other
    elif not math.isnan(point.std):
        spread = point.std * math.sqrt(n / (n - 1))  # sources do not say which of the two deviations they give
    elif not np.isfinite(point.bounds).all():
        return Sample(point.mean, np.full(n, point.mean), episodes, point.bounds)
    else:
        whole, part = divmod(n * point.mean, 1)
        solved = np.r_[np.ones(int(whole)), part, np.zeros(n)][:n]
        return Sample(point.mean, solved, episodes)
    return Sample(point.mean, spread_out(point.mean, spread, n, point.bounds), episodes, point.bounds)


def spread_out(mean: float, spread: float, count: int, bounds: tuple[float, float] = (0.0, 1.0)) -> Array:
    """(count,): numbers within `bounds` on two places, of this mean and deviation, as even as there is room."""
    low, high = bounds
    best, missed = np.full(count, mean), math.inf
    for below in sorted(range(1, count), key=lambda k: abs(2 * k - count)):
        above = count - below
        unit = np.r_[np.full(below, -math.sqrt(above / below)), np.full(above, math.sqrt(below / above))]
        values = mean + spread * math.sqrt((count - 1) / count) * unit
        outside = float(max(low - values.min(), values.max() - high, 0.0))
        if outside < missed - 1e-9:
            best, missed = values, outside
    return np.clip(best, low, high)


# ------------------------------------------------------------------------------------------ the permutation test


@dataclass(frozen=True)
class Splits:
    """Every split of the runs of both sides into two sides of these sizes: the differences of means they give.

    size (m,): |difference| of a split, descending; tail (m,): share of splits with at least that size. `observed` is
    the index of the one that was seen.
    """

    size: Array
    tail: Array
    observed: int

    @property
    def p(self) -> float:
        return float(self.tail[self.observed])

    def reachable(self, p: float) -> float:
        """Probability, under equality, of a p-value of at most `p`."""
        below = self.tail[self.tail <= p * (1 + 1e-9)]
        return float(below[-1]) if len(below) else 0.0


def split_differences(ours: Array, theirs: Array) -> tuple[Array, Array, int]:
    """Differences of means (m,), their probabilities (m,), and the index of the observed one.

    Counts the subsets of len(ours) runs by their sum: exact for rates on RATE_GRID, in no time for dozens of runs.
    """
    rates = np.rint(np.concatenate([ours, theirs]) * RATE_GRID).astype(np.int64)
    unit = max(1, int(np.gcd.reduce(rates)))
    rates //= unit
    n, m, total = len(ours), len(theirs), int(rates.sum())
    ways = np.zeros((n + 1, total + 1))  # [runs taken, their sum]
    ways[0, 0] = 1.0
    for rate in rates:
        ways[1:, rate:] += ways[:-1, : total + 1 - rate].copy()
    sums = np.flatnonzero(ways[n])
    counts = ways[n, sums]
    values = (sums / n - (total - sums) / m) * unit / RATE_GRID
    return values, counts / counts.sum(), int(np.searchsorted(sums, rates[:n].sum()))


def ranked(values: Array, shares: Array, observed: int) -> Splits:
    """Splits by the size of their difference, equal sizes put together."""
    size: Array = np.round(np.abs(values), 9).astype(np.float64)
    seen = size[observed]
    size, place = np.unique(size, return_inverse=True)
    share = np.zeros(len(size))
    np.add.at(share, place, shares)
    return Splits(size[::-1], np.minimum(np.cumsum(share[::-1]), 1.0), int(np.flatnonzero(size[::-1] == seen)[0]))


def on_unit_scale(pairs: Sequence[tuple[Sample, Sample]]) -> list[tuple[Array, Array]]:
    """The values of both sides: rates as they are, returns shifted and scaled alike so that none is below 0 and no two
    of a task are more than 1 apart. The test looks at which splits differ by more, which neither changes."""
    both = [(ours.values, theirs.values) for ours, theirs in pairs]
    whole = [np.concatenate(values) for values in both]
    span = max(1.0, *(float(np.ptp(values)) for values in whole)) if whole else 1.0
    floors = [min(0.0, float(values.min())) for values in whole]
    return [((ours - low) / span, (theirs - low) / span) for (ours, theirs), low in zip(both, floors, strict=True)]


def equality_test(pairs: Sequence[tuple[Sample, Sample]]) -> Splits:
    """The test of equality on `pairs` (ours, published), one per task: splits of each task, differences summed."""
    tasks = [split_differences(ours, theirs) for ours, theirs in on_unit_scale(pairs)]
    if len(tasks) == 1:
        return ranked(*tasks[0])
    total, observed = np.ones(1), 0
    for values, shares, seen in tasks:
        places = np.rint(values * DIFFERENCE_GRID).astype(np.int64) + DIFFERENCE_GRID
        of_task = np.zeros(2 * DIFFERENCE_GRID + 1)
        np.add.at(of_task, places, shares)
        total = np.convolve(total, of_task)
        observed += int(places[seen])
    differences_of_sum = (np.arange(len(total)) / DIFFERENCE_GRID - len(tasks)) / len(tasks)
    possible = total > 0.0
    place = int(possible[:observed].sum())
    return ranked(differences_of_sum[possible], total[possible], place)
