"""Runs that learn from scratch: no data set in config, provenance, plan, tables and figures, and none is loaded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import datasets
from bench.__main__ import main
from bench.protocol.config import ConfigError, RunConfig
from bench.protocol.grids import run_config
from bench.training.execution import Execution, Preemption
from bench.training.train import run
from datasets.replay.replay import ONLINE_FIELDS, Replay
from datasets.spec import DataError
from datasets.transitions import no_transitions
from tests.test_sources import random_file
from tests.tiny_runs import provenance_of, small_agent_config, tiny_config

SCRATCH = {"task": "hopper-v4", "dataset": None, "offline_updates": 0}


def execute(config: RunConfig, results: Path, stop_after: float = float("inf")) -> None:
    """Runs it in this process; asks it to stop after so many polls of the flag."""
    polls = 0

    def should_stop() -> bool:
        nonlocal polls
        polls += 1
        return polls > stop_after

    run([config], results, Execution(device="cpu", checkpoint_seconds=1e9, engine="eager"), should_stop)


@pytest.mark.parametrize("agent", ["sac", "rlpd", "fql", "reinflow"])
def test_a_run_from_scratch_says_that_it_has_no_data(agent: str, tmp_path: Path) -> None:
    config = tiny_config(agent, **SCRATCH)
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    execute(config, tmp_path)
    directory = config.directory(tmp_path)
    assert json.loads((directory / "config.json").read_text())["dataset"] is None
    data = provenance_of(directory)["dataset"]
    assert data == {"name": "none", "origin": "none", "content_hash": "", "num_transitions": 0, "num_episodes": 0}
    assert (directory / "complete.json").exists()


@pytest.mark.parametrize("agent", ["sac", "fql"])  # all of a batch from online transitions; a mixture with no data
def test_a_run_from_scratch_that_was_stopped_ends_with_the_same_bytes(agent: str, tmp_path: Path) -> None:
    config = tiny_config(agent, **SCRATCH, seed=3)
    execute(config, tmp_path / "whole")
    with pytest.raises(Preemption):
        execute(config, tmp_path / "cut", stop_after=25)
    execute(config, tmp_path / "cut")
    for name in ("episodes.csv", "train.csv"):
        whole, cut = ((config.directory(tmp_path / place) / name).read_bytes() for place in ("whole", "cut"))
        assert whole == cut and whole.count(b"\n") > 3


def rows(number: int) -> dict[str, torch.Tensor]:
    """The transition of this number of two seeds; every fifth one ends an episode."""
    ends = number % 5 == 4
    values = {
        "obs": [[number, seed] for seed in range(2)],
        "action": [[number + 10 * seed] for seed in range(2)],
        "reward": [-number, -number],
        "terminated": [0.0, 0.0],
        "episode_end": [float(ends)] * 2,
        "next_obs": [[number + (0.5 if ends else 1), seed] for seed in range(2)],
    }
    return {name: torch.tensor(values[name], dtype=torch.float32) for name in ONLINE_FIELDS}


@pytest.mark.parametrize("placement", ["auto", "host"])
@pytest.mark.parametrize("share", [None, 1.0])
@pytest.mark.parametrize("length", [1, 3])
def test_without_data_every_stored_transition_is_sampled_alike(
    placement: str, share: float | None, length: int
) -> None:
    replay = Replay(
        no_transitions(2, 1),
        num_seeds=2,
        chunk_length=length,
        discount=0.9,
        device=torch.device("cpu"),
        placement=placement,  # pyright: ignore[reportArgumentType]
    )
    replay.open_ring(8, 30, online_share=share)
    for number in range(13):
        replay.append(rows(number))
    starts = 8 - length + 1  # of the last 8 transitions
    fractions = ((torch.arange(starts, dtype=torch.float64) + 0.5) / starts).expand(2, -1)
    replay.prefetch(0, fractions)
    batch = replay.sample(fractions, 0)
    assert batch.obs[0, :, 0].tolist() == list(range(5, 5 + starts))
    assert batch.action_chunk[1, :, 0, 0].tolist() == list(range(15, 15 + starts))
    last = np.arange(5, 5 + starts) + length - 1
    assert batch.next_obs[0, :, 0].tolist() == [n + (0.5 if n % 5 == 4 else 1) for n in last]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--agent", "qc_fql"], "offline_updates is 1000000; hopper-v4 has no data here, so qc_fql can only learn"),
        (["--agent", "sac", "--offline-updates", "5"], "offline_updates is 5; hopper-v4 has no data"),
        (["--agent", "rlpd", "--online-batch-share", "0.5"], "online_batch_share is 0.5; hopper-v4 has no data"),
        (["--agent", "sac", "--online-dataset-rows", "9"], "online_dataset_rows is 9; hopper-v4 has no data"),
        (["--agent", "fql", "--offline-updates", "0", "--warmup-steps", "0"], "warmup_steps is 0; hopper-v4 has no"),
    ],
)
def test_what_needs_data_is_refused_where_there_are_none(options, said, tmp_path, capsys) -> None:
    assert main(["run", "--task", "hopper-v4", *options, "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("option", [["--dataset", "toy-reach-mixed-generated-12ep-seed0"], ["--data", "mine.npz"]])
def test_data_that_no_update_would_draw_from_are_refused(option, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))
    random_file("toy-reach", tmp_path / "mine.npz")
    assert main(["plan", "--task", "toy-reach", "--agent", "sac", *option]) == 2
    assert f"{option[0]} does nothing for sac, which learns from scratch" in capsys.readouterr().err


def test_an_agent_that_samples_no_data_has_none_on_tasks_with_data(tmp_path: Path, monkeypatch) -> None:
    for task in ("cube-double", "can", "toy-reach"):
        spec = datasets.task(task)
        assert run_config("s", spec, "sac", 0).data is None
        assert run_config("s", spec, "rlpd", 0).data == run_config("s", spec, "fql", 0).data == spec.dataset
        alone = run_config("s", spec, "rlpd", 0, dataset=None)
        assert (alone.data, alone.online_batch_share) == (None, 1.0)
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "empty"))  # where none could be loaded
    config = tiny_config("sac", offline_updates=0, online_batch_share=1.0)
    assert config.dataset is not None
    execute(config, tmp_path)
    assert provenance_of(config.directory(tmp_path))["dataset"]["origin"] == "none"


def test_a_run_of_before_that_had_loaded_data_it_never_sampled_goes_on(tmp_path: Path) -> None:
    config = tiny_config("sac", offline_updates=0, online_batch_share=1.0)
    with pytest.raises(Preemption):
        execute(config, tmp_path, stop_after=25)
    path = config.directory(tmp_path) / "provenance.json"
    before = {"name": "toy", "origin": "generated", "content_hash": "abc", "num_transitions": 3, "num_episodes": 1}
    path.write_text(json.dumps(provenance_of(path.parent) | {"dataset": before}))
    execute(config, tmp_path)
    assert (path.parent / "complete.json").exists()
    assert provenance_of(path.parent)["dataset"] == before


def test_a_plan_says_which_runs_have_no_data(tmp_path, capsys, monkeypatch, tiny_data) -> None:
    monkeypatch.setenv("O2O_BENCH_DATA", str(tiny_data))
    options = ["plan", "--task", "toy-reach", "--agent", "sac", "--online-steps", "5000", "--results", str(tmp_path)]
    assert main(options) == 0
    assert "data none: toy-reach is learned from scratch by sac" in capsys.readouterr().out
    assert main([*options, "--online-batch-share", "0.5"]) == 0
    assert "data toy-reach-mixed-generated-200ep-seed0: generated" in capsys.readouterr().out
    rlpd = ["plan", "--task", "toy-reach", "--agent", "rlpd", "--dataset", "none", "--online-steps", "5000"]
    assert main([*rlpd, "--results", str(tmp_path)]) == 0
    assert "data none: toy-reach is learned from scratch by rlpd" in capsys.readouterr().out


def test_commands_on_data_say_that_a_task_has_none(capsys) -> None:
    assert main(["data", "list"]) == 0
    assert "hopper-v4 … humanoidstandup-v5: no data, learned from scratch" in capsys.readouterr().out
    assert main(["list", "tasks"]) == 0
    assert "  ant-v5 (no data: learned from scratch)\n" in capsys.readouterr().out
    for arguments in (
        ["data", "get", "--task", "hopper-v4"],
        ["data", "export", "--task", "hopper-v4", "--out", "x.h5"],
    ):
        assert main(arguments) == 2
        assert "task hopper-v4 has no data: it is learned from scratch" in capsys.readouterr().err
    assert main(["data", "generate", "--task", "hopper-v4"]) == 2
    assert "no expert is known for hopper-v4: it has no data; the policy of a run makes some" in capsys.readouterr().err
    with pytest.raises(DataError, match="has no data"):
        datasets.load("hopper-v4")


def test_a_config_without_data_may_not_train_on_some() -> None:
    with pytest.raises(ConfigError, match="offline_updates is 30; toy-reach has no data here"):
        RunConfig(
            suite="s",
            task="toy-reach",
            agent="fql",
            seed=0,
            dataset=None,
            offline_updates=30,
            online_steps=9,
            agent_config=small_agent_config("fql"),
        )


@pytest.mark.thorough
def test_the_episodes_of_a_run_from_scratch_are_data_for_an_offline_phase(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))
    config = tiny_config("sac", **SCRATCH)
    execute(config, tmp_path / "scratch")
    file, folder = tmp_path / "mine.hdf5", config.directory(tmp_path / "scratch")
    assert main(["data", "generate", "--run", str(folder), "--episodes", "3", "--out", str(file)]) == 0
    options = ["--offline-updates", "4", "--online-steps", "6", "--warmup-steps", "5", "--eval-episodes", "1"]
    small = ["--agent-config.policy_hidden_dims", "8", "--agent-config.critic_hidden_dims", "8"]
    run_it = ["run", "--task", "hopper-v4", "--agent", "fql", "--data", str(file), "--results", str(tmp_path / "o2o")]
    assert main([*run_it, *options, *small, "--batch-size", "8"]) == 0
    data = provenance_of(tmp_path / "o2o" / "single" / "hopper-v4" / "fql" / "seed_000")["dataset"]
    assert data["origin"] == "generated" and data["num_episodes"] == 3
