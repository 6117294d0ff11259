"""What runs will cost on this machine: a few updates and environment steps, measured, times the plan."""

import contextlib
import io
import os
import time
from collections.abc import Callable
from functools import cache

import numpy as np
import torch

import datasets
from agents.blocks.base import Agent, OnPolicyAgent
from agents.blocks.streams import SeedStreams
from bench.grid.cost import Cost, batch_bytes, replay_bytes
from bench.protocol.config import RunConfig
from bench.runs.contract import ConfigError
from bench.runs.quantities import counted, size
from bench.training.engine import Engine
from bench.training.execution import Mode
from bench.training.meters import MetricMeans
from bench.training.policies import build_agent
from datasets.batch import Batch, Decisions, Trajectories
from datasets.replay.replay import ONLINE_FIELDS, Replay
from datasets.replay.trajectories import TrajectoryStore
from datasets.transitions import Transitions

MEASURED: dict[Mode, Mode] = {"compiled-graph": "graph", "compiled": "eager"}  # compiling takes minutes


def estimate(
    config: RunConfig, pack: int, eval_workers: int, device: torch.device, threads: int, mode: Mode = "eager"
) -> Cost:
    """Measures one configuration for about a second. Raises ConfigError where batches or replay do not fit.

    Args:
        mode: how runs execute updates; measured as MEASURED says.
    """
    check_memory(config, pack, device)
    torch.set_num_threads(threads)
    task = datasets.task(config.task)
    members = 1 if device.type == "cpu" else pack  # a CPU updates the seeds of a pack one after the other
    agent = build_agent(config, SeedStreams(range(members), device, "init"))
    with contextlib.redirect_stderr(io.StringIO()):  # what the engine says of itself a run will say, too
        offline, online = update_seconds(config, agent, device, MEASURED.get(mode, mode))
    step = _env_step_seconds(task.domain, config.task, config.success_timing)
    network_bytes = sum(4 * parameter.numel() for parameter in agent.parameters()) // members
    row_bytes = 4 * (2 * task.obs_dim + task.action_dim + 3)
    kept_rows = config.rollout_steps or config.online_steps  # an on-policy run keeps one rollout, others their replay
    return Cost(
        offline_update=offline * pack / members,
        online_update=online * pack / members,
        env_step=pack * step,
        evaluation=pack * config.eval_episodes * task.max_episode_steps * step / eval_workers,
        bytes=pack * (2 * 3 * network_bytes + kept_rows * row_bytes),
        config=config,
    )


def update_seconds(config: RunConfig, agent: Agent, device: torch.device, mode: Mode) -> tuple[float, float]:
    """Seconds of an offline and of an online update as a run makes them, on made-up data."""
    seeds, rows = range(agent.num_seeds), 4 * agent.chunk_length
    replay = Replay(
        made_up_transitions(config, rows),
        num_seeds=agent.num_seeds,
        chunk_length=agent.chunk_length,
        discount=config.discount,
        device=device,
        placement="device",
    )
    decisions = made_up_decisions(config, agent, device) if isinstance(agent, OnPolicyAgent) else None
    engine = Engine(
        agent,
        replay,
        MetricMeans([], device),
        seeds=seeds,
        batch_size=config.batch_size,
        online_batch_size=config.online_batch_size,
        device=device,
        mode=mode,
        compiler="eager",  # should a capture fail
        matmul=config.matmul,
        on_policy=decisions,
    )
    offline = _seconds_of(engine.update_offline, engine.burst, device)
    if decisions is not None:
        online = _seconds_of(engine.update_online, engine.burst, device)
    else:
        replay.open_ring(None, rows, online_share=config.online_batch_share)
        _append(replay, config, rows)
        online = _seconds_of(engine.update_online, max(agent.period, config.utd_ratio), device)
    engine.close()
    return offline, online


def _seconds_of(update: Callable[[int, int], None], count: int, device: torch.device) -> float:
    """Of one update, on average, where `count` are asked for at a time."""
    update(0, count)  # which sets up what it needs, and is slower
    made, started = 0, time.monotonic()
    while made == 0 or (made < 20 * count and time.monotonic() - started < 0.4):
        update(made, count)
        if device.type == "cuda":
            torch.cuda.synchronize()
        made += count
    return (time.monotonic() - started) / made


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


def made_up_transitions(config: RunConfig, rows: int) -> Transitions:
    """One episode of so many transitions."""
    task, numbers = datasets.task(config.task), np.random.default_rng(0)
    return Transitions(
        obs=numbers.standard_normal((rows + 1, task.obs_dim), np.float32),
        action=numbers.random((rows + 1, task.action_dim), np.float32) * 2 - 1,
        reward=-numbers.random(rows + 1, np.float32),
        terminated=np.zeros(rows + 1, bool),
        final=np.arange(rows + 1) == rows,
        name="made-up",
        origin="generated",
        content_hash="",
    )


def made_up_decisions(config: RunConfig, agent: OnPolicyAgent, device: torch.device) -> TrajectoryStore:
    """A rollout that was offered for updates."""
    task, num_envs = datasets.task(config.task), config.num_envs
    steps = (config.rollout_steps or 1) // num_envs
    noise = SeedStreams(range(agent.num_seeds), device, "cost")
    obs = noise.normal("obs", steps, num_envs, task.obs_dim)
    record = torch.stack([agent.collect(obs[:, step], noise.at(step))[1] for step in range(steps)], 1)
    one = torch.ones(agent.num_seeds, steps, num_envs, device=device)
    store = TrajectoryStore(agent.num_seeds, num_envs, steps, task.obs_dim, config.discount, device)
    store.offer(Trajectories(one, obs, record, one, one, obs, one), one, one)
    return store


def _append(replay: Replay, config: RunConfig, rows: int) -> None:
    """Online transitions, each an episode of its own."""
    task = datasets.task(config.task)
    widths = {"obs": (task.obs_dim,), "next_obs": (task.obs_dim,), "action": (task.action_dim,)}
    for step in range(rows):
        draw = SeedStreams(range(replay.num_seeds), "cpu", "made-up").at(step)
        row = {name: draw.uniform(name, *widths.get(name, ())) for name in ONLINE_FIELDS}
        replay.append(row | {"terminated": torch.zeros(replay.num_seeds), "episode_end": torch.ones(replay.num_seeds)})


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
