"""Tasks: data, environment, and what success means. Imports no simulator until one is needed."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.ogbench_cube import DEFAULT_TASK_ID, NUM_CUBES, TASKS
from datasets.ogbench_generate import ensure, generate
from datasets.spec import DataError, TaskSpec, nearest
from datasets.store import describe, load_task
from datasets.transitions import Transitions

if TYPE_CHECKING:
    import gymnasium

# MuJoCo picks its renderer when it is imported, and a machine without one warns or fails. MUJOCO_GL=egl renders.
os.environ.setdefault("MUJOCO_GL", "disable")

__all__ = [
    "TASKS",
    "DataError",
    "TaskSpec",
    "Transitions",
    "describe",
    "ensure",
    "generate",
    "load",
    "make_env",
    "nearest",
    "task",
]


def task(name: str) -> TaskSpec:
    """The task of a name; a bare domain ("cube-double") is its default task. Raises DataError for an unknown one."""
    full_name = f"{name}-task{DEFAULT_TASK_ID}" if name in NUM_CUBES else name
    if full_name not in TASKS:
        known = f"{', '.join(NUM_CUBES)} with -task1 to -task5"
        raise DataError(f"unknown task '{name}'{nearest(name, TASKS)}; tasks are {known}")
    return TASKS[full_name]


def load(task_name: str, dataset: str | None = None, data_dir: str | Path | None = None) -> Transitions:
    """Transitions of a task from `dataset`, or from the task's own data set.

    Looks in `data_dir`, where given, before the usual places. Raises DataError, which says what to do, for data that
    are missing, damaged or of another domain.
    """
    spec = task(task_name)
    return load_task(spec, dataset or spec.dataset, data_dir)


def make_env(task_name: str, success_timing: str = "post") -> "gymnasium.Env":
    """The environment of a task: float32 observations, actions clipped to [-1, 1], truncation at its time limit.

    Reward, termination and `info["success"]` describe the state after the action ("post", as in the published results)
    or before it ("pre", as in the data and in OGBench from 1.2.0). Raises DataError for an unknown task or timing.
    """
    spec = task(task_name)
    if success_timing not in ("post", "pre"):
        raise DataError(f"unknown success timing '{success_timing}'; it is 'post' or 'pre'")

    from datasets.ogbench_env import CubeTask, task_env

    return CubeTask(task_env(spec, success_timing), spec)
