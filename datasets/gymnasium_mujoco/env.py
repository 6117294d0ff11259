"""Gymnasium's MuJoCo environments. Imports the simulator: import this module inside a function."""

import math
import warnings

import gymnasium
import numpy as np

from datasets.gymnasium_mujoco.tasks import environment_id
from datasets.pictures.view import View
from datasets.spec import TaskSpec


class GymnasiumTask(gymnasium.Wrapper):
    """A robot of Gymnasium: float32 observations, actions in [-1, 1] times the robot's own limit, 1000 steps, no info.

    An episode depends on its seed and its actions alone, whatever was played before it.
    """

    def __init__(self, spec: TaskSpec) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*-v4 is out of date", DeprecationWarning)
            super().__init__(gymnasium.make(environment_id(spec.name), disable_env_checker=True))
        self._scale = np.float32(spec.action_scale)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """First observation (O,) float32; the same one for the same seed."""
        obs, _ = self.env.reset(seed=seed, options=options)
        return obs.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One control step of an action (A,), clipped to [-1, 1]. Raises ValueError for one not of A finite numbers."""
        action = np.asarray(action, np.float32)
        if action.shape != self.action_space.shape or not all(map(math.isfinite, action.tolist())):
            raise ValueError(f"an action is {self.action_space.shape} finite numbers, got {action}")
        obs, reward, terminated, truncated, _ = self.env.step(action.clip(-1.0, 1.0) * self._scale)
        return obs.astype(np.float32), float(reward), bool(terminated), bool(truncated), {}

    def view(self) -> View:
        """As Gymnasium itself draws it."""
        from datasets.pictures.mujoco import gymnasium_view

        return gymnasium_view(self.env.unwrapped)
