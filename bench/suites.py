"""SUITES: a name for each grid of runs, as data. A run's settings are here, in `bench.tuned` or in its agent's file."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from agents import AGENTS
from bench.config import RunConfig
from bench.tuned import TUNED

FLOW_AGENTS = ("sac_flow_t", "sac_flow_g", "naive_sac_flow", "flow_mlp", "fql", "qc_fql")
GRID_SEEDS = range(8)  # per agent and task; the least for a head-to-head claim is 10, for a table 5


def tuned_config(agent: str, domain: str) -> Any:
    """The agent's config with the domain's published settings."""
    return replace(AGENTS[agent][1], **TUNED.get(domain, {}).get(agent, {}))


def _cube(domain: str, **settings: Any) -> list[RunConfig]:
    import datasets

    return [
        RunConfig(
            suite=f"ogbench-{domain}",
            task=task.name,
            agent=agent,
            seed=seed,
            dataset=task.dataset,
            agent_config=tuned_config(agent, domain),
            **settings,
        )
        for task in datasets.TASKS.values()
        if task.domain == domain
        for agent in FLOW_AGENTS
        for seed in GRID_SEEDS
    ]


def quick() -> list[RunConfig]:
    """Minutes on two cores, from nothing: what an offline-to-online run is. Generated data, small networks.

    The demonstrations are of mixed quality, so that the offline phase ends far below the ceiling and the online phase
    has something to add. The regulariser is weaker, learning and target rates are higher than published, since the
    runs are short. SAC Flow-G runs without entropy: the released temperature rule takes 20,000 updates to get there.
    """
    small: dict[str, Any] = {
        "policy_hidden_dims": (96, 96, 96),
        "critic_hidden_dims": (96, 96, 96),
        "learning_rate": 1e-3,
        "target_update_rate": 0.02,
    }
    settings: dict[str, dict[str, Any]] = {
        "qc_fql": {**small, "bc_coef": 50.0},
        "sac_flow_g": {**small, "gate_dim": 64, "bc_coef": 50.0, "bc_coef_online": 50.0, "temperature": "off"},
    }
    return [
        RunConfig(
            suite="quick",
            task="cube-single-task1",
            agent=agent,
            seed=seed,
            dataset="cube-single-task1-mixed-generated-60ep-seed0",
            agent_config=replace(AGENTS[agent][1], **settings[agent]),
            offline_updates=2_000,
            online_steps=7_000,
            warmup_steps=500,
            batch_size=128,
            eval_interval_updates=1_000,
            eval_interval_steps=1_400,
            eval_episodes=25,
            log_interval=500,
        )
        for agent in settings
        for seed in range(3)
    ]


def ogbench_cube_single() -> list[RunConfig]:
    """The five cube-single tasks at the published protocol; the cheapest real grid."""
    return _cube("cube-single")


def ogbench_cube_double() -> list[RunConfig]:
    """The five cube-double tasks: the first panel of the SAC Flow paper's offline-to-online figure."""
    return _cube("cube-double")


def ogbench_cube_triple() -> list[RunConfig]:
    """The five cube-triple tasks: the second panel. The 3M transitions fill the buffer, as published."""
    return _cube("cube-triple")


def ogbench_cube_quadruple() -> list[RunConfig]:
    """The five cube-quadruple tasks on the 100M set: the third panel. Online keeps the last shard, as published."""
    return _cube("cube-quadruple", online_dataset_rows=1_000_000)


SUITES: dict[str, Callable[[], list[RunConfig]]] = {
    "quick": quick,
    "ogbench-cube-single": ogbench_cube_single,
    "ogbench-cube-double": ogbench_cube_double,
    "ogbench-cube-triple": ogbench_cube_triple,
    "ogbench-cube-quadruple": ogbench_cube_quadruple,
}
