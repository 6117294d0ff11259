"""One training environment per seed: executes action chunks open loop, and comes back exactly after a restart."""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from bench.streams import stream_key


@dataclass(frozen=True)
class Transition:
    """One environment step as it enters the replay buffer, and the episode's totals when the step ended it."""

    obs: np.ndarray  # (O,)
    action: np.ndarray  # (A,)
    reward: float
    terminated: bool
    episode_end: bool  # terminated or truncated
    next_obs: np.ndarray  # (O,)
    episode: dict[str, float] | None  # return, success, length


class Rollout:
    """Steps one environment for one run seed.

    Episode k starts from a reset seed that is a function of (run seed, k). A checkpoint holds the actions of the
    episode under way; restoring resets to the same seed and replays them, which the simulators here do bit by bit.
    """

    def __init__(self, env: gymnasium.Env, run_seed: int, state: dict[str, Any] | None = None):
        self._env = env
        self._run_seed = run_seed
        self._episode = 0
        self._chunk = np.zeros((0, *_shape(env)), np.float32)  # actions still to be executed
        self._reset()
        if state is not None:
            self._restore(state)

    def _reset(self) -> None:
        seed = stream_key(self._run_seed, "training episode", self._episode) % 2**31
        self.obs, _ = self._env.reset(seed=seed)
        self._actions: list[np.ndarray] = []
        self._return = 0.0

    @property
    def needs_chunk(self) -> bool:
        return len(self._chunk) == 0

    def set_chunk(self, action_chunk: np.ndarray) -> None:
        """Queues the next actions, (H, A) in [-1, 1]."""
        self._chunk = action_chunk

    def step(self) -> Transition:
        """Executes the next queued action; at an episode's end drops the rest of the chunk and resets."""
        action, self._chunk = self._chunk[0], self._chunk[1:]
        obs = self.obs
        next_obs, reward, terminated, truncated, info = self._env.step(action)
        self.obs = next_obs
        self._actions.append(action)
        self._return += float(reward)
        episode = None
        if terminated or truncated:
            length = len(self._actions)
            episode = {"return": self._return, "success": float(info["success"]), "length": float(length)}
            self._episode += 1
            self._chunk = self._chunk[:0]
            self._reset()
        return Transition(obs, action, float(reward), terminated, terminated or truncated, next_obs, episode)

    def state(self) -> dict[str, Any]:
        """What `Rollout(env, seed, state)` needs to go on: plain lists of floats."""
        return {
            "episode": self._episode,
            "actions": [action.tolist() for action in self._actions],
            "chunk": self._chunk.tolist(),
            "obs": self.obs.tolist(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._episode = state["episode"]
        self._reset()
        for values in state["actions"]:
            action = np.asarray(values, np.float32)
            self.obs, reward, *_ = self._env.step(action)
            self._actions.append(action)
            self._return += float(reward)
        if self.obs.tolist() != state["obs"]:
            raise RuntimeError(
                "the environment did not replay to the checkpoint's observation: other package versions?"
            )
        self._chunk = np.asarray(state["chunk"], np.float32).reshape(-1, *_shape(self._env))


def _shape(env: gymnasium.Env) -> tuple[int, ...]:
    shape = env.action_space.shape
    assert shape is not None, "continuous actions only"
    return shape
