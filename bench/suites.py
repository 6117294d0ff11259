"""SUITES: a name for each grid of runs, as data. A run's settings are here, in `bench.tuned` or in its agent's file."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from agents import AGENTS
from bench.config import RunConfig
from bench.tuned import TUNED
from datasets.sources import TASKS
from datasets.spec import TaskSpec

FLOW_AGENTS = ("sac_flow_t", "sac_flow_g", "naive_sac_flow", "flow_mlp", "fql", "qc_fql")
GRID_SEEDS = range(8)  # per agent and task; the least for a head-to-head claim is 10, for a table 5


def tuned_config(agent: str, domain: str) -> Any:
    """The agent's config with the domain's published settings."""
    return replace(AGENTS[agent][1], **TUNED.get(domain, {}).get(agent, {}))


def _grid(suite: str, tasks: Iterable[TaskSpec], **settings: Any) -> list[RunConfig]:
    """Every flow agent on every task at the published protocol, with settings tuned where a paper has tuned them."""
    return [
        RunConfig(
            suite=suite,
            task=task.name,
            agent=agent,
            seed=seed,
            dataset=task.dataset,
            agent_config=tuned_config(agent, task.domain),
            **settings,
        )
        for task in tasks
        for agent in FLOW_AGENTS
        for seed in GRID_SEEDS
    ]


def _ogbench(domain: str, **settings: Any) -> list[RunConfig]:
    return _grid(f"ogbench-{domain}", (task for task in TASKS.values() if task.domain == domain), **settings)


def quick() -> list[RunConfig]:
    """Minutes on two cores, from nothing: what an offline-to-online run is. Generated data, small networks.

    The demonstrations are of mixed quality, so that the offline phase ends far below the ceiling and the online phase
    has something to add. The regulariser is weaker, learning and target rates are higher than published, since the
    runs are short. SAC Flow-G runs without entropy: the released temperature rule takes 20,000 updates to get there.
    """
    settings: dict[str, dict[str, Any]] = {
        "qc_fql": {**_SMALL, "bc_coef": 50.0},
        "sac_flow_g": {**_SMALL, "gate_dim": 64, "bc_coef": 50.0, "bc_coef_online": 50.0, "temperature": "off"},
    }
    return _quick(
        "quick",
        settings,
        task="cube-single-task1",
        dataset="cube-single-task1-mixed-generated-60ep-seed0",
        offline_updates=2_000,
        online_steps=7_000,
        eval_interval_updates=1_000,
        eval_interval_steps=1_400,
        eval_episodes=25,
    )


def robomimic_quick() -> list[RunConfig]:
    """Minutes on two cores, from nothing: Lift on scripted demonstrations of several strategies, some of them failures.

    As in the quick suite, with a stronger regulariser, and the smaller of the two target critics: the reward is sparse,
    and critics that overestimate undo for a while what the offline phase has learned. The pair differs by the gate of
    the velocity alone.
    """
    flow = {"bc_coef": 1_000.0, "bc_coef_online": 1_000.0, "temperature": "off", "q_aggregation": "min"}
    settings: dict[str, dict[str, Any]] = {
        "flow_mlp": {**_SMALL, **flow},
        "sac_flow_g": {**_SMALL, **flow, "gate_dim": 64},
    }
    return _quick(
        "robomimic-quick",
        settings,
        task="lift-mh",
        dataset="lift-mixed-generated-60ep-seed0",
        offline_updates=1_500,
        online_steps=3_000,
        eval_interval_updates=750,
        eval_interval_steps=750,
        eval_episodes=20,
    )


_SMALL: dict[str, Any] = {
    "policy_hidden_dims": (96, 96, 96),
    "critic_hidden_dims": (96, 96, 96),
    "learning_rate": 1e-3,
    "target_update_rate": 0.02,
}


def _quick(suite: str, settings: dict[str, dict[str, Any]], **run: Any) -> list[RunConfig]:
    """Three seeds of each agent with its settings, small batches."""
    return [
        RunConfig(
            suite=suite,
            agent=agent,
            seed=seed,
            agent_config=replace(AGENTS[agent][1], **own),
            warmup_steps=500,
            batch_size=128,
            log_interval=500,
            gradient_norm_interval=500,
            **run,
        )
        for agent, own in settings.items()
        for seed in range(3)
    ]


def ogbench_cube_single() -> list[RunConfig]:
    """The five cube-single tasks at the published protocol; the cheapest real grid."""
    return _ogbench("cube-single")


def ogbench_cube_double() -> list[RunConfig]:
    """The five cube-double tasks: the first panel of the SAC Flow paper's offline-to-online figure."""
    return _ogbench("cube-double")


def ogbench_cube_triple() -> list[RunConfig]:
    """The five cube-triple tasks: the second panel. The 3M transitions fill the buffer, as published."""
    return _ogbench("cube-triple")


def ogbench_cube_quadruple() -> list[RunConfig]:
    """The five cube-quadruple tasks on the 100M set: the third panel. Online keeps the last shard, as published."""
    return _ogbench("cube-quadruple", online_dataset_rows=1_000_000)


def ogbench_scene() -> list[RunConfig]:
    """The five scene tasks (cube, buttons, drawer, window) with the sparse reward of Q-chunking and SAC Flow."""
    return _ogbench("scene")


def ogbench_puzzle_3x3() -> list[RunConfig]:
    """The five puzzle-3x3 tasks (nine buttons that switch their neighbours), sparse reward."""
    return _ogbench("puzzle-3x3")


def ogbench_puzzle_4x4() -> list[RunConfig]:
    """The five puzzle-4x4 tasks on the 100M set, as QAM runs them; online keeps the last shard."""
    return _ogbench("puzzle-4x4", online_dataset_rows=1_000_000)


def ogbench_antmaze_large() -> list[RunConfig]:
    """The five antmaze-large tasks on navigate data, single actions."""
    return _maze("antmaze-large")


def ogbench_antmaze_giant() -> list[RunConfig]:
    """The five antmaze-giant tasks on navigate data, single actions, the longer discount of FQL's and QAM's runs."""
    return _maze("antmaze-giant", discount=0.995)


def ogbench_humanoidmaze_medium() -> list[RunConfig]:
    """The five humanoidmaze-medium tasks on navigate data, single actions, the longer discount."""
    return _maze("humanoidmaze-medium", discount=0.995)


def ogbench_humanoidmaze_large() -> list[RunConfig]:
    """The five humanoidmaze-large tasks on navigate data, single actions, the longer discount."""
    return _maze("humanoidmaze-large", discount=0.995)


def ogbench_50() -> list[RunConfig]:
    """The 50 tasks of QAM (arXiv 2601.14234) at its budget of 1M offline updates and 500,000 online steps."""
    suites = [suite for name, suite in SUITES.items() if name.startswith("ogbench-")]
    domains = [suite for suite in suites if suite not in (ogbench_50, ogbench_cube_single)]
    return [config.replace(suite="ogbench-50", online_steps=500_000) for suite in domains for config in suite()]


def _maze(domain: str, **settings: Any) -> list[RunConfig]:
    """Without qc_fql, which is fql where chunks have one action."""
    return [config for config in _ogbench(domain, **settings) if config.agent != "qc_fql"]


def robomimic() -> list[RunConfig]:
    """Lift, Can and Square on multi-human demonstrations: the Robomimic panels of Q-chunking and SAC Flow."""
    return _grid("robomimic", (TASKS[name] for name in ("lift-mh", "can-mh", "square-mh")))


def bullet() -> list[RunConfig]:
    """The twelve d4rl-pybullet tasks, scored by return. No paper tunes these agents on them: default settings."""
    return _grid("bullet", (task for task in TASKS.values() if task.suite == "bullet"))


SUITES: dict[str, Callable[[], list[RunConfig]]] = {
    "quick": quick,
    "robomimic-quick": robomimic_quick,
    "ogbench-cube-single": ogbench_cube_single,
    "ogbench-cube-double": ogbench_cube_double,
    "ogbench-cube-triple": ogbench_cube_triple,
    "ogbench-cube-quadruple": ogbench_cube_quadruple,
    "ogbench-scene": ogbench_scene,
    "ogbench-puzzle-3x3": ogbench_puzzle_3x3,
    "ogbench-puzzle-4x4": ogbench_puzzle_4x4,
    "ogbench-antmaze-large": ogbench_antmaze_large,
    "ogbench-antmaze-giant": ogbench_antmaze_giant,
    "ogbench-humanoidmaze-medium": ogbench_humanoidmaze_medium,
    "ogbench-humanoidmaze-large": ogbench_humanoidmaze_large,
    "ogbench-50": ogbench_50,
    "robomimic": robomimic,
    "bullet": bullet,
}
