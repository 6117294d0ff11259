"""The curve of one agent as figures draw it: the mean over runs at each evaluation, with its pointwise band."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.loading.load import Cell, Suite
from analysis.statistics.metrics import Array, Interval, stratified_t


@dataclass(frozen=True)
class Curve:
    """Evaluations of an agent in order: P offline, then Q - 1 online (the hand-over once, as the last offline one)."""

    offline_updates: NDArray[np.int64]  # (P,)
    online_steps: NDArray[np.int64]  # (Q,), the first = 0 = the hand-over
    interval: Interval  # each (P + Q - 1,)

    @property
    def handover(self) -> int:
        """Place of the hand-over among the points."""
        return len(self.offline_updates) - 1


def all_scores(cell: Cell) -> Array:
    """(n, P + Q - 1): offline and online, the hand-over once."""
    return np.concatenate([cell.offline_score, cell.online_score[:, 1:]], axis=1)


def curve_of(suite: Suite, cells: Sequence[Cell]) -> Curve:
    """The curve over the runs of `cells` (of one agent, one per task): the tasks have equal weight."""
    first = cells[0]  # the tasks of an agent share one grid of evaluations
    interval = stratified_t([all_scores(cell) for cell in cells], bounds=suite.measures[first.task].bounds)
    return Curve(first.offline_updates, first.online_steps, interval)
