"""The cost of a pack: seconds and bytes, and what finished runs say of them."""

import csv
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from agents.blocks.config import settings_of
from bench.protocol.config import RunConfig
from bench.protocol.schedule import total_updates, updates_per_step
from bench.runs.contract import COMPLETE, CONFIG, PROVENANCE, TIMING, find_runs, read_json


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes of one pack. Evaluation counts every episode at full length: success makes it shorter."""

    offline_update: float  # seconds per gradient update of the pack
    online_update: float  # the same, online
    env_step: float  # seconds per environment step of every seed, without updates
    evaluation: float  # seconds per evaluation of the pack
    bytes: int  # on disk, checkpoints included
    config: RunConfig
    offline_elsewhere: bool = False  # the runs go on from an offline phase that another pack trains

    def seconds(self, updates: int = 0, env_steps: int = 0) -> float:
        """Time from a point (gradient updates made, environment steps made) to the end."""
        config = self.config
        offline = 0 if self.offline_elsewhere else max(0, config.offline_updates - updates)
        steps = max(0, config.online_steps - env_steps)
        online = total_updates(config) - max(updates, config.offline_updates)  # none while a run warms up
        evaluations = offline / config.eval_interval_updates + steps / config.eval_interval_steps + 1
        training = offline * self.offline_update + online * self.online_update + steps * self.env_step
        return training + evaluations * self.evaluation


def batch_bytes(config: RunConfig) -> int:
    """Of one batch of one seed, with what its hidden layers make of it: memory that an update takes at least."""
    task, settings = datasets.task(config.task), settings_of(config.agent_config)
    hidden = sum(settings.get("policy_hidden_dims", ()))
    hidden += settings.get("num_critics", 1) * sum(settings.get("critic_hidden_dims", ()))
    numbers = 2 * task.obs_dim + config.agent_config.chunk_length * (task.action_dim + 1) + 2 + hidden
    return 4 * max(config.batch_size, config.online_batch_size) * numbers


def replay_bytes(config: RunConfig) -> int:
    """Memory of what one seed collects: an on-policy run keeps one rollout, any other its replay."""
    task = datasets.task(config.task)
    kept = config.rollout_steps or min(config.online_steps, config.replay_capacity)
    return 4 * kept * (task.obs_dim + task.action_dim + 3)


def from_finished_runs(
    configs: tuple[RunConfig, ...], results: Path, device_type: str, offline_elsewhere: bool
) -> Cost | None:
    """The cost of a pack by the rates of a finished run under `results` that differs in task of the domain, seed and
    budget only, was in a pack of the same size, and was trained on the same kind of device; None without one."""
    config = configs[0]
    domain = datasets.task(config.task).domain
    for directory in find_runs(results, label=config.label, holding=COMPLETE):
        other, provenance = read_json(directory / CONFIG), read_json(directory / PROVENANCE)
        if not other or not provenance or _kind(other) != _kind(config.to_json()):
            continue
        start = provenance["starts"][-1]
        if start.get("device_type") != device_type or len(start["pack"]) != len(configs):
            continue
        if datasets.task(other["task"]).domain != domain:
            continue
        rates = median_rates(directory)
        offline = rates.get(("offline", "updates_per_second"))
        warmup, online = (rates.get((phase, "env_steps_per_second")) for phase in ("warm-up", "online"))
        online = online or warmup
        if (config.offline_updates and not offline) or (config.online_steps and not online):
            continue
        step = 1 / online if online else 0.0
        env_step = min(step, 1 / warmup) if warmup else 0.0
        return Cost(
            offline_update=1 / offline if offline else 0.0,
            online_update=(step - env_step) / updates_per_step(config) if online else 0.0,
            env_step=env_step,
            evaluation=0.0,  # beside training
            bytes=0,
            config=config,
            offline_elsewhere=offline_elsewhere,
        )
    return None


def _kind(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config decides its speed."""
    return {name: config[name] for name in ("agent", "agent_config", "batch_size", "utd_ratio", "success_timing")}


def median_rates(directory: Path) -> dict[tuple[str, str], float]:
    """Medians over a run's timing.csv by phase and name; empty where none were logged.

    Phases are offline, warm-up (online, before the first online update) and online.
    """
    values: dict[tuple[str, str], list[float]] = {}
    if (directory / TIMING).exists():
        offline_updates = (read_json(directory / CONFIG) or {}).get("offline_updates", 0)
        with (directory / TIMING).open() as file:
            for row in csv.DictReader(file):
                phase = row["phase"]
                if phase == "online" and int(row["updates"]) <= offline_updates:
                    phase = "warm-up"
                values.setdefault((phase, row["name"]), []).append(float(row["value"]))
    return {key: statistics.median(logged) for key, logged in values.items()}
