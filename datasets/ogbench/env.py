"""OGBench's environments. Imports the simulator: import this module inside a function."""

import math
import warnings
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import ogbench  # noqa: F401  registers the environments with gymnasium
from ogbench.manipspace.envs.cube_env import CubeEnv
from ogbench.manipspace.envs.manipspace_env import ManipSpaceEnv
from ogbench.manipspace.envs.puzzle_env import PuzzleEnv
from ogbench.manipspace.envs.scene_env import SceneEnv

from datasets.numpy_seed import seeded_numpy
from datasets.ogbench.fast import FastCubeEnv, is_known
from datasets.ogbench.tasks import DOMAINS, TASK_IDS, Goal
from datasets.pictures.mujoco import MujocoView, named_cameras
from datasets.pictures.view import View
from datasets.spec import TaskSpec

# OGBench makes a new action space at every reset, and gymnasium remarks each time that its bounds become float32.
warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32.*")


class SingleTask(gymnasium.Wrapper):
    """A single-task environment: float32 observations, actions clipped to [-1, 1], `success` as its only info.

    A sparse reward is 0 where the task is solved and -1 elsewhere. `reset(seed=…)` seeds everything that the package
    draws from; it leaves NumPy's global generator as it was.
    """

    def __init__(self, env: gymnasium.Env, spec: TaskSpec) -> None:
        super().__init__(env)
        if isinstance(env.unwrapped, FastCubeEnv):
            env.unwrapped.full_info = False
        self.task = spec
        self.sparse = DOMAINS[spec.domain].sparse
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """First observation (O,) float32; the same one for the same seed."""
        if seed is None:
            obs, _ = self.env.reset(options=options)
        else:
            # Mazes draw the start from the global generator, and act at random for a few steps before it.
            self.env.unwrapped.action_space.seed(seed)
            with seeded_numpy(seed):
                obs, _ = self.env.reset(seed=seed, options=options)
        return obs.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One control step (arm 50 ms, ant 100 ms, humanoid 25 ms). Raises ValueError for other than finite numbers."""
        action = np.asarray(action)
        if action.shape != (self.task.action_dim,) or not all(map(math.isfinite, action.tolist())):
            # The simulator would broadcast the one and silently reset its state at the other.
            raise ValueError(f"an action is {self.task.action_dim} finite numbers, got {action}")
        obs, reward, terminated, truncated, info = self.env.step(np.minimum(np.maximum(action, -1.0), 1.0))
        reward = float(reward)
        if self.sparse:
            reward = 0.0 if reward == 0.0 else -1.0
        return obs.astype(np.float32), reward, bool(terminated), truncated, {"success": bool(info["success"])}

    def view(self) -> View:
        """Of arms through OGBench's cameras; mazes are seen from above unless another one is asked for."""
        env: Any = self.env.unwrapped
        if isinstance(env, ManipSpaceEnv):
            return MujocoView(lambda: (env.model, env.data), 1 / env.control_timestep())
        cameras = ("top", *named_cameras(env.model))
        return MujocoView(lambda: (env.model, env.data), 1 / env.dt, cameras, {"top": env.custom_camera})


class _SeededActions(ManipSpaceEnv):
    """Its resets act at random for a few steps; in the package each action is from a new, unseeded space.

    Positions and velocities are put back after them, but the solver goes on from its last forces. What follows differs
    by some 1e-17 at first, and in the last digits of observations after a while in contact.
    """

    @cached_property
    def action_space(self) -> gymnasium.spaces.Box:  # pyright: ignore[reportIncompatibleVariableOverride]
        return super().action_space

    def reset(self, *args: Any, seed: int | None = None, **kwargs: Any) -> tuple[np.ndarray, dict]:
        if seed is not None:
            self.action_space.seed(seed)
        return super().reset(*args, seed=seed, **kwargs)


class SeededCubeEnv(_SeededActions, CubeEnv):
    """`CubeEnv` whose resets depend on seeds alone."""


class SeededFastCubeEnv(_SeededActions, FastCubeEnv):
    """`FastCubeEnv` whose resets depend on seeds alone."""


class SeededSceneEnv(_SeededActions, SceneEnv):
    """`SceneEnv` whose resets depend on seeds alone."""


class SeededPuzzleEnv(_SeededActions, PuzzleEnv):
    """`PuzzleEnv` whose resets depend on seeds alone."""


def task_env(spec: TaskSpec, success_timing: str, package_step: bool = False) -> gymnasium.Env:
    """OGBench's own environment of a task, float64 observations and full info, with its time limit.

    `package_step` asks for the slower step of the package itself (cubes), which has the same results.
    """
    env_id = f"{spec.domain}-singletask-task{spec.task_id}-v0"
    return _make(env_id, package_step, success_timing=success_timing)


def play_env(domain: str, package_step: bool = False) -> gymnasium.Env:
    """OGBench's environment for collecting data: random objects, one random target after the other, no end."""
    return _make(f"{domain}-v0", package_step, mode="data_collection", terminate_at_goal=False, max_episode_steps=-1)


def _make(env_id: str, package_step: bool, **kwargs: Any) -> gymnasium.Env:
    spec = gymnasium.spec(env_id)
    if env_id.startswith("cube-"):
        spec = replace(spec, entry_point=SeededFastCubeEnv if not package_step and is_known() else SeededCubeEnv)
    elif env_id.startswith("scene-"):
        spec = replace(spec, entry_point=SeededSceneEnv)
    elif env_id.startswith("puzzle-"):
        spec = replace(spec, entry_point=SeededPuzzleEnv)
    # Its observation space is recomputed at every access, so gymnasium's checker would cost a third of each step.
    env = gymnasium.make(spec, disable_env_checker=True, **kwargs)
    if "maze-" in env_id:
        Path(env.unwrapped.fullpath).unlink()  # type: ignore[attr-defined]  # a temporary file that OGBench leaves
    return env


def task_goals(domain: str) -> dict[int, Goal]:
    """What solves each task of a domain."""
    env: Any = _make(f"{domain}-v0", package_step=True).unwrapped
    return {task_id: _goal(env.task_infos[task_id - 1]) for task_id in TASK_IDS}


def _goal(task_info: dict[str, Any]) -> Goal:
    if "goal_xyzs" in task_info:  # cubes
        return Goal(cubes=task_info["goal_xyzs"])
    if "goal_button_states" in task_info:  # puzzles
        return Goal(buttons=task_info["goal_button_states"])
    if "goal_xy" in task_info:  # mazes
        return Goal(place=np.array(task_info["goal_xy"]))
    goal = task_info["goal"]  # scene
    slides = np.array([goal["drawer_pos"], goal["window_pos"]])
    return Goal(cubes=goal["block_xyzs"], buttons=goal["button_states"], slides=slides)
