"""A run that was stopped by an earlier version of the code, kept as a fixture: it loads, goes on, and is drawn.

Its checkpoint is a dict whose tensors have other names, its provenance knows no departures.
"""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch

import datasets
from agents.blocks.streams import SeedStreams
from analysis.loading.load import load_results
from bench.protocol.config import RunConfig
from bench.runs.checkpoint import Checkpoints
from bench.runs.contract import CONFIG, EPISODES, POLICY, PROVENANCE, TRAIN, is_complete, read_json, write_json
from bench.training.execution import Execution
from bench.training.policies import build_agent, load_policy
from bench.training.train import run

FIXTURE = Path(__file__).parent / "fixtures" / "run_before_blocks"


pytestmark = pytest.mark.thorough  # its data come from a simulator


@pytest.fixture
def stopped(cube_cache, tmp_path) -> tuple[RunConfig, Path]:
    """Its config and a results folder with a copy of it, on this machine's data."""
    config = RunConfig.from_json(json.loads((FIXTURE / CONFIG).read_text()))
    directory = shutil.copytree(FIXTURE, config.directory(tmp_path / "results"))
    provenance = json.loads((directory / PROVENANCE).read_text())
    data = datasets.load(config.task, config.dataset)  # made here, by simulators that may round otherwise
    provenance["dataset"]["content_hash"] = data.content_hash
    provenance["dataset"]["num_transitions"] = data.num_transitions
    write_json(directory / PROVENANCE, provenance)
    return config, tmp_path / "results"


def test_its_config_is_the_run_it_was(stopped):
    config, results = stopped
    assert config.to_json() == read_json(config.directory(results) / CONFIG)


def test_it_goes_on_where_it_was_to_its_end(stopped):
    config, results = stopped
    directory = config.directory(results)
    (state,) = Checkpoints(directory).load().values()
    assert state.point.phase == "offline" and state.point.updates == 21 and not state.point.evaluated
    kept = {name: (directory / name).read_bytes()[: state.offsets[name]] for name in (EPISODES, TRAIN)}
    run([config], results, Execution(device="cpu", env_workers=0), lambda: False)
    assert is_complete(directory)
    for name, rows in kept.items():
        assert (directory / name).read_bytes().startswith(rows)
    start = (read_json(directory / PROVENANCE) or {})["starts"][-1]
    assert start["resumed_from"] == {"phase": "offline", "updates": 21, "env_steps": 0}
    (suite,) = load_results(results)
    assert suite.agents == (config.label,) and suite.runs[0].complete


def test_its_policy_is_loaded(stopped):
    config, results = stopped
    policy = (config.directory(results) / POLICY).read_bytes()
    agent = build_agent(config, SeedStreams([0], "cpu", "init"))
    load_policy(agent, policy)
    written = safetensors.torch.load(policy)
    assert agent.policy_tensors().keys() == written.keys()
    assert all(tensor.equal(written[name]) for name, tensor in agent.policy_tensors().items())
