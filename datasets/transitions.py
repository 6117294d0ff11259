"""The in-memory form of a data set: flat arrays over the rows of all episodes, memory-mapped."""

import mmap
from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np

from datasets.spec import DataError, Origin


@dataclass(frozen=True, eq=False)
class Transitions:
    """E episodes with N transitions in R = N + E rows; the last row of an episode holds only its final observation.
    Of a task without data all are 0 (`no_transitions`).

    Rewards and terminations are those of the transition from a row to the next, in whatever way the source tells them:
    OGBench's describe the state of their own row, Robomimic's the one its action leads to. Raises DataError where the
    arrays do not fit together.
    """

    obs: np.ndarray  # (R, O) float32; the next observation of row r is obs[r + 1]
    action: np.ndarray  # (R, A) float32 in [-1, 1]; meaningless in a final row
    reward: np.ndarray  # (R,) float32; meaningless in a final row
    terminated: np.ndarray  # (R,) bool, the task ends here: nothing is bootstrapped from beyond this transition
    final: np.ndarray  # (R,) bool, last row of its episode
    name: str
    origin: Origin
    content_hash: str  # SHA-256, hexadecimal
    warnings: tuple[str, ...] = ()  # a line each on what the data may not be meant to be
    episode_ends: np.ndarray = field(init=False)  # (E,) int64, transitions up to and including each episode

    def __post_init__(self) -> None:
        num_rows = len(self.final)
        expected = {
            "obs": (np.float32, 2),
            "action": (np.float32, 2),
            "reward": (np.float32, 1),
            "terminated": (np.bool_, 1),
            "final": (np.bool_, 1),
        }
        for key, (dtype, ndim) in expected.items():
            array = getattr(self, key)
            if array.dtype != dtype or array.ndim != ndim or len(array) != num_rows:
                raise DataError(
                    f"{self.name}: '{key}' is {array.dtype} {array.shape}, "
                    f"expected {np.dtype(dtype)} with {ndim} axes and {num_rows} rows"
                )
        ends = np.zeros(0, np.int64) if self.origin == "none" else episode_ends(self.final, where=self.name)
        object.__setattr__(self, "episode_ends", ends)

    @property
    def num_transitions(self) -> int:
        """N, without the final rows."""
        return len(self.final) - self.num_episodes

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.episode_ends)

    def row(self, transition: int) -> int:
        """The row of a transition."""
        return transition + int(np.searchsorted(self.episode_ends, transition, side="right"))

    def num_bytes(self, first_row: int = 0) -> int:
        """Bytes of what sampling reads of the rows from `first_row` on."""
        arrays = (self.obs, self.action, self.reward, self.terminated)
        return sum(array[first_row:].nbytes for array in arrays)


def no_transitions(obs_dim: int, action_dim: int) -> Transitions:
    """What a run from scratch has in place of data: the widths of an observation and of an action, and no row."""
    wide, flat = np.zeros((0, obs_dim), np.float32), np.zeros(0, np.float32)
    flags = np.zeros(0, bool)
    return Transitions(wide, np.zeros((0, action_dim), np.float32), flat, flags, flags, "none", "none", content_hash="")


def is_mapped(array: np.ndarray) -> TypeGuard[np.memmap]:
    """The array is a whole mapped file, as `np.load(…, mmap_mode=…)` gives it, not a view of one."""
    return isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap)


def episode_ends(final: np.ndarray, where: str) -> np.ndarray:
    """Transitions up to and including each episode, (E,) int64, from the (R,) flags of final rows.

    Raises DataError, which begins with `where`, unless the rows are whole episodes of at least one transition.
    """
    final_rows = np.flatnonzero(final)
    if len(final_rows) == 0:
        raise DataError(f"{where}: no row ends an episode; the last row of every episode must")
    if final_rows[-1] != len(final) - 1:
        raise DataError(f"{where}: row {len(final) - 1}, the last one, does not end its episode")
    lengths = np.diff(final_rows, prepend=-1) - 1
    if not lengths.all():
        row = final_rows[np.flatnonzero(lengths == 0)[0]]
        raise DataError(f"{where}: row {row} is an episode of its own; an episode takes at least two rows")
    return np.cumsum(lengths, dtype=np.int64)


def row_form(
    obs: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    terminated: np.ndarray,
    *,
    next_obs: np.ndarray,
    ends: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """obs, action, final, reward and terminated of rows, as `Transitions` has them, given n transitions.

    After each that `ends` (n,) bool an episode follows a final row with its next observation.
    """
    final = np.zeros(len(obs) + int(ends.sum()), bool)
    final[np.flatnonzero(ends) + np.arange(1, ends.sum() + 1)] = True
    rows = {
        "obs": np.empty((len(final), obs.shape[1]), np.float32),
        "action": np.zeros((len(final), action.shape[1]), np.float32),
        "reward": np.zeros(len(final), np.float32),
        "terminated": np.zeros(len(final), bool),
    }
    rows["obs"][~final], rows["obs"][final] = obs, next_obs[ends]
    rows["action"][~final] = action
    rows["reward"][~final] = reward
    rows["terminated"][~final] = terminated
    return rows["obs"], rows["action"], final, rows["reward"], rows["terminated"]
