"""What runs will cost on this machine: a few updates and environment steps, measured, times the plan."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import datasets
from agents.blocks.base import Agent, OnPolicyAgent
from bench.grid.progress import median_rates
from bench.protocol.config import RunConfig
from bench.runs.writer import read_json
from bench.training.evaluate import build_agent
from bench.training.streams import SeedStreams
from datasets.batch import Batch, Decisions


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes of one pack. Evaluation counts every episode at full length: success makes it shorter."""

    offline_update: float  # seconds per gradient update of the pack
    online_step: float  # seconds per environment step of every seed, with its updates
    evaluation: float  # seconds per evaluation of the pack
    bytes: int  # on disk, checkpoints included
    config: RunConfig
    offline_elsewhere: bool = False  # the runs go on from an offline phase that another pack trains

    def seconds(self, updates: int = 0, env_steps: int = 0) -> float:
        """Time from a point (gradient updates made, environment steps made) to the end."""
        config = self.config
        offline = 0 if self.offline_elsewhere else max(0, config.offline_updates - updates)
        online = max(0, config.online_steps - env_steps)
        evaluations = offline / config.eval_interval_updates + online / config.eval_interval_steps + 1
        return offline * self.offline_update + online * self.online_step + evaluations * self.evaluation


def estimate(config: RunConfig, pack: int, eval_workers: int, device: torch.device, threads: int) -> Cost:
    """Measures one configuration for about a second."""
    torch.set_num_threads(threads)
    task = datasets.task(config.task)
    members = 1 if device.type == "cpu" else pack  # a CPU updates the seeds of a pack one after the other
    agent = build_agent(config, SeedStreams(range(members), device, "init"))
    noise = SeedStreams(range(members), device, "cost")
    offline_batch, online_batch = made_up_batches(config, agent, noise)

    def time_of(update: Callable[..., object], data: Batch | Decisions) -> float:
        seconds: list[float] = []
        while len(seconds) < 21 and sum(seconds) < 0.5:
            started = time.monotonic()
            update(data, noise.at(len(seconds)))
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.monotonic() - started)
        return fmean(seconds[1:] or seconds) * pack / members  # the first one is slower

    step = _env_step_seconds(task.domain, config.task, config.success_timing)
    network_bytes = sum(4 * parameter.numel() for parameter in agent.parameters()) // members
    row_bytes = 4 * (2 * task.obs_dim + task.action_dim + 3)
    kept_rows = config.rollout_steps or config.online_steps  # an on-policy run keeps one rollout, others their replay
    return Cost(
        offline_update=time_of(agent.update_offline, offline_batch),
        online_step=pack * step + config.updates_per_step * time_of(agent.update_online, online_batch),
        evaluation=pack * config.eval_episodes * task.max_episode_steps * step / eval_workers,
        bytes=pack * (2 * 3 * network_bytes + kept_rows * row_bytes),
        config=config,
    )


def made_up_batches(config: RunConfig, agent: Agent, noise: SeedStreams) -> tuple[Batch, Batch | Decisions]:
    """Random numbers in the shape of what the agent's offline and online updates take."""
    task, device = datasets.task(config.task), noise.device
    pack, size, length = agent.num_seeds, config.batch_size, agent.chunk_length
    batch = Batch(
        obs=torch.randn(pack, size, task.obs_dim, device=device),
        action_chunk=torch.rand(pack, size, length, task.action_dim, device=device) * 2 - 1,
        chunk_return=-torch.rand(pack, size, device=device),
        bootstrap=torch.ones(pack, size, device=device),
        next_obs=torch.randn(pack, size, task.obs_dim, device=device),
        valid=torch.ones(pack, size, length, device=device),
    )
    if not isinstance(agent, OnPolicyAgent):
        return batch, batch
    advantage = torch.randn(pack, size, device=device)
    return batch, Decisions(batch.obs, agent.collect(batch.obs, noise.at(0))[1], advantage, advantage)


def from_finished_runs(
    configs: tuple[RunConfig, ...], results: Path, device_type: str, offline_elsewhere: bool
) -> Cost | None:
    """The cost of a pack by the rates of a finished run under `results` that differs in task of the domain, seed and
    budget only, was in a pack of the same size, and was trained on the same kind of device; None without one."""
    config = configs[0]
    domain = datasets.task(config.task).domain
    for path in sorted(results.glob(f"*/*/{config.label}/seed_*/complete.json")):
        directory = path.parent
        other, provenance = read_json(directory / "config.json"), read_json(directory / "provenance.json")
        if not other or not provenance or _kind(other) != _kind(config.to_json()):
            continue
        start = provenance["starts"][-1]
        if start.get("device_type") != device_type or len(start["pack"]) != len(configs):
            continue
        if datasets.task(other["task"]).domain != domain:
            continue
        rates = median_rates(directory)
        offline, online = rates.get(("offline", "updates_per_second")), rates.get(("online", "env_steps_per_second"))
        if (config.offline_updates and not offline) or (config.online_steps and not online):
            continue
        return Cost(
            offline_update=1 / offline if offline else 0.0,
            online_step=1 / online if online else 0.0,
            evaluation=0.0,  # beside training
            bytes=0,
            config=config,
            offline_elsewhere=offline_elsewhere,
        )
    return None


def _kind(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config decides its speed."""
    return {name: config[name] for name in ("agent", "agent_config", "batch_size", "utd_ratio", "success_timing")}


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
