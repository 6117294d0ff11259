"""PyBullet locomotion environments and random episodes in them. Imports the simulator: import it inside a function."""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from datasets.bullet.tasks import DIMS
from datasets.flat_files.writing import Step, episode_arrays
from datasets.pictures.view import Look, View
from datasets.spec import ACTION_LIMIT, Dataset


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """PyBullet prints the time of its build when it is imported, from C."""
    sys.stderr.flush()
    original = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)


with _silent_stderr():
    import pybullet
import pybullet_envs_gymnasium  # noqa: E402, F401  registers the environments with gymnasium
from pybullet_utils.bullet_client import BulletClient  # noqa: E402

CONTROL_SECONDS = 0.0165  # of a step: the package's four substeps
RECIPE_VERSION = 1  # raise it when a change to this module changes the data
_ENV_IDS = {
    "hopper-bullet": "HopperBulletEnv-v0",
    "halfcheetah-bullet": "HalfCheetahBulletEnv-v0",
    "ant-bullet": "AntBulletEnv-v0",
    "walker2d-bullet": "Walker2DBulletEnv-v0",
}


class BulletState(NamedTuple):
    """What shows of a simulation."""

    robot: tuple[float, ...]  # (3,) m, where the camera looks
    poses: tuple[tuple[Sequence[float], Sequence[float], list[float]], ...]  # each body's place, turn and joints


class _Client(BulletClient):
    """A physics server within this process, for itself alone.

    The environments would first look for another process' server to share; and any options, even none, are printed.
    """

    def __init__(self) -> None:
        self._shapes = {}
        self._pid = os.getpid()
        self._client = pybullet.connect(pybullet.DIRECT)


class BulletTask(gymnasium.Wrapper):
    """A locomotion environment: float32 observations, actions clipped to [-1, 1], 1000 steps, no info."""

    def __init__(self, domain: str) -> None:
        super().__init__(gymnasium.make(_ENV_IDS[domain], disable_env_checker=True))
        self._domain = domain
        env: Any = self.env.unwrapped
        env._p = _Client()
        env._p.resetSimulation()
        env._p.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
        env.physicsClientId, env.ownsPhysicsClient = env._p._client, True
        # Its first reset loads the robot and saves the state that every later one begins from, and counts the floor
        # as a part of the robot only afterwards: first episodes differ. With this one behind, and always the same
        # state saved, an episode depends on its seed alone.
        self.env.reset(seed=0)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """First observation (O,) float32; the same one for the same seed."""
        obs, _ = self.env.reset(seed=seed, options=options)
        return obs, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One control step of 16.5 ms. Raises ValueError for an action that is not A finite numbers."""
        action = np.asarray(action, np.float32)
        if action.shape != self.action_space.shape or not all(map(math.isfinite, action.tolist())):
            raise ValueError(f"an action is {self.action_space.shape} finite numbers, got {action}")
        obs, reward, terminated, truncated, _ = self.env.step(action.clip(-1.0, 1.0))
        return obs, float(reward), terminated, truncated, {}

    def view(self) -> View:
        return BulletView(self, self._domain)


class BulletView:
    """Pictures by PyBullet's software renderer, which needs no OpenGL. The camera goes along with the robot."""

    rate = 1 / CONTROL_SECONDS
    cameras = ()

    def __init__(self, env: BulletTask, domain: str) -> None:
        self._env: Any = env.unwrapped
        self._domain = domain
        self._stage: Any = None  # an environment of its own to pose the robot in

    def state(self) -> BulletState:
        """Where the robot is now, and all that hangs on it."""
        client = self._env._p
        poses = []
        for body in range(client.getNumBodies()):
            joints = [client.getJointState(body, joint)[0] for joint in range(client.getNumJoints(body))]
            poses.append((*client.getBasePositionAndOrientation(body), joints))
        return BulletState(tuple(self._env.robot.body_real_xyz), tuple(poses))

    def picture(self, state: BulletState, look: Look) -> np.ndarray:
        """What a state looks like: (height, width, 3) uint8."""
        if self._stage is None:
            self._stage = BulletTask(self._domain).unwrapped
        client = self._stage._p
        for body, (position, orientation, joints) in enumerate(state.poses):
            client.resetBasePositionAndOrientation(body, position, orientation)
            for joint, angle in enumerate(joints):
                client.resetJointState(body, joint, angle)
        env = self._stage
        towards = client.computeViewMatrixFromYawPitchRoll(
            state.robot, env._cam_dist, env._cam_yaw, env._cam_pitch, 0, 2
        )
        lens = client.computeProjectionMatrixFOV(60, look.width / look.height, 0.1, 100.0)
        rgba = client.getCameraImage(
            look.width, look.height, towards, lens, shadow=int(look.shadows), renderer=pybullet.ER_TINY_RENDERER
        )[2]
        return np.reshape(np.asarray(rgba, np.uint8), (look.height, look.width, 4))[..., :3]


def recipe(dataset: Dataset) -> dict[str, Any]:
    """The numbers one would vary of a data set of random actions, as JSON; `version` stands for the rest."""
    return {
        "version": RECIPE_VERSION,
        "seed": dataset.made_by.seed,
        "environment": _ENV_IDS[dataset.domain],
        "actions": {"distribution": "uniform", "limit": ACTION_LIMIT},
    }


def make_episode(dataset: Dataset, index: int) -> dict[str, np.ndarray]:
    """Episode `index` of a generated data set, under D4RL's keys: a function of recipe, seed and index alone."""
    rng = np.random.default_rng((dataset.made_by.seed, index))
    env = BulletTask(dataset.domain)
    obs, _ = env.reset(seed=int(rng.integers(2**31)))
    steps: list[Step] = []
    ended = False
    while not ended:
        action = rng.uniform(-ACTION_LIMIT, ACTION_LIMIT, DIMS[dataset.domain][1]).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        steps.append(Step(obs, action, reward, terminated, truncated, next_obs))
        obs, ended = next_obs, terminated or truncated
    env.close()
    return episode_arrays(steps)
