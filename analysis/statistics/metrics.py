"""Numbers from arrays of scores: per-run scalars, aggregates and their intervals. Pure functions; no files, no drawing.

Each run is reduced to a scalar first, and intervals are over runs: the points of one run are not independent
(Agarwal et al. 2021, arXiv 2108.13264; Patterson et al., JMLR 25, 2024). Letters: n runs, P offline, Q online points,
R resamples. Whatever is resampled is so with a seed that follows from the numbers themselves: equal results give equal
intervals, to the last bit.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

FINAL_EVALUATIONS = 3  # fixed in advance: the final score is never a maximum over checkpoints
CONFIDENCE = 0.95
SMOKE_SEEDS = 3  # up to here an interval says that the code runs, not who is better
FLOOR_SEEDS = 5
HEAD_TO_HEAD_SEEDS = 10  # the least for a claim that one agent is better than another
RESAMPLES = 2_000  # the limits then lie within 1 % of their width of those of many more
ALIKE = 1e-9  # means of equal episodes may differ by rounding
CHUNK = 4_000_000  # numbers of resampled runs that are in memory at a time

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean (or a mean of the middle, or of comparisons) and its confidence limits, all of one shape.

    NaN limits where a stratum has fewer than two values.
    """

    mean: Array
    low: Array
    high: Array
    wilson: bool = False  # the limits are Wilson's (`spread_or_wilson`)


# --------------------------------------------------------------------------------------------- scalars of a run


def score_offline_end(offline_score: Array) -> Array:
    """(n, P) -> (n,): score at the hand-over."""
    return offline_score[:, -1]


def score_final(online_score: Array, last: int = FINAL_EVALUATIONS) -> Array:
    """(n, Q) -> (n,): mean score of the last evaluations after the hand-over (column 0); NaN without any."""
    final = online_score[:, 1:][:, -last:]
    return final.mean(axis=1) if final.shape[1] else np.full(len(final), np.nan)


def improvement(offline_score: Array, online_score: Array) -> Array:
    """(n, P), (n, Q) -> (n,): final minus hand-over of the same run, hence paired."""
    return score_final(online_score) - score_offline_end(offline_score)


def online_auc(online_steps: NDArray[np.int64], online_score: Array) -> Array:
    """(Q,), (n, Q) -> (n,): mean score over the online phase (trapezoid over environment steps / their range)."""
    if len(online_steps) < 2:
        return np.full(len(online_score), np.nan)
    return np.trapezoid(online_score, online_steps, axis=1) / (online_steps[-1] - online_steps[0])


def regret(online_steps: NDArray[np.int64], online_score: Array) -> Array:
    """(Q,), (n, Q) -> (n,): 1 - online AUC, of evaluations; for success rates. Not the regret of training episodes."""
    return 1.0 - online_auc(online_steps, online_score)


def worst_dip(online_score: Array) -> Array:
    """(n, Q) -> (n,): score at the hand-over (column 0) minus the lowest from there on; 0 for a run that never falls
    below it, NaN for one that has no online evaluation or is not at its end."""
    if online_score.shape[1] < 2:
        return np.full(len(online_score), np.nan)
    return online_score[:, 0] - online_score.min(axis=1)


def steps_to(online_steps: NDArray[np.int64], online_score: Array, threshold: float) -> tuple[Array, NDArray[np.bool_]]:
    """Online steps (n,) to the first evaluation with a score of at least `threshold`, and whether there is one (n,).

    A run that does not get there counts with the whole budget, which makes the mean a restricted mean (up to the
    budget): leaving it out would reward failing. (Q,), (n, Q) -> (n,), (n,). NaN, and not reached, for a run that is
    not at its end and has not got there.
    """
    there = online_score >= threshold
    reached = np.asarray(there.any(axis=1))
    steps = np.where(reached, online_steps[there.argmax(axis=1)], online_steps[-1]).astype(np.float64)
    steps[~reached & np.isnan(online_score).any(axis=1)] = np.nan
    return steps, reached


# ------------------------------------------------------------------------------------------------- means, with t


@dataclass(frozen=True)
class Terms:
    """Independent means with what is known of their errors, all (terms, ...); a linear combination has a t interval."""

    mean: Array
    squared_error: Array  # of the mean; NaN where a single value tells nothing
    freedom: Array  # degrees of freedom of the squared error

    @classmethod
    def of(cls, strata: Sequence[Array], noise: float = 0.0) -> "Terms":
        """One term for each stratum (n_k, ...) of runs; NaN values are absent runs.

        noise: the least variance of one run, where something is known of it beside the spread (`binomial_variance`).
        """
        means, squared_errors, freedom = [], [], []
        with np.errstate(invalid="ignore", divide="ignore"):
            for stratum in strata:
                values = np.asarray(stratum, dtype=np.float64)
                present = ~np.isnan(values)
                count = present.sum(axis=0)
                mean = np.where(present, values, 0.0).sum(axis=0) / count
                variance = np.square(np.where(present, values - mean, 0.0)).sum(axis=0) / (count - 1)
                means.append(mean)
                squared_errors.append(np.where(count > 1, np.maximum(variance, noise), np.nan) / count)
                freedom.append(count - 1)
        return cls(np.array(means), np.array(squared_errors), np.array(freedom))

    def combined(self, weights: Array, confidence: float = CONFIDENCE) -> tuple[Interval, Array]:
        """Sum of weights (terms,) times means with its t interval, and the two-sided p-value of the sum being 0.

        Degrees of freedom after Satterthwaite. Without any spread the interval has no width.
        """
        weights = weights.reshape(-1, *([1] * (self.mean.ndim - 1)))
        mean = (weights * self.mean).sum(axis=0)
        parts = weights**2 * self.squared_error
        squared_error = parts.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            degrees = squared_error**2 / (parts**2 / self.freedom).sum(axis=0)
            half = np.where(squared_error == 0.0, 0.0, stdtrit(degrees, 0.5 + confidence / 2) * np.sqrt(squared_error))
            ratio = np.where(mean == 0.0, 0.0, np.abs(mean) / np.sqrt(squared_error))
        return Interval(mean, mean - half, mean + half), two_sided(ratio, degrees)


def two_sided(ratio: Array, degrees: Array) -> Array:
    """Two-sided p-value of Student's t; 1 at 0 and 0 at infinity, whatever the degrees of freedom."""
    with np.errstate(invalid="ignore"):
        p_value = 2.0 * stdtr(degrees, -np.abs(ratio))
    return np.where(ratio == 0.0, 1.0, np.where(np.isinf(ratio), 0.0, p_value))


def stratified_t(
    strata: Sequence[Array], confidence: float = CONFIDENCE, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Interval:
    """Mean over strata of the means within, with a t interval; strata[k] is (n_k, ...), the result (...).

    Degrees of freedom after Satterthwaite, so that strata may differ in size and variance; one stratum gives Student's
    interval. NaN values are absent runs: a stratum without any makes the mean NaN, with one value only the limits.
    Without any spread the interval has no width (`spread_or_wilson`). Limits are clipped to `bounds`.
    """
    if not strata:
        raise ValueError("stratified_t: needs at least one stratum")
    interval, _ = Terms.of(strata).combined(np.full(len(strata), 1.0 / len(strata)), confidence)
    return clipped(interval, bounds)


def mean_interval(strata: Sequence[Array], bounds: tuple[float, float]) -> Interval:
    """As tables show it: mean over strata (n_k,) with its t interval, or Wilson's where all runs score alike."""
    return spread_or_wilson(stratified_t(strata, bounds=bounds), strata, bounds)


def improvement_interval(strata: Sequence[Array], final: Interval, start: Interval, span: float) -> Interval:
    """Mean over strata (n_k,) of improvements, of at most `span`, with its t interval.

    Where all runs improve alike, one made of the limits of both their ends, by squaring and adding (Newcombe 1998).
    """
    bounds = (-span, span)
    interval = stratified_t(strata, bounds=bounds)
    if not spread_or_wilson(interval, strata, bounds).wilson:
        return interval
    low = interval.mean - np.hypot(final.mean - final.low, start.high - start.mean)
    high = interval.mean + np.hypot(final.high - final.mean, start.mean - start.low)
    return clipped(Interval(interval.mean, low, high, wilson=True), bounds)


def clipped(interval: Interval, bounds: tuple[float, float]) -> Interval:
    """The interval with its limits inside `bounds`; the mean stays."""
    return replace(interval, low=np.clip(interval.low, *bounds), high=np.clip(interval.high, *bounds))


def wilson(
    mean: float, runs: int, bounds: tuple[float, float] = (0.0, 1.0), confidence: float = CONFIDENCE
) -> Interval:
    """Wilson's score interval of a mean of `runs` numbers between two bounds, as if each were one or the other bound.

    That is the widest that such numbers can be spread: 0 of 9 runs is 0 with limits 0 and 0.30.
    """
    low, high = bounds
    rate, z = (mean - low) / (high - low), float(stdtrit(np.inf, 0.5 + confidence / 2))
    scale = 1.0 + z**2 / runs
    centre = (rate + z**2 / (2 * runs)) / scale
    half = z / scale * math.sqrt(rate * (1.0 - rate) / runs + z**2 / (4 * runs**2))
    # At an end the limit is the end itself, which rounding would miss.
    limits = np.array([centre - half if rate > 0.0 else 0.0, centre + half if rate < 1.0 else 1.0]) * (high - low) + low
    return Interval(np.array(mean), limits[0], limits[1], wilson=True)


def spread_or_wilson(interval: Interval, strata: Sequence[Array], bounds: tuple[float, float]) -> Interval:
    """The interval of a mean over runs strata[k] (n_k,), or Wilson's where there is no spread that it could rest on.

    Runs that all score alike say that the next one is likely to, not that it must: of 3 runs without success one in two
    may still have some. Episodes do not count, for those of one run stand or fall together. Over K tasks the smallest
    n_k counts K times. Scores without two bounds, and single runs, are left as they are.
    """
    present = [_present(np.asarray(stratum, dtype=np.float64)) for stratum in strata]
    least = min(map(len, present))
    if least < 2 or not np.isfinite(bounds).all() or any(np.ptp(runs) > ALIKE for runs in present):
        return interval
    return wilson(float(interval.mean), len(present) * least, bounds)


def binomial_variance(successes: float, episodes: int, per_run: int) -> float:
    """Variance of the success rate of `per_run` episodes at a rate of which `successes` of `episodes` are known.

    The rate is taken half a success off the ends (Jeffreys), so that runs that all succeed do not count as certain.
    """
    rate = (successes + 0.5) / (episodes + 1.0)
    return rate * (1.0 - rate) / per_run


# ------------------------------------------------------------------------------------------- other aggregates


def interquartile_mean(values: Array, axis: int = -1) -> Array:
    """Mean of the middle half along `axis`, as scipy's trim_mean with 0.25; NaN values are absent.

    Over runs of several tasks pooled it trims whole tasks, the easiest and the hardest: beside the mean, not instead.
    """
    values = np.moveaxis(values, axis, -1)
    ordered = np.sort(values, axis=-1)  # NaN last
    count = (~np.isnan(values)).sum(axis=-1, keepdims=True)
    cut = count // 4
    rank = np.arange(values.shape[-1])
    middle = (rank >= cut) & (rank < count - cut)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(middle, ordered, 0.0).sum(axis=-1) / middle.sum(axis=-1)


def pooled_iqm(strata: Sequence[Array]) -> Array:
    """(R, n_k, ...) of each task -> (R, ...): interquartile mean over all runs of all tasks."""
    return interquartile_mean(np.concatenate(strata, axis=1), axis=1)


def iqm_interval(
    strata: Sequence[Array], confidence: float = CONFIDENCE, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Interval:
    """Interquartile mean over the runs of all strata (n_k, ...) with its interval, pointwise over the other axes."""
    return bootstrap(strata, pooled_iqm, confidence, bounds)


def performance_profile(strata: Sequence[Array], thresholds: Array, confidence: float = CONFIDENCE) -> Interval:
    """Share of runs (n_k,) that score above each threshold (T,), tasks weighing alike, with a pointwise band."""
    # A mean of success rates may miss its own value by rounding: it does not lie above that.
    above = [(values[:, None] > thresholds + 1e-9).astype(np.float64) for values in map(_present, strata)]
    counts = [len(runs) for runs in above]
    estimate = np.mean([runs.mean(axis=0) for runs in above], axis=0)
    if min(counts) < 2:
        return Interval(estimate, np.full_like(estimate, np.nan), np.full_like(estimate, np.nan))
    generator = generator_of(above)
    # A mean of resampled runs is a product with how often each was drawn.
    shares = [generator.multinomial(count, np.full(count, 1.0 / count), size=RESAMPLES) / count for count in counts]
    drawn = np.mean([share @ runs for share, runs in zip(shares, above, strict=True)], axis=0)
    return widened(estimate, drawn, counts, confidence, (0.0, 1.0))


def bootstrap(
    strata: Sequence[Array],
    statistic: Callable[[Sequence[Array]], Array],
    confidence: float = CONFIDENCE,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    resamples: int = RESAMPLES,
) -> Interval:
    """A statistic of runs with the percentile interval of resampled runs, widened to what few runs leave open.

    strata[k] is (n_k, ...), and `statistic` takes a list of (R, n_k, ...) to (R, ...): a run is drawn within its
    stratum and with all its points, so that bands over time keep runs whole. The percentile interval of few runs is too
    narrow: its distance to the estimate is multiplied by `small_sample_factor`. NaN limits where a stratum has one run.
    """
    strata = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    estimate = statistic([stratum[None] for stratum in strata])[0]
    if min(map(len, strata)) < 2:
        return Interval(estimate, np.full_like(estimate, np.nan), np.full_like(estimate, np.nan))
    generator = generator_of(strata)
    per_chunk = max(1, CHUNK // sum(stratum.size for stratum in strata))
    drawn = [
        statistic([stratum[generator.integers(len(stratum), size=(size, len(stratum)))] for stratum in strata])
        for size in _split(resamples, per_chunk)
    ]
    return widened(estimate, np.concatenate(drawn), [len(stratum) for stratum in strata], confidence, bounds)


def widened(
    estimate: Array, drawn: Array, counts: Sequence[int], confidence: float, bounds: tuple[float, float]
) -> Interval:
    """Percentile limits of `drawn` (R, ...) stretched away from the estimate (...) for strata of `counts` runs."""
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)
    factor = small_sample_factor(counts, confidence)
    return clipped(
        Interval(estimate, estimate + factor * (low - estimate), estimate + factor * (high - estimate)), bounds
    )


def small_sample_factor(counts: Sequence[int], confidence: float = CONFIDENCE) -> float:
    """sqrt(n / (n - 1)) t / z for strata of n runs each: what a bootstrap of few runs lacks in width.

    Resampled spread is too small by (n - 1) / n, and normal quantiles stand where Student's belong; t has the degrees
    of freedom of all strata together.
    """
    runs, freedom = sum(counts), sum(counts) - len(counts)
    quantile = 0.5 + confidence / 2
    return math.sqrt(runs / freedom) * float(stdtrit(freedom, quantile) / stdtrit(np.inf, quantile))


def generator_of(arrays: Sequence[Array]) -> np.random.Generator:
    """Random numbers that follow from the numbers in `arrays` and their shapes alone."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
    return np.random.default_rng(int.from_bytes(digest.digest()[:16], "little"))


def _present(values: Array) -> Array:
    return values[~np.isnan(values)]


def _split(total: int, size: int) -> list[int]:
    """`total` in parts of at most `size`."""
    return [min(size, total - start) for start in range(0, total, size)]
