"""Whole runs through the real driver: where the time goes, what the full protocol will take, how cost grows.

    python -m tests.benchmarks.end_to_end                                   5,000 + 5,000, networks of 3 x 96
    python -m tests.benchmarks.end_to_end --paper-size --seeds 1            networks of paper size
    python -m tests.benchmarks.end_to_end --seeds 1 2 4 8                   growth with the pack
    python -m tests.benchmarks.end_to_end --rows 100_000 1_000_000 5_000_000   growth with the data
    python -m tests.benchmarks.end_to_end --device cuda --paper-size --seeds 1 8

Every case is a process of its own with random numbers in the place of a data set, the real environment, evaluation
beside training and checkpoints. Shares and rates leave out the first log interval of each phase, in which updates are
compiled. An untrained policy fails, so that every evaluation episode has its full length.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from unittest import mock

import numpy as np

from agents import AGENTS
from agents.blocks.config import settings_of, with_settings
from bench.protocol.config import RunConfig
from bench.protocol.suites import SUITES
from bench.training.engine import MODES
from bench.training.execution import Execution
from bench.training.train import run
from tests.benchmarks import updates
from tests.benchmarks.measure import machine_line, peak_megabytes, table

PARTS = ("update", "act", "env_wait", "evaluation_wait", "write")
PROTOCOL = 1_000_000  # offline updates, and online steps


def configs_of(args: argparse.Namespace, seeds: int) -> list[RunConfig]:
    base = next(config for config in SUITES["ogbench-cube-double"]() if config.agent == args.agent)
    agent_config = base.agent_config
    if not args.paper_size:
        small = {"policy_hidden_dims": (96, 96, 96), "critic_hidden_dims": (96, 96, 96), "gate_dim": 96}
        small = {name: value for name, value in small.items() if name in settings_of(agent_config)}
        agent_config = with_settings(agent_config, **small)
    return [
        base.replace(
            suite="end-to-end",
            seed=seed,
            agent_config=agent_config,
            offline_updates=args.offline_updates,
            online_steps=args.online_steps,
            warmup_steps=1,
            eval_interval_updates=args.offline_updates,
            eval_interval_steps=args.online_steps,
            eval_episodes=args.eval_episodes,
            log_interval=min(args.offline_updates, args.online_steps) // 5,
        )
        for seed in range(seeds)
    ]


def one_case(args: argparse.Namespace, seeds: int, rows: int) -> None:
    """Runs a pack and prints JSON: rates and shares by phase, seconds of set-up and in all, peak memory in MB."""
    configs = configs_of(args, seeds)
    data = updates.transitions(rows)
    execution = Execution(device=args.device, engine=args.engine, threads=args.threads, eval_workers=args.eval_workers)
    with tempfile.TemporaryDirectory() as results, mock.patch("bench.training.train.datasets.load", return_value=data):
        started = time.monotonic()
        run(configs, Path(results), execution, lambda: False)
        seconds = time.monotonic() - started
        directory = configs[0].directory(Path(results))
        with (directory / "timing.csv").open() as file:
            timings = [row for row in csv.DictReader(file) if float(row["value"]) >= 0]
        mode = json.loads((directory / "status.json").read_text())["engine"]
    values = defaultdict(list)
    for row in timings:
        values[row["phase"], row["name"]].append(float(row["value"]))
    steady = {f"{phase} {name}": float(np.mean(found[1:] or found)) for (phase, name), found in values.items()}
    data_megabytes = sum(getattr(data, name).nbytes for name in ("obs", "action", "reward", "terminated")) / 1e6
    print(json.dumps({**steady, "seconds": seconds, "peak": peak_megabytes(), "data": data_megabytes, "mode": mode}))


def measured(args: argparse.Namespace, argv: list[str], seeds: int, rows: int) -> dict:
    command = [sys.executable, "-m", "tests.benchmarks.end_to_end", *argv, "--case", str(seeds), str(rows)]
    environment = {**os.environ, "MUJOCO_GL": "disable"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def print_tables(cases: dict[tuple[int, int], dict], args: argparse.Namespace) -> None:
    rows, shares = [], []
    first = next(iter(cases.values()))
    for (seeds, size), case in cases.items():
        offline, online = case["offline updates_per_second"], case["online env_steps_per_second"]
        hours = PROTOCOL * (1 / offline + 1 / online) / 3600
        label = f"S = {seeds}, {size:,} rows, {case['mode']}"
        growth = first["offline updates_per_second"] / offline, first["online env_steps_per_second"] / online
        rows.append(
            (
                label,
                f"{offline:.1f}",
                f"{online:.1f}",
                f"{growth[0]:.2f}x / {growth[1]:.2f}x",
                f"{hours:.1f} h",
                f"{hours / seeds:.2f} h",
                f"{case['peak']:.0f}",
                f"{case['data']:.0f}",
            )
        )
        for phase in ("offline", "online"):
            parts = [case.get(f"{phase} {part}_share", 0.0) for part in PARTS]
            shares.append((f"{label}, {phase}", *(f"{part:.1%}" for part in parts), f"{1 - sum(parts):.1%}"))
    steps = f"{args.offline_updates:,} offline updates + {args.online_steps:,} online steps"
    columns = [
        *("", "offline updates/s", "online steps/s", "time vs the first row"),
        *("full protocol", "per seed", "peak MB of the driver", "of it data MB"),
    ]
    print(table(f"{args.agent}, {steps}; full protocol: 1M + 1M, evaluation beside it", columns, rows))
    print(table("shares of wall-clock time", ["", *PARTS, "rest"], shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", choices=AGENTS, default="qc_fql")
    parser.add_argument("--paper-size", action="store_true", help="networks of paper size instead of 3 x 96")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 4], help="sizes of packs")
    parser.add_argument("--rows", nargs="+", type=int, default=[100_000], help="transitions of the data")
    parser.add_argument("--offline-updates", type=int, default=5000)
    parser.add_argument("--online-steps", type=int, default=5000)
    parser.add_argument("--eval-episodes", type=int, default=10)
    parser.add_argument("--eval-workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", default="auto", choices=("auto", *MODES))
    parser.add_argument("--case", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.offline_updates, args.online_steps) < 10:
        parser.error("--offline-updates and --online-steps must be at least 10: rates leave out the first fifth")
    if args.case:
        return one_case(args, *args.case)
    print(machine_line(), flush=True)
    cases = {}
    for seeds in args.seeds:
        for rows in args.rows:
            cases[seeds, rows] = measured(args, sys.argv[1:], seeds, rows)
            print(f"measured S = {seeds}, {rows:,} rows", file=sys.stderr, flush=True)
    return print_tables(cases, args)


if __name__ == "__main__":
    main()
