"""Offline phases that several runs share: runs that differ only in what comes after the hand-over train it once.

It is a run of its own, with no online steps, under `results/offline/<key>/<task>/<agent>/seed_<nnn>`, which analysis
does not look at. Runs without a checkpoint go on from its last one, with the same bytes as if they had trained it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from agents import AGENTS
from bench.protocol.config import RunConfig
from bench.runs.contract import CHECKPOINT, OFFLINE_PHASES, is_complete

ONLINE_ONLY = (
    "online_steps",
    "warmup_steps",
    "utd_ratio",
    "replay_capacity",
    "online_dataset_rows",
    "online_batch_share",
    "replay",
    "warmup_actions",
    "eval_interval_steps",
)


def offline_phase(config: RunConfig) -> RunConfig:
    """The run that is the offline phase of `config`: equal for all that share it."""
    defaults = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    agent_class, agent_default = AGENTS[config.agent]
    agent_config = dataclasses.replace(
        config.agent_config, **{name: getattr(agent_default, name) for name in agent_class.online_only}
    )
    settings = {name: defaults[name] for name in ONLINE_ONLY} | {"online_steps": 0, "agent_config": agent_config}
    phase = config.replace(**settings, suite=OFFLINE_PHASES, variant="")
    text = json.dumps(phase.replace(seed=0).to_json(), sort_keys=True)
    return phase.replace(suite=hashlib.sha256(text.encode()).hexdigest()[:12])


def offline_directory(config: RunConfig, results: Path) -> Path:
    """Where the offline phase of `config` lies."""
    return offline_phase(config).directory(results / OFFLINE_PHASES)


def finished_offline_phases(configs: Iterable[RunConfig], results: Path) -> dict[RunConfig, Path]:
    """Folders of the runs' offline phases that are there, whole."""
    return {
        config: directory
        for config in configs
        if config.offline_updates
        and config.online_steps
        and is_complete(directory := offline_directory(config, results))
    }


def shared_offline_phases(configs: Iterable[RunConfig], results: Path) -> dict[RunConfig, RunConfig]:
    """By run, the offline phases worth training on their own: of two or more of the runs, none of which has begun."""
    phases: dict[RunConfig, list[RunConfig]] = {}
    for config in configs:
        begun = any((config.directory(results) / CHECKPOINT).glob("slot-*.pt"))
        if config.offline_updates and config.online_steps and not begun:
            phases.setdefault(offline_phase(config), []).append(config)
    return {config: phase for phase, sharing in phases.items() if len(sharing) > 1 for config in sharing}
