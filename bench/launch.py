"""From a list of runs to finished directories: what is complete, packs of seeds, worker processes side by side."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from bench.config import RunConfig
from bench.cost import Cost, estimate
from bench.engine import available_cores, pick_device, pick_mode
from bench.evaluate import EXIT_PREEMPTED
from bench.members import prepare_directory
from bench.progress import Display
from bench.train import Execution
from bench.writer import read_json

PACK_LIMIT = {
    "cpu": 4,
    "cuda": 8,
}  # seeds per process: a GPU gains from more, a CPU only saves memory and call overhead


@dataclass(frozen=True)
class Pack:
    """Runs that one process trains together: equal but for their seed."""

    configs: tuple[RunConfig, ...]

    @property
    def name(self) -> str:
        seeds = [config.seed for config in self.configs]
        span = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]}-{seeds[-1]}"
        return f"{self.configs[0].task} {self.configs[0].agent} {span}"


@dataclass(frozen=True)
class Plan:
    """What there is to do for a list of runs."""

    complete: tuple[RunConfig, ...]
    packs: tuple[Pack, ...]
    execution: Execution
    jobs: int  # packs side by side
    results: Path


def make_plan(
    configs: list[RunConfig], results: Path, execution: Execution, jobs: int | None = None, pack: int | None = None
) -> Plan:
    """Sorts runs into complete ones and packs. Raises ConfigError where a directory belongs to another config.

    Args:
        jobs: processes side by side; default one per core (one on a GPU).
        pack: seeds per process at most; default by device, and small enough to keep all cores busy.
    """
    for config in configs:
        check_directory(config, results)
    complete = tuple(config for config in configs if run_state(config, results)["state"] == "complete")
    pending = [config for config in configs if config not in complete]
    device = pick_device(execution.device)
    for config in pending:
        pick_mode(execution.engine, device, config.total_updates)
    cores = available_cores()
    jobs = jobs or (1 if device.type == "cuda" else max(1, cores // execution.threads))
    size = pack or max(1, min(PACK_LIMIT[device.type], len(pending) // jobs))
    groups: dict[RunConfig, list[RunConfig]] = {}
    for config in pending:
        groups.setdefault(config.replace(seed=0), []).append(config)
    packs = tuple(
        Pack(tuple(group[start : start + size])) for group in groups.values() for start in range(0, len(group), size)
    )
    jobs = max(1, min(jobs, len(packs)))
    if execution.eval_workers == 0:
        execution = replace(execution, eval_workers=max(1, cores // jobs))
    return Plan(complete, packs, execution, jobs, results)


def check_directory(config: RunConfig, results: Path) -> None:
    """Raises ConfigError where the run's directory belongs to another config; creates nothing."""
    if (config.directory(results) / "config.json").exists():
        prepare_directory(config, results)


def run_state(config: RunConfig, results: Path) -> dict[str, Any]:
    """The run's status.json; state `planned` where it has not begun."""
    return read_json(config.directory(results) / "status.json") or {"state": "planned"}


def estimate_plan(plan: Plan) -> dict[Pack, Cost]:
    """Measures each distinct configuration once; tasks of one domain cost the same."""
    device = pick_device(plan.execution.device)
    measured: dict[tuple, Cost] = {}
    costs = {}
    for pack in plan.packs:
        config = pack.configs[0]
        task = datasets.task(config.task)
        first = next((other.name for other in datasets.TASKS.values() if other.domain == task.domain), task.name)
        kind = (config.replace(seed=0, task=first), len(pack.configs))
        if kind not in measured:
            measured[kind] = estimate(
                config, len(pack.configs), plan.execution.eval_workers, device, plan.execution.threads
            )
        costs[pack] = measured[kind]
    return costs


def run_plan(plan: Plan, costs: dict[Pack, Cost], should_stop: Callable[[], bool]) -> list[str]:
    """Runs all packs, `jobs` at a time, each in a process of its own; returns one line per failed pack.

    When asked to stop, passes that on: every worker checkpoints and leaves its runs `preempted`.
    """
    waiting = list(plan.packs)
    for pack in waiting:
        for config in pack.configs:
            prepare_directory(config, plan.results)
    running: dict[Pack, subprocess.Popen] = {}
    failures: list[str] = []
    stopping = False
    with Display(plan.results, costs, plan.jobs) as display:
        while waiting or running:
            while waiting and len(running) < plan.jobs and not stopping:
                pack = waiting.pop(0)
                running[pack] = start_worker(pack, plan)
                display.started(pack)
            if should_stop() and not stopping:
                stopping = True
                waiting.clear()
                for process in running.values():
                    process.send_signal(signal.SIGTERM)
            for pack, process in list(running.items()):
                if process.poll() is not None:
                    del running[pack]
                    # A worker that is still importing dies of the signal itself; it has lost nothing.
                    stopped = (EXIT_PREEMPTED, -signal.SIGTERM) if stopping else (EXIT_PREEMPTED,)
                    if process.returncode not in (0, *stopped):
                        failures.append(f"{pack.name}: {last_line(log_path(pack, plan.results), process.returncode)}")
                    display.finished(pack)
            display.refresh()
            time.sleep(0.2)
    return failures


def start_worker(pack: Pack, plan: Plan) -> subprocess.Popen:
    """`python -m bench worker` on the pack's directories; output goes to the first one's log.txt."""
    execution = plan.execution
    command = [sys.executable, "-m", "bench", "worker", "--results", str(plan.results)]
    command += ["--device", execution.device, "--threads", str(execution.threads)]
    command += ["--engine", execution.engine, "--eval-workers", str(execution.eval_workers)]
    command += ["--env-workers", "auto" if execution.env_workers is None else str(execution.env_workers)]
    command += ["--checkpoint-seconds", str(execution.checkpoint_seconds), "--supervised"]
    command += ["--data-dir", str(execution.data_dir)] if execution.data_dir else []
    command += [str(config.directory(plan.results)) for config in pack.configs]
    with log_path(pack, plan.results).open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)


def log_path(pack: Pack, results: Path) -> Path:
    return pack.configs[0].directory(results) / "log.txt"


def last_line(path: Path, returncode: int) -> str:
    """The log's last line, which names the error, and how the worker ended."""
    lines = path.read_text(errors="replace").strip().splitlines()
    ended = f"killed by signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    return f"{lines[-1] if lines else 'no output'} ({ended}; {path})"
