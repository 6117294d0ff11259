"""Numbers from arrays of scores: per-run scalars and intervals. Pure functions; no files, no drawing.

Each run is reduced to a scalar first, and intervals are over runs: the points of one run are not independent
(Agarwal et al. 2021, arXiv 2108.13264; Patterson et al., JMLR 25, 2024). Letters: n runs, P offline, Q online points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

FINAL_EVALUATIONS = 3  # fixed in advance: the final score is never a maximum over checkpoints
CONFIDENCE = 0.95
SMOKE_SEEDS = 3  # up to here an interval says that the code runs, not who is better
FLOOR_SEEDS = 5

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence limits, all of one shape; NaN limits where a stratum has fewer than two values."""

    mean: Array
    low: Array
    high: Array


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


def stratified_t(
    strata: Sequence[Array], confidence: float = CONFIDENCE, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Interval:
    """Mean over strata of the means within, with a t interval; strata[k] is (n_k, ...), the result (...).

    Degrees of freedom after Satterthwaite, so that strata may differ in size and variance; one stratum gives Student's
    interval. NaN values are absent runs: a stratum without any makes the mean NaN, with one value only the limits.
    Without any spread the interval has no width, which says little about few runs. Limits are clipped to `bounds`.
    """
    if not strata:
        raise ValueError("stratified_t: needs at least one stratum")
    means, squared_errors, freedom = [], [], []
    with np.errstate(invalid="ignore", divide="ignore"):
        for stratum in strata:
            values = np.asarray(stratum, dtype=np.float64)
            present = ~np.isnan(values)
            count = present.sum(axis=0)
            mean = np.where(present, values, 0.0).sum(axis=0) / count
            variance = np.square(np.where(present, values - mean, 0.0)).sum(axis=0) / (count - 1)
            means.append(mean)
            squared_errors.append(np.where(count > 1, variance, np.nan) / count / len(strata) ** 2)
            freedom.append(count - 1)
        mean = np.mean(means, axis=0)
        parts = np.array(squared_errors)
        squared_error = parts.sum(axis=0)
        degrees = squared_error**2 / (parts**2 / np.array(freedom)).sum(axis=0)
        half = np.where(squared_error == 0.0, 0.0, stdtrit(degrees, 0.5 + confidence / 2) * np.sqrt(squared_error))
    return Interval(mean, np.clip(mean - half, *bounds), np.clip(mean + half, *bounds))
