"""Grids on a real Slurm (see test_slurm.py): a run that is alive twice, a full disk, and chaos."""

import os
import random
import signal
import time

import pytest

from bench.grid.survey import Queue, survey
from bench.runs.claims import owner_of
from bench.runs.contract import read_json
from tests.slurm_cluster import (
    LONGER,
    NODES,
    Undisturbed,
    all_complete,
    bytes_of,
    processes_of,
    progressed,
    run_dirs,
    run_here,
    slurmd,
    wait_until,
)
from tests.tiny_runs import small_disk

pytestmark = pytest.mark.slurm


def test_a_run_that_is_alive_twice_ends_once(cluster, tmp_path):
    """A node's daemon dies, the job's processes live on; Slurm starts the job again elsewhere."""
    options = ("--agent", "qc_fql", "--seeds", "0", "--offline-updates", "2500", "--online-steps", "100")
    undisturbed = Undisturbed("twice", tmp_path / "here", *options)
    cluster.launch("twice", tmp_path, *options)
    (directory,) = run_dirs(tmp_path, "twice")
    wait_until(lambda: progressed(directory, 50), 120, results=tmp_path)
    ((_, _, node),) = cluster.jobs()
    os.kill(slurmd(cluster, int(node.removeprefix("node"))), signal.SIGKILL)
    first = owner_of(directory)
    assert first is not None
    os.kill(first.pid, signal.SIGSTOP)  # so that it cannot end before, however fast this machine is
    try:
        wait_until(lambda: any(state == "RUNNING" and at != node for _, state, at in cluster.jobs()), 240, cluster.jobs)
    finally:
        os.kill(first.pid, signal.SIGCONT)  # both are at work from here on
    wait_until(lambda: (owner := owner_of(directory)) is not None and owner.restart == 1, 120, cluster.jobs)
    second = owner_of(directory)
    assert second is not None and not first.is_gone and second.pid != first.pid
    wait_until(lambda: first.is_gone, 60)
    assert f"was taken over by job {second.job} (restart 1)" in (directory / "log.txt").read_text()
    cluster.does("start-node", node.removeprefix("node"))
    wait_until(lambda: all_complete(tmp_path, "twice"), 480, lambda: cluster.status(tmp_path), tmp_path)
    word = read_json(directory / "complete.json")
    assert word is not None and word["generation"] == second.generation
    assert bytes_of(tmp_path, "twice") == undisturbed.bytes()
    wait_until(lambda: not processes_of(tmp_path / "twice"), 30, lambda: processes_of(tmp_path / "twice"))


def test_a_full_results_disk_is_told_and_nothing_is_lost(cluster, tmp_path):
    results = tmp_path / "results"
    with small_disk(tmp_path, "4m"):
        try:
            options = ("--agent", "fql", "--seeds", "0", *LONGER)
            cluster.launch("full", results, *options)
            (directory,) = run_dirs(results, "full")
            wait_until(lambda: progressed(directory, 60), 120, results=results)
            ballast = tmp_path / "ballast"
            with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(4096))
            cluster.drain(120)
            told = cluster.status(results, "full")
            assert told["counts"].keys() <= {"failed", "lost", "preempted"}, told
            assert any("free on the disk" in note for note in told["notes"])
            rows = (directory / "train.csv").read_text()
            ballast.unlink()
            cluster.launch("full", results, *options)
            cluster.drain(results=results)
            assert cluster.status(results, "full")["counts"] == {"complete": 1}
            run_here("full", tmp_path / "here", *options)
            assert bytes_of(results, "full") == bytes_of(tmp_path / "here", "full")
            assert len(rows) <= len((directory / "train.csv").read_text())
        finally:
            cluster.says("scancel", "-u", "root")
            cluster.drain(60)


def test_chaos_ends_with_every_run_complete_once_and_the_same_bytes(cluster, tmp_path, request):
    # For minutes with --slow; CI has less time.
    seeds, updates, seconds = (5, 6_000, 300) if request.config.getoption("--slow") else (3, 500, 45)
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    options = ("--agent", "qc_fql", "--seeds", *map(str, range(seeds)), "--pack", "1")
    options += ("--offline-updates", str(updates), "--online-steps", "200")
    results = tmp_path / "results"
    undisturbed = Undisturbed("chaos", tmp_path / "here", *options)
    cluster.launch("chaos", results, *options)
    events: list[str] = []
    down: set[int] = set()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(chance.uniform(2, 9))
        jobs, event = cluster.jobs(), chance.choice(["node", "node back", "controller", "urgent", "requeue", "cancel"])
        events.append(event)
        if event == "node" and len(down) < NODES - 1:
            node = chance.choice([n for n in range(1, NODES + 1) if n not in down])
            cluster.does("kill-node", str(node))
            down.add(node)
        elif event == "node back" and down:
            cluster.does("start-node", str(down.pop()))
        elif event == "controller":
            cluster.does("kill-ctld")
            time.sleep(chance.uniform(0, 3))
            cluster.does("start-ctld")
        elif event == "urgent":
            cluster.says("sbatch", "-p", "urgent", "--gres=gpu:2", "-c2", "-o", "/dev/null", "--wrap", "sleep 4")
        elif event == "requeue" and jobs:
            cluster.says("scontrol", "requeue", chance.choice(jobs)[0])
        elif event == "cancel" and jobs:
            cluster.says("scancel", chance.choice(jobs)[0])
            cluster.launch("chaos", results, *options)
        # Whatever happened, the files can be read and make sense.
        for run in survey(results, "chaos", _no_queue()).runs:
            assert run.state in ("running", "lost", "planned", "preempted", "complete"), (run, events, seed)
    for node in list(down):
        cluster.does("start-node", str(node))

    def ended() -> bool:
        time.sleep(3)
        if not all_complete(results, "chaos") and not cluster.jobs():
            cluster.launch("chaos", results, *options)
        return all_complete(results, "chaos")

    wait_until(ended, 420, lambda: (cluster.status(results, "chaos"), events, seed), results)
    cluster.drain(120)
    wait_until(lambda: not processes_of(results), 60, lambda: processes_of(results))
    assert bytes_of(results, "chaos") == undisturbed.bytes(), (events, seed)
    for directory in run_dirs(results, "chaos"):
        owner = owner_of(directory)
        assert owner is not None and (owner.released or owner.is_gone)
        assert len(list((directory / "owner").iterdir())) == 1
        assert not [path for path in directory.rglob(".*") if path.name != ".complete"], "nothing half-written is left"
    assert f"{seeds} complete, 0 to do" in cluster.launch("chaos", results, *options)


def _no_queue():
    queue = Queue()
    queue.ask = lambda: None
    return queue
