"""Agents of a suite compared two by two by their final scores."""

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from analysis.loading.load import Cell, Suite
from analysis.loading.read import SUCCESS
from analysis.statistics import comparisons, metrics
from analysis.statistics.comparisons import Comparison
from analysis.statistics.metrics import Array
from analysis.statistics.scores import ALL_TASKS, evaluations_behind, paired_by_phase


@dataclass(frozen=True)
class Pair:
    """Two agents compared by their final scores on the tasks that both have."""

    task: str  # or ALL_TASKS
    first: str
    second: str
    num_tasks: int
    seeds: tuple[int, int]  # fewest runs per task of each
    paired: bool  # their runs share offline phases
    result: Comparison
    p_holm: float  # corrected over the pairs of the task

    @property
    def significant(self) -> bool:
        """Whether the difference stands at 5 % whatever the other pairs are."""
        return self.p_holm < 1.0 - metrics.CONFIDENCE

    @property
    def head_to_head(self) -> bool:
        """Whether there are seeds enough to claim that one is better."""
        return min(self.seeds) >= metrics.HEAD_TO_HEAD_SEEDS


def finals(cell: Cell) -> Array:
    """Final scores of the runs of a cell that have come to their end, (n,)."""
    scores = metrics.score_final(cell.online_score)
    return scores[~np.isnan(scores)]


def pairs_of(suite: Suite, agents: Collection[str], task: str = ALL_TASKS) -> list[Pair]:
    """All pairs of `agents`, in their order, with finished runs on a task, or over all tasks that both have."""
    tasks = suite.tasks if task == ALL_TASKS else (task,)
    measure = suite.measure if task == ALL_TASKS else suite.measures[task]
    if measure is None:
        return []
    pairs = []
    for first, second in itertools.combinations(agents, 2):
        cells = [
            (suite.cells[name, first], suite.cells[name, second])
            for name in tasks
            if (name, first) in suite.cells and (name, second) in suite.cells
        ]
        runs = [(finals(a), finals(b)) for a, b in cells]
        kept = [index for index, (a, b) in enumerate(runs) if len(a) and len(b)]
        if not kept:
            continue
        first_runs, second_runs = [runs[k][0] for k in kept], [runs[k][1] for k in kept]
        paired = all(paired_by_phase(*cells[k]) for k in kept)
        low, high = measure.bounds
        evaluations = min(evaluations_behind("final", cell) for k in kept for cell in cells[k])
        result = comparisons.compare(
            first_runs,
            second_runs,
            paired=paired,
            episodes=suite.eval_episodes * evaluations if measure == SUCCESS else None,
            bounds=(low - high, high - low),
        )
        seeds = min(map(len, first_runs)), min(map(len, second_runs))
        pairs.append(Pair(task, first, second, len(kept), seeds, paired, result, math.nan))
    corrected = comparisons.holm([pair.result.p_value for pair in pairs])
    return [replace(pair, p_holm=float(p)) for pair, p in zip(pairs, corrected, strict=True)]
