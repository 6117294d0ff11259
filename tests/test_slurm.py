"""Grids on a real, throw-away Slurm of three nodes with two fake GPUs each, without accounting: `make test-slurm`."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.claims import owner_of
from bench.grid import launches
from bench.status import look
from bench.writer import is_complete, read_json
from tests.conftest import TINY_DATASET
from tests.slurm_cluster import (
    Cluster,
    bytes_of,
    processes_of,
    run_dirs,
    run_here,
    wait_until,
)
from tests.tiny_runs import ROOT, provenance_of, python, status_of

pytestmark = pytest.mark.slurm
NODES = 3
LONGER = ("--offline-updates", "500", "--online-steps", "200")  # tens of seconds on a busy machine
PAIR = ("--agent", "qc_fql", "--seeds", "0", "1", "--pack", "2", *LONGER)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("slurm"), NODES, port=17100)
    yield cluster
    cluster.does("down")


@pytest.fixture
def cluster(machine: Cluster, data_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster with an empty queue and all nodes up."""
    monkeypatch.setenv("SLURM_CONF", str(machine.conf))
    yield machine
    machine.does("start-ctld")
    machine.says("scancel", "-u", "root")
    for node in range(1, NODES + 1):
        machine.does("start-node", str(node))
        machine.says("scontrol", "update", f"nodename=node{node}", "state=resume")
    machine.drain(120)


@pytest.fixture(scope="module")
def undisturbed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the runs of PAIR end with on this machine."""
    results = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("O2O_BENCH_DATA", str(tiny_data))
        run_here("run", results, *PAIR)
    return bytes_of(results, "run")


class Undisturbed(threading.Thread):
    """The same runs on this machine, while the cluster keeps the test waiting."""

    def __init__(self, name: str, results: Path, *options: str):
        super().__init__()
        self._name, self._results, self._options = name, results, options
        self.start()

    def run(self) -> None:
        run_here(self._name, self._results, *self._options)

    def bytes(self) -> dict[str, bytes]:
        self.join()
        return bytes_of(self._results, self._name)


def drain_nodes(cluster: Cluster, *nodes: int) -> None:
    for node in nodes:
        cluster.says("scontrol", "update", f"nodename=node{node}", "state=drain", "reason=test")


def resume_nodes(cluster: Cluster, *nodes: int) -> None:
    for node in nodes:
        cluster.says("scontrol", "update", f"nodename=node{node}", "state=resume")


def all_complete(results: Path, name: str) -> bool:
    directories = run_dirs(results, name)
    return bool(directories) and all(map(is_complete, directories))


def progressed(directory: Path, updates: int) -> bool:
    return (read_json(directory / "status.json") or {}).get("updates", 0) >= updates


def node_of(pid: int) -> str | None:
    """The node that a process of a job believes to be on; None where it has ended."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    names = [entry.removeprefix(b"SLURMD_NODENAME=") for entry in environment if entry.startswith(b"SLURMD_NODENAME=")]
    return names[0].decode() if names else None


def slurmd(cluster: Cluster, node: int) -> int:
    return int((cluster.conf.parent.parent / "run" / f"node{node}.pid").read_text())


def test_the_quick_suite_as_a_grid_gives_the_bytes_of_a_local_run(cluster, tmp_path):
    small = ["--offline-updates", "40", "--online-steps", "40", "--eval-episodes", "2", "--warmup-steps", "10"]
    small += ["--eval-interval-updates", "20", "--eval-interval-steps", "20", "--log-interval", "10"]
    small += ["--dataset", TINY_DATASET, "--device", "cpu", "--pack", "1", "--eval-workers", "1"]
    command = ["launch", "quick", *small, "--results"]
    grid = ["--slurm", "--gpus-per-node", "1", "--cpus-per-task", "2", "--mem", "7000M"]
    submitted = cluster.bench(*command, str(tmp_path / "grid"), *grid)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "1 job arrays: 6 jobs with 6 packs of seeds, 6 runs" in submitted.stdout
    again = cluster.bench(*command, str(tmp_path / "grid"), *grid)
    assert "6 are in Slurm's queue already (6 jobs): not submitted twice" in again.stdout
    # A login shell that knows nothing but where Slurm is sees the same.
    shell = {"SLURM_CONF": str(cluster.conf), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    elsewhere = subprocess.run(
        [sys.executable, "-m", "bench", "status", "quick", "--results", tmp_path / "grid", "--json"],
        cwd=ROOT, env=shell, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(json.loads(elsewhere.stdout)["runs"]) == 6
    cluster.drain()
    states = cluster.status(tmp_path / "grid", "quick")
    assert states["counts"] == {"complete": 6} and states["gpu_hours_spent"] > 0
    starts = [provenance_of(directory)["starts"] for directory in run_dirs(tmp_path / "grid", "quick")]
    assert all(len(own) == 1 for own in starts)
    places = {(own[0]["host"], own[0]["visible_gpus"]) for own in starts}
    assert len(places) == 6, "six jobs at once, each on a GPU of its own"
    assert {gpu for _, gpu in places} == {"0", "1"} and {host for host, _ in places} == {"node1", "node2", "node3"}
    third = cluster.bench(*command, str(tmp_path / "grid"), *grid)
    assert "6 complete, 0 to do" in third.stdout and not cluster.jobs()

    local = cluster.bench(*command, str(tmp_path / "local"), "--local")
    assert local.returncode == 0, local.stdout + local.stderr
    assert bytes_of(tmp_path / "grid", "quick") == bytes_of(tmp_path / "local", "quick")


def test_jobs_run_what_was_submitted_whatever_happens_to_the_tree(cluster, tmp_path):
    tree = tmp_path / "tree"
    for package in ("agents", "analysis", "bench", "datasets", "tests"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
    drain_nodes(cluster, 1, 2, 3)
    printed = cluster.launch("edited", tmp_path / "results", "--agent", "fql", "--seeds", "0", "1", cwd=tree)
    assert "submitted" in printed
    (tree / "bench" / "train.py").write_text("raise SystemExit('the edited tree runs')\n")
    shutil.rmtree(tree / "agents")
    runs = cluster.status(tmp_path / "results", "edited")["runs"]
    assert {run["state"] for run in runs} == {"queued"}
    resume_nodes(cluster, 1, 2, 3)
    cluster.drain()
    assert cluster.status(tmp_path / "results", "edited")["counts"] == {"complete": 2}
    recorded = launches(tmp_path / "results", "edited")[0]
    assert (recorded.code / "bench" / "train.py").read_text() == (ROOT / "bench" / "train.py").read_text()


def test_a_grid_larger_than_the_site_s_array_limit_is_split(cluster, tmp_path):
    conf, before = cluster.conf, cluster.conf.read_text()
    cluster.does("stop-ctld")
    conf.write_text(before + "MaxArraySize=2\n")
    cluster.does("start-ctld")
    try:
        drain_nodes(cluster, 1, 2, 3)
        printed = cluster.launch("split", tmp_path, "--agent", "fql", "--seeds", *"01234", "--pack", "1")
        assert "3 job arrays: 5 jobs" in printed and printed.count("submitted ") == 3
        assert "5 are in Slurm's queue already" in cluster.launch(
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


FAULTS = ("requeue", "preempt", "warn", "kill node", "restart controller", "cancel")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_goes_on_after(fault, cluster, undisturbed, tmp_path):
    cluster.launch("run", tmp_path, *PAIR)
    first, _ = run_dirs(tmp_path, "run")
    wait_until(lambda: progressed(first, 60), 120, lambda: cluster.status(tmp_path))
    ((job, _, node),) = cluster.jobs()
    before = cluster.status(tmp_path)
    assert before["counts"] == {"running": 2} and {run["job"] for run in before["runs"]} == {job}
    if fault == "requeue":
        cluster.says("scontrol", "requeue", job)
    elif fault == "preempt":
        cluster.says(
            "sbatch", "-p", "urgent", "-N", "3", "--exclusive", "--mem=0", "-o", "/dev/null", "--wrap", "sleep 5"
        )
    elif fault == "warn":  # as some time before the time limit
        cluster.says("scancel", "--signal=USR2", job)
    elif fault == "kill node":
        cluster.does("kill-node", node.removeprefix("node"))
    elif fault == "restart controller":
        cluster.does("kill-ctld")
        unanswered = cluster.status(tmp_path)
        assert unanswered["counts"] == {"running": 2} and "Slurm does not answer" in unanswered["notes"][0]
        refused = cluster.bench("launch", "quick", "--slurm", "--results", str(tmp_path))
        assert refused.returncode == 1 and refused.stderr.startswith("error: squeue: ")
        cluster.does("start-ctld")
    else:
        assert "cancelled 1 jobs" in cluster.bench("cancel", "run", "--results", str(tmp_path)).stdout
        cluster.drain(60)
        after = cluster.status(tmp_path)
        assert after["counts"].keys() <= {"cancelled", "lost"} and not processes_of(tmp_path), after
        assert "2 to do" in cluster.launch("run", tmp_path, *PAIR)
    seen: set[str] = set()
    deadline = time.monotonic() + 240
    while not all_complete(tmp_path, "run"):
        assert time.monotonic() < deadline, cluster.status(tmp_path)
        seen |= {run["state"] for run in cluster.status(tmp_path)["runs"]}
        time.sleep(1.0)
    assert seen <= {"running", "starting", "queued", "complete", "preempted", "lost"}
    cluster.drain(60)
    starts = provenance_of(first)["starts"]
    assert len(starts) == (1 if fault == "restart controller" else 2)
    assert all(start["seconds"] > 0 for start in starts)
    assert bytes_of(tmp_path, "run") == undisturbed


def test_a_run_that_is_alive_twice_ends_once(cluster, tmp_path):
    """A node's daemon dies, the job's processes live on; Slurm starts the job again elsewhere."""
    options = ("--agent", "qc_fql", "--seeds", "0", "--offline-updates", "7000", "--online-steps", "100")
    undisturbed = Undisturbed("twice", tmp_path / "here", *options)
    cluster.launch("twice", tmp_path, *options)
    (directory,) = run_dirs(tmp_path, "twice")
    wait_until(lambda: progressed(directory, 50), 120)
    ((_, _, node),) = cluster.jobs()
    os.kill(slurmd(cluster, int(node.removeprefix("node"))), signal.SIGKILL)
    first = owner_of(directory)
    assert first is not None
    wait_until(lambda: (owner := owner_of(directory)) is not None and owner.restart == 1, 120, cluster.jobs)
    second = owner_of(directory)
    assert second is not None and not first.is_gone and second.pid != first.pid
    wait_until(lambda: first.is_gone, 60)
    assert f"was taken over by job {second.job} (restart 1)" in (directory / "log.txt").read_text()
    cluster.does("start-node", node.removeprefix("node"))
    wait_until(lambda: all_complete(tmp_path, "twice"), 240, lambda: cluster.status(tmp_path))
    word = read_json(directory / "complete.json")
    assert word is not None and word["generation"] == second.generation
    assert bytes_of(tmp_path, "twice") == undisturbed.bytes()
    wait_until(lambda: not processes_of(tmp_path / "twice"), 30, lambda: processes_of(tmp_path / "twice"))


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


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_results_disk_is_told_and_nothing_is_lost(cluster, tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    results = tmp_path / "results"
    try:
        options = ("--agent", "fql", "--seeds", "0", *LONGER)
        cluster.launch("full", results, *options)
        (directory,) = run_dirs(results, "full")
        wait_until(lambda: progressed(directory, 60), 120)
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
        cluster.drain()
        assert cluster.status(results, "full")["counts"] == {"complete": 1}
        run_here("full", tmp_path / "here", *options)
        assert bytes_of(results, "full") == bytes_of(tmp_path / "here", "full")
        assert len(rows) <= len((directory / "train.csv").read_text())
    finally:
        cluster.says("scancel", "-u", "root")
        cluster.drain(60)
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_one_dead_run_does_not_bring_its_pack_down(cluster, tmp_path):
    """The process of a pack crashes: its runs go on apart, in the same job."""
    cluster.launch("pack", tmp_path, *PAIR)
    first, second = run_dirs(tmp_path, "pack")
    wait_until(lambda: progressed(first, 40), 120)
    owner = owner_of(first)
    assert owner is not None
    os.kill(owner.pid, signal.SIGKILL)
    wait_until(lambda: all_complete(tmp_path, "pack"), 240, lambda: cluster.status(tmp_path))
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
        wait_until(lambda: all_complete(tmp_path, "bad"), 240, lambda: cluster.status(tmp_path))
    finally:
        over.set()
        killer.join()
    hosts = [provenance_of(run)["starts"][-1]["host"] for run in run_dirs(tmp_path, "bad")]
    assert set(hosts) <= {"node2", "node3"}
    notes = [read_json(path) or {} for path in tmp_path.glob("grids/crashes/*.json")]
    assert len(notes) == 3 and {note["node"] for note in notes} == {"node1"}
    assert any("kept away from node1" in note for note in cluster.status(tmp_path)["notes"])
    assert "keeps away from node1" in cluster.launch("bad2", tmp_path, *options, "--dry-run")


ABLATION = """
import sys
from bench.__main__ import main
from bench.suites import SUITES
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
    assert "1 offline phases are trained once" in first.stdout and "2 job arrays: 3 jobs" in first.stdout
    assert "2 are in Slurm's queue already" in python("-c", ABLATION, *command).stdout
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
    assert cluster.bench("logs", str(first)).stdout.startswith("again/cube-single-task1/fql/seed_000: failed (Diverged")
    done = cluster.bench("retry", "--failed", "again", "--results", str(tmp_path))
    assert done.returncode == 0 and "submitted 1 jobs" in done.stdout, done.stdout + done.stderr
    cluster.drain()
    assert cluster.status(tmp_path, "again")["counts"] == {"complete": 2}
    assert len(provenance_of(second)["starts"]) == 1


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
                assert f"cancelled {count} jobs" in cluster.bench("cancel", "--results", str(results)).stdout
            calls[count, what], seconds[count, what] = sorted(log.read_text().split()), time.monotonic() - started
    print({key: f"{value:.1f} s" for key, value in seconds.items()})
    for what in ("launch", "status", "cancel"):
        assert calls[1000, what] == calls[4, what], what
    assert "sacct" not in {call for own in calls.values() for call in own}


def test_chaos_ends_with_every_run_complete_once_and_the_same_bytes(cluster, tmp_path, request):
    # For minutes with --slow; CI has less time.
    seeds, updates, seconds = (5, 6_000, 300) if request.config.getoption("--slow") else (3, 1_500, 60)
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    options = ("--agent", "qc_fql", "--seeds", *map(str, range(seeds)), "--pack", "1")
    options += ("--offline-updates", str(updates), "--online-steps", "300")
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
        for run in look(results, "chaos", _no_queue()).runs:  # whatever happened, the files can be read and make sense
            assert run.state in ("running", "lost", "planned", "preempted", "complete"), (run, events, seed)
    for node in list(down):
        cluster.does("start-node", str(node))
    deadline = time.monotonic() + 420
    while not all_complete(results, "chaos"):
        assert time.monotonic() < deadline, (cluster.status(results, "chaos"), events, seed)
        if not cluster.jobs():
            cluster.launch("chaos", results, *options)
        time.sleep(3)
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
    from bench.status import Queue

    queue = Queue()
    queue.look = lambda: None
    return queue
