"""A throw-away, real Slurm for tests (`tests/slurm-cluster`), and grids small enough for it."""

import fcntl
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.grid.status import as_json
from bench.grid.survey import Queue, survey
from bench.runs.contract import is_complete, read_json
from tests.conftest import TINY_DATASET
from tests.tiny_runs import ROOT, python

SCRIPT = ROOT / "tests" / "slurm-cluster"
NODES = 3
SMALL = [
    *("--task", "toy-reach", "--dataset", TINY_DATASET, "--batch-size", "8", "--eval-episodes", "1"),
    *("--agent-config.policy-hidden-dims", "16,16", "--agent-config.critic-hidden-dims", "16,16"),
    *("--offline-updates", "200", "--online-steps", "200", "--warmup-steps", "10", "--log-interval", "20"),
    *("--eval-interval-updates", "100", "--eval-interval-steps", "100"),
]
ON_CLUSTER = ["--device", "cpu", "--gpus-per-node", "1", "--cpus-per-task", "2", "--mem", "7000M", "--time", "30"]
QUICKLY = ["--checkpoint-seconds", "1", "--lease-seconds", "6", "--eval-workers", "1", "--env-workers", "0"]
LONGER = ("--offline-updates", "1000", "--online-steps", "250")  # long enough to be hit, and no longer
PAIR = ("--agent", "qc_fql", "--seeds", "0", "1", "--pack", "2", *LONGER)


class Cluster:
    """The cluster of one test module."""

    def __init__(self, folder: Path, nodes: int, port: int, **settings: str):
        self.environment = {
            "SLURM_CLUSTER_DIR": str(folder),
            "SLURM_CLUSTER_PORT": str(port),
            "SLURM_CLUSTER_ACCT": "none",
            "SLURM_CLUSTER_MEM": "16000",  # nominal: of each node
            **settings,
        }
        self.nodes = nodes
        self.conf = folder / "etc" / "slurm.conf"
        # Side by side, as of two test processes, they would both install what is missing.
        with (Path(tempfile.gettempdir()) / "o2o-bench-slurm-cluster.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.does("up", str(nodes))

    def does(self, *arguments: str) -> str:
        """`tests/slurm-cluster …`"""
        done = subprocess.run(
            [str(SCRIPT), *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def says(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            command, env={**os.environ, "SLURM_CONF": str(self.conf)}, capture_output=True, text=True, timeout=300
        )
        return done.stdout

    def bench(self, *arguments: str) -> subprocess.CompletedProcess:
        """`python -m bench …` as on a login node."""
        return python("-m", "bench", *arguments, SLURM_CONF=str(self.conf))

    def launch(self, name: str, results: Path, *options: str, cwd: Path = ROOT) -> str:
        """Submits a small grid; what was printed."""
        command = [
            "launch",
            "--slurm",
            "--name",
            name,
            "--results",
            str(results),
            *SMALL,
            *ON_CLUSTER,
            *QUICKLY,
            *options,
        ]
        done = python("-m", "bench", *command, cwd=cwd, timeout=900, SLURM_CONF=str(self.conf))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def status(self, results: Path, suite: str | None = None) -> dict[str, Any]:
        """What `python -m bench status --json` prints, without the start of an interpreter."""
        return as_json(survey(results, suite, Queue()))

    def jobs(self) -> list[tuple[str, str, str]]:
        """Job, state and node of all in the queue."""
        lines = self.says("squeue", "-h", "-r", "-o", "%i|%T|%N").splitlines()
        return [(job, state, node) for job, state, node in (line.split("|") for line in lines)]

    def drain(self, seconds: float = 300, results: Path | None = None) -> None:
        """Waits until the queue is empty, which with `results` takes as long as the runs there get on."""
        wait_until(lambda: not self.jobs(), seconds, self.jobs, results)


def wait_until(
    condition: Callable[[], Any], seconds: float, shown: Callable[[], Any] = lambda: "", results: Path | None = None
) -> None:
    """With `results`, the seconds count from the last time that a run there got on: a slow machine fails no test."""
    deadline, reached = time.monotonic() + seconds, 0
    while not condition():
        if results is not None and (now := updates_done(results)) > reached:
            deadline, reached = time.monotonic() + seconds, now
        assert time.monotonic() < deadline, f"it did not come to that in {seconds} s: {shown()}"
        time.sleep(0.3)


def updates_done(results: Path) -> int:
    """By all runs together."""
    return sum((read_json(path) or {}).get("updates", 0) for path in results.glob("*/*/*/seed_*/status.json"))


def run_dirs(results: Path, name: str) -> list[Path]:
    return sorted(path.parent for path in results.glob(f"{name}/*/*/seed_*/config.json"))


def all_complete(results: Path, name: str) -> bool:
    directories = run_dirs(results, name)
    return bool(directories) and all(map(is_complete, directories))


def progressed(directory: Path, updates: int) -> bool:
    return (read_json(directory / "status.json") or {}).get("updates", 0) >= updates


def bytes_of(results: Path, name: str) -> dict[str, bytes]:
    """The reproducible files of a grid's runs, by run and name."""
    return {
        f"{directory.relative_to(results / name)}/{file}": (directory / file).read_bytes()
        for directory in run_dirs(results, name)
        for file in ("episodes.csv", "train.csv", "checkpoint/policy.safetensors")
    }


def run_here(name: str, results: Path, *options: str) -> None:
    """The same runs on this machine, undisturbed."""
    command = ["launch", "--local", "--name", name, "--results", str(results), *SMALL, *QUICKLY, "--device", "cpu"]
    done = python("-m", "bench", *command, *options, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


def processes_of(results: Path) -> list[str]:
    """Living processes that were started for runs under `results`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if str(results) in command and state not in "ZX" and int(path.name) != os.getpid():
            found.append(f"{path.name}: {command}")
    return found


def drain_nodes(cluster: Cluster, *nodes: int) -> None:
    for node in nodes:
        cluster.says("scontrol", "update", f"nodename=node{node}", "state=drain", "reason=test")


def resume_nodes(cluster: Cluster, *nodes: int) -> None:
    for node in nodes:
        cluster.says("scontrol", "update", f"nodename=node{node}", "state=resume")


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


def slurmd(cluster: Cluster, node: int) -> int:
    return int((cluster.conf.parent.parent / "run" / f"node{node}.pid").read_text())
