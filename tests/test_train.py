"""Whole runs through the real driver: resume after any stop, seeds independent of their pack, evaluation apart."""

import csv
import functools
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from bench.protocol.config import ConfigError, RunConfig
from bench.runs.checkpoint import MAGIC, Checkpoints
from bench.runs.state import PendingEvaluation, RunState
from bench.tools.export import collected
from bench.training.engine import Engine
from bench.training.evaluate import NICENESS, episode_seeds
from bench.training.execution import Execution, Preemption
from bench.training.pack import prepare_directory
from bench.training.pack_files import DivergenceError
from bench.training.train import run
from tests.tiny_runs import ROOT, provenance_of, status_of, tiny_config

BYTES = ("episodes.csv", "train.csv")  # equal for equal runs; timing, status and provenance tell of the machine


def execute(configs: list[RunConfig], results: Path, stop_after: float = float("inf"), **execution) -> None:
    """Runs a pack in this process; asks it to stop after so many polls of the flag."""
    polls = 0

    def should_stop() -> bool:
        nonlocal polls
        polls += 1
        return polls > stop_after

    run(configs, results, Execution(**{"device": "cpu", "checkpoint_seconds": 1e9, **execution}), should_stop)


def stop_online(configs: list[RunConfig], results: Path, env_steps: int, **execution) -> None:
    """Runs a pack in this process until it has logged environment step `env_steps`; leaves it preempted."""

    def should_stop() -> bool:
        rows = table(configs[0], results, "train.csv")
        return bool(rows) and int(rows[-1]["env_steps"]) >= env_steps

    with pytest.raises(Preemption):
        run(configs, results, Execution(**{"device": "cpu", "checkpoint_seconds": 1e9, **execution}), should_stop)


def start_worker(configs: list[RunConfig], results: Path, *options: str, **streams) -> subprocess.Popen:
    """The command that the launcher starts for a pack, in a process group of its own."""
    directories = [str(prepare_directory(config, results)) for config in configs]
    command = [sys.executable, "-m", "bench", "worker", "--results", str(results), "--device", "cpu"]
    command += ["--eval-workers", "1", *options, *directories]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **streams)


def newest_checkpoint(config: RunConfig, results: Path) -> RunState | None:
    """The state of the newest slot; None before the first."""
    states = Checkpoints(config.directory(results)).load()
    return states[max(states)] if states else None


def pending_evaluations(config: RunConfig, results: Path) -> list[PendingEvaluation]:
    """Of the newest slot."""
    state = newest_checkpoint(config, results)
    return state.pending if state else []


def wait_until(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def results_of(config: RunConfig, results: Path) -> dict[str, bytes]:
    return {name: (config.directory(results) / name).read_bytes() for name in BYTES}


def table(config: RunConfig, results: Path, name: str) -> list[dict[str, str]]:
    with (config.directory(results) / name).open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def reference(tiny_data, tmp_path_factory):
    """Uninterrupted runs by config, each trained once for all tests of this file."""
    root = tmp_path_factory.mktemp("reference")

    def get(config: RunConfig) -> Path:
        results = root / config.to_json()["config_hash"]
        before = os.environ.get("O2O_BENCH_DATA")
        os.environ["O2O_BENCH_DATA"] = str(tiny_data)
        try:
            if not (config.directory(results) / "status.json").exists():
                execute([config], results)
        finally:
            os.environ.pop("O2O_BENCH_DATA") if before is None else os.environ.update(O2O_BENCH_DATA=before)
        return results

    return get


@pytest.mark.thorough
@pytest.mark.parametrize("agent", ["qc_fql", pytest.param("sac_flow_g", marks=pytest.mark.slow)])
def test_a_compiled_run_stopped_in_each_phase_ends_with_the_same_bytes(agent, data_cache, tmp_path, monkeypatch):
    # Traced and decomposed as for machine code, which would take minutes.
    monkeypatch.setattr("bench.training.train.Engine", functools.partial(Engine, compiler="aot_eager_decomp_partition"))
    config = tiny_config(agent)
    execute([config], tmp_path / "whole", engine="compiled")
    assert status_of(config.directory(tmp_path / "whole"))["engine"] == "compiled"
    for polls in (13, 52):
        with pytest.raises(Preemption):
            execute([config], tmp_path / "stopped", stop_after=polls, engine="compiled")
    execute([config], tmp_path / "stopped", engine="compiled")
    assert results_of(config, tmp_path / "stopped") == results_of(config, tmp_path / "whole")
    starts = provenance_of(config.directory(tmp_path / "stopped"))["starts"]
    assert [start["engine"] for start in starts] == ["compiled"] * 3


def test_agents_from_scratch_act_at_random_until_their_first_update_and_resume(data_cache, tmp_path):
    """Uniform actions that depend on the seed alone, then those of each policy; stopped in the warm-up and after it."""
    settings = {"offline_updates": 0, "warmup_actions": "random", "warmup_steps": 9}
    actions = {}
    for agent, share in (("sac", 1.0), ("rlpd", 0.5)):
        config = tiny_config(agent, online_batch_share=share, **settings)
        execute([config], tmp_path / "whole")
        for polls in (5, 20):
            with pytest.raises(Preemption):
                execute([config], tmp_path / "stopped", stop_after=polls)
        execute([config], tmp_path / "stopped")
        assert results_of(config, tmp_path / "stopped") == results_of(config, tmp_path / "whole")
        points = [(row["updates"], row["env_steps"]) for row in table(config, tmp_path / "whole", "episodes.csv")]
        assert points[0] == ("0", "0") and points[-1] == ("32", "40")
        actions[agent] = collected(config.directory(tmp_path / "whole"))[1].action
    assert (actions["sac"][:8] == actions["rlpd"][:8]).all() and np.abs(actions["sac"][:8]).max() > 0.5
    assert (actions["sac"][8:12] != actions["rlpd"][8:12]).any()


def test_shards_take_turns_in_whole_runs_whether_they_are_stopped_or_packed(data_cache, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.training.train.SHARD_STEPS", 6)
    configs = [tiny_config("fql", seed, replay="keep", online_dataset_rows=40) for seed in (0, 1)]
    execute(configs, tmp_path / "pack")
    execute(configs[:1], tmp_path / "whole")
    for env_steps in (9, 23):
        stop_online(configs[:1], tmp_path / "stopped", env_steps)
    execute(configs[:1], tmp_path / "stopped")
    assert results_of(configs[0], tmp_path / "stopped") == results_of(configs[0], tmp_path / "whole")
    assert_close(configs[0], tmp_path / "pack", tmp_path / "whole")
    kept = tiny_config("fql", suite="kept", online_dataset_rows=40)
    execute([kept], tmp_path / "whole")
    assert results_of(kept, tmp_path / "whole")["train.csv"] != results_of(configs[0], tmp_path / "whole")["train.csv"]


@pytest.mark.parametrize("agent", ["fql", "dppo"])
def test_what_the_policy_does_is_measured_at_every_log_point(agent, reference):
    """action_mse for every agent, policy_q for those with critics."""
    config = tiny_config(agent)
    rows = table(config, reference(config), "train.csv")
    timing = table(config, reference(config), "timing.csv")
    points = {(row["updates"], row["env_steps"]) for row in timing if row["name"] == "update_share"}  # one a log point
    for name, expected in (("action_mse", points), ("policy_q", points if agent == "fql" else set())):
        assert {(row["updates"], row["env_steps"]) for row in rows if row["name"] == name} == expected
    assert all(0 <= float(row["value"]) <= 4 for row in rows if row["name"] == "action_mse")
    provenance = provenance_of(config.directory(reference(config)))
    small = {"policy_hidden_dims", "critic_hidden_dims"} if agent == "fql" else set()
    assert small <= set(provenance["departures"])


def test_an_on_policy_run_has_no_replay_to_export(reference):
    config = tiny_config("reinflow")
    with pytest.raises(ConfigError, match="reinflow is on-policy and keeps no replay"):
        collected(config.directory(reference(config)))


@pytest.mark.thorough
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(reference, data_cache, tmp_path):
    config = tiny_config(
        "sac_flow_t", offline_updates=150, online_steps=150, eval_interval_updates=60, eval_interval_steps=50
    )
    expected = results_of(config, reference(config))
    directory = prepare_directory(config, tmp_path)
    often = ("--checkpoint-seconds", "0.05", "--env-workers", "1")
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    # Two kills in each phase, at points drawn by log interval, then a moment later. A slow machine may have passed the
    # next point before it was killed; then the next kill comes once the run has gone on.
    points = [*sorted(moments.sample(range(1, 21), 2)), *sorted(moments.sample(range(22, 42), 2))]
    for start, point in enumerate(points, start=1):
        process = start_worker([config], tmp_path, *often)
        while process.poll() is None and (recorded_starts(directory) < start or logged_points(directory) < point):
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert_group_ends(process.pid)
    assert start_worker([config], tmp_path, *often).wait() == 0
    assert results_of(config, tmp_path) == expected, f"random seed {seed}, killed after {points} of 44 logged points"
    assert recorded_starts(directory) == 5


def assert_group_ends(group: int) -> None:
    """No evaluation worker or other helper process outlives its run."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("processes of the killed run are still there")


def recorded_starts(directory: Path) -> int:
    """How often the run has started, or gone on, until now."""
    return len(provenance_of(directory)["starts"]) if (directory / "provenance.json").exists() else 0


def logged_points(directory: Path) -> int:
    """How many log intervals of 7 the run has passed, from its last complete row."""
    path = directory / "train.csv"
    rows = path.read_text().splitlines()[1:-1] if path.exists() else []
    for row in reversed(rows):
        phase, updates, env_steps, *_ = row.split(",")
        return int(updates) // 7 if phase == "offline" else 22 + int(env_steps) // 7
    return 0


def test_a_pack_killed_or_stopped_while_evaluations_are_pending_ends_with_the_same_bytes(data_cache, tmp_path):
    """Killed early, then stopped online by a SIGTERM to the whole group (as Slurm sends it)."""
    configs = [tiny_config("sac_flow_g", seed, eval_interval_steps=10, eval_episodes=2) for seed in (0, 1)]
    execute(configs, tmp_path / "whole")
    results = tmp_path / "stopped"

    process = start_worker(configs, results, "--checkpoint-seconds", "0.02")
    wait_until(lambda: all(pending_evaluations(config, results) for config in configs))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert_group_ends(process.pid)
    assert all(0 < len(pending_evaluations(config, results)) <= 2 for config in configs)

    process = start_worker(configs, results, "--checkpoint-seconds", "0.02")
    wait_until(lambda: (state := newest_checkpoint(configs[1], results)) is not None and state.point.env_steps > 0)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == 75
    assert_group_ends(process.pid)
    for config in configs:
        assert status_of(config.directory(results))["state"] == "preempted"
        pending = pending_evaluations(config, results)
        assert 0 < len(pending) <= 2
        rows = table(config, results, "episodes.csv")
        written = {(int(row["updates"]), int(row["env_steps"])) for row in rows}
        assert len(rows) == 2 * len(written)  # complete points only
        assert not written & {(evaluation.updates, evaluation.env_steps) for evaluation in pending}

    execute(configs, results)
    for config in configs:
        assert results_of(config, results) == results_of(config, tmp_path / "whole")
        last = table(config, results, "episodes.csv")[-2:]
        rate = sum(int(row["success"]) for row in last) / 2
        status = status_of(config.directory(results))
        assert (status["state"], status["success_rate"]) == ("complete", rate)


def test_environments_in_workers_change_no_byte_across_stops(data_cache, tmp_path):
    configs = [tiny_config("sac_flow_g", seed) for seed in (0, 1)]
    execute(configs, tmp_path / "here", env_workers=0)
    execute(configs, tmp_path / "ahead", env_workers=2, eval_workers=3)
    stop_online(configs, tmp_path / "stopped", 14, env_workers=2)  # inside a chunk: they begin at 0, 5, 10, …
    state = newest_checkpoint(configs[0], tmp_path / "stopped")
    assert state is not None and state.rollouts is not None and len(state.rollouts[0].chunk) == 1
    stop_online(configs, tmp_path / "stopped", 28, env_workers=0)
    execute(configs, tmp_path / "stopped", env_workers=1)  # one worker, two environments
    for config in configs:
        expected = results_of(config, tmp_path / "here")
        assert results_of(config, tmp_path / "ahead") == expected
        assert results_of(config, tmp_path / "stopped") == expected


def test_a_dead_evaluation_worker_fails_the_run_with_one_line(data_cache, tmp_path):
    config = tiny_config("fql", offline_updates=1_000_000, eval_interval_updates=1_000_000, eval_episodes=1000)
    process = start_worker([config], tmp_path, "--engine", "eager", stderr=subprocess.PIPE)
    wait_until(lambda: nice_processes(process.pid))
    os.kill(nice_processes(process.pid)[0], signal.SIGKILL)
    assert process.stderr is not None
    error = process.stderr.read().decode()
    assert process.wait() == 1
    expected = "evaluation worker 0 ended: killed by signal 9, as when memory runs out"
    assert error == f"error: {expected}\n"
    status = status_of(config.directory(tmp_path))
    assert (status["state"], status["error"]) == ("failed", f"WorkerError: {expected}")
    assert_group_ends(process.pid)


def nice_processes(group: int) -> list[int]:
    """Processes of a group that give way to others."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and int(fields[16]) == os.nice(0) + NICENESS:
            found.append(int(path.parent.name))
    return found


def test_seeds_do_not_depend_on_their_pack(reference, data_cache, tmp_path):
    """Losses and policies of a pack of three against the same seeds alone; the tolerance is that of float32 kernels
    that treat the ends of longer tensors in another order."""
    configs = [tiny_config("sac_flow_g", seed) for seed in (0, 1, 2)]
    execute(configs, tmp_path)
    for config in configs[:2]:
        alone = reference(config)
        pack_rows, rows = (table(config, results, "train.csv") for results in (tmp_path, alone))
        assert [row["name"] for row in pack_rows] == [row["name"] for row in rows]
        for ours, theirs in zip(pack_rows, rows, strict=True):
            assert float(ours["value"]) == pytest.approx(float(theirs["value"]), rel=1e-4, abs=1e-5), ours
        policies = [
            safetensors.torch.load_file(config.directory(results) / "checkpoint" / "policy.safetensors")
            for results in (tmp_path, alone)
        ]
        for name, value in policies[0].items():
            assert torch.allclose(value, policies[1][name], rtol=1e-4, atol=1e-5), name
    assert results_of(configs[0], tmp_path) != results_of(configs[1], tmp_path)


def test_a_pack_whose_members_were_saved_apart_goes_on_together(reference, data_cache, tmp_path):
    configs = [tiny_config("fql", seed) for seed in (0, 1)]
    execute(configs, tmp_path / "whole")
    with pytest.raises(Preemption):
        execute(configs, tmp_path / "killed", stop_after=12)
    # a kill between the two saves: the second member has no newer slot
    with pytest.raises(Preemption):
        execute(configs[:1], tmp_path / "killed", stop_after=9)
    execute(configs, tmp_path / "killed")
    for config in configs:
        assert results_of(config, tmp_path / "killed") == results_of(config, tmp_path / "whole")
    packs = [start["pack"] for start in provenance_of(configs[1].directory(tmp_path / "killed"))["starts"]]
    assert packs == [[0, 1], [0, 1]]


def test_a_seed_that_lags_behind_catches_up_and_joins_the_pack(reference, data_cache, tmp_path):
    """Seed 1 stopped offline, seeds 0 and 2 at points of the online phase; the numbers are those of each seed alone."""
    configs = [tiny_config("qc_fql", seed) for seed in (0, 1, 2)]
    stop_online(configs[:1], tmp_path, 28)
    with pytest.raises(Preemption):
        execute(configs[1:2], tmp_path, stop_after=9)
    stop_online(configs[2:], tmp_path, 7)
    execute(configs, tmp_path)
    starts = [provenance_of(config.directory(tmp_path))["starts"] for config in configs]
    assert [[start["pack"] for start in own] for own in starts] == [
        [[0], [0, 1, 2]],
        [[1], [1], [1, 2], [0, 1, 2]],
        [[2], [1, 2], [0, 1, 2]],
    ]
    joined = starts[0][-1]["resumed_from"]
    assert joined["phase"] == "online" and 28 <= joined["env_steps"] < 40
    for config in configs:
        assert status_of(config.directory(tmp_path))["state"] == "complete"
        assert_close(config, tmp_path, reference(config))


def assert_close(config: RunConfig, results: Path, others: Path) -> None:
    """Equal numbers but for float32 rounding, which depends on a pack's size."""
    ours, theirs = (table(config, folder, "train.csv") for folder in (results, others))
    assert [(row["updates"], row["name"]) for row in ours] == [(row["updates"], row["name"]) for row in theirs]
    assert [float(row["value"]) for row in ours] == pytest.approx(
        [float(row["value"]) for row in theirs], rel=1e-4, abs=1e-5
    )
    ours, theirs = (table(config, folder, "episodes.csv") for folder in (results, others))
    assert [row["updates"] for row in ours] == [row["updates"] for row in theirs]


def test_evaluating_twice_as_often_changes_no_training_number(reference, data_cache, tmp_path):
    config = tiny_config("sac_flow_g")
    often = config.replace(eval_interval_updates=5, eval_interval_steps=8, suite="often")
    execute([often], tmp_path)
    assert results_of(often, tmp_path)["train.csv"] == results_of(config, reference(config))["train.csv"]
    rows = table(config, reference(config), "episodes.csv")
    points = {(row["updates"], row["env_steps"]) for row in rows}
    more_rows = table(often, tmp_path, "episodes.csv")
    assert len(more_rows) > len(rows)
    assert [row for row in more_rows if (row["updates"], row["env_steps"]) in points] == rows


def test_evaluations_happen_at_the_points_of_the_contract(reference):
    config = tiny_config("sac_flow_g", eval_episodes=2)
    rows = table(config, reference(config), "episodes.csv")
    points = list(dict.fromkeys((row["phase"], int(row["updates"]), int(row["env_steps"])) for row in rows))
    # online updates begin at environment step 11 (warm-up): 6 of them by step 16
    assert points == [
        ("offline", 0, 0),
        ("offline", 15, 0),
        ("offline", 30, 0),
        ("online", 36, 16),
        ("online", 52, 32),
        ("online", 60, 40),
    ]
    assert len(rows) == 2 * len(points)
    for point in points:
        recorded = [int(row["episode_seed"]) for row in rows if (row["phase"], int(row["updates"])) == point[:2]]
        assert recorded == [*episode_seeds(config, *point)]


def test_each_run_of_a_pack_and_each_point_has_its_own_episodes_and_agents_share_them(data_cache, tmp_path):
    """Flow_mlp makes two updates where the other agent makes one, so that only environment steps agree online."""
    pack = [tiny_config("sac_flow_g", seed, eval_episodes=3) for seed in (0, 1)]
    other = tiny_config("flow_mlp", 1, eval_episodes=3, utd_ratio=2)
    execute(pack, tmp_path)
    execute([other], tmp_path)

    def seeds(config: RunConfig) -> dict[tuple[str, str], set[int]]:
        found: dict[tuple[str, str], set[int]] = {}
        for row in table(config, tmp_path, "episodes.csv"):
            at = row["updates"] if row["phase"] == "offline" else row["env_steps"]
            found.setdefault((row["phase"], at), set()).add(int(row["episode_seed"]))
        return found

    first, second, third = map(seeds, (*pack, other))
    assert second == third and first.keys() == second.keys()
    every = [episode for run in (first, second) for point in run.values() for episode in point]
    assert len({*every}) == len(every) == 2 * 6 * 3


def test_runs_of_before_there_was_a_choice_keep_the_fixed_episodes(data_cache, tmp_path):
    config = tiny_config("qc_fql", episode_seeds="fixed", online_steps=0, eval_episodes=2)
    assert "episode_seeds" not in config.to_json() and RunConfig.from_json(config.to_json()) == config
    execute([config], tmp_path)
    rows = table(config, tmp_path, "episodes.csv")
    assert [row["episode_seed"] for row in rows] == ["1000000", "1000001"] * 3


def test_online_only_and_offline_only_runs(data_cache, tmp_path):
    online = tiny_config("qc_fql", offline_updates=0)
    offline = tiny_config("qc_fql", seed=1, online_steps=0)
    execute([online], tmp_path)
    execute([offline], tmp_path)
    first = table(online, tmp_path, "episodes.csv")
    assert {(row["phase"], row["env_steps"]) for row in first} == {
        ("offline", "0"),
        ("online", "16"),
        ("online", "32"),
        ("online", "40"),
    }
    assert {row["updates"] for row in table(offline, tmp_path, "episodes.csv")} == {"0", "15", "30"}


def test_a_ring_smaller_than_a_checkpoint_interval_loses_no_transition(data_cache, tmp_path, reference):
    config = tiny_config("fql", online_steps=600, warmup_steps=590, replay_capacity=1, eval_interval_steps=600)
    rows = reference(config)
    transitions = provenance_of(config.directory(rows))["dataset"]["num_transitions"]
    assert transitions + 1 < 600  # the ring wraps
    with pytest.raises(Preemption):
        execute([config], tmp_path, stop_after=transitions + 60)
    execute([config], tmp_path)
    assert results_of(config, tmp_path) == results_of(config, rows)


def test_a_diverged_seed_fails_alone(reference, data_cache, tmp_path):
    good, bad = tiny_config("qc_fql", 0), tiny_config("qc_fql", 1)
    with pytest.raises(Preemption):
        execute([good, bad], tmp_path, stop_after=10)
    for slot in (bad.directory(tmp_path) / "checkpoint").glob("slot-*.pt"):
        poison(slot)
    with pytest.raises(DivergenceError, match="seed 1"):
        execute([good, bad], tmp_path)
    states = [status_of(config.directory(tmp_path)) for config in (good, bad)]
    assert [state["state"] for state in states] == ["complete", "failed"]
    assert "not finite" in states[1]["error"]
    assert_close(good, tmp_path, reference(good))
    execute([good, bad], tmp_path / "healthy")
    assert results_of(good, tmp_path) == results_of(good, tmp_path / "healthy")  # bit by bit in a pack of equal size


def poison(slot: Path) -> None:
    """Puts NaN into every parameter of a stored run, with a checksum that fits."""
    state = torch.load(io.BytesIO(slot.read_bytes()[len(MAGIC) + 65 :]), weights_only=True)
    for value in state["agent"].values():
        if value.dim():
            value.fill_(float("nan"))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    slot.write_bytes(MAGIC + hashlib.sha256(buffer.getvalue()).hexdigest().encode() + b"\n" + buffer.getvalue())


def test_a_directory_of_another_config_is_refused_by_name(tmp_path):
    prepare_directory(tiny_config(), tmp_path)
    with pytest.raises(ConfigError, match=r"another config \(batch_size 16 there, 8 here\)"):
        prepare_directory(tiny_config(batch_size=8), tmp_path)


def test_changed_data_are_refused_on_resume(data_cache, tmp_path):
    config = tiny_config("fql")
    with pytest.raises(Preemption):
        execute([config], tmp_path, stop_after=3)
    path = config.directory(tmp_path) / "provenance.json"
    known = json.loads(path.read_text())
    known["dataset"]["content_hash"] = "f" * 64
    path.write_text(json.dumps(known))
    with pytest.raises(ConfigError, match="was trained on data ffffffffffff"):
        execute([config], tmp_path)


def test_analysis_reads_what_the_writer_wrote(reference):
    from analysis.loading.load import load_results

    config = tiny_config("sac_flow_g")
    results = reference(config)
    (suite,) = load_results(results)
    cell = suite.cells[config.task, config.agent]
    rows = table(config, results, "episodes.csv")
    rates: dict[tuple[str, int], list[int]] = {}
    for row in rows:
        rates.setdefault((row["phase"], int(row["updates"])), []).append(int(row["success"]))
    expected = [sum(successes) / len(successes) for successes in rates.values()]
    assert [*cell.offline_score[0], *cell.online_score[0][1:]] == expected
    assert (cell.offline_updates.tolist(), cell.online_steps.tolist()) == ([0, 15, 30], [0, 16, 32, 40])


def test_timing_tells_where_the_time_went(reference):
    config = tiny_config("sac_flow_g")
    shares: dict[tuple[str, str], dict[str, float]] = {}
    for row in table(config, reference(config), "timing.csv"):
        if row["name"].endswith("_share"):
            shares.setdefault((row["updates"], row["env_steps"]), {})[row["name"]] = float(row["value"])
    names = {"update_share", "act_share", "env_wait_share", "evaluation_wait_share", "write_share"}
    assert shares and all(set(values) == names for values in shares.values())
    assert all(0 < sum(values.values()) <= 1.001 and min(values.values()) >= 0 for values in shares.values())


def test_runs_that_would_collect_more_than_fits_are_refused_before_they_train(data_cache, tmp_path):
    config = tiny_config("fql", online_steps=10**12, replay_capacity=10**12)
    with pytest.raises(ConfigError, match="what 1 seed collects online takes"):
        execute([config], tmp_path)
    assert not (config.directory(tmp_path) / "episodes.csv").exists()
