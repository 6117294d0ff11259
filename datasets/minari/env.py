"""Environments recovered from Minari data sets. Imports gymnasium: import this module inside a function."""

import math

import gymnasium
import numpy as np

from bench.runs.contract import one_line
from datasets.minari.metadata import Metadata, flatten
from datasets.pictures.view import View
from datasets.spec import DataError, TaskSpec


class MinariTask(gymnasium.Wrapper):
    """Flat float32 observations, actions in [-1, 1], and of the environment's info its word on success, if any."""

    def __init__(self, env: gymnasium.Env, spec: TaskSpec, metadata: Metadata) -> None:
        super().__init__(env)
        self._space = metadata.obs_space
        self._box = metadata.action_box
        self._action_dtype = env.action_space.dtype
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """First observation (O,) float32; the same one for the same seed."""
        obs, _ = self.env.reset(seed=seed, options=options)
        return flatten(self._space, obs, 1)[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One step with an action (A,), clipped to [-1, 1]. Raises ValueError for one that is not finite numbers."""
        action = np.asarray(action, np.float64)
        if action.shape != self.action_space.shape or not all(map(math.isfinite, action.tolist())):
            raise ValueError(f"an action is {self._box.dim} finite numbers, got {action}")
        played = self._box.unscaled(action.clip(-1.0, 1.0)).astype(self._action_dtype)
        obs, reward, terminated, truncated, info = self.env.step(played)
        success = info.get("success", info.get("is_success"))
        facts = {} if success is None else {"success": bool(success)}
        return flatten(self._space, obs, 1)[0], float(reward), bool(terminated), bool(truncated), facts

    def view(self) -> View:
        """As gymnasium itself draws it. Raises DataError for an environment of another simulator than MuJoCo."""
        from datasets.pictures.mujoco import gymnasium_view

        return gymnasium_view(self.env.unwrapped)


def recovered_env(spec: TaskSpec, metadata: Metadata) -> gymnasium.Env:
    """The environment for evaluation that the set names, else that of its data. Raises DataError, saying what to
    install, where it cannot be made."""
    from minari import MinariDataset

    played = metadata.played_env
    assert played is not None, spec.played_in
    _require_readable(metadata)
    try:
        # Minari compares installed versions with those the set asks for, and warns where they differ.
        env = MinariDataset(metadata.folder).recover_environment(eval_env=True, disable_env_checker=True)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        requirements = metadata.fields.get("requirements") or [_package(str(played["entry_point"]))]
        packages = " ".join(f"'{requirement}'" for requirement in requirements)
        raise DataError(
            f"{metadata.where}: its environment {played['id']} needs a package that is missing ({one_line(error)}); "
            f"pip install {packages}"
        ) from error
    except (gymnasium.error.Error, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{metadata.where}: its environment {played['id']} cannot be made with the installed packages "
            f"({type(error).__name__}: {one_line(error)})"
        ) from error
    _require_fit(env, spec, metadata)
    if env.spec is None or (env.spec.max_episode_steps or 0) < 1:
        env = gymnasium.wrappers.TimeLimit(env, spec.max_episode_steps)
    return MinariTask(env, spec, metadata)


def _require_readable(metadata: Metadata) -> None:
    """Raises DataError where the installed Minari cannot open the set."""
    from minari import __version__, supported_dataset_versions

    made_by = metadata.fields.get("minari_version")
    if made_by not in supported_dataset_versions:
        readable = ", ".join(sorted(supported_dataset_versions))
        raise DataError(f"{metadata.where}: made by Minari {made_by}, the installed {__version__} reads {readable}")


def _require_fit(env: gymnasium.Env, spec: TaskSpec, metadata: Metadata) -> None:
    """Raises DataError where observations or actions of the environment are not those of the data."""
    obs_dim = gymnasium.spaces.flatdim(env.observation_space)
    if obs_dim != spec.obs_dim:
        raise DataError(
            f"{metadata.where}: the environment observes {obs_dim} numbers with the installed packages, "
            f"its data hold {spec.obs_dim}"
        )
    if env.action_space.shape != metadata.action_box.shape:
        raise DataError(
            f"{metadata.where}: the environment takes actions {env.action_space.shape} with the installed packages, "
            f"its data hold {metadata.action_box.shape}"
        )


def _package(entry_point: str) -> str:
    """The distribution of an entry point like gymnasium_robotics.envs.adroit_hand:AdroitHandDoorEnv."""
    return entry_point.split(".")[0].split(":")[0].replace("_", "-")
