"""Evaluation episodes in worker processes, while training goes on: one row per episode.

Never touches training: frozen copies of the policies, own environments, own seeds, own random streams.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import gymnasium
import safetensors.torch
import torch

import datasets
from agents.blocks.base import Agent
from agents.blocks.streams import SeedStreams, stream_key
from bench.protocol.config import RunConfig
from bench.runs.state import PendingEvaluation, Score
from bench.training.policies import Policy, build_agent, load_policy
from bench.training.workers import Requests, Template, Worker, with_answers

FIXED_SEED = 1_000_000  # episode i of every evaluation resets with this + i where `episode_seeds` is fixed
FIRST_OWN_SEED = NUM_OWN_SEEDS = 1_000_000_000  # with own ones the first episode's is one of so many, from here on
NICENESS = 10  # training comes first: on a core that both want, an evaluation gets a tenth

EpisodeRow = dict[str, float | None]  # episode_seed, success, return, length


def episode_seeds(config: RunConfig, phase: str, updates: int, env_steps: int) -> range:
    """Reset seeds of the episodes of one evaluation.

    Own ones depend on task, run seed and point, so that the error of a finite number of initial states is not common to
    runs, tasks and points. They do not depend on the agent: runs of equal seed stay paired. Online, agents differ in
    their updates, so that the point is that of the environment.
    """
    first = FIXED_SEED
    if config.episode_seeds == "own":
        at = updates if phase == "offline" else env_steps
        key = stream_key("evaluation episodes", config.task, config.seed, phase, at)
        first = FIRST_OWN_SEED + key % NUM_OWN_SEEDS
    return range(first, first + config.eval_episodes)


def run_episode(env: gymnasium.Env, agent: Agent, episode_seed: int, success_rule: str = "any") -> EpisodeRow:
    """One episode with action chunks executed open loop; the policy is called once per chunk.

    `success` is 1 if the episode was solved by the rule, else 0, or None where the task has no such notion. Noise is
    keyed by the episode's seed, so that all agents meet the same draws in it.
    """
    noise = SeedStreams([episode_seed], "cpu", "evaluation")
    obs, _ = env.reset(seed=episode_seed)
    total, length, ended, solved = 0.0, 0, False, None
    while not ended:
        chunk = agent.act(torch.from_numpy(obs)[None, None], noise.at(length), mode="evaluate")[0, 0].numpy()
        for action in chunk:
            obs, reward, terminated, truncated, info = env.step(action)
            solved = datasets.solved_so_far(solved, info.get("success"), success_rule)
            total += float(reward)
            length += 1
            ended = terminated or truncated
            if ended:
                break
    success = None if solved is None else int(solved)
    return {"episode_seed": episode_seed, "success": success, "return": total, "length": length}


def score_of(rows: list[EpisodeRow]) -> Score:
    """`success_rate`, in [0, 1] or None where the task has no notion of success, and `mean_return` of episodes."""
    successes = [row["success"] for row in rows if row["success"] is not None]
    returns = [row["return"] for row in rows if row["return"] is not None]
    return {"success_rate": fmean(successes) if successes else None, "mean_return": fmean(returns)}


@dataclass(frozen=True)
class Evaluation:
    """One point of the schedule: frozen policies and their episodes, by seed index of the pack; the rows so far."""

    phase: str
    updates: int
    env_steps: int
    policies: Mapping[int, Policy]
    episode_seeds: Mapping[int, range]
    started: float = field(default_factory=time.monotonic)
    rows: dict[tuple[int, int], EpisodeRow] = field(default_factory=dict)  # by seed index and episode seed

    @property
    def point(self) -> dict[str, Any]:
        return {"phase": self.phase, "updates": self.updates, "env_steps": self.env_steps}

    @property
    def is_finished(self) -> bool:
        return len(self.rows) == sum(map(len, self.episode_seeds.values()))

    def rows_of(self, seed_index: int) -> list[EpisodeRow]:
        """In order of episode."""
        return [row for (index, _), row in sorted(self.rows.items()) if index == seed_index]

    def state_of_seed(self, seed_index: int) -> PendingEvaluation:
        """What a checkpoint holds of an evaluation that is not finished: it starts anew."""
        return PendingEvaluation(self.phase, self.updates, self.env_steps, self.policies[seed_index])


def new_evaluation(
    configs: Sequence[RunConfig], phase: str, updates: int, env_steps: int, policies: Mapping[int, Policy]
) -> Evaluation:
    """Of the runs of a pack at one point."""
    seeds = {index: episode_seeds(configs[index], phase, updates, env_steps) for index in policies}
    return Evaluation(phase, updates, env_steps, policies, seeds)


def unfinished_evaluations(
    configs: Sequence[RunConfig], states: Sequence[Sequence[PendingEvaluation]]
) -> list[Evaluation]:
    """The inverse of `state_of_seed` for each seed's list, in order of the schedule."""
    policies: dict[tuple[int, int, str], dict[int, Policy]] = {}
    for index, pending in enumerate(states):
        for state in pending:
            policies.setdefault((state.updates, state.env_steps, state.phase), {})[index] = state.policy
    return [
        new_evaluation(configs, phase, updates, env_steps, policies[updates, env_steps, phase])
        for updates, env_steps, phase in sorted(policies)
    ]


@dataclass(frozen=True)
class Episode:
    evaluation: Evaluation
    seed_index: int
    episode_seed: int


class Evaluator:
    """Hands the episodes of evaluations, one by one, to worker processes on idle cores.

    Which worker runs an episode, and when, changes no row.
    """

    def __init__(self, template: Template, workers: int, success_rule: str):
        self.pending: deque[Evaluation] = deque()  # not yet given back by `finished`, in order of submission
        self._workers = [
            template.fork(f"evaluation worker {number}", serve_episodes, success_rule, niceness=NICENESS)
            for number in range(workers)
        ]
        self._under_way: dict[Worker, deque[Episode]] = {worker: deque() for worker in self._workers}
        self._holds: dict[Worker, Policy] = {}
        self._waiting: deque[Episode] = deque()

    def submit(self, evaluation: Evaluation) -> None:
        """Queues the episodes of each of the policies."""
        self.pending.append(evaluation)
        for index, seeds in evaluation.episode_seeds.items():
            self._waiting.extend(Episode(evaluation, index, seed) for seed in seeds)
        self._hand_out()

    def finished(self, timeout: float = 0.0) -> list[Evaluation]:
        """Takes in rows, after a wait of at most `timeout` seconds for one; the evaluations that are now finished.

        Raises WorkerError where a worker raised or died.
        """
        busy = [worker for worker in self._workers if self._under_way[worker]]
        for worker in with_answers(busy, timeout):
            episode = self._under_way[worker].popleft()
            episode.evaluation.rows[episode.seed_index, episode.episode_seed] = worker.receive()
        self._hand_out()
        finished = []
        while self.pending and self.pending[0].is_finished:
            finished.append(self.pending.popleft())
        return finished

    def _hand_out(self) -> None:
        """An episode to each idle worker and, while many are left, one ahead: no worker waits for the driver then."""
        for ahead in (0, 1):
            for worker in self._workers:
                if len(self._under_way[worker]) == ahead and len(self._waiting) > ahead * len(self._workers):
                    self._start(worker, self._waiting.popleft())

    def _start(self, worker: Worker, episode: Episode) -> None:
        policy = episode.evaluation.policies[episode.seed_index]
        new = self._holds.get(worker) is not policy
        worker.send((safetensors.torch.save(policy) if new else None, episode.episode_seed))
        self._holds[worker] = policy
        self._under_way[worker].append(episode)


def prepare_worker(config: RunConfig) -> tuple[gymnasium.Env, Agent]:
    """What workers of a run need: an environment that has been reset once (it is compiled then) and an agent."""
    env = datasets.make_env(config.task, config.success_timing)
    env.reset(seed=0)
    return env, build_agent(config, SeedStreams([0], "cpu", "init"))


def serve_episodes(prepared: tuple[gymnasium.Env, Agent], requests: Requests, send, success_rule: str) -> None:
    """A worker: (new policy or None, episode seed) in, one row out."""
    env, agent = prepared
    while True:
        policy, episode_seed = requests.get()
        if policy is not None:
            load_policy(agent, policy)
        send(run_episode(env, agent, episode_seed, success_rule))
