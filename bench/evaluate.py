"""Fixed-seed evaluation episodes in worker processes: one row per episode. Never touches training."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

import datasets
from agents import AGENTS
from agents.base import Agent
from bench.config import RunConfig
from bench.streams import SeedStreams

FIRST_EPISODE_SEED = 1_000_000  # episode i of every evaluation of every run resets with this + i


EXIT_PREEMPTED = 75  # of a process whose runs were: sysexits' EX_TEMPFAIL, start again to go on


class Preempted(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C)."""


def build_agent(config: RunConfig, noise: SeedStreams) -> Agent:
    """The config's agent with freshly drawn parameters, one member per seed of `noise`."""
    task = datasets.task(config.task)
    return AGENTS[config.agent][0](config.agent_config, task.obs_dim, task.action_dim, noise)


def policy_state(agent: Agent, seed_index: int) -> dict[str, Tensor]:
    """The parameters that acting needs, of one seed: CPU tensors with S = 1."""
    return {
        name: value[seed_index : seed_index + 1].detach().cpu().clone()
        for name, value in agent.state_dict().items()
        if name.split(".")[0] in agent.policy_modules
    }


def run_episode(env, agent: Agent, episode_seed: int) -> dict[str, float]:
    """One episode with action chunks executed open loop; the policy is called once per chunk.

    `success` is the flag of the last step, as published. Noise is keyed by the episode's seed, so that all runs of
    all agents meet the same draws.
    """
    noise = SeedStreams([episode_seed], "cpu", "evaluation")
    obs, _ = env.reset(seed=episode_seed)
    total, length, ended, info = 0.0, 0, False, {}
    while not ended:
        chunk = agent.act(torch.from_numpy(obs)[None, None], noise.at(length), mode="evaluate")[0, 0].numpy()
        for action in chunk:
            obs, reward, terminated, truncated, info = env.step(action)
            total += float(reward)
            length += 1
            ended = terminated or truncated
            if ended:
                break
    return {"episode_seed": episode_seed, "success": int(info["success"]), "return": total, "length": length}


class Evaluator:
    """A pool of processes that run whole episodes of one task with frozen copies of a policy."""

    def __init__(self, config: RunConfig, workers: int, should_stop: Callable[[], bool]):
        self._config = config
        self._workers = workers
        self._should_stop = should_stop
        processes = multiprocessing.get_context("forkserver")  # imports torch once for all workers
        processes.set_forkserver_preload(["bench.evaluate"])
        # Only this process holds the writing end: it closes with the process, however that ends, and ends the workers.
        alive, self._alive = processes.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(workers, processes, initializer=_start_worker, initargs=(config, alive))

    def evaluate(self, policies: list[dict[str, Tensor]]) -> list[list[dict[str, float]]]:
        """`eval_episodes` rows for each policy, in order of episode. Raises Preempted when asked to stop meanwhile."""
        seeds = range(FIRST_EPISODE_SEED, FIRST_EPISODE_SEED + self._config.eval_episodes)
        share = -(-len(seeds) // (2 * self._workers))  # two helpings per worker even out long episodes
        jobs: list[tuple[int, Future]] = [
            (index, self._pool.submit(_run_episodes, policy, list(part)))
            for index, policy in enumerate(policies)
            for part in _parts(seeds, share)
        ]
        waiting = {job for _, job in jobs}
        while waiting:
            finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            for job in finished:
                job.result()  # a worker's exception is ours
            if waiting and self._should_stop():
                for job in waiting:
                    job.cancel()
                raise Preempted
        rows: list[list[dict[str, float]]] = [[] for _ in policies]
        for index, job in jobs:
            rows[index].extend(job.result())
        return rows

    def close(self) -> None:
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()


def _parts(seeds: range, size: int) -> Iterator[range]:
    for start in range(0, len(seeds), size):
        yield seeds[start : start + size]


_worker: dict[str, Any] = {}  # a worker process' environment and agent, made once


def _start_worker(config: RunConfig, alive: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the run decides
    threading.Thread(target=_exit_at_end_of, args=(alive,), daemon=True).start()
    torch.set_num_threads(1)
    _worker["env"] = datasets.make_env(config.task, config.success_timing)
    _worker["agent"] = build_agent(config, SeedStreams([0], "cpu", "init"))


def _run_episodes(policy: dict[str, Tensor], seeds: list[int]) -> list[dict[str, float]]:
    agent: Agent = _worker["agent"]
    agent.load_state_dict(policy, strict=False)
    return [run_episode(_worker["env"], agent, seed) for seed in seeds]


def _exit_at_end_of(alive: Connection) -> None:
    with contextlib.suppress(EOFError):
        alive.recv()  # nothing is ever sent
    os._exit(1)
