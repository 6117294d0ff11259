"""The training environments of each seed: execute action chunks open loop, and come back exactly after a restart.

The steps happen in this process, or ahead of it in worker processes: within a chunk they depend on its actions alone.
Either way a `Rollout` hands out the same transitions, and knows of those only that it has handed out.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np

import datasets
from agents.blocks.streams import stream_key
from bench.protocol.config import RunConfig
from bench.runs.state import RolloutState
from bench.training.workers import Requests, Template, Worker


class Slot(NamedTuple):
    """A training environment of a pack."""

    run_seed: int
    env_number: int  # among those of the seed


@dataclass(frozen=True)
class Outcome:
    """What the environment answered to one action."""

    next_obs: np.ndarray  # (O,)
    reward: float
    terminated: bool
    episode_end: bool  # terminated or truncated
    success: bool | None  # whether the episode is solved if it ends here; None: the task has no such notion
    first_obs: np.ndarray | None  # (O,) of the next episode, where this one ended


@dataclass(frozen=True)
class Transition:
    """One environment step as it enters the replay buffer, and the episode's totals when the step ended it."""

    obs: np.ndarray  # (O,)
    action: np.ndarray  # (A,)
    reward: float
    terminated: bool
    episode_end: bool  # terminated or truncated
    next_obs: np.ndarray  # (O,)
    episode: dict[str, float] | None  # return, length, and success where the task has such a notion


class Episodes(Protocol):
    """The episodes of one run seed in one environment, here or in another process."""

    def start(self, episode: int, actions: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
        """Begins episode number `episode` and replays `actions`: last observation (O,) and return so far."""
        ...

    def execute(self, chunk: Sequence[np.ndarray]) -> Iterator[Outcome]:
        """Executes actions (A,) in [-1, 1]; ends at the episode's end, where the next one has begun."""
        ...


class LocalEpisodes:
    """Steps the environment in this process, each step when its outcome is asked for.

    Episode k starts from a reset seed that is a function of (run seed, number of the environment, k).
    """

    def __init__(self, config: RunConfig, slot: "Slot", env: gymnasium.Env | None = None):
        self._env = env or datasets.make_env(config.task, config.success_timing)
        self._success_rule = config.success_rule
        self._slot = slot
        self._episode = 0
        self._solved: bool | None = None

    def start(self, episode: int, actions: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
        self._episode = episode
        obs, total = self._reset(), 0.0
        for action in actions:
            obs, reward, _, _, info = self._env.step(action)
            self._note(info)
            total += float(reward)
        return obs, total

    def execute(self, chunk: Sequence[np.ndarray]) -> Iterator[Outcome]:
        for action in chunk:
            next_obs, reward, terminated, truncated, info = self._env.step(action)
            ended, first_obs, solved = terminated or truncated, None, self._note(info)
            if ended:
                self._episode += 1
                first_obs = self._reset()
            yield Outcome(next_obs, float(reward), terminated, ended, solved, first_obs)
            if ended:
                return

    def _note(self, info: dict[str, Any]) -> bool | None:
        self._solved = datasets.solved_so_far(self._solved, info.get("success"), self._success_rule)
        return self._solved

    def _reset(self) -> np.ndarray:
        self._solved = None
        # The first environment's seeds are those of runs with no other.
        others = ("environment", self._slot.env_number) if self._slot.env_number else ()
        key = stream_key(self._slot.run_seed, "training episode", self._episode, *others)
        return self._env.reset(seed=key % 2**31)[0]


class RemoteEpisodes:
    """`LocalEpisodes` in a worker process, which steps ahead while this process trains."""

    def __init__(self, host: "EnvironmentHost", slot: int):
        self._host = host
        self._slot = slot

    def start(self, episode: int, actions: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
        self._host.send(self._slot, "start", episode, actions)
        return self._host.receive(self._slot)

    def execute(self, chunk: Sequence[np.ndarray]) -> Iterator[Outcome]:
        self._host.send(self._slot, "execute", chunk)  # now, not when the first outcome is asked for
        return self._outcomes(len(chunk))

    def _outcomes(self, length: int) -> Iterator[Outcome]:
        for _ in range(length):
            outcome: Outcome = self._host.receive(self._slot)
            yield outcome
            if outcome.episode_end:
                return


class EnvironmentHost:
    """This process' end of one worker that holds the environments of some of the pack's seeds."""

    def __init__(self, worker: Worker, num_slots: int):
        self._worker = worker
        self._answers: list[deque[Any]] = [deque() for _ in range(num_slots)]

    def send(self, slot: int, method: str, *arguments: Any) -> None:
        self._worker.send((slot, method, arguments))

    def receive(self, slot: int) -> Any:
        """The slot's next answer, waited for; answers of other slots are kept for them."""
        while not self._answers[slot]:
            other, answer = self._worker.receive()
            self._answers[other].append(answer)
        return self._answers[slot].popleft()


def open_episodes(
    config: RunConfig, slots: Sequence[Slot], template: Template, processes: int | None
) -> list[Episodes]:
    """The training environments of a pack.

    Args:
        processes: workers that share them; 0: this process steps them; None: a worker for each. A worker's first
            environment costs 6 MB, since all share the simulator's model; any other one costs 480 MB, here or there.
    """
    if processes is None:
        processes = len(slots)
    if processes == 0:
        return [LocalEpisodes(config, slot) for slot in slots]
    shares = [range(number, len(slots), processes) for number in range(min(processes, len(slots)))]
    episodes: dict[int, Episodes] = {}
    for number, share in enumerate(shares):
        worker = template.fork(
            f"environment worker {number}", serve_environments, config, [slots[index] for index in share]
        )
        host = EnvironmentHost(worker, len(share))
        episodes |= {index: RemoteEpisodes(host, place) for place, index in enumerate(share)}
    return [episodes[index] for index in range(len(slots))]


def serve_environments(prepared: Any, requests: Requests, send, config: RunConfig, served: list[Slot]) -> None:
    """A worker: (place, method, arguments) in, (place, answer) out; the chunks of its environments advance in turn."""
    env, _ = prepared
    slots = [LocalEpisodes(config, slot, env if place == 0 else None) for place, slot in enumerate(served)]
    executing: dict[int, Iterator[Outcome]] = {}
    while True:
        while not executing or not requests.empty():
            slot, method, arguments = requests.get()
            if method == "start":
                send((slot, slots[slot].start(*arguments)))
            else:
                executing[slot] = slots[slot].execute(*arguments)
        for slot, outcomes in list(executing.items()):
            outcome = next(outcomes, None)
            if outcome is None:
                del executing[slot]
            else:
                send((slot, outcome))


class Rollout:
    """The training episodes of one run seed, transition by transition.

    A checkpoint holds the actions of the episode under way; restoring replays them, which the simulators here do bit
    by bit.
    """

    def __init__(self, episodes: Episodes, state: RolloutState | None = None):
        self._episodes = episodes
        self._episode = state.episode if state else 0
        self._actions = _actions(state.actions) if state else []
        self.obs, self._return = episodes.start(self._episode, self._actions)
        if state and self.obs.tolist() != state.obs:
            raise RuntimeError(
                "the environment did not replay to the checkpoint's observation: other package versions?"
            )
        self.set_chunk(_actions(state.chunk) if state else [])

    @property
    def needs_chunk(self) -> bool:
        return not self._chunk

    def set_chunk(self, action_chunk: Iterable[np.ndarray]) -> None:
        """Queues the next actions, (H, A) in [-1, 1]; workers execute them at once."""
        self._chunk = list(action_chunk)  # still to be handed out
        self._outcomes = self._episodes.execute(self._chunk) if self._chunk else iter(())

    def step(self) -> Transition:
        """The transition of the next queued action; at an episode's end the rest of the chunk is dropped."""
        action, self._chunk = self._chunk[0], self._chunk[1:]
        outcome = next(self._outcomes)
        obs, self.obs = self.obs, outcome.next_obs
        self._actions.append(action)
        self._return += outcome.reward
        episode = None
        if outcome.first_obs is not None:
            length = float(len(self._actions))
            success = {} if outcome.success is None else {"success": float(outcome.success)}
            episode = {"return": self._return, **success, "length": length}
            self._episode += 1
            self._actions, self._return, self._chunk, self.obs = [], 0.0, [], outcome.first_obs
        return Transition(
            obs, action, outcome.reward, outcome.terminated, outcome.episode_end, outcome.next_obs, episode
        )

    def state(self) -> RolloutState:
        """What `Rollout(episodes, state)` needs to go on."""
        return RolloutState(
            episode=self._episode,
            actions=[action.tolist() for action in self._actions],
            chunk=[action.tolist() for action in self._chunk],
            obs=self.obs.tolist(),
        )


def _actions(values: list[list[float]]) -> list[np.ndarray]:
    return [np.asarray(action, np.float32) for action in values]
