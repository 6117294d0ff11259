"""Robomimic's tasks, played in robosuite. Imports the simulator: import this module inside a function."""

# robosuite's attributes have no types:
# pyright: reportAttributeAccessIssue=false

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np

from datasets.numpy_seed import seeded_numpy
from datasets.pictures.mujoco import MujocoView, free_camera, named_cameras
from datasets.pictures.view import View
from datasets.robomimic.tasks import ACTION_DIM, ENV_KWARGS, ENV_NAMES, OBS_KEYS, ROBOSUITE_GENERATION
from datasets.spec import DataError, TaskSpec


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Keeps robosuite from remarking on optional packages, and from choosing the renderer of the whole process.

    It sets MUJOCO_GL to `egl`, whatever it is, and asks that MUJOCO_EGL_DEVICE_ID be among CUDA's visible devices.
    """
    renderer, device = os.environ.get("MUJOCO_GL"), os.environ.pop("MUJOCO_EGL_DEVICE_ID", None)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        for name, value in (("MUJOCO_GL", renderer), ("MUJOCO_EGL_DEVICE_ID", device)):
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


with _quiet_import():
    import robosuite

    from datasets.robomimic import fast as robomimic_fast

OBJECT = "object-state"  # robosuite's name of what the files call `object`
# Closer than the package's `frontview`, and with more of the arm than its `agentview`; metres and degrees.
WHOLE_SCENE = {"lookat": (-0.1, 0.0, 1.0), "distance": 1.5, "azimuth": 155.0, "elevation": -20.0}


class RobomimicTask(gymnasium.Env):
    """A task as published for offline-to-online learning: low-dimensional observations, reward -1 until it is solved.

    Differs from robosuite's own environment, `robosuite`, in what a seed decides: all of an episode but its actions.
    """

    def __init__(self, spec: TaskSpec, package: bool = False) -> None:
        """`package` asks for robosuite's own slower steps and resets, which have the same results."""
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        self.robosuite: Any = robosuite_env(ENV_NAMES[spec.domain], package=package)
        self._max_episode_steps = spec.max_episode_steps
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """First observation (O,) float32; the same one for the same seed, whatever has happened before."""
        super().reset(seed=seed)
        with seeded_numpy(int(self.np_random.integers(2**32)) if seed is None else seed):
            self.robosuite.reset()
        self._steps = 0
        # Again, as in the published protocol: a reset tells zeros in place of the object's pose relative to the hand.
        return observation(self.robosuite._get_observations(force_update=True)), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One control step of 50 ms. Raises ValueError for an action that is not seven finite numbers."""
        action = np.asarray(action, np.float64)
        if action.shape != (ACTION_DIM,) or not all(map(math.isfinite, action.tolist())):
            raise ValueError(f"an action is {ACTION_DIM} finite numbers, got {action}")
        observed, reward, _, _ = self.robosuite.step(np.minimum(np.maximum(action, -1.0), 1.0))
        self._steps += 1
        success = bool(reward > 0)
        truncated = not success and self._steps >= self._max_episode_steps
        return observation(observed), float(reward) - 1.0, success, truncated, {"success": success}

    def view(self) -> View:
        """Of the arm and its table; robosuite's cameras are there as well."""
        model = self.robosuite.sim.model._model
        whole = free_camera(model, **WHOLE_SCENE)
        return MujocoView(
            lambda: (self.robosuite.sim.model._model, self.robosuite.sim.data._data),
            self.robosuite.control_freq,
            ("whole", *named_cameras(model)),
            {"whole": whole},
            hidden_groups=(0,),
        )

    def close(self) -> None:
        self.robosuite.close()


def robosuite_env(env_name: str, env_kwargs: Mapping[str, Any] = ENV_KWARGS, package: bool = False) -> Any:
    """robosuite's environment of the name and arguments in a file's `env_args`, without pictures.

    Raises DataError where the installed robosuite is of another generation than the data.
    """
    installed = robosuite.__version__
    if not installed.startswith(f"{ROBOSUITE_GENERATION}."):
        raise DataError(
            f"robosuite {installed} is installed, the tasks are those of {ROBOSUITE_GENERATION}: "
            "its observations of objects have another order; install it: pip install robosuite==1.5.1"
        )
    kwargs = deepcopy(dict(env_kwargs)) | {"has_renderer": False, "has_offscreen_renderer": False}
    with seeded_numpy(0):  # it draws an episode when it is made
        if not package and env_kwargs == ENV_KWARGS and env_name in robomimic_fast.ENVS and robomimic_fast.is_known():
            return robomimic_fast.ENVS[env_name](**kwargs)
        return robosuite.make(env_name, **kwargs)


def observation(observed: Mapping[str, np.ndarray]) -> np.ndarray:
    """(O,) float32: the published selection, in its order, of what robosuite observes."""
    parts = [observed[OBJECT if key == "object" else key] for key in OBS_KEYS]
    return np.concatenate(parts).astype(np.float32)
