"""Plan, record and status of grids by number of runs: `python -m tests.benchmarks.grids [--runs 10 100 1000]`.

Without a cluster: what is measured is this project's own part, on run directories as a grid leaves them half-way.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.grid.launches import Array, Job, Launch, Need, array_name, launches, new_id, queued_runs
from bench.grid.plan import make_packs, sort_out
from bench.grid.slurm import Task
from bench.grid.status import as_json
from bench.grid.survey import Queue, survey
from bench.protocol.config import RunConfig
from bench.runs.claims import Claim, Claims
from bench.runs.contract import utc, write_json
from bench.training.execution import Execution
from bench.training.pack import prepare_directory
from tests.tiny_runs import tiny_config


def half_way(configs: list[RunConfig], results: Path) -> None:
    """Run directories of which a third is complete, a third was preempted and a third has not begun."""
    for number, config in enumerate(configs):
        directory = prepare_directory(config, results)
        if number % 3 == 2:
            continue
        held = Claims().take(directory)
        assert isinstance(held, Claim)
        state = ("complete", "preempted")[number % 3]
        write_json(directory / "status.json", {"state": state, "updates": 10, "env_steps": 0, "updated_at": utc()})
        start = {"pack": [config.seed], "seconds": 60.0, "slurm_job": "1", "visible_gpus": "0", "device_type": "cuda"}
        write_json(directory / "provenance.json", {"starts": [start]})
        held.release()


def measured(count: int, results: Path) -> dict[str, float]:
    """Seconds of each step for a grid of so many runs."""
    configs = [tiny_config("fql", seed, suite="grid") for seed in range(count)]
    seconds: dict[str, float] = {}

    def step(name: str, function: Callable):
        started = time.perf_counter()
        value = function()
        seconds[name] = time.perf_counter() - started
        return value

    step("make directories", lambda: half_way(configs, results))
    _, _, pending = step("sort out", lambda: sort_out(configs, results))
    packs = step("packs", lambda: make_packs(pending, results, 8))
    identity = new_id("grid")
    jobs = tuple(Job((pack.work,), 60.0) for pack in packs)
    array = Array(array_name(identity, 0), jobs, Need(4, "8G"), (), "7")
    launch = Launch(identity, "grid", results, results / "code", (), Execution(), 1, arrays=(array,))
    step("record", launch.save)
    tasks = {(array.name, index): Task(f"7_{index}", "PENDING", "Priority", "") for index in range(len(jobs))}
    step("runs in the queue", lambda: queued_runs(results, tasks))
    step("launches", lambda: launches(results))
    grid = step("status", lambda: survey(results, "grid", Queue()))
    step("status as JSON", lambda: as_json(grid))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 100, 1000])
    os.environ["PATH"] = ""  # no squeue
    table: dict[int, dict[str, float]] = {}
    for count in parser.parse_args().runs:
        with tempfile.TemporaryDirectory() as folder:
            table[count] = measured(count, Path(folder))
    print("seconds            " + "".join(f"{count:>10} runs" for count in table))
    for name in next(iter(table.values())):
        print(f"{name:<19}" + "".join(f"{row[name]:>15.3f}" for row in table.values()))


if __name__ == "__main__":
    main()
