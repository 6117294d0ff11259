"""Grids on a real, throw-away Slurm of three nodes with two fake GPUs each, without accounting: `make test-slurm`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bench.grid.launches import launches
from bench.runs.claims import owner_of
from bench.runs.contract import read_json
from tests.conftest import TINY_DATASET
from tests.slurm_cluster import (
    PAIR,
    all_complete,
    bytes_of,
    drain_nodes,
    progressed,
    resume_nodes,
    run_dirs,
    wait_until,
)
from tests.tiny_runs import ROOT, provenance_of

pytestmark = pytest.mark.slurm


def node_of(pid: int) -> str | None:
    """The node that a process of a job believes to be on; None where it has ended."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    names = [entry.removeprefix(b"SLURMD_NODENAME=") for entry in environment if entry.startswith(b"SLURMD_NODENAME=")]
    return names[0].decode() if names else None


def test_a_suite_as_a_grid_gives_the_bytes_of_a_local_run(cluster, tmp_path):
    small = ["--offline-updates", "200", "--online-steps", "100", "--eval-episodes", "2", "--warmup-steps", "10"]
    small += ["--eval-interval-updates", "100", "--eval-interval-steps", "50", "--log-interval", "50"]
    small += ["--dataset", TINY_DATASET, "--device", "cpu", "--pack", "1", "--eval-workers", "1"]
    command = ["launch", "toy", *small, "--results"]
    grid = ["--slurm", "--gpus-per-node", "1", "--cpus-per-task", "2", "--mem", "7000M"]
    drain_nodes(cluster, 1, 2, 3)  # until the queue has been looked at
    submitted = cluster.bench(*command, str(tmp_path / "grid"), *grid)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "1 job array: 6 jobs with 6 packs of seeds, 6 runs" in submitted.stdout
    again = cluster.bench(*command, str(tmp_path / "grid"), *grid)
    assert "6 runs in Slurm's queue already (6 jobs): not submitted twice" in again.stdout
    # A login shell that knows nothing but where Slurm is sees the same.
    shell = {"SLURM_CONF": str(cluster.conf), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    elsewhere = subprocess.run(
        [sys.executable, "-m", "bench", "status", "toy", "--results", tmp_path / "grid", "--json"],
        cwd=ROOT, env=shell, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(json.loads(elsewhere.stdout)["runs"]) == 6
    resume_nodes(cluster, 1, 2, 3)
    cluster.drain(results=tmp_path / "grid")
    states = cluster.status(tmp_path / "grid", "toy")
    assert states["counts"] == {"complete": 6} and states["gpu_hours_spent"] > 0
    starts = [provenance_of(directory)["starts"] for directory in run_dirs(tmp_path / "grid", "toy")]
    assert all(len(own) == 1 for own in starts)
    places = {(own[0]["host"], own[0]["visible_gpus"]) for own in starts}
    assert len(places) == 6, "six jobs at once, each on a GPU of its own"
    assert {gpu for _, gpu in places} == {"0", "1"} and {host for host, _ in places} == {"node1", "node2", "node3"}
    third = cluster.bench(*command, str(tmp_path / "grid"), *grid)
    assert "6 complete, 0 to do" in third.stdout and not cluster.jobs()

    local = cluster.bench(*command, str(tmp_path / "local"), "--local", "--seeds", "0")
    assert local.returncode == 0, local.stdout + local.stderr
    expected, found = (bytes_of(tmp_path / folder, "toy") for folder in ("local", "grid"))
    assert len(expected) == 2 * 3 and len(found) == 6 * 3
    assert {name: found[name] for name in expected} == expected


def test_jobs_run_what_was_submitted_whatever_happens_to_the_tree(cluster, tmp_path):
    tree = tmp_path / "tree"
    for package in ("agents", "analysis", "bench", "datasets", "tests"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
    drain_nodes(cluster, 1, 2, 3)
    printed = cluster.launch("edited", tmp_path / "results", "--agent", "fql", "--seeds", "0", "1", cwd=tree)
    assert "submitted" in printed
    (tree / "bench" / "training" / "train.py").write_text("raise SystemExit('the edited tree runs')\n")
    shutil.rmtree(tree / "agents")
    runs = cluster.status(tmp_path / "results", "edited")["runs"]
    assert {run["state"] for run in runs} == {"queued"}
    resume_nodes(cluster, 1, 2, 3)
    cluster.drain()
    assert cluster.status(tmp_path / "results", "edited")["counts"] == {"complete": 2}
    recorded = launches(tmp_path / "results", "edited")[0]
    assert (recorded.code / "bench" / "training" / "train.py").read_text() == (
        ROOT / "bench" / "training" / "train.py"
    ).read_text()


def test_a_grid_larger_than_the_site_s_array_limit_is_split(cluster, tmp_path):
    conf, before = cluster.conf, cluster.conf.read_text()
    cluster.does("stop-ctld")
    conf.write_text(before + "MaxArraySize=2\n")
    cluster.does("start-ctld")
    try:
        drain_nodes(cluster, 1, 2, 3)
        printed = cluster.launch("split", tmp_path, "--agent", "fql", "--seeds", *"01234", "--pack", "1")
        assert "3 job arrays: 5 jobs" in printed and printed.count("submitted ") == 3
        assert "5 runs in Slurm's queue already" in cluster.launch(
            "split", tmp_path, "--agent", "fql", "--seeds", *"01234", "--pack", "1"
        )
        assert cluster.status(tmp_path, "split")["counts"] == {"queued": 5}
        cancelled = cluster.bench("cancel", "split", "--results", str(tmp_path))
        assert cancelled.stdout.startswith("cancelled 5 jobs")
        cluster.drain(60)
        assert cluster.status(tmp_path, "split")["counts"] == {"planned": 5}
    finally:
        cluster.does("stop-ctld")
        conf.write_text(before)
        cluster.does("start-ctld")


def test_a_job_out_of_memory_is_told_and_goes_on_with_more(cluster, tmp_path):
    options = ("--agent", "fql", "--seeds", "0", "1", "--pack", "2")
    cluster.launch("memory", tmp_path, *options, "--mem", "400M")
    cluster.drain(120)
    told = cluster.status(tmp_path, "memory")
    assert told["counts"] in ({"lost": 2}, {"planned": 2})  # killed while it trained, or before
    if told["counts"] == {"lost": 2}:
        assert told["failures"][0]["cause"].startswith("out of memory: job ")
        assert "exceeded" in " ".join(told["failures"][0]["log"]).lower()
    cluster.launch("memory", tmp_path, *options)
    cluster.drain()
    assert cluster.status(tmp_path, "memory")["counts"] == {"complete": 2}


def test_one_dead_run_does_not_bring_its_pack_down(cluster, tmp_path):
    """The process of a pack crashes: its runs go on apart, in the same job."""
    cluster.launch("pack", tmp_path, *PAIR)
    first, second = run_dirs(tmp_path, "pack")
    wait_until(lambda: progressed(first, 40), 120, results=tmp_path)
    owner = owner_of(first)
    assert owner is not None
    os.kill(owner.pid, signal.SIGKILL)
    wait_until(lambda: all_complete(tmp_path, "pack"), 240, lambda: cluster.status(tmp_path), tmp_path)
    packs = [[start["pack"] for start in provenance_of(run)["starts"]] for run in (first, second)]
    assert packs == [[[0, 1], [0]], [[0, 1], [1]]]
    assert {start["slurm_restart"] for run in (first, second) for start in provenance_of(run)["starts"]} == {0}


def test_a_node_on_which_workers_crash_is_kept_away_from(cluster, tmp_path):
    drain_nodes(cluster, 2, 3)
    over = threading.Event()

    def kill_workers() -> None:
        while not over.wait(0.2):
            for owner in map(owner_of, run_dirs(tmp_path, "bad")):
                if owner is not None and not owner.is_gone and node_of(owner.pid) == "node1":
                    os.kill(owner.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_workers)
    killer.start()
    try:
        options = ("--agent", "fql", "--seeds", "0", "1", "2", "--pack", "1")
        cluster.launch("bad", tmp_path, *options)
        wait_until(lambda: len(list(tmp_path.glob("grids/crashes/*.json"))) >= 3, 180, cluster.jobs)
        resume_nodes(cluster, 2, 3)
        wait_until(lambda: all_complete(tmp_path, "bad"), 240, lambda: cluster.status(tmp_path), tmp_path)
    finally:
        over.set()
        killer.join()
    hosts = [provenance_of(run)["starts"][-1]["host"] for run in run_dirs(tmp_path, "bad")]
    assert set(hosts) <= {"node2", "node3"}
    notes = [read_json(path) or {} for path in tmp_path.glob("grids/crashes/*.json")]
    assert len(notes) == 3 and {note["node"] for note in notes} == {"node1"}
    assert any("kept away from node1" in note for note in cluster.status(tmp_path)["notes"])
    assert "keeps away from node1" in cluster.launch("bad2", tmp_path, *options, "--dry-run")
