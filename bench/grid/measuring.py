"""What runs will cost on this machine: a few updates and environment steps, measured, times the plan."""

import itertools
import os
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from statistics import fmean

import torch

import datasets
from agents.blocks.base import Agent, OnPolicyAgent
from agents.blocks.streams import SeedStreams
from bench.grid.cost import Cost, batch_bytes, replay_bytes
from bench.protocol.config import RunConfig
from bench.protocol.schedule import updates_per_step
from bench.runs.contract import ConfigError
from bench.runs.quantities import counted, size
from bench.training.policies import build_agent
from datasets.batch import Batch, Decisions


def estimate(config: RunConfig, pack: int, eval_workers: int, device: torch.device, threads: int) -> Cost:
    """Measures one configuration for about a second. Raises ConfigError where batches or replay do not fit."""
    check_memory(config, pack, device)
    torch.set_num_threads(threads)
    task = datasets.task(config.task)
    members = 1 if device.type == "cpu" else pack  # a CPU updates the seeds of a pack one after the other
    agent = build_agent(config, SeedStreams(range(members), device, "init"))
    noise = SeedStreams(range(members), device, "cost")
    offline_batch, online_batch = made_up_batches(config, agent, noise)

    def time_of(updates: Sequence[Callable[..., object]], data: Batch | Decisions) -> float:
        """Seconds of an update, on average over `updates` in turn."""
        seconds: list[float] = []
        for update in itertools.cycle(updates):
            if len(seconds) % len(updates) == 0 and (len(seconds) > 20 or sum(seconds) > 0.5):
                break
            started = time.monotonic()
            update(data, noise.at(len(seconds)))
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.monotonic() - started)
        return fmean(seconds[len(updates) :] or seconds) * pack / members  # the first ones are slower

    turns = [partial(agent.update_turn, turn=turn) for turn in range(agent.period)]
    step = _env_step_seconds(task.domain, config.task, config.success_timing)
    network_bytes = sum(4 * parameter.numel() for parameter in agent.parameters()) // members
    row_bytes = 4 * (2 * task.obs_dim + task.action_dim + 3)
    kept_rows = config.rollout_steps or config.online_steps  # an on-policy run keeps one rollout, others their replay
    return Cost(
        offline_update=time_of([agent.update_offline], offline_batch),
        online_step=pack * step + updates_per_step(config) * time_of(turns, online_batch),
        evaluation=pack * config.eval_episodes * task.max_episode_steps * step / eval_workers,
        bytes=pack * (2 * 3 * network_bytes + kept_rows * row_bytes),
        config=config,
    )


def check_memory(config: RunConfig, seeds: int, device: torch.device) -> None:
    """ConfigError where a batch, or what a pack of so many seeds collects, is larger than this machine's memory.

    A batch on a GPU must fit there; what of the replay does not stays in the machine's memory.
    """
    rows, field = max((config.batch_size, "batch_size"), (config.online_batch_size, "batch_decisions"))
    batch, replay = batch_bytes(config), seeds * replay_bytes(config)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    where, memory = "machine", machine
    if device.type == "cuda":
        where, memory = "GPU", torch.cuda.mem_get_info(device)[1]
    if batch > memory:
        raise ConfigError(
            f"{field} is {rows}: one batch of {config.label} takes at least {size(batch)}, and this "
            f"{where} has {size(memory)}; it must be smaller"
        )
    if replay + batch > machine:
        raise ConfigError(
            f"what {config.label} collects online takes {size(replay)} for {counted(seeds, 'seed')}, beside "
            f"{size(batch)} of a batch, and this machine has {size(machine)}; a smaller replay_capacity or --pack fits"
        )


def made_up_batches(config: RunConfig, agent: Agent, noise: SeedStreams) -> tuple[Batch, Batch | Decisions]:
    """Random numbers in the shape of what the agent's offline and online updates take."""
    task, device = datasets.task(config.task), noise.device
    pack, rows, length = agent.num_seeds, config.batch_size, agent.chunk_length
    batch = Batch(
        obs=torch.randn(pack, rows, task.obs_dim, device=device),
        action_chunk=torch.rand(pack, rows, length, task.action_dim, device=device) * 2 - 1,
        chunk_return=-torch.rand(pack, rows, device=device),
        bootstrap=torch.ones(pack, rows, device=device),
        next_obs=torch.randn(pack, rows, task.obs_dim, device=device),
        valid=torch.ones(pack, rows, length, device=device),
    )
    if not isinstance(agent, OnPolicyAgent):
        return batch, batch
    obs = torch.randn(pack, config.online_batch_size, task.obs_dim, device=device)
    advantage = torch.randn(pack, config.online_batch_size, device=device)
    return batch, Decisions(obs, agent.collect(obs, noise.at(0))[1], advantage, advantage)


@cache
def _env_step_seconds(domain: str, task: str, success_timing: str) -> float:
    env = datasets.make_env(task, success_timing)
    env.reset(seed=0)
    env.step(env.action_space.sample() * 0.1)  # the first one of robosuite in a fresh installation waits for a compiler
    steps, started = 100, time.monotonic()
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample() * 0.1)
        if terminated or truncated:
            env.reset()
    env.close()
    return (time.monotonic() - started) / steps
