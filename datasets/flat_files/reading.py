"""Reads flat D4RL-like files, npz or HDF5: one row per step in arrays of equal length.

Files differ in how they tell an episode's end (`ends`, `steps`) and in what is known beyond it, so that not every row
is a transition: `_plan` decides. Rewards and observations are taken as they are, in whatever scale.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.flat_files.columns import FLAGS, KEYS, PER_EPISODE, READ_ONCE, REQUIRED, Content, open_file
from datasets.flat_files.ends import read_ends, starts_of, steps_since_end
from datasets.flat_files.steps import follow
from datasets.scale import ActionScale
from datasets.source import Block, Rows
from datasets.spec import DataError, Dataset, Origin, TaskSpec


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


def read(dataset: Dataset, files: list[Path], tasks: list[TaskSpec], *, on_arrival: bool = False) -> Rows:
    """The rows of a flat file, which all tasks reward alike; its observations are read twice, a block at a time.

    Args:
        on_arrival: the file is in d4rl-pybullet's layout, as `is_told_on_arrival` has it.

    Raises DataError, naming file, key and row, for arrays that are missing, damaged, of the wrong shape, not finite, or
    beyond [-1, 1] where they are actions, and for keys that contradict each other.
    """
    (file,) = files
    task = tasks[0]
    with open_file(file) as content:
        num_rows = _check_shapes(content, task)
        plan = (_plan_on_arrival if on_arrival else _plan)(content, num_rows, task.max_episode_steps)
    if not (plan.copies.astype(bool) & ~plan.is_final).any():
        raise DataError(f"{file} holds no transition whose end is known, only {num_rows} rows that end episodes")
    warnings = [f"{file}: {line}" for line in plan.warnings]
    scale = ActionScale(dataset, file, refuses=True)
    return Rows(int(plan.copies.sum()), _blocks(file, plan, tasks, scale, warnings), warnings)


def is_told_on_arrival(file: Path) -> bool:
    """The file pairs each state with the reward and the end that came with it, as d4rl-pybullet wrote its data.

    A row there is (observation, action taken in it, reward and flags received on arriving in it), and every episode
    has a row more than transitions: its final observation beside an action of zeros. Told from that action, and from
    the first reward of each episode, which is 0. Read as D4RL's own files are, every reward would go to the action
    after the one that earned it. Only of data of PyBullet's tasks does this say anything: sparse demonstrations that
    come to rest look alike.
    """
    with open_file(file) as content:
        if content.spelled("next_obs") or content.notes or not content.spelled("terminated"):
            return False
        ends, reward = _flagged_ends(content), content.column("reward").scalars()
        # Where episodes are padded with a row of zeros, as some files in D4RL's own layout are, its reward is 0 too.
        if not ends.any() or reward[starts_of(ends)].any() or not reward[ends].any():
            return False
        start = 0
        for action in content.column("action").blocks():
            if action[ends[start : start + len(action)]].any():
                return False
            start += len(action)
        return True


# Which rows are transitions.


class _Plan(NamedTuple):
    """What becomes of each of a file's N rows."""

    copies: np.ndarray  # (N,) uint8: 0 dropped, 1 one row, 2 a transition and the final row after it
    is_final: np.ndarray  # (N,) bool: the one row holds only a final observation
    knows_next: np.ndarray  # (N,) bool: the final row is the row's next observation, else its observation again
    reward: np.ndarray  # (N,) float32, of the transition from this row
    terminated: np.ndarray  # (N,) bool, likewise
    warnings: tuple[str, ...] = ()


def _plan(content: Content, num_rows: int, max_episode_steps: int) -> _Plan:
    told = read_ends(content, num_rows)
    ends, knows_next, warnings = follow(content, told, max_episode_steps)
    # Where the file does not tell the state after an episode's last step, the step is of use only if it terminated:
    # nothing is bootstrapped from beyond it, so the last observation may stand for the one that is unknown. Else the
    # transition is dropped, and its observation becomes the final one of the transition before it.
    is_final = told.no_transition | (ends & ~told.terminated & ~knows_next)
    copies = 1 + (ends & ~is_final).astype(np.uint8)
    copies[is_final & starts_of(ends)] = 0  # an episode of which no transition is known
    return _Plan(copies, is_final, knows_next, content.column("reward").scalars(), told.terminated, warnings)


def _plan_on_arrival(content: Content, num_rows: int, max_episode_steps: int) -> _Plan:
    """Reward and termination move to the row before, that of the action that led to them."""
    reward, terminated = content.column("reward").scalars(), content.column("terminated").flags()
    ends = _flagged_ends(content)
    ends[-1] = True  # collection stopped
    # Gym's wrapper made every time limit a terminal state; where the file does not tell them apart, the number of
    # steps does.
    timeouts = content.spelled("truncated")
    at_limit = timeouts[0].flags() if timeouts else steps_since_end(ends) == max_episode_steps
    copies = np.ones(num_rows, np.uint8)
    copies[ends & starts_of(ends)] = 0  # collection stopped right after a reset
    return _Plan(
        copies,
        is_final=ends,
        knows_next=np.zeros(num_rows, bool),
        reward=np.append(reward[1:], reward[:1]),
        terminated=np.append((terminated & ~at_limit)[1:], False),
    )


def _flagged_ends(content: Content) -> np.ndarray:
    ends = content.column("terminated").flags()
    for column in content.spelled("truncated"):
        ends |= column.flags()
    return ends


def _blocks(file: Path, plan: _Plan, tasks: list[TaskSpec], scale: ActionScale, warnings: list[str]) -> Iterator[Block]:
    with open_file(file) as content:
        start = 0
        action_key = content.key("action")
        columns = [content.column("obs"), content.column("action"), *content.spelled("next_obs")[:1]]
        streams = [column.blocks() for column in columns]
        for obs, action, *next_obs in zip(*streams, strict=True):
            rows = slice(start, start + len(obs))
            is_transition = (plan.copies[rows] > 0) & ~plan.is_final[rows]
            action = scale.clipped(action, action_key, start, counted=is_transition)
            source = np.repeat(np.arange(len(obs)), plan.copies[rows])
            is_second = np.append(False, source[1:] == source[:-1]) if len(source) else np.zeros(0, bool)
            block_obs = obs[source]
            if next_obs:
                led_to = is_second & plan.knows_next[rows][source]
                block_obs[led_to] = next_obs[0][source[led_to]]
            final = plan.is_final[rows][source] | is_second
            reward = np.where(final, np.float32(0), plan.reward[rows][source])
            terminated = plan.terminated[rows][source] & ~final
            start += len(obs)
            if len(source):
                yield Block(
                    obs=block_obs,
                    action=action[source],
                    final=final,
                    reward={task.name: reward for task in tasks},
                    terminated={task.name: terminated for task in tasks},
                )
        warnings += scale.lines()


def _check_shapes(content: Content, task: TaskSpec) -> int:
    """The number of rows. Raises DataError for arrays that do not fit the task or each other."""
    first = content.column("obs")
    num_rows = first.shape[0] if first.shape else 0
    widths = {"obs": task.obs_dim, "next_obs": task.obs_dim, "action": task.action_dim}
    for required in REQUIRED:
        content.column(required)
    for meaning, column in [(name, column) for name in KEYS for column in content.spelled(name)]:
        if meaning in READ_ONCE and column is not content.column(meaning):
            continue  # the first counts
        where = f"{column.file}: key '{column.key}' is {column.dtype} {column.shape}"
        if column.dtype.kind == "O":
            raise DataError(f"{where}, which holds objects (lists of unequal arrays, or text), expected numbers")
        if column.dtype.kind not in ("bfiu" if meaning in FLAGS or meaning == "end" else "fiu"):
            raise DataError(f"{where}, expected numbers")
        if not column.shape or column.shape[0] == 0:
            raise DataError(f"{where}, expected at least one row")
        if meaning in widths and column.shape[1:] != (widths[meaning],):
            hint = "; is it transposed?" if column.shape[:1] == (widths[meaning],) and len(column.shape) == 2 else ""
            if len(column.shape) == 3:
                hint = "; put the steps of each episode, without its padding, one after the other"
            raise DataError(f"{where}, task {task.name} needs rows of {widths[meaning]} numbers{hint}")
        if meaning not in widths and column.shape[1:] not in ((), (1,)):
            raise DataError(f"{where}, expected one number per row")
        if meaning not in PER_EPISODE and column.shape[0] != num_rows:
            raise DataError(f"{where}, but '{first.key}' has {num_rows} rows")
    return num_rows


def _notes(file: Path) -> dict[str, str]:
    with open_file(file) as content:
        return content.notes
