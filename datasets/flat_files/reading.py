"""Reads flat D4RL-like files, npz or HDF5: one row per step in arrays of equal length.

Files differ in how they tell an episode's end and in what is known beyond it, so that not every row is a transition:
`_plan` decides. Rewards and observations are taken as they are, in whatever scale.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.flat_files.columns import Column, open_file
from datasets.source import Block, Rows
from datasets.spec import ACTION_LIMIT, DataError, Dataset, Origin, TaskSpec

_ANY_END = ("dones", "done")  # beside a key of time limits, these flag both kinds of ends
_ACTION_SLACK = 1e-3  # of rounding beyond [-1, 1]
_SAME_OBS = 1e-5  # relative to max(1, |x|): next_obs[t] and obs[t + 1] are the same state, rounded differently


def origin(dataset: Dataset, files: list[Path]) -> Origin:
    """Generated if the name says so or a file does; else published, or a user's. Raises DataError for a bad file."""
    if dataset.recipe is not None or any(_notes(file).get("origin") == "generated" for file in files):
        return "generated"
    return "user" if dataset.suite == "user" else "published"


def recipe_of(file: Path) -> object:
    """The recipe that a generated file says it follows; None where it says none or cannot be read."""
    try:
        return _recipe(_notes(file))
    except DataError:
        return None


def rewarded_task(file: Path) -> str | None:
    """Name of the task whose rewards a file holds, as exports and recordings tell it; None where it does not.

    Raises DataError for a file that cannot be read.
    """
    recipe = _recipe(_notes(file))
    name = recipe.get("task") if isinstance(recipe, dict) else None
    return name if isinstance(name, str) else None


def _recipe(notes: dict[str, str]) -> object:
    try:
        return json.loads(notes["recipe"])
    except (KeyError, ValueError):
        return None


def read(dataset: Dataset, files: list[Path], tasks: list[TaskSpec]) -> Rows:
    """The rows of a flat file, which all tasks reward alike; twice through the file, little of it in memory.

    Raises DataError, naming file, key and row, for arrays that are missing, damaged, of the wrong shape, not finite, or
    beyond [-1, 1] where they are actions.
    """
    (file,) = files
    task = tasks[0]
    with open_file(file) as content:
        columns = content.meanings()
        num_rows = _check_shapes(columns, task)
        plan = _plan(columns, num_rows, task.max_episode_steps)
    if not (plan.copies.astype(bool) & ~plan.is_final).any():
        raise DataError(f"{file} holds no transition whose end is known, only {num_rows} rows that end episodes")
    return Rows(int(plan.copies.sum()), _blocks(file, plan, tasks))


def is_told_on_arrival(file: Path) -> bool:
    """The file pairs each state with the reward and the end that came with it, as d4rl-pybullet wrote its data.

    A row there is (observation, action taken in it, reward and flags received on arriving in it), and every episode
    has a row more than transitions: its final observation beside an action of zeros. Told from that action, and from
    the first reward of each episode, which is 0. Read as D4RL's own files are, every reward would go to the action
    after the one that earned it.
    """
    with open_file(file) as content:
        columns = content.meanings()
        if "next_obs" in columns:
            return False
        ends = columns["terminated"].flags()
        if "truncated" in columns:
            ends |= columns["truncated"].flags()
        return _tells_on_arrival(columns, ends, columns["reward"].scalars())


# Which rows are transitions.


class _Plan(NamedTuple):
    """What becomes of each of a file's N rows."""

    copies: np.ndarray  # (N,) uint8: 0 dropped, 1 one row, 2 a transition and the final row after it
    is_final: np.ndarray  # (N,) bool: the one row holds only a final observation
    reward: np.ndarray  # (N,) float32, of the transition from this row
    terminated: np.ndarray  # (N,) bool, likewise


def _plan(columns: "dict[str, Column]", num_rows: int, max_episode_steps: int) -> _Plan:
    reward = columns["reward"].scalars()
    terminated = columns["terminated"].flags()
    truncated = columns["truncated"].flags() if "truncated" in columns else None
    ends = terminated.copy() if truncated is None else terminated | truncated
    if "next_obs" not in columns and _tells_on_arrival(columns, ends, reward):
        return _plan_on_arrival(reward, terminated, truncated, ends, max_episode_steps)
    if truncated is not None and columns["terminated"].key in _ANY_END:
        terminated &= ~truncated
    if "next_obs" in columns:
        ends |= _discontinuities(columns, num_rows)
    elif truncated is None:  # D4RL's rule for files that tell no time limits
        ends |= _steps_since_end(ends) % max_episode_steps == max_episode_steps - 1
    ends[-1] = True
    # Where the file does not tell the state after an episode's last step, the step is of use only if it terminated:
    # nothing is bootstrapped from beyond it, so the last observation may stand for the one that is unknown. Else the
    # transition is dropped, and its observation becomes the final one of the transition before it.
    is_final = np.zeros_like(ends) if "next_obs" in columns else ends & ~terminated
    copies = 1 + (ends & ~is_final).astype(np.uint8)
    copies[is_final & _starts(ends)] = 0  # an episode of which no transition is known
    return _Plan(copies, is_final, reward, terminated)


def _plan_on_arrival(
    reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray | None, ends: np.ndarray, max_episode_steps: int
) -> _Plan:
    """Reward and termination move to the row before, that of the action that led to them."""
    ends = ends.copy()
    ends[-1] = True  # collection stopped
    # Gym's wrapper made every time limit a terminal state; where the file does not tell them apart, the number of
    # steps does.
    at_limit = _steps_since_end(ends) == max_episode_steps if truncated is None else truncated
    copies = np.ones(len(ends), np.uint8)
    copies[ends & _starts(ends)] = 0  # collection stopped right after a reset
    return _Plan(copies, ends, np.append(reward[1:], reward[:1]), np.append((terminated & ~at_limit)[1:], False))


def _tells_on_arrival(columns: "dict[str, Column]", ends: np.ndarray, reward: np.ndarray) -> bool:
    # Where episodes are padded with a row of zeros, as some files in D4RL's own layout are, its reward is 0 as well.
    if not ends.any() or reward[_starts(ends)].any() or not reward[ends].any():
        return False
    start = 0
    for action in columns["action"].blocks():
        if action[ends[start : start + len(action)]].any():
            return False
        start += len(action)
    return True


def _starts(ends: np.ndarray) -> np.ndarray:
    """(N,) bool: the first row of each episode."""
    return np.append(True, ends[:-1])


def _steps_since_end(ends: np.ndarray) -> np.ndarray:
    """(N,) int64: a row's number within its episode, from 0."""
    rows = np.arange(len(ends))
    return rows - np.maximum.accumulate(np.where(_starts(ends), rows, 0))


def _discontinuities(columns: "dict[str, Column]", num_rows: int) -> np.ndarray:
    """(N,) bool: the next row does not go on where this one led to."""
    found = np.zeros(num_rows, bool)
    start, last = 0, None  # the newest row's next observation
    for obs, next_obs in zip(columns["obs"].blocks(), columns["next_obs"].blocks(), strict=True):
        led_to = next_obs[:-1] if last is None else np.concatenate([last, next_obs[:-1]])
        follows = obs[1:] if last is None else obs
        apart = np.any(np.abs(led_to - follows) > _SAME_OBS * np.maximum(1, np.abs(follows)), axis=1)
        first = start if last is None else start - 1
        found[first : first + len(apart)] = apart
        start, last = start + len(obs), next_obs[-1:]
    return found


def _blocks(file: Path, plan: _Plan, tasks: list[TaskSpec]) -> Iterator[Block]:
    with open_file(file) as content:
        columns = content.meanings()
        start = 0
        streams = [columns[name].blocks() for name in ("obs", "action", "next_obs") if name in columns]
        for obs, action, *next_obs in zip(*streams, strict=True):
            rows = slice(start, start + len(obs))
            beyond = np.abs(action).max(1) > 1 + _ACTION_SLACK
            if beyond.any():
                row = int(beyond.argmax())
                raise DataError(
                    f"{file}: key '{columns['action'].key}' is {np.abs(action[row]).max():.4g} in row {start + row}; "
                    "actions must be scaled to [-1, 1]"
                )
            source = np.repeat(np.arange(len(obs)), plan.copies[rows])
            is_second = np.append(False, source[1:] == source[:-1]) if len(source) else np.zeros(0, bool)
            block_obs = obs[source]
            if next_obs:
                block_obs[is_second] = next_obs[0][source[is_second]]
            final = plan.is_final[rows][source] | is_second
            reward = np.where(final, np.float32(0), plan.reward[rows][source])
            terminated = plan.terminated[rows][source] & ~final
            start += len(obs)
            if len(source):
                yield Block(
                    obs=block_obs,
                    action=action[source].clip(-ACTION_LIMIT, ACTION_LIMIT),
                    final=final,
                    reward={task.name: reward for task in tasks},
                    terminated={task.name: terminated for task in tasks},
                )


def _check_shapes(columns: dict[str, Column], task: TaskSpec) -> int:
    """The number of rows. Raises DataError for arrays that do not fit the task or each other."""
    first = columns["obs"]
    num_rows = first.shape[0] if first.shape else 0
    widths = {"obs": task.obs_dim, "next_obs": task.obs_dim, "action": task.action_dim}
    for meaning, column in columns.items():
        where = f"{column.file}: key '{column.key}' is {column.dtype} {column.shape}"
        if column.dtype.kind not in ("bfiu" if meaning in ("terminated", "truncated") else "fiu"):
            raise DataError(f"{where}, expected numbers")
        if not column.shape or column.shape[0] == 0:
            raise DataError(f"{where}, expected at least one row")
        if meaning in widths and column.shape[1:] != (widths[meaning],):
            raise DataError(f"{where}, task {task.name} needs rows of {widths[meaning]} numbers")
        if meaning not in widths and column.shape[1:] not in ((), (1,)):
            raise DataError(f"{where}, expected one number per row")
        if column.shape[0] != num_rows:
            raise DataError(f"{where}, but '{first.key}' has {num_rows} rows")
    return num_rows


def _notes(file: Path) -> dict[str, str]:
    with open_file(file) as content:
        return content.notes
