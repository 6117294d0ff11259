"""Every agent side by side: what a suite's runs came to, update rates, parameters and memory.

    python -m tests.benchmarks.agents                             at the agents' default sizes
    python -m tests.benchmarks.agents results/baselines-quick     at the sizes of these runs, with their success

Updates are eager, on one thread, with batches and shapes of the runs' task (cube-double without runs). Each agent is
measured in a process of its own, whose peak memory is that of updates alone: no simulator, no data set. On-policy
agents' online updates are those of their own decisions.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import datasets
from agents import AGENTS
from agents.blocks.streams import SeedStreams
from bench.grid.measuring import made_up_batches
from bench.protocol.config import RunConfig
from bench.protocol.grids import run_config
from bench.training.policies import build_agent
from tests.benchmarks.measure import machine_line, peak_megabytes, table

SECONDS = 2.0  # of updates per phase, after a few that are not counted


def measure(config: RunConfig) -> dict[str, float]:
    """Updates per second in each phase, parameters of one seed, and peak memory of this process."""
    torch.set_num_threads(1)
    agent, noise = build_agent(config, SeedStreams([0], "cpu", "init")), SeedStreams([0], "cpu", "benchmark")
    offline, online = made_up_batches(config, agent, noise)
    return {
        "offline": rate(lambda number: agent.update_offline(offline, noise.at(number))),
        "online": rate(lambda number: agent.update_turn(online, noise.at(number), number % agent.period)),
        "parameters": sum(parameter.numel() for parameter in agent.parameters()),
        "megabytes": peak_megabytes(),
    }


def rate(update: Callable[[int], object]) -> float:
    """Updates per second, from the median time of one."""
    for number in range(3):
        update(number)
    times, started = [], time.perf_counter()
    while time.perf_counter() - started < SECONDS or len(times) < 5:
        before = time.perf_counter()
        update(len(times))
        times.append(time.perf_counter() - before)
    return 1 / statistics.median(times)


def outcome(directories: list[Path]) -> tuple[str, str]:
    """Mean success over runs and episodes at the end of the offline phase, and at the end."""
    ends: dict[str, list[float]] = {"offline": [], "online": []}
    for directory in directories:
        config = json.loads((directory / "config.json").read_text())
        with (directory / "episodes.csv").open() as file:
            rows = list(csv.DictReader(file))
        for phase, at in (("offline", (config["offline_updates"], 0)), ("online", (None, config["online_steps"]))):
            if at[0] == 0:
                continue  # no offline phase: what was evaluated is an untrained policy
            ends[phase] += [
                float(row["success"])
                for row in rows
                if int(row["env_steps"]) == at[1] and at[0] in (None, int(row["updates"]))
            ]
    shown = [f"{statistics.fmean(values):.2f}" if values else "-" for values in ends.values()]
    return shown[0], shown[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="?", type=Path, help="folder of a suite, as results/baselines-quick")
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=list(AGENTS))
    parser.add_argument("--measure", action="store_true", help="read a config from stdin, write its numbers as JSON")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(RunConfig.from_json(json.load(sys.stdin)))))
        return
    rows: list[list[Any]] = []
    for agent in options.agents:
        begun = sorted(options.suite.glob(f"*/{agent}/seed_*")) if options.suite else []
        runs = [run for run in begun if (run / "complete.json").exists()]
        if begun:
            written = (begun[0] / "config.json").read_text()
        else:
            written = json.dumps(run_config("sizes", datasets.task("cube-double-task2"), agent, 0).to_json())
        command = [sys.executable, "-m", "tests.benchmarks.agents", "--measure"]
        done = subprocess.run(command, input=written, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        rows.append(
            [
                agent,
                *(outcome(runs) if runs else ("-", "-")),
                f"{found['offline']:.1f}",
                f"{found['online']:.1f}",
                f"{found['parameters']:,.0f}",
                f"{found['megabytes']:.0f}",
            ]
        )
        print(f"{agent}: done", file=sys.stderr, flush=True)
    print(machine_line())
    columns = ["agent", "offline end", "online end", "updates/s offline", "online", "parameters", "MB"]
    print(table(options.suite.name if options.suite else "default sizes", columns, rows))


if __name__ == "__main__":
    main()
