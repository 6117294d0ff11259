"""Launches on a real, throw-away Slurm: shared phases, retries, larger budgets, and how often Slurm is asked."""

import json
import os
import shutil
import time

import pytest

from bench.runs.contract import read_json
from tests.slurm_cluster import (
    bytes_of,
    drain_nodes,
    resume_nodes,
    run_dirs,
)
from tests.tiny_runs import provenance_of, python, status_of

pytestmark = pytest.mark.slurm


ABLATION = """
import sys
from bench.__main__ import main
from bench.protocol.suites import SUITES
from tests.test_offline import variant
from tests.tiny_runs import tiny_config

def ablation():
    "Two runs that differ after the hand-over."
    return [tiny_config("sac_flow_g"), variant("sac_flow_g")]

SUITES["ablation"] = ablation
sys.exit(main(sys.argv[1:]))
"""


def test_runs_that_share_an_offline_phase_wait_for_it_in_slurm_s_queue(cluster, tmp_path):
    command = ["launch", "ablation", "--slurm", "--results", str(tmp_path), "--device", "cpu", "--gpus-per-node", "1"]
    command += ["--cpus-per-task", "2", "--mem", "7000M", "--eval-workers", "1", "--env-workers", "0"]
    drain_nodes(cluster, 1, 2, 3)
    first = python("-c", ABLATION, *command)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "1 offline phase trained once" in first.stdout and "2 job arrays: 3 jobs" in first.stdout
    assert "2 runs in Slurm's queue already" in python("-c", ABLATION, *command).stdout
    reasons = cluster.says("squeue", "-h", "-r", "-o", "%r").split()
    assert reasons.count("Dependency") == 2
    resume_nodes(cluster, 1, 2, 3)
    cluster.drain()
    for suite in ("tiny", "variant"):
        (directory,) = run_dirs(tmp_path, suite)
        assert status_of(directory)["state"] == "complete"
        assert provenance_of(directory)["starts"][0]["resumed_from"]["updates"] == 30


def test_failed_runs_are_launched_again_by_retry(cluster, tmp_path):
    options = ("--agent", "fql", "--seeds", "0", "1", "--pack", "1")
    cluster.launch("again", tmp_path, *options)
    cluster.drain()
    first, second = run_dirs(tmp_path, "again")
    (first / "complete.json").unlink()
    (first / "status.json").write_text(json.dumps({**status_of(first), "state": "failed", "error": "Diverged: at 5"}))
    told = cluster.status(tmp_path, "again")
    assert told["counts"] == {"complete": 1, "failed": 1} and told["failures"][0]["cause"] == "Diverged: at 5"
    assert cluster.bench("logs", str(first)).stdout.startswith("again/toy-reach/fql/seed_000: failed (Diverged")
    done = cluster.bench("retry", "again", "--results", str(tmp_path))
    assert done.returncode == 0 and "submitted 1 job" in done.stdout, done.stdout + done.stderr
    cluster.drain()
    assert cluster.status(tmp_path, "again")["counts"] == {"complete": 2}
    assert len(provenance_of(second)["starts"]) == 1


def test_finished_runs_go_on_to_a_larger_budget_in_the_queue(cluster, tmp_path):
    options = ("--agent", "fql", "--seeds", "0", "1")
    cluster.launch("short", tmp_path, *options)
    cluster.drain()
    before = bytes_of(tmp_path, "short")
    (first, _) = run_dirs(tmp_path, "short")
    steps = (read_json(first / "config.json") or {})["online_steps"]
    printed = cluster.launch("short", tmp_path, *options, "--online-steps", str(steps + 20), "--extend")
    longer = f"short-to-{steps + 20}-steps"
    assert f"python -m bench status {longer}" in printed
    cluster.drain()
    assert cluster.status(tmp_path, longer)["counts"] == {"complete": 2}
    assert bytes_of(tmp_path, "short") == before
    for directory in run_dirs(tmp_path, longer):
        assert provenance_of(directory)["starts"][-1]["resumed_from"]["env_steps"] == steps


def test_calls_to_slurm_do_not_grow_with_the_number_of_runs(cluster, tmp_path, monkeypatch):
    shims, log = tmp_path / "bin", tmp_path / "calls"
    shims.mkdir()
    for command in ("squeue", "sbatch", "scontrol", "scancel", "sacct"):
        real = shutil.which(command)
        (shims / command).write_text(f'#!/bin/sh\necho {command} >>{log}\nexec {real} "$@"\n')
        (shims / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{shims}:{os.environ['PATH']}")
    drain_nodes(cluster, 1, 2, 3)
    calls, seconds = {}, {}
    for count in (4, 1000):
        results = tmp_path / str(count)
        seeds = [str(seed) for seed in range(count)]
        for what in ("launch", "status", "cancel"):
            log.write_text("")
            started = time.monotonic()
            if what == "launch":
                cluster.launch(f"n{count}", results, "--agent", "fql", "--pack", "1", "--seeds", *seeds)
            elif what == "status":
                assert cluster.status(results)["counts"] == {"queued": count}
            else:
                assert f"cancelled {count:,} jobs" in cluster.bench("cancel", "--results", str(results)).stdout
            calls[count, what], seconds[count, what] = sorted(log.read_text().split()), time.monotonic() - started
    print({key: f"{value:.1f} s" for key, value in seconds.items()})
    for what in ("launch", "status", "cancel"):
        assert calls[1000, what] == calls[4, what], what
    assert "sacct" not in {call for own in calls.values() for call in own}
