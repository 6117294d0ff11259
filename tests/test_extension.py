"""A finished run goes on to a larger budget, and ends with the bytes of a run that was never shorter."""

import re
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.protocol.config import ConfigError, RunConfig
from bench.runs import contract
from bench.runs.contract import StorageError
from bench.training.execution import Preemption
from bench.training.extension import extend
from bench.training.pack import prepare_directory
from tests.test_train import (
    assert_group_ends,
    execute,
    logged_points,
    newest_checkpoint,
    recorded_starts,
    results_of,
    start_worker,
)
from tests.tiny_runs import provenance_of, status_of, tiny_config

SHORT = {"online_steps": 24}
LONG = {"online_steps": 47}


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def extended(configs: Sequence[RunConfig], results: Path, **budget: int) -> list[RunConfig]:
    return extend([config.replace(**budget) for config in configs], results)


@pytest.fixture
def finished(data_cache, tmp_path) -> RunConfig:
    """A finished run that is quick to make, under `tmp_path`; its end lies between logs, evaluations and norms."""
    config = tiny_config("bc", **SHORT)
    execute([config], tmp_path)
    return config


# 24 steps end between logs (7), evaluations (16) and norms of gradients (9); 28 at a log, 32 at an evaluation; 10 come
# before the first update.
@pytest.mark.parametrize(
    ("agent", "short", "long"),
    [
        ("sac_flow_g", SHORT, LONG),
        pytest.param("sac_flow_g", {"online_steps": 28}, LONG, marks=pytest.mark.thorough),
        pytest.param("sac_flow_g", {"online_steps": 32}, LONG, marks=pytest.mark.thorough),
        pytest.param("sac_flow_g", {"online_steps": 10}, LONG, marks=pytest.mark.thorough),
        ("fql", {"online_steps": 0, "offline_updates": 25}, {"online_steps": 20, "offline_updates": 25}),
        pytest.param(
            *("fql", {"online_steps": 0, "offline_updates": 25}, {"online_steps": 20, "offline_updates": 40}),
            marks=pytest.mark.thorough,
        ),
        ("reinflow", SHORT, LONG),
        pytest.param(
            "rlpd", {"offline_updates": 0, **SHORT}, {"offline_updates": 0, **LONG}, marks=pytest.mark.thorough
        ),
    ],
)
def test_a_finished_run_goes_on_to_the_bytes_of_an_uninterrupted_one(agent, short, long, data_cache, tmp_path):
    config = tiny_config(agent, gradient_norm_interval=9, **short)
    execute([config], tmp_path)
    before = files_of(config.directory(tmp_path))
    (longer,) = extended([config], tmp_path, **long)
    with pytest.raises(Preemption):
        execute([longer], tmp_path, stop_after=9)
    execute([longer], tmp_path)
    whole = config.replace(**long)
    execute([whole], tmp_path / "whole")
    assert results_of(longer, tmp_path) == results_of(whole, tmp_path / "whole")
    assert files_of(config.directory(tmp_path)) == before
    origin = provenance_of(longer.directory(tmp_path))["extended_from"]
    assert origin["path"] == str(config.name) and origin["config_hash"] == config.to_json()["config_hash"]
    assert origin["env_steps"] == config.online_steps and origin["deviations"] == []


@pytest.mark.thorough
def test_a_pack_goes_on_and_can_be_killed_and_extended_again(data_cache, tmp_path):
    configs = [tiny_config("sac_flow_g", seed, online_steps=30) for seed in (3, 5)]
    execute(configs, tmp_path)
    longer = extended(configs, tmp_path, online_steps=150)
    assert [config.suite for config in longer] == ["tiny-to-150-steps"] * 2
    assert [status_of(config.directory(tmp_path))["state"] for config in longer] == ["preempted"] * 2
    directory = longer[0].directory(tmp_path)
    before = recorded_starts(directory)
    often = ("--checkpoint-seconds", "0.05")
    process = start_worker(longer, tmp_path, *often)
    while process.poll() is None and (recorded_starts(directory) == before or logged_points(directory) < 29):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert_group_ends(process.pid)
    assert extended(configs, tmp_path, online_steps=150) == longer  # what has begun is left as it is
    assert start_worker(longer, tmp_path, *often).wait() == 0
    whole = [config.replace(online_steps=150) for config in configs]
    execute(whole, tmp_path / "whole")
    for own, other in zip(longer, whole, strict=True):
        assert results_of(own, tmp_path) == results_of(other, tmp_path / "whole")
    (longest, _) = extended(longer, tmp_path, online_steps=160)
    assert longest.suite == "tiny-to-150-steps-to-160-steps"
    assert provenance_of(longest.directory(tmp_path))["extended_from"]["env_steps"] == 150


def test_a_beginning_that_was_cut_is_no_run_and_is_made_again(finished, tmp_path, monkeypatch):
    def fail(path: Path, data: Any) -> None:
        raise StorageError("cannot write: the disk is full")

    with monkeypatch.context() as full, pytest.raises(StorageError, match="the disk is full"):
        full.setattr("bench.training.extension.write_json", fail)
        extended([finished], tmp_path, **LONG)
    assert not contract.find_runs(tmp_path / "tiny-to-47-steps")
    (longer,) = extended([finished], tmp_path, **LONG)
    assert contract.find_runs(tmp_path / "tiny-to-47-steps") == [longer.directory(tmp_path)]
    execute([longer], tmp_path)


def test_sums_that_older_code_did_not_keep_are_a_recorded_deviation(data_cache, tmp_path, monkeypatch):
    config = tiny_config("fql", **SHORT)
    with monkeypatch.context() as older:
        older.setattr("bench.training.train.ends_between_logs", lambda *point: False)
        execute([config], tmp_path)
    state = newest_checkpoint(config, tmp_path)
    assert state is not None and not state.metrics.count
    (longer,) = extended([config], tmp_path, **LONG)
    (deviation,) = provenance_of(longer.directory(tmp_path))["extended_from"]["deviations"]
    assert deviation.startswith("train.csv: a row of means")
    execute([longer], tmp_path)
    rows = (longer.directory(tmp_path) / "train.csv").read_text()
    assert re.findall(r"online,\d+,(\d+),critic_loss", rows) == ["14", "21", "24", "28", "35", "42", "47"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"online_steps": 24}, "--extend needs a larger budget than that of .*: --online-steps above 24"),
        ({"online_steps": 6}, "online_steps is 6, and .* has 24 behind it; --extend needs a larger budget"),
        (
            {"online_steps": 47, "batch_size": 8, "log_interval": 9},
            "fields differ: batch_size 16 there, 8 .* log_inter",
        ),
        ({"online_steps": 47, "offline_updates": 60}, "offline_updates is 60, but the online phase .* began after 30"),
        ({"online_steps": 47, "seed": 8}, "seed_008 holds no run that could go on: leave --extend out"),
    ],
)
def test_what_is_no_larger_budget_of_a_finished_run_is_refused(changes, said, finished, tmp_path):
    before = files_of(tmp_path)
    with pytest.raises(ConfigError, match=said):
        extended([finished], tmp_path, **changes)
    assert files_of(tmp_path) == before


def test_what_a_finished_run_lacks_is_said_in_a_line_before_anything_is_written(finished, tmp_path):
    directory = finished.directory(tmp_path)
    kept = {name: (directory / name).read_bytes() for name in ("complete.json", "train.csv")}
    (directory / "complete.json").unlink()
    with pytest.raises(ConfigError, match="is not finished: finish it"):
        extended([finished], tmp_path, **LONG)
    (directory / "complete.json").write_bytes(kept["complete.json"])
    (directory / "train.csv").write_bytes(kept["train.csv"] + b"\n")
    with pytest.raises(StorageError, match=r"train\.csv has other bytes than complete\.json says"):
        extended([finished], tmp_path, **LONG)
    (directory / "train.csv").write_bytes(kept["train.csv"])
    (segment,) = directory.glob("checkpoint/replay-*.f32")
    segment.unlink()
    with pytest.raises(StorageError, match="f32 is damaged or missing"):
        extended([finished], tmp_path, **LONG)
    shutil.rmtree(directory / "checkpoint")
    with pytest.raises(ConfigError, match="has no checkpoint of its end any more"):
        extended([finished], tmp_path, **LONG)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_plan_says_of_each_run_what_an_extension_would_do(finished, tmp_path, capsys):
    name = "tiny-to-47-steps/toy-reach/bc/seed_000"
    longer = finished.replace(**LONG)
    for said in ("goes on from tiny/toy-reach/bc/seed_000, online step 24", "has begun, and goes on", "is complete"):
        before = files_of(tmp_path)
        (planned,) = extend([longer], tmp_path, dry_run=True)
        assert capsys.readouterr().out == f"{name} {said}\n" and files_of(tmp_path) == before
        if said.startswith("goes"):
            extend([longer], tmp_path)
        else:
            (planned.directory(tmp_path) / "complete.json").touch()
        capsys.readouterr()


def test_a_refusal_names_the_way_on_where_there_is_one(finished, tmp_path):
    way = "to go on with it to a larger budget: --extend"
    with pytest.raises(ConfigError, match=rf"online_steps 24 there, 47 here.*{way}"):
        prepare_directory(finished.replace(**LONG), tmp_path)
    for other in (finished.replace(online_steps=6), finished.replace(batch_size=8, **LONG)):
        with pytest.raises(ConfigError, match="another config") as refused:
            prepare_directory(other, tmp_path)
        assert "--extend" not in str(refused.value)
    (finished.directory(tmp_path) / "complete.json").unlink()
    with pytest.raises(ConfigError, match="to a larger budget: finish it, then --extend"):
        prepare_directory(finished.replace(**LONG), tmp_path)
