"""SUITES: a name for each grid of runs, as data. Settings are here, in `bench.protocol.tuned` or in an agent's file."""

from collections.abc import Callable, Sequence
from typing import Any

from agents import AGENTS
from agents.blocks.base import Agent, OnPolicyAgent
from agents.blocks.config import with_settings
from bench.protocol.config import RunConfig
from bench.protocol.grids import GRID_SEEDS, SMALL, grid, quick_grid, run_config, tasks_of
from bench.protocol.scratch_suites import SCRATCH_SUITES
from bench.protocol.tuned import (
    RELEASE_CRITIC,
    RUN_SETTINGS,
    WITHOUT_DATA,
    release_config,
    settings_it_has,
    tuned_config,
)
from bench.protocol.velocity_suites import VELOCITY_SUITES
from datasets.registry import TASKS

FLOW_AGENTS = ("sac_flow_t", "sac_flow_g", "naive_sac_flow", "flow_mlp", "fql", "qc_fql")
RELEASE_SEEDS = range(12)


def _ogbench(domain: str, agents: Sequence[str] = FLOW_AGENTS) -> list[RunConfig]:
    return grid(f"ogbench-{domain}", tasks_of(domain), agents)


def _cubes(domain: str) -> list[RunConfig]:
    """With ReinFlow, the on-policy opponent of the SAC Flow paper."""
    return _ogbench(domain, (*FLOW_AGENTS, "reinflow"))


def quick() -> list[RunConfig]:
    """Minutes on two cores, from nothing: what an offline-to-online run is. Generated data, small networks.

    The demonstrations are of mixed quality, so that the offline phase ends far below the ceiling and the online phase
    has something to add. The regulariser is weaker, learning and target rates are higher than published, since the
    runs are short. SAC Flow-G runs without entropy: the released temperature rule takes 20,000 updates to get there.
    """
    settings: dict[str, dict[str, Any]] = {
        "qc_fql": {**SMALL, "bc_coef": 50.0},
        "sac_flow_g": {**SMALL, "gate_dim": 64, "bc_coef": 50.0, "bc_coef_online": 50.0, "temperature": "off"},
    }
    return quick_grid(
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


def toy() -> list[RunConfig]:
    """Less than a minute on two cores: whole offline-to-online runs on a task that costs microseconds a step.

    To try an agent on while it is written. Small networks, high learning rates; nothing here is a result about the
    methods.
    """
    tiny = {
        "policy_hidden_dims": (64, 64),
        "critic_hidden_dims": (64, 64),
        "learning_rate": 3e-3,
        "target_update_rate": 0.02,
        "flow_steps": 4,
        "bc_coef": 10.0,
    }
    settings: dict[str, dict[str, Any]] = {
        "qc_fql": tiny,
        "sac_flow_g": {**tiny, "gate_dim": 32, "bc_coef_online": 10.0, "temperature": "off"},
    }
    return quick_grid(
        "toy",
        settings,
        task="toy-reach",
        dataset=TASKS["toy-reach"].dataset,
        batch_size=64,
        offline_updates=400,
        online_steps=600,
        warmup_steps=100,
        eval_interval_updates=200,
        eval_interval_steps=150,
        eval_episodes=40,
        log_interval=100,
        gradient_norm_interval=100,
    )


def with_data() -> list[tuple[str, tuple[type[Agent], Any]]]:
    """Entries of the registry that have been trained on data somewhere, among them those of plug-ins."""
    return [(agent, entry) for agent, entry in AGENTS.items() if agent not in (*WITHOUT_DATA, "ppo")]


def baselines_quick() -> list[RunConfig]:
    """Every agent on the quick suite's task and data, with the same two critics: an hour per seed on two cores.

    Small networks, and weights that suit a run of minutes; nothing here is a result about the methods.
    """
    held = {"bc_coef": 50.0, "bc_coef_online": 50.0, "temperature": "off"}
    on_policy = {"num_envs": 4, "rollout_decisions": 100, "batch_decisions": 128, "learning_rate": 5e-5}
    on_policy |= {"ema_rate": 0.005, "epochs": 10}
    changes: dict[str, dict[str, Any]] = {
        **dict.fromkeys(("sac_flow_t", "sac_flow_g", "flow_mlp", "naive_sac_flow", "fql", "qc_fql"), held),
        "fbrac": {"bc_coef": 0.3},
        **{agent: {"num_candidates": 16} for agent in ("qc", "ifql", "idql")},
        "diffusion_ql": {"num_candidates": 16, "q_coef": 0.1, "ema_rate": 0.025, "first_ema_update": 1},
        "dac": {"bc_coef": 5.0},
        "qsm": {"bc_coef": 10.0},
        "rebrac": {"bc_coef": 0.1},
        "dppo": {**on_policy, "cloning_learning_rate": 1e-3},
        "reinflow": {**on_policy, "matching_learning_rate": 1e-3},
    }
    same = {**SMALL, "gate_dim": 64, "decoder_dim": 64, "value_hidden_dims": (96, 96, 96)}
    same |= {"num_critics": 2, "critic_norm": "after", "critic_activation": "gelu"}
    settings = {}
    for agent, (_, config) in with_data():
        every = {"q_aggregation": "mean", **same, **changes.get(agent, {})}
        settings[agent] = settings_it_has(config, every)
    return quick_grid(
        "baselines-quick",
        settings,
        task="cube-single-task1",
        dataset="cube-single-task1-mixed-generated-60ep-seed0",
        offline_updates=2_000,
        online_steps=4_000,
        eval_interval_updates=1_000,
        eval_interval_steps=1_000,
        eval_episodes=20,
    )


def robomimic_quick() -> list[RunConfig]:
    """Minutes on two cores, from nothing: Lift on scripted demonstrations of several strategies, some of them failures.

    As in the quick suite, with a stronger regulariser, and the smaller of the two target critics: the reward is sparse,
    and critics that overestimate undo for a while what the offline phase has learned. The pair differs by the gate of
    the velocity alone.
    """
    flow = {"bc_coef": 1_000.0, "bc_coef_online": 1_000.0, "temperature": "off", "q_aggregation": "min"}
    settings: dict[str, dict[str, Any]] = {
        "flow_mlp": {**SMALL, **flow},
        "sac_flow_g": {**SMALL, **flow, "gate_dim": 64},
    }
    return quick_grid(
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


def ogbench_cube_single() -> list[RunConfig]:
    """The five cube-single tasks at the published protocol; the cheapest real grid."""
    return _cubes("cube-single")


def ogbench_cube_double() -> list[RunConfig]:
    """The five cube-double tasks: the first panel of the SAC Flow paper's offline-to-online figure."""
    return _cubes("cube-double")


def ogbench_cube_triple() -> list[RunConfig]:
    """The five cube-triple tasks: the second panel. The 3M transitions fill the buffer, as published."""
    return _cubes("cube-triple")


def ogbench_cube_quadruple() -> list[RunConfig]:
    """The five cube-quadruple tasks on the 100M set: the third panel. Online keeps one shard, as published."""
    return _cubes("cube-quadruple")


def ogbench_scene() -> list[RunConfig]:
    """The five scene tasks (cube, buttons, drawer, window) with the sparse reward of Q-chunking and SAC Flow."""
    return _ogbench("scene")


def ogbench_puzzle_3x3() -> list[RunConfig]:
    """The five puzzle-3x3 tasks (nine buttons that switch their neighbours), sparse reward."""
    return _ogbench("puzzle-3x3")


def ogbench_puzzle_4x4() -> list[RunConfig]:
    """The five puzzle-4x4 tasks on the 100M set of QAM's runs, sparse reward; online keeps one shard, as Q-chunking."""
    return _ogbench("puzzle-4x4")


def ogbench_antmaze_large() -> list[RunConfig]:
    """The five antmaze-large tasks on navigate data, single actions."""
    return _maze("antmaze-large")


def ogbench_antmaze_giant() -> list[RunConfig]:
    """The five antmaze-giant tasks on navigate data, single actions, the longer discount of FQL's and QAM's runs."""
    return _maze("antmaze-giant")


def ogbench_humanoidmaze_medium() -> list[RunConfig]:
    """The five humanoidmaze-medium tasks on navigate data, single actions, the longer discount."""
    return _maze("humanoidmaze-medium")


def ogbench_humanoidmaze_large() -> list[RunConfig]:
    """The five humanoidmaze-large tasks on navigate data, single actions, the longer discount."""
    return _maze("humanoidmaze-large")


def ogbench_50() -> list[RunConfig]:
    """The 50 tasks of QAM (arXiv 2601.14234) at its budget of 1M offline updates and 500,000 online steps."""
    suites = [suite for name, suite in SUITES.items() if name.startswith("ogbench-")]
    domains = [suite for suite in suites if suite not in (ogbench_50, ogbench_cube_single)]
    runs = (config for suite in domains for config in suite() if config.agent in FLOW_AGENTS)
    return [config.replace(suite="ogbench-50", online_steps=500_000) for config in runs]


def _maze(domain: str) -> list[RunConfig]:
    """Without qc_fql, which is fql where chunks have one action."""
    return [config for config in _ogbench(domain) if config.agent != "qc_fql"]


def robomimic() -> list[RunConfig]:
    """Lift, Can and Square on multi-human demonstrations: the Robomimic panels of Q-chunking and SAC Flow."""
    tasks = (TASKS[name] for name in ("lift-mh", "can-mh", "square-mh"))
    return grid("robomimic", tasks, (*FLOW_AGENTS, "reinflow"))


def baselines_cube() -> list[RunConfig]:
    """Every agent on cube-double, -triple and -quadruple at the protocol of QAM's 12-seed release: chunks of 5 actions,
    the same ten pessimistic critics, its replay, 1M offline updates and 500,000 online steps.

    FQL, BFN and RLPD are there with chunks alone (qc_fql, qc, rlpd_ac).
    """
    agents = [agent for agent, _ in with_data() if agent not in ("fql", "bfn", "rlpd")]
    return [
        run_config(
            "baselines-cube",
            task,
            agent,
            seed,
            agent_config=release_config(agent, task.domain),
            online_steps=500_000,
            eval_interval_updates=50_000,
            eval_interval_steps=50_000,
            **({"replay": "keep"} if _has_other_replay(agent, task.domain) else {}),
        )
        for task in tasks_of("cube-double", "cube-triple", "cube-quadruple")
        for agent in agents
        for seed in RELEASE_SEEDS
    ]


def _has_other_replay(agent: str, domain: str) -> bool:
    """The replays of QAM and Q-chunking give other batches within 500,000 steps: cube-double and online transitions
    that are kept apart do not fill a buffer, and cube-quadruple has shards.
    """
    if issubclass(AGENTS[agent][0], OnPolicyAgent):
        return False
    share = RUN_SETTINGS.get(agent, {}).get("online_batch_share")  # of online transitions, where they are kept apart
    return share is None if domain == "cube-triple" else domain == "cube-quadruple" and share != 1.0


# Agent, variant and what it changes. SAC Flow without entropy is what most others are compared with: neither the
# density of the path nor its temperature plays a part in it.
_NO_ENTROPY: dict[str, Any] = {"temperature": "off"}
_NO_NOISE: dict[str, Any] = dict.fromkeys(
    ("policy_noise_std", "target_noise_std", "collect_noise_std", "evaluate_noise_std"), 0.0
)
_CENTRED: dict[str, Any] = {"entropy_reference": "centred", "target_entropy": -0.5}
ABLATIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    # (a) velocities, with all else equal
    ("sac_flow_t", "no-entropy", _NO_ENTROPY),
    ("sac_flow_g", "no-entropy", _NO_ENTROPY),
    ("flow_mlp", "no-entropy", _NO_ENTROPY),
    # (b) critic updates per offline step
    ("sac_flow_t", "one-critic-update", {**_NO_ENTROPY, "critic_updates_per_offline_step": 1}),
    ("qc_fql", "", {}),
    ("qc_fql", "two-critic-updates", {"critic_updates_per_offline_step": 2}),
    # (c) distance to the batch's actions, or to a flow's
    ("sac_flow_t", "distilled", {**_NO_ENTROPY, "bc_target": "flow"}),
    # (d) noise in the rollout
    ("sac_flow_t", "no-noise", {**_NO_ENTROPY, **_NO_NOISE}),
    ("sac_flow_t", "paper-sde", {**_NO_ENTROPY, "noise_scheme": "paper_sde"}),
    # (e) entropy: as released, at a fixed temperature, at one that a reachable target moves
    ("sac_flow_t", "", {}),
    ("sac_flow_t", "fixed-temperature", {"temperature": "fixed", **_CENTRED}),
    ("sac_flow_t", "auto-temperature", {"temperature": "auto", **_CENTRED}),
    # (f) critics
    ("sac_flow_t", "ten-critics", {**_NO_ENTROPY, "num_critics": 10}),
    ("sac_flow_t", "ten-pessimistic-critics", {**_NO_ENTROPY, **RELEASE_CRITIC}),
    ("qc_fql", "ten-pessimistic-critics", RELEASE_CRITIC),
)


def sac_flow_ablations() -> list[RunConfig]:
    """What SAC Flow owes to which of its parts, on cube-double: velocity, critic updates, regulariser, noise, entropy,
    critics. Each is a variant of an agent; `make figures` shows what it changes.
    """
    return [
        run_config(
            "sac-flow-ablations",
            task,
            agent,
            seed,
            variant=variant,
            agent_config=with_settings(tuned_config(agent, task.domain), **changes),
        )
        for task in tasks_of("cube-double")
        for agent, variant, changes in ABLATIONS
        for seed in GRID_SEEDS
    ]


def bullet() -> list[RunConfig]:
    """The twelve d4rl-pybullet tasks, scored by return. No paper tunes these agents on them: default settings."""
    return grid("bullet", (task for task in TASKS.values() if task.suite == "bullet"), FLOW_AGENTS)


SUITES: dict[str, Callable[[], list[RunConfig]]] = {
    "toy": toy,
    "quick": quick,
    "robomimic-quick": robomimic_quick,
    "baselines-quick": baselines_quick,
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
    "baselines-cube": baselines_cube,
    "sac-flow-ablations": sac_flow_ablations,
    "bullet": bullet,
    **SCRATCH_SUITES,
    **VELOCITY_SUITES,
}
