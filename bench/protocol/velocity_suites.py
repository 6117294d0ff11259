"""Suites of one study: does the velocity of a flow policy matter? Small enough for two cores.

results/reference/velocity/PLAN.md says what is asked of them, in which order they are run, and when they are stopped.
"""

from collections.abc import Callable, Sequence
from typing import Any

from agents import AGENTS
from agents.blocks.config import with_settings
from bench.protocol.config import RunConfig
from bench.protocol.grids import SMALL
from bench.protocol.tuned import settings_it_has

SEEDS = range(10)  # the least of a head-to-head claim
NARROW: dict[str, Any] = {**SMALL, "gate_dim": 64, "decoder_dim": 64}
WIDE: dict[str, Any] = {
    **NARROW,
    "policy_hidden_dims": (256, 256),
    "critic_hidden_dims": (256, 256),
    "gate_dim": 128,
    "decoder_dim": 128,
}
# Agent, variant and what it changes: the three velocities with all else equal, then the naive flow, as it was released.
WITHOUT_ENTROPY: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("sac_flow_t", "no-entropy", {"temperature": "off"}),
    ("sac_flow_g", "no-entropy", {"temperature": "off"}),
    ("flow_mlp", "no-entropy", {"temperature": "off"}),
    ("naive_sac_flow", "", {}),
)
ANCHOR = (("qc_fql", "", {}),)
WITH_ENTROPY = (("sac_flow_t", "", {}), ("sac_flow_g", "", {}), ("flow_mlp", "", {}))
# Weights of the suites quick and robomimic-quick, and a budget at which these agents are half way up.
EVERY: dict[str, Any] = {
    "offline_updates": 1_000,
    "online_steps": 2_400,
    "eval_interval_updates": 500,
    "eval_interval_steps": 600,
    "eval_episodes": 20,
    "warmup_steps": 300,
    "batch_size": 128,
    "log_interval": 500,
    "gradient_norm_interval": 200,
}
CUBES = ("cube-single-task1", "cube-single-task2", "cube-single-task3")


def velocity() -> list[RunConfig]:
    """Does the velocity of a flow policy matter? Three velocities, naive flow and QC-FQL on 60 mixed demonstrations."""
    return _on_tasks("velocity", 60, (*WITHOUT_ENTROPY, *ANCHOR))


def velocity_entropy() -> list[RunConfig]:
    """The three velocities with the entropy of the path as released."""
    return _on_tasks("velocity-entropy", 60, WITH_ENTROPY)


def velocity_240() -> list[RunConfig]:
    """The first suite on four times the data."""
    return _on_tasks("velocity-240", 240, (*WITHOUT_ENTROPY, *ANCHOR))


def velocity_weak() -> list[RunConfig]:
    """On one task with a tenth of the regulariser, where Q's gradient through the rollout weighs more."""
    return _cells("velocity-weak", CUBES[0], 60, WITHOUT_ENTROPY, {**NARROW, **_held(5.0)})


def velocity_wide() -> list[RunConfig]:
    """On one task with networks of 2 x 256."""
    return _cells("velocity-wide", CUBES[0], 60, (*WITHOUT_ENTROPY, *ANCHOR), {**WIDE, **_held(50.0)})


def _on_tasks(suite: str, episodes: int, rows: Sequence[tuple[str, str, dict[str, Any]]]) -> list[RunConfig]:
    cubes = [config for task in CUBES for config in _cells(suite, task, episodes, rows, {**NARROW, **_held(50.0)})]
    # Lift's reward is sparse: a stronger regulariser and the smaller of two target critics, as in robomimic-quick.
    lift = {**NARROW, **_held(1_000.0), "q_aggregation": "min"}
    return cubes + _cells(suite, "lift-mh", episodes, rows, lift)


def _held(bc_coef: float) -> dict[str, Any]:
    return {"bc_coef": bc_coef, "bc_coef_online": bc_coef}


def _cells(
    suite: str,
    task: str,
    episodes: int,
    rows: Sequence[tuple[str, str, dict[str, Any]]],
    settings: dict[str, Any],
) -> list[RunConfig]:
    """Ten seeds of each row on one task; of `settings`, every agent takes those that it has."""
    data = f"{task.removesuffix('-mh')}-mixed-generated-{episodes}ep-seed0"
    return [
        RunConfig(
            suite=suite,
            task=task,
            dataset=data,
            agent=agent,
            variant=variant,
            seed=seed,
            agent_config=with_settings(AGENTS[agent][1], **settings_it_has(AGENTS[agent][1], settings), **changes),
            **EVERY,
        )
        for agent, variant, changes in rows
        for seed in SEEDS
    ]


VELOCITY_SUITES: dict[str, Callable[[], list[RunConfig]]] = {
    "velocity": velocity,
    "velocity-entropy": velocity_entropy,
    "velocity-240": velocity_240,
    "velocity-weak": velocity_weak,
    "velocity-wide": velocity_wide,
}
