"""Whether the actions and rewards of data are on the scale of the task's: what is not is refused, unless accepted."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.spec import ACTION_LIMIT, DataError, Dataset, TaskSpec

_SLACK = 1e-3  # of rounding beyond [-1, 1]
_SMALL = 0.1  # of the largest action of a whole file: it is in other units
_SAME_REWARD = 1e-4
_REMEDY = "actions must be scaled to [-1, 1], which absolute poses and the units of a device are not"


class ActionScale:
    """Clips the actions of a data set to [-1, 1], block by block, and counts the rows that go beyond.

    Args:
        refuses: rows far beyond are an error, unless the user accepts them; else they are clipped like any other.
        remedy: what the error says of it.
    """

    def __init__(self, dataset: Dataset, file: Path, *, refuses: bool, remedy: str = _REMEDY) -> None:
        self._file, self._refuses, self._remedy = file, refuses, remedy
        self._is_users = not dataset.domain
        self._is_accepted = "actions" in dataset.options.accept
        self._rows = self._beyond = 0
        self._largest, self._place = 0.0, ("", 0)  # the largest absolute value, its key and row

    def clipped(
        self, action: np.ndarray, key: str, first_row: int = 0, *, counted: np.ndarray | None = None
    ) -> np.ndarray:
        """(n, A) float32 inside [-1, 1] of the rows of `key` from `first_row` on; `counted` (n,) bool: transitions."""
        sizes = np.abs(action).max(axis=1, initial=0)
        sizes = sizes if counted is None else np.where(counted, sizes, 0)
        self._rows += len(action) if counted is None else int(counted.sum())
        self._beyond += int((sizes > 1).sum())
        if len(sizes) and sizes.max() > self._largest:
            self._largest, self._place = float(sizes.max()), (key, first_row + int(sizes.argmax()))
        return action.clip(-ACTION_LIMIT, ACTION_LIMIT).astype(np.float32, copy=False)

    def lines(self) -> list[str]:
        """A line on what was clipped, once all blocks were. Raises DataError for what is refused."""
        is_far = self._largest > 1 + _SLACK
        key, row = self._place
        if self._is_accepted and not is_far:
            raise DataError(f"{self._file}: its actions lie in [-1, 1]; leave out --accept actions")
        if self._is_users and 0 < self._largest < _SMALL:
            return [
                f"{self._file}: no action is beyond {self._largest:.3g} in size, though the task takes them in "
                "[-1, 1]: are they in other units?"
            ]
        if not self._beyond:
            return []
        what = (
            f"{self._file}: key '{key}' is {self._largest:.6g} in row {row}; that is the largest in size, and "
            f"{share_of(self._beyond, self._rows)} lie beyond [-1, 1]"
        )
        if not is_far or self._is_accepted or not self._refuses:
            return [f"{what}; they are clipped"]
        accept = ", or have them clipped with --accept actions" if self._is_users else ""
        raise DataError(f"{what}; {self._remedy}{accept}")


class RewardScale:
    """Compares the rewards of a user's file with those that a task can give, block by block."""

    def __init__(self, dataset: Dataset, file: Path, task: TaskSpec) -> None:
        self._file, self._task = file, task
        self._is_accepted = "rewards" in dataset.options.accept
        self._rows = self._foreign = self._solved = self._ends = self._going_on = self._unsolved = 0
        self._low, self._high = np.inf, -np.inf

    def add(self, reward: np.ndarray, terminated: np.ndarray) -> None:
        """(n,) each, of transitions."""
        if self._task.least_reward is None or not len(reward):
            return
        whole = np.rint(reward)
        is_known = (np.abs(reward - whole) <= _SAME_REWARD) & (whole >= self._task.least_reward) & (whole <= 0)
        self._rows += len(reward)
        self._foreign += int((~is_known).sum())
        self._solved += int((whole == 0).sum())
        self._ends += int(terminated.sum())
        self._going_on += int(((whole == 0) & ~terminated).sum())
        self._unsolved += int(((whole != 0) & terminated).sum())
        self._low, self._high = min(self._low, float(reward.min())), max(self._high, float(reward.max()))

    def lines(self) -> list[str]:
        """A line on what the rewards may not be meant to be. Raises DataError for what is refused."""
        task = self._task
        if self._is_accepted:
            if self._foreign:
                return [f"{self._file}: {self._what()}; taken as they are"]
            raise DataError(f"{self._file}: its rewards are those that {task.name} gives; leave out --accept rewards")
        if self._foreign:
            hint = "subtract 1 from every reward" if (self._low, self._high) == (0, 1) else "give it the task's"
            raise DataError(f"{self._file}: {self._what()}; {hint}, or take them as they are with --accept rewards")
        return [f"{self._file}: {line}" for line in self._doubts()]

    def _doubts(self) -> Iterator[str]:
        """A line each on rewards that the task gives, but not so."""
        task, least = self._task, self._task.least_reward
        if not self._rows or least is None:
            return
        if self._solved == self._rows and not self._ends:
            yield (
                f"every reward is 0, which {task.name} gives only where it is solved, but the task never ends: are "
                "they 0 until solved, then 1?"
            )
        elif self._going_on or self._unsolved:
            yield (
                f"{task.name} ends where its reward is 0, but here {share_of(self._going_on, self._rows)} have 0 and "
                f"do not end the task, and {self._unsolved:,} end it with another reward: do flags and rewards tell "
                "the same task?"
            )
        if self._low == -1 > least:
            yield f"no reward is below -1, though {task.name} gives down to {least}: are they of a sparse task?"

    def _what(self) -> str:
        least = self._task.least_reward
        known = "-1 until solved, then 0" if least == -1 else f"whole numbers from {least} to 0, which is solved"
        return (
            f"rewards are none of {self._task.name}'s in {share_of(self._foreign, self._rows)}: they reach from "
            f"{self._low:.6g} to {self._high:.6g}, the task's are {known}"
        )


def share_of(count: int, total: int) -> str:
    """Like "2 of 1,000 rows (0.2%)"."""
    return f"{count:,} of {total:,} rows ({100 * count / max(total, 1):.3g}%)"
