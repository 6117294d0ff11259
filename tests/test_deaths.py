"""Runs of each kind of agent that end as by kill -9, offline and online, and resume to the bytes of undisturbed ones.

That an update of any agent changes nothing but what a checkpoint holds is in test_agents.py; real kills, of processes
and their helpers, are in test_train.py and test_slurm_faults.py.
"""

import random
from pathlib import Path

import pytest

from agents import AGENTS
from bench.protocol.config import RunConfig
from bench.training.execution import Execution
from bench.training.train import run
from tests.test_train import execute, results_of, table
from tests.tiny_runs import provenance_of, status_of, tiny_config

KINDS = ("sac_flow_g", "naive_sac_flow", "rlpd", "dppo")  # chunked, two-step, from scratch, on-policy
LOGGED = {"offline": (7, 14, 21), "online": (7, 14, 21, 28)}  # updates, environment steps: of tiny runs


class Killed(BaseException):
    """Ends a run where it stands: it saves nothing and marks nothing, as after kill -9. Only its claims are released,
    which otherwise belong to a process that lives on."""


def kill_at(config: RunConfig, results: Path, phase: str, logged: int, turns: int) -> None:
    """Trains until that update or environment step has been logged and so many turns of the loop, each of which saves a
    checkpoint, have followed: a point inside a chunk or a rollout. Ends there as if killed."""

    def should_stop() -> bool:
        nonlocal turns
        rows = [row for row in table(config, results, "train.csv") if row["phase"] == phase]
        if rows and int(rows[-1]["updates" if phase == "offline" else "env_steps"]) >= logged:
            turns -= 1
        if turns < 0:
            raise Killed
        return False

    with pytest.raises(Killed):
        run([config], results, Execution(device="cpu", checkpoint_seconds=0.0), should_stop)
    assert status_of(config.directory(results))["state"] == "running"


@pytest.mark.parametrize(
    "agent",
    [pytest.param(agent, marks=[] if agent in KINDS else pytest.mark.slow) for agent in AGENTS],
)
def test_a_run_that_dies_in_each_phase_ends_with_the_same_bytes(agent, data_cache, tmp_path):
    config, results = tiny_config(agent, eval_interval_updates=30, eval_interval_steps=20), tmp_path / "killed"
    execute([config], tmp_path / "whole")
    moments = random.Random()
    deaths = [(phase, moments.choice(logged), moments.randrange(7)) for phase, logged in LOGGED.items()]
    for death in deaths:
        kill_at(config, results, *death)
    execute([config], results)
    assert results_of(config, results) == results_of(config, tmp_path / "whole"), f"killed at {deaths}"
    status = status_of(config.directory(results))
    assert (status["state"], status["env_steps"]) == ("complete", 40)
    starts = provenance_of(config.directory(results))["starts"]
    assert [start["resumed_from"] and start["resumed_from"]["phase"] for start in starts] == [None, *LOGGED]
