"""Suites of runs that learn from scratch: SAC Flow's figure 4, the same on newer environments, and its parts."""

from collections.abc import Callable
from typing import Any

from agents.blocks.config import with_settings
from bench.protocol.config import RunConfig
from bench.protocol.grids import GRID_SEEDS, grid, quick_grid, run_config
from bench.protocol.tuned import MUJOCO, tuned_config
from datasets.registry import TASKS
from datasets.spec import TaskSpec

# Whoever can learn from scratch, in the order of figure 4; a new one is added here and nowhere else in this file.
SCRATCH_AGENTS = (
    *("sac_flow_t_scratch", "sac_flow_g_scratch", "naive_flow_scratch", "flow_mlp_scratch", "crossq", "sac"),
    *("ppo", "dime", "flowrl", "qsm_scratch"),
)
# Ten episodes every 50,000 steps say as much of returns as fifty: seeds make far more of a difference than episodes,
# and fifty would play as many steps as training.
FIGURE_4: dict[str, Any] = {
    "dataset": None,
    "offline_updates": 0,
    "online_steps": 1_000_000,
    "replay_capacity": 1_000_000,
    "eval_interval_steps": 50_000,
    "eval_episodes": 10,
}


def _mujoco(version: str) -> list[TaskSpec]:
    return [TASKS[name] for name in MUJOCO if name.endswith(version)]


def _figure_4(suite: str, tasks: list[TaskSpec]) -> list[RunConfig]:
    return grid(suite, tasks, SCRATCH_AGENTS, **FIGURE_4)


def mujoco() -> list[RunConfig]:
    """The six MuJoCo robots (-v4) from scratch, a million steps: SAC Flow's figure 4, panels a to f.

    Five have published SAC runs and so a scale from uniform random (0) to SAC (1); HumanoidStandup has none.
    """
    return _figure_4("mujoco", _mujoco("v4"))


def mujoco_v5() -> list[RunConfig]:
    """The same on Gymnasium's -v5, which newer papers run: no public seeds, so every task has its own scale."""
    return _figure_4("mujoco-v5", _mujoco("v5"))


def scratch_sparse() -> list[RunConfig]:
    """cube-double and Can without their data: figure 4, panels g and h, where exploration alone finds success."""
    return _figure_4("scratch-sparse", [TASKS["cube-double-task2"], TASKS["can-mh"]])


# Agent, variant and what it changes; a row for each part that SAC Flow's claims from scratch may rest on.
ABLATIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    # (a) velocities, with all else equal; where time reaches the naive one while training, too
    ("sac_flow_t_scratch", "", {}),
    ("sac_flow_g_scratch", "", {}),
    ("flow_mlp_scratch", "", {}),
    ("naive_flow_scratch", "", {}),
    ("naive_flow_scratch", "time-bypass", {"time_input": "bypass"}),
    ("sac_flow_t_scratch", "time-bypass", {"time_input": "bypass"}),
    # (b) Euler steps
    ("sac_flow_g_scratch", "1-step", {"flow_steps": 1}),
    ("sac_flow_g_scratch", "8-steps", {"flow_steps": 8}),
    # (c) density with and without -log std
    ("sac_flow_t_scratch", "released-density", {"density": "released"}),
    ("crossq", "", {}),
    ("crossq", "released-density", {"density": "released"}),
    # (d) target entropy: that of the flows, and that of SAC
    ("sac_flow_g_scratch", "target-entropy-1", {"target_entropy": -1.0}),
    ("sac", "", {}),
    ("sac", "target-entropy-0", {"target_entropy": 0.0}),
    # (e) critics with and without BatchRenorm
    ("sac_flow_g_scratch", "no-batch-renorm", {"batch_renorm": False}),
    ("crossq", "no-batch-renorm", {"batch_renorm": False}),
    # (f) policy steps
    ("sac_flow_g_scratch", "no-delay", {"policy_delay": 1}),
    # (g) the paper's equation, whose drift corrects for the noise, in place of the released code's
    ("sac_flow_g_scratch", "paper-drift", {"noise_scale": "paper_sde"}),
)


def scratch_ablations() -> list[RunConfig]:
    """What learning from scratch owes to its parts, on three MuJoCo robots; each is a variant of an agent."""
    return [
        run_config(
            "scratch-ablations",
            TASKS[task],
            agent,
            seed,
            variant=variant,
            agent_config=with_settings(tuned_config(agent, task), **changes),
            **FIGURE_4,
        )
        for task in ("hopper-v4", "halfcheetah-v4", "ant-v4")
        for agent, variant, changes in ABLATIONS
        for seed in GRID_SEEDS
    ]


def scratch_small() -> list[RunConfig]:
    """Hours on two cores: SAC Flow's velocities, the plain one and CrossQ's Gaussian with one small critic, on Hopper.

    Policies are as published, 3 seeds: enough to see that all of them learn, too few to call one of them better.
    """
    return [
        run_config(
            "scratch-small",
            TASKS["hopper-v4"],
            agent,
            seed,
            agent_config=with_settings(tuned_config(agent, "hopper-v4"), critic_hidden_dims=(256, 256)),
            **FIGURE_4 | {"online_steps": 60_000, "eval_interval_steps": 10_000},
            warmup_steps=5_000,
            batch_size=256,
        )
        for agent in ("sac_flow_t_scratch", "sac_flow_g_scratch", "flow_mlp_scratch", "crossq")
        for seed in range(3)
    ]


def mujoco_quick() -> list[RunConfig]:
    """Minutes on two cores, from nothing: what learning from scratch is. Hopper, small networks, 3 seeds.

    Learning rates are above the published ones, since the runs are short; nothing here is a result about the methods.
    """
    small = {"policy_hidden_dims": (64, 64), "critic_hidden_dims": (64, 64), "learning_rate": 1e-3}
    flow = {"gate_dim": 64, "policy_hidden_dims": (64, 64), "critic_hidden_dims": (64, 64)}
    settings: dict[str, dict[str, Any]] = {"sac": small, "sac_flow_g_scratch": flow}
    return quick_grid(
        "mujoco-quick",
        settings,
        task="hopper-v4",
        dataset=None,
        offline_updates=0,
        online_steps=8_000,
        warmup_steps=1_000,
        batch_size=128,
        eval_interval_steps=1_000,
        eval_episodes=10,
        gradient_norm_interval=0,
    )


SCRATCH_SUITES: dict[str, Callable[[], list[RunConfig]]] = {
    "mujoco-quick": mujoco_quick,
    "scratch-small": scratch_small,
    "mujoco": mujoco,
    "mujoco-v5": mujoco_v5,
    "scratch-sparse": scratch_sparse,
    "scratch-ablations": scratch_ablations,
}
