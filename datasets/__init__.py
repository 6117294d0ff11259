"""Tasks: data, environment, and what success means. Imports no simulator until one is needed."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.generate import ensure, generate
from datasets.pictures.view import usable_renderer
from datasets.registry import (
    TASKS,
    default_dataset,
    domains,
    kinds,
    parse_name,
    published,
    require_extra,
    source_of,
    task,
    unavailable,
)
from datasets.spec import DataError, TaskSpec, nearest
from datasets.store import check_dataset, describe, get, load_task, made_here, verify
from datasets.transitions import Transitions
from datasets.user_files.source import register

if TYPE_CHECKING:
    import gymnasium

# MuJoCo picks its renderer when it is imported, and a machine without one warns or fails. MUJOCO_GL=egl renders.
os.environ.setdefault("MUJOCO_GL", "disable")

__all__ = [
    "TASKS",
    "DataError",
    "TaskSpec",
    "Transitions",
    "check_dataset",
    "check_timing",
    "default_dataset",
    "describe",
    "domains",
    "ensure",
    "generate",
    "get",
    "kinds",
    "load",
    "made_here",
    "make_env",
    "nearest",
    "parse_name",
    "published",
    "register",
    "renderer",
    "task",
    "unavailable",
    "verify",
]


def load(task_name: str, dataset: str | None = None, data_dir: str | Path | None = None) -> Transitions:
    """Transitions of a task from `dataset`, or from the task's own data set.

    Looks in `data_dir`, where given, before the usual places. Raises DataError, which says what to do, for data that
    are missing, damaged or of another domain.
    """
    spec = task(task_name)
    return load_task(spec, dataset or spec.dataset, data_dir)


def make_env(task_name: str, success_timing: str = "post") -> "gymnasium.Env":
    """The environment of a task: float32 observations, actions clipped to [-1, 1], truncation at its time limit.

    `reset(seed=…)` decides all of an episode but its actions. Reward, termination and `info["success"]` describe the
    state after the action ("post", as in the published results) or before it ("pre", as in OGBench's data and in its
    environments from 1.2.0); tasks without a notion of success have no such info. Raises DataError for an unknown task
    or timing, and for one whose simulator is not installed. `view()` of the environment gives pictures
    (`datasets.pictures.view.View`).
    """
    spec = task(task_name)
    check_timing(spec, success_timing)
    source = source_of(spec)
    require_extra(source)
    return source.make_env(spec, success_timing)


def renderer(task_name: str) -> str | None:
    """What MUJOCO_GL must be before the simulator is imported so that `make_env(task_name).view()` can draw; None where
    that does not matter. Raises DataError, which says what to install, where this machine cannot draw the task."""
    source = source_of(task(task_name))
    require_extra(source)
    return usable_renderer() if source.NEEDS_OPENGL else None


def check_timing(spec: TaskSpec, success_timing: str) -> None:
    """Raises DataError for a timing that the task does not have."""
    if success_timing not in spec.success_timings:
        known = " or ".join(f"'{timing}'" for timing in spec.success_timings)
        raise DataError(f"unknown success timing '{success_timing}' of {spec.name}; it is {known}")
