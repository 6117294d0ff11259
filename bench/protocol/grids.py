"""A run with its tuned settings, and grids of such runs: what suites are made of."""

from collections.abc import Iterable, Sequence
from typing import Any

from agents import AGENTS
from agents.blocks.config import with_settings
from bench.protocol.config import RunConfig
from bench.protocol.tuned import (
    DOMAIN_SETTINGS,
    MUJOCO,
    MUJOCO_SETTINGS,
    RUN_SETTINGS,
    Settings,
    data_settings,
    tuned_config,
)
from bench.runs.contract import NO_SUITES, ConfigError
from datasets.registry import TASKS
from datasets.spec import TaskSpec

GRID_SEEDS = range(8)  # per agent and task; the least for a head-to-head claim is 10, for a table 5

SMALL: dict[str, Any] = {  # settings of agents in quick suites
    "policy_hidden_dims": (96, 96, 96),
    "critic_hidden_dims": (96, 96, 96),
    "learning_rate": 1e-3,
    "target_update_rate": 0.02,
}


def run_config(suite: str, task: TaskSpec, agent: str, seed: int, **settings: Any) -> RunConfig:
    """A run on the task's own data with its tuned settings and those of its domain and data, unless `settings` say
    otherwise. What all runs of the agent do differently from everyone's (RUN_SETTINGS) holds in any case, but for the
    share of data in batches of a run without. ConfigError for a suite that results keep a folder of its name for.
    """
    if suite.lower() in NO_SUITES:
        raise ConfigError(
            f"suite {suite!r} cannot be: results keep the folders {', '.join(NO_SUITES)} for something else; "
            f"use another name, such as my-{suite.lower()}"
        )
    settings = {"agent_config": tuned_config(agent, task.domain), "dataset": task.dataset, **settings}
    of_domain = DOMAIN_SETTINGS.get(task.domain, {}) | (MUJOCO_SETTINGS.get(agent, {}) if task.domain in MUJOCO else {})
    settings = of_domain | data_settings(settings["dataset"]) | settings
    own = own_settings(agent, settings["dataset"])
    if settings.get("replay") == "keep":  # which has room for all
        own = {name: value for name, value in own.items() if name != "replay_capacity"}
    return RunConfig(suite=suite, task=task.name, agent=agent, seed=seed, **(settings | own))


def own_settings(agent: str, dataset: str | None) -> Settings:
    """How the agent's runs differ from everyone's; without data, no share of a batch can be of data."""
    own = RUN_SETTINGS.get(agent, {})
    return {**own, "online_batch_share": 1.0} if dataset is None and "online_batch_share" in own else own


def grid(suite: str, tasks: Iterable[TaskSpec], agents: Sequence[str], **settings: Any) -> list[RunConfig]:
    """Every agent on every task at the published protocol, with settings tuned where a paper has tuned them, unless
    `settings` say otherwise."""
    return [
        run_config(suite, task, agent, seed, **settings) for task in tasks for agent in agents for seed in GRID_SEEDS
    ]


def tasks_of(*domains: str) -> list[TaskSpec]:
    """All tasks of these domains."""
    return [task for task in TASKS.values() if task.domain in domains]


def quick_grid(suite: str, settings: dict[str, dict[str, Any]], **run: Any) -> list[RunConfig]:
    """Three seeds of each agent with its settings, small batches."""
    small = {"warmup_steps": 500, "batch_size": 128, "log_interval": 500, "gradient_norm_interval": 500}
    return [
        RunConfig(
            suite=suite,
            agent=agent,
            seed=seed,
            agent_config=with_settings(AGENTS[agent][1], **changes),
            **{**small, **run, **own_settings(agent, run["dataset"])},
        )
        for agent, changes in settings.items()
        for seed in range(3)
    ]
