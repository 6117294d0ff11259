"""Who is better: differences of two agents with intervals, probability of improvement, Holm's correction, power.

Two agents are compared on the tasks that both have, task by task, every task of equal weight. All runs are evaluated on
the same episode seeds, so that what a seed makes easy or hard for everyone drops out of a difference. Runs that go on
from one offline phase are not independent: they are compared phase by phase.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import nctdtr, stdtrit

from analysis.statistics.metrics import (
    CONFIDENCE,
    RESAMPLES,
    Array,
    Interval,
    Terms,
    binomial_variance,
    clipped,
    widened,
    wilson,
)

MOST_SEEDS = 1_000  # beyond which "how many more seeds" is answered by "none would do"
# From this noncentrality on Welch's test finds a difference in 97 % of repetitions, even with one degree of freedom;
# SciPy's distribution is NaN at some numbers from 36 on.
CERTAIN = 28.0


@dataclass(frozen=True)
class Comparison:
    """One agent against another over common tasks; numbers are floats in arrays without axes."""

    difference: Interval  # of the means, first minus second
    p_value: float  # two-sided, of no difference
    probability: Interval  # that a run of the first beats one of the second, ties counted half
    ties: float  # share of pairs of runs with equal scores
    seeds_needed: int | None  # per task and agent to tell this difference apart (`seeds_to_separate`); None: too many


def compare(
    first: Sequence[Array],
    second: Sequence[Array],
    paired: bool = False,
    episodes: int | None = None,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Comparison:
    """Compares runs first[k] (n_k,) with second[k] (m_k,) of the same tasks k.

    paired: run i of the first and run i of the second go on from one offline phase (equal lengths).
    episodes: behind the number of one run, for success rates: their binomial noise is the least variance that a run is
    taken to have, so that runs that all succeed, or all fail, are not taken to be without any.
    bounds: of a difference.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"compare: {len(first)} and {len(second)} tasks; needs the same tasks on both sides")
    difference, p_value = mean_difference(first, second, paired, episodes)
    probability, ties = improvement_probability(first, second)
    return Comparison(
        difference=clipped(difference, bounds),
        p_value=float(p_value),
        probability=probability,
        ties=ties,
        seeds_needed=seeds_to_separate(first, second, episodes=episodes),
    )


def mean_difference(
    first: Sequence[Array],
    second: Sequence[Array],
    paired: bool = False,
    episodes: int | None = None,
    confidence: float = CONFIDENCE,
) -> tuple[Interval, Array]:
    """Difference of the means over tasks with its t interval (Welch's on one task), and its two-sided p-value."""
    share = 1.0 / len(first)
    if paired:
        if any(len(a) != len(b) for a, b in zip(first, second, strict=True)):
            raise ValueError("mean_difference: paired runs come in equal numbers")
        gaps = [a - b for a, b in zip(first, second, strict=True)]
        floors = [2.0 * noise_of([a, b], episodes) for a, b in zip(first, second, strict=True)]
        terms, weights = _terms(gaps, floors), np.full(len(gaps), share)
    else:
        floors = [noise_of([runs], episodes) for runs in (*first, *second)]
        terms = _terms([*first, *second], floors)
        weights = np.array([share] * len(first) + [-share] * len(second))
    return terms.combined(weights, confidence)


def _terms(strata: Sequence[Array], floors: Sequence[float]) -> Terms:
    """Terms of strata that each have a least variance of their own."""
    single = [Terms.of([stratum], floor) for stratum, floor in zip(strata, floors, strict=True)]
    return Terms(
        np.concatenate([term.mean for term in single]),
        np.concatenate([term.squared_error for term in single]),
        np.concatenate([term.freedom for term in single]),
    )


def noise_of(runs: Sequence[Array], episodes: int | None) -> float:
    """Variance of one run's success rate by its `episodes` alone, at the mean rate of `runs`; 0 without episodes."""
    if not episodes:
        return 0.0
    rates = np.concatenate(runs)
    rates = rates[~np.isnan(rates)]
    return binomial_variance(float(rates.sum()) * episodes, len(rates) * episodes, episodes)


def improvement_probability(
    first: Sequence[Array], second: Sequence[Array], confidence: float = CONFIDENCE
) -> tuple[Interval, float]:
    """Probability that a run of the first beats one of the second, and the share of ties (they count half).

    Mean over tasks of the Mann-Whitney statistic; the interval resamples the runs of both sides within tasks. Where
    no run of one side lies among those of the other, it is Wilson's, of as many runs as the smaller side has.
    """
    wins = [0.5 + 0.5 * np.sign(a[:, None] - b[None, :]) for a, b in zip(first, second, strict=True)]
    ties = [float((a[:, None] == b[None, :]).mean()) for a, b in zip(first, second, strict=True)]
    estimate = np.array(np.mean([table.mean() for table in wins]), dtype=np.float64)
    counts = [len(runs) for runs in (*first, *second)]
    if min(counts) < 2:
        return Interval(estimate, np.array(np.nan), np.array(np.nan)), float(np.mean(ties))
    if all(np.ptp(table) == 0.0 for table in wins):
        return wilson(float(estimate), len(wins) * min(counts), confidence=confidence), float(np.mean(ties))
    drawn = np.mean([_resampled_mean(table, task) for task, table in enumerate(wins)], axis=0)
    return widened(estimate, drawn, counts, confidence, (0.0, 1.0)), float(np.mean(ties))


def _resampled_mean(table: Array, task: int) -> Array:
    """Means (R,) of a table (n, m) with rows and columns drawn anew."""
    rows, columns = (_drawn_shares(size, 2 * task + side) for side, size in enumerate(table.shape))
    return (rows @ table * columns).sum(axis=1)


@lru_cache(maxsize=256)
def _drawn_shares(size: int, stream: int) -> Array:
    """(R, size): how often each of `size` runs is drawn, as a share. The same ones for all pairs of agents: what is
    drawn follows from the numbers of runs, and so do equal intervals from equal results."""
    generator = np.random.default_rng([size, stream])
    return generator.multinomial(size, np.full(size, 1.0 / size), size=RESAMPLES) / size


def holm(p_values: Sequence[float] | Array, reachable: Sequence[Callable[[float], float]] | None = None) -> Array:
    """Holm's step-down correction of p-values (k,): each may be held against alpha whatever the others are. NaN, of a
    single run, tells nobody apart: 1.

    reachable: for each test the probability, under equality, that its p-value is at most a given one, where that is
    less than the given one itself: tests of few runs reach few p-values (Tarone 1990), and cost the others that much.
    """
    p_values = np.nan_to_num(np.asarray(p_values, dtype=np.float64), nan=1.0)
    order = np.argsort(p_values, kind="stable")
    if reachable is None:
        scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    else:
        left = [[reachable[other] for other in order[rank:]] for rank in range(len(order))]
        scaled = np.array([sum(share(p_values[k]) for share in shares) for k, shares in zip(order, left, strict=True)])
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return corrected


def leaders(
    strata: Sequence[Sequence[Array]], paired: NDArray[np.bool_], episodes: int | None = None
) -> NDArray[np.bool_]:
    """Which of k agents are bold: the best mean and all that cannot be told from it, if any can be (k,).

    strata[j] are the runs of agent j on the tasks in question; paired (k, k) says which two share offline phases. The
    best is compared with every other one, Holm over the comparisons, at 5 %. Without anyone to tell apart nobody is.
    """
    means = np.array([np.mean([runs.mean() for runs in of_agent]) for of_agent in strata])
    if np.isnan(means).all() or len(means) < 2:
        return np.zeros(len(means), dtype=bool)
    best = int(np.nanargmax(means))
    others = [j for j in range(len(means)) if j != best and not math.isnan(means[j])]
    p_values = [float(mean_difference(strata[best], strata[j], bool(paired[best, j]), episodes)[1]) for j in others]
    apart = holm(p_values) < 1.0 - CONFIDENCE
    bold = np.zeros(len(means), dtype=bool)
    bold[[best, *(j for j, is_apart in zip(others, apart, strict=True) if not is_apart)]] = True
    return bold if apart.any() else np.zeros(len(means), dtype=bool)


def seeds_to_separate(
    first: Sequence[Array],
    second: Sequence[Array],
    power: float = 0.8,
    alpha: float = 0.05,
    episodes: int | None = None,
) -> int | None:
    """Seeds per task and agent with which a Welch test would find this difference in a share `power` of repetitions.

    After Colas et al. 2018 (arXiv 1806.08295), with the difference and the spread seen so far taken for the true ones:
    a difference that looks large by chance makes the answer too small. None where MOST_SEEDS would not do, or where
    there is no difference or only one run.
    """
    terms = _terms([*first, *second], [noise_of([runs], episodes) for runs in (*first, *second)])
    half = len(first)
    gap = abs(float(np.mean(terms.mean[:half]) - np.mean(terms.mean[half:])))
    counts = np.array([np.count_nonzero(~np.isnan(runs)) for runs in (*first, *second)])
    per_run = terms.squared_error * counts / half**2  # each term's part of the squared error, times the seeds it has
    if gap == 0.0 or not np.isfinite(per_run).all():
        return None
    if not per_run.any():
        return 2

    def enough(seeds: int) -> bool:
        freedom = per_run.sum() ** 2 / (per_run**2).sum() * (seeds - 1)
        noncentrality = gap / math.sqrt(per_run.sum() / seeds)
        if noncentrality > CERTAIN:
            return True
        return bool(1.0 - nctdtr(freedom, noncentrality, stdtrit(freedom, 1.0 - alpha / 2)) >= power)

    # Power grows with the seeds: the first number that is enough is found by halving.
    return bisect.bisect_left(range(MOST_SEEDS + 1), True, lo=2, key=enough) if enough(MOST_SEEDS) else None
