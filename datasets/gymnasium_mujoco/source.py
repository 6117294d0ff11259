"""What Gymnasium's MuJoCo offers, by `datasets.source.Family`: tasks that are learned without data."""

from typing import TYPE_CHECKING

from datasets.gymnasium_mujoco.tasks import SUITE, TASKS, named_task, unsupported
from datasets.spec import TaskSpec

if TYPE_CHECKING:
    import gymnasium

__all__ = ["EXTRA", "NEEDS_OPENGL", "SUITE", "TASKS", "make_env", "task", "unsupported"]

EXTRA = None
NEEDS_OPENGL = True

task = named_task


def make_env(spec: TaskSpec, success_timing: str) -> "gymnasium.Env":
    from datasets.gymnasium_mujoco.env import GymnasiumTask

    return GymnasiumTask(spec)
