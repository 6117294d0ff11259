"""Makes the environment of any task, and says what it needs in order to be drawn."""

from typing import TYPE_CHECKING

from datasets.pictures.view import usable_renderer
from datasets.registry import family_of, played_task, require_extra, task
from datasets.spec import DataError, TaskSpec

if TYPE_CHECKING:
    import gymnasium


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
    require_extra(family_of(spec))
    played = played_task(spec)
    require_extra(family_of(played))
    return family_of(played).make_env(played, success_timing)


def renderer(task_name: str) -> str | None:
    """What MUJOCO_GL must be before the simulator is imported so that `make_env(task_name).view()` can draw; None where
    that does not matter. Raises DataError, which says what to install, where this machine cannot draw the task."""
    source = family_of(task(task_name))
    require_extra(source)
    return usable_renderer() if source.NEEDS_OPENGL else None


def check_timing(spec: TaskSpec, success_timing: str) -> None:
    """Raises DataError for a timing that the task does not have."""
    if success_timing not in spec.success_timings:
        timings = " or ".join(f"'{timing}'" for timing in spec.success_timings)
        raise DataError(f"unknown success timing '{success_timing}' of {spec.name}; it is {timings}")


def solved_so_far(before: bool | None, told: bool | None, success_rule: str) -> bool | None:
    """Whether an episode counts as solved if it ends after this step.

    Args:
        before: the same after the step before; None before the first one.
        told: the step's `info["success"]`; None where it tells of none.
    """
    if success_rule == "last":
        return told
    return before if told is None else bool(before or told)
