"""How much the policy loss's gradient grows along its rollout, from the action back to the noise, and who differs.

A flow step multiplies a gradient by its Jacobian, so norms are averaged and compared by their logarithms.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.loading.gradients import RolloutNorms
from analysis.loading.load import Suite
from analysis.statistics import comparisons
from analysis.statistics.comparisons import Comparison
from analysis.statistics.metrics import Array, Interval, stratified_t

EXPLODES = 10.0  # a growth of so much, or more; 1 / EXPLODES, or less, vanishes
AllNorms = Mapping[tuple[str, str], RolloutNorms]  # by agent and phase


def log10(norms: Array) -> Array:
    """NaN for a gradient that is 0, which has no place on a logarithmic scale."""
    return np.log10(np.where(norms > 0, norms, np.nan))


def over_training(logs: Array) -> Array:
    """(n, P, ...) -> (n, ...): mean over the points that a run has come to, NaN without any."""
    present = ~np.isnan(logs)
    with np.errstate(invalid="ignore"):
        return np.where(present, logs, 0.0).sum(axis=1) / present.sum(axis=1)


def growth_at(points: Array) -> Array:
    """(..., K + 1) norms at the points of a rollout -> (...): log10 of that at the noise over that at its end."""
    return log10(points[..., 0]) - log10(points[..., -1])


@dataclass(frozen=True)
class Growth:
    """Of one agent in one phase, over its tasks."""

    agent: str
    phase: str
    by_task: dict[str, Array]  # (n,) log10, of each run its mean over training
    mean: Interval  # a factor: geometric mean over tasks and runs, with its t interval
    exploding: float  # share of runs whose mean is EXPLODES or more
    vanishing: float  # share of runs whose mean is 1 / EXPLODES or less
    largest: float  # factor at any point of any run


@dataclass(frozen=True)
class GrowthPair:
    """Two agents compared in one phase, on the tasks that both have."""

    phase: str
    first: str
    second: str
    num_tasks: int
    result: Comparison  # of their logarithms
    p_holm: float  # corrected over the pairs of the phase

    @property
    def ratio(self) -> Interval:
        """Of the two factors."""
        return factor(self.result.difference)


def growths_of(suite: Suite, norms: AllNorms) -> list[Growth]:
    """By phase, then agent; runs without a finite norm are left out."""
    found = []
    for (agent, phase), of_phase in sorted(norms.items(), key=lambda item: (item[0][1], item[0][0])):
        tasks = [cell.task for cell in suite.cells_of(agent)]
        points = [growth_at(values) for values in of_phase.by_kind["x"]]
        means = dict(zip(tasks, map(over_training, points), strict=True))
        runs = {task: mean[~np.isnan(mean)] for task, mean in means.items() if not np.isnan(mean).all()}
        if not runs:
            continue
        every = np.concatenate(list(runs.values()))
        found.append(
            Growth(
                agent,
                phase,
                runs,
                factor(stratified_t(list(runs.values()))),
                float(np.mean(every >= np.log10(EXPLODES))),
                float(np.mean(every <= -np.log10(EXPLODES))),
                float(10 ** max(np.nanmax(values) for values in points if not np.isnan(values).all())),
            )
        )
    return found


def growth_pairs(growths: list[Growth]) -> list[GrowthPair]:
    """All pairs of agents within each phase."""
    pairs: list[GrowthPair] = []
    for phase in dict.fromkeys(growth.phase for growth in growths):
        of_phase = []
        for first, second in itertools.combinations([one for one in growths if one.phase == phase], 2):
            common = [task for task in first.by_task if task in second.by_task]
            if common:
                runs: Any = [[one.by_task[task] for task in common] for one in (first, second)]
                result = comparisons.compare(*runs)
                of_phase.append(GrowthPair(phase, first.agent, second.agent, len(common), result, np.nan))
        corrected = comparisons.holm([pair.result.p_value for pair in of_phase])
        pairs += [replace(pair, p_holm=float(p)) for pair, p in zip(of_phase, corrected, strict=True)]
    return pairs


def factor(logs: Interval) -> Interval:
    """An interval of logarithms as one of factors."""
    return Interval(10**logs.mean, 10**logs.low, 10**logs.high)
