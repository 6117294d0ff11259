"""Runs small enough for tests, through the real entry points."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents import AGENTS
from agents.blocks.config import settings_of, with_settings
from bench.protocol.config import RunConfig
from tests.conftest import TINY_DATASET

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "policy_hidden_dims": (16, 16),
    "critic_hidden_dims": (16, 16),
    "num_critics": 2,
    "gate_dim": 16,
    "decoder_dim": 16,
    "decoder_layers": 1,
    "value_hidden_dims": (16, 16),
    "noise_hidden_dims": (16,),
    "denoising_steps": 3,
    "fine_tuned_steps": 2,
    "num_envs": 2,
    "rollout_decisions": 4,
    "batch_decisions": 8,
    "epochs": 2,
    "first_policy_rollout": 2,
}


RESIDUAL = {"policy_hidden_dims": (16, 16, 16), "value_hidden_dims": (16, 16, 16)}  # which take no even number


def once_per_class() -> list[Any]:
    """Every agent as a parameter of a test that takes seconds of whole runs. Entries of the registry that differ from
    one before them by settings alone take the same path through driver, checkpoint and files: those are slow tests."""
    first: set[type] = set()
    parameters = []
    for name, (agent_class, _) in AGENTS.items():
        parameters.append(pytest.param(name, marks=[pytest.mark.slow] if agent_class in first else []))
        first.add(agent_class)
    return parameters


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Within it `folder` is a disk of its own, of `size` as mount takes it; skips the test where none can be made."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        # Lazily: a process that is about to end may still hold a file there.
        subprocess.run(["umount", "-l", str(folder)], check=True)


def small_agent_config(agent: str) -> Any:
    """The agent's default config with networks of a few units."""
    default = AGENTS[agent][1]
    small = SMALL | (RESIDUAL if "residual" in settings_of(default) else {})
    return with_settings(default, **{name: value for name, value in small.items() if name in settings_of(default)})


def tiny_config(agent: str = "sac_flow_g", seed: int = 0, **changes: Any) -> RunConfig:
    """A whole offline-to-online run of a second: three evaluations offline, three online."""
    settings: dict[str, Any] = {
        "suite": "tiny",
        "task": "toy-reach",
        "dataset": TINY_DATASET,
        "offline_updates": 30,
        "online_steps": 40,
        "warmup_steps": 11,
        "batch_size": 16,
        "eval_interval_updates": 15,
        "eval_interval_steps": 16,
        "eval_episodes": 1,
        "log_interval": 7,
    }
    return RunConfig(agent=agent, seed=seed, agent_config=small_agent_config(agent), **{**settings, **changes})


def python(*arguments: str, cwd: Path = ROOT, timeout: float = 900, **environment: str) -> subprocess.CompletedProcess:
    """`python …` from the root of the checkout, output captured as text."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def status_of(directory: Path) -> dict[str, Any]:
    """The run's status.json, which must be there."""
    return json.loads((directory / "status.json").read_text())


def provenance_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "provenance.json").read_text())
