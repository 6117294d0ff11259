"""The environment of `toy-reach`, what it looks like, and scripted episodes in it."""

import math
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from PIL import Image, ImageDraw

from datasets.flat_files.writing import Step, episode_arrays
from datasets.pictures.view import Look, View
from datasets.spec import ACTION_LIMIT, Dataset
from datasets.toy.tasks import DOMAIN, TASKS

STEP_LENGTH = 0.15  # along each axis at an action of 1; the square reaches from -1 to 1
DISC_RADIUS = 0.4  # around the origin
GOAL, GOAL_RADIUS = (0.8, 0.0), 0.15
START_X, MAX_START_Y = -0.8, 0.15  # the start is drawn from a line
RATE = 10.0  # control steps per second, for videos

RECIPE_VERSION = 1  # raise it when a change to this module changes the data
BY_WAY = (0.0, 0.6)  # above or below the disc, on the way to the goal
NOISE_STDS = (0.1, 0.5, 1.0)  # of actions; an episode has one of them, so that some miss the goal


class ToyReach(gymnasium.Env):
    """Observations (2,) float32, the point's place; actions (2,) in [-1, 1], its step; reward -1 until the goal.

    A step that would end within the disc does not happen. At the goal the episode terminates, with a reward of 0.
    """

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._max_steps = TASKS[DOMAIN].max_episode_steps
        self._path: list[tuple[float, float]] = []  # of the episode, start included

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """First observation (2,) float32; the same one for the same seed."""
        super().reset(seed=seed)
        self._path = [(START_X, self.np_random.uniform(-MAX_START_Y, MAX_START_Y))]
        return np.array(self._path[-1], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One step of the point. Raises ValueError for an action that is not two finite numbers."""
        values = np.asarray(action).tolist()
        if not (isinstance(values, list) and len(values) == 2 and all(map(math.isfinite, values))):
            raise ValueError(f"an action is (2,) finite numbers, got {action}")
        x, y = (
            _limited(place + STEP_LENGTH * _limited(value)) for place, value in zip(self._path[-1], values, strict=True)
        )
        if math.hypot(x, y) < DISC_RADIUS:
            x, y = self._path[-1]
        self._path.append((x, y))
        success = math.hypot(x - GOAL[0], y - GOAL[1]) <= GOAL_RADIUS
        truncated = len(self._path) > self._max_steps and not success
        return np.array((x, y), np.float32), 0.0 if success else -1.0, success, truncated, {"success": success}

    def view(self) -> View:
        return ToyView(self)


class ToyState(NamedTuple):
    """What shows: the places of the point so far, the newest last."""

    path: tuple[tuple[float, float], ...]


class ToyView:
    """Pictures from above by Pillow, which needs no OpenGL: disc, goal, and the way so far."""

    rate = RATE
    cameras = ()

    def __init__(self, env: ToyReach) -> None:
        self._env = env

    def state(self) -> ToyState:
        return ToyState(tuple(self._env._path))

    def picture(self, state: ToyState, look: Look) -> np.ndarray:
        """What a state looks like: (height, width, 3) uint8."""
        image = Image.new("RGB", (look.width, look.height), "white")
        draw = ImageDraw.Draw(image)
        scale = min(look.width, look.height) / 2.2  # pixels per unit, with a margin around the square

        def pixel(place: tuple[float, float]) -> tuple[float, float]:
            return look.width / 2 + scale * place[0], look.height / 2 - scale * place[1]

        draw.circle(pixel((0.0, 0.0)), scale * DISC_RADIUS, fill="#d9d9d9")
        draw.circle(pixel(GOAL), scale * GOAL_RADIUS, fill="#b7e1b0", outline="#2c7a20")
        draw.rectangle([pixel((-1.0, 1.0)), pixel((1.0, -1.0))], outline="#808080")
        draw.line([pixel(place) for place in state.path], fill="#7fa8d1", width=max(1, round(0.015 * scale)))
        draw.circle(pixel(state.path[-1]), 0.04 * scale, fill="#1f4e8c")
        return np.asarray(image)


def recipe(dataset: Dataset) -> dict[str, Any]:
    """The numbers one would vary of a scripted data set, as JSON; `version` stands for the rest."""
    return {
        "version": RECIPE_VERSION,
        "seed": dataset.made_by.seed,
        "by_way": list(BY_WAY),
        "noise_stds": list(NOISE_STDS),
    }


def make_episode(dataset: Dataset, index: int) -> dict[str, np.ndarray]:
    """Episode `index` of a generated data set, under D4RL's keys: a function of recipe, seed and index alone.

    It goes round the disc by a way drawn at random, towards a point beside it and then to the goal.
    """
    rng = np.random.default_rng((dataset.made_by.seed, index))
    env = ToyReach()
    obs, _ = env.reset(seed=int(rng.integers(2**31)))
    side = rng.choice((-1.0, 1.0))
    noise_std = NOISE_STDS[index % len(NOISE_STDS)]
    steps: list[Step] = []
    ended = False
    while not ended:
        is_past = obs[0] > BY_WAY[0] - STEP_LENGTH / 2
        target = GOAL if is_past else (BY_WAY[0], side * BY_WAY[1])
        left = np.array(target) - obs
        action = left / max(STEP_LENGTH, np.abs(left).max()) + rng.normal(0.0, noise_std, 2)
        action = action.clip(-ACTION_LIMIT, ACTION_LIMIT).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        steps.append(Step(obs, action, reward, terminated, truncated, next_obs))
        obs, ended = next_obs, terminated or truncated
    return episode_arrays(steps)


def _limited(value: float) -> float:
    return min(max(value, -1.0), 1.0)
