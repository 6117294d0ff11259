"""What a task is, and the one error that a user of this floor can cause."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


class DataError(Exception):
    """Data or a task name that cannot be used: one line saying what is wrong, where, and what would be right."""


@dataclass(frozen=True)
class TaskSpec:
    """One task: an environment with a fixed goal, and the data set it is trained on unless told otherwise."""

    name: str  # "cube-double-task2"
    suite: str  # "ogbench-cube"
    domain: str  # "cube-double": tasks of one domain share their data
    task_id: int  # 1 to 5
    obs_dim: int
    action_dim: int
    max_episode_steps: int  # the environment truncates after this many steps
    dataset: str  # "cube-double-play-v0"


def nearest(name: str, names: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the name closest to `name`, or the empty string where none is close."""
    matches = get_close_matches(name, list(names), n=1)
    return f" (did you mean '{matches[0]}'?)" if matches else ""
