"""OGBench cube environments. Imports the simulator: import this module inside a function."""

import math
import warnings
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import ogbench.manipspace  # noqa: F401  registers the environments with gymnasium

from datasets.ogbench_cube import ACTION_DIM, TASK_IDS
from datasets.ogbench_fast import FastCubeEnv, is_known
from datasets.spec import TaskSpec

# OGBench makes a new action space at every reset, and gymnasium remarks each time that its bounds become float32.
warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32.*")


class CubeTask(gymnasium.Wrapper):
    """A single-task environment: float32 observations, actions clipped to [-1, 1], `success` as its only info."""

    def __init__(self, env: gymnasium.Env, spec: TaskSpec) -> None:
        super().__init__(env)
        if isinstance(env.unwrapped, FastCubeEnv):
            env.unwrapped.full_info = False
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """First observation (O,) float32; the same one for the same seed."""
        obs, _ = self.env.reset(seed=seed, options=options)
        return obs.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One control step of 50 ms. Raises ValueError for an action that is not five finite numbers."""
        action = np.asarray(action)
        if action.shape != (ACTION_DIM,) or not all(map(math.isfinite, action.tolist())):
            # The simulator would broadcast the one and silently reset its state at the other.
            raise ValueError(f"an action is {ACTION_DIM} finite numbers, got {action}")
        obs, reward, terminated, truncated, info = self.env.step(np.minimum(np.maximum(action, -1.0), 1.0))
        return obs.astype(np.float32), float(reward), bool(terminated), truncated, {"success": bool(info["success"])}


def task_env(spec: TaskSpec, success_timing: str, package_step: bool = False) -> gymnasium.Env:
    """OGBench's own environment of a task, float64 observations and full info, with its time limit.

    `package_step` asks for the slower step of the package itself, which has the same results.
    """
    env_id = f"{spec.domain}-singletask-task{spec.task_id}-v0"
    return _make(env_id, package_step, success_timing=success_timing)


def play_env(domain: str, package_step: bool = False) -> gymnasium.Env:
    """OGBench's environment for collecting data: random cubes, one random target after the other, no end."""
    return _make(f"{domain}-v0", package_step, mode="data_collection", terminate_at_goal=False, max_episode_steps=-1)


def _make(env_id: str, package_step: bool, **kwargs: Any) -> gymnasium.Env:
    spec = gymnasium.spec(env_id)
    if not package_step and is_known():
        spec = replace(spec, entry_point=FastCubeEnv)
    # Its observation space is recomputed at every access, so gymnasium's checker would cost a third of each step.
    return gymnasium.make(spec, disable_env_checker=True, **kwargs)


def goal_positions(domain: str) -> dict[int, np.ndarray]:
    """Goal positions (cubes, 3) in metres of each task of a domain."""
    env: Any = gymnasium.make(f"{domain}-v0", disable_env_checker=True).unwrapped
    return {task_id: env.task_infos[task_id - 1]["goal_xyzs"] for task_id in TASK_IDS}
