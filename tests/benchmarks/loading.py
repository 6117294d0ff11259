"""How long it takes to read results and to draw them, and how much memory that needs, by number of runs.

Results are generated: every run has 21 evaluations of 50 episodes and the training scalars of a run of paper size.
Run as `python -m tests.benchmarks.loading [--runs 3060 10000] [--keep DIR]`.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.runs.contract import config_hash

EPISODES, INTERVAL, BUDGET = 50, 100_000, 1_000_000
AGENTS, TASKS = 17, 15
STAGES = ("load", "load again", "draw")


def generate(root: Path, num_runs: int) -> None:
    """Writes `num_runs` complete runs of 17 agents on 15 tasks, as many seeds as it takes."""
    generator = np.random.default_rng(0)
    train = training_rows(generator)
    for number in range(num_runs):
        seed, cell = divmod(number, AGENTS * TASKS)
        task, agent = f"cube-double-task{cell // AGENTS + 1}", f"agent_{cell % AGENTS:02}"
        folder = root / "scale" / task / agent / f"seed_{seed:03}"
        folder.mkdir(parents=True)
        config = {
            "schema_version": 1,
            "suite": "scale",
            "task": task,
            "agent": agent,
            "seed": seed,
            "success_timing": "post",
            "offline_updates": BUDGET,
            "online_steps": BUDGET,
            "eval_episodes": EPISODES,
            "agent_config": {"chunk_length": 5, "hidden_dims": [512] * 4, "learning_rate": 3e-4},
        }
        config["config_hash"] = config_hash(config)
        rows = {"episodes.csv": episode_rows(generator), "train.csv": f"{train}online,1,1,run,{number}\n"}
        sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in rows.items()}
        start = {"commit": "0123abcd", "dirty_diff_hash": None, "versions": {"torch": "2.13.0", "numpy": "2.4.6"}}
        dataset = {"name": f"data-{task}", "origin": "generated", "content_hash": f"content-{task}"}
        files = {
            "config.json": config,
            "provenance.json": {"schema_version": 1, "dataset": dataset, "starts": [start]},
            "status.json": {"schema_version": 1, "state": "complete"},
            "complete.json": {
                "schema_version": 1,
                "files": {name: {"bytes": len(rows[name]), "sha256": digest} for name, digest in sums.items()},
            },
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=1, sort_keys=True))
        for name, text in rows.items():
            (folder / name).write_text(text)


def episode_rows(generator: np.random.Generator) -> str:
    points = [("offline", k * INTERVAL, 0) for k in range(BUDGET // INTERVAL + 1)]
    points += [("online", BUDGET + k * INTERVAL, k * INTERVAL) for k in range(1, BUDGET // INTERVAL + 1)]
    solved = generator.random((len(points), EPISODES)) < generator.random((len(points), 1))
    rows = [
        f"{phase},{updates},{steps},{1_000_000 + episode},{int(success)},{-200.0 - episode},{200 + episode}"
        for (phase, updates, steps), line in zip(points, solved, strict=True)
        for episode, success in enumerate(line)
    ]
    return "\n".join(["phase,updates,env_steps,episode_seed,success,return,length", *rows]) + "\n"


def training_rows(generator: np.random.Generator) -> str:
    rows = ["phase,updates,env_steps,name,value"]
    for point in range(200):
        phase, steps = ("offline", 0) if point < 100 else ("online", (point - 100) * 10_000)
        rows += [f"{phase},{point * 10_000},{steps},metric_{k},{generator.normal():.9g}" for k in range(15)]
        if phase == "online":
            rows += [f"online,{point * 10_000},{steps + k},behaviour_success,{k % 2}" for k in range(10)]
    return "\n".join(rows) + "\n"


def stage(name: str, root: Path, out: Path) -> None:
    """One measurement in a process of its own; prints seconds and megabytes."""
    from analysis.loading.load import load_results

    started = time.perf_counter()
    suites = load_results(root)
    if name == "draw":
        from analysis.figures.curves import draw_suite
        from analysis.tables.success import write_tables

        started = time.perf_counter()
        out.mkdir(exist_ok=True)
        for suite in suites:
            write_tables(suite, out)
            draw_suite(suite, out)
    seconds = time.perf_counter() - started
    usage = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f"{seconds:.2f},{max(usage):.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds and megabytes of reading and drawing results.")
    parser.add_argument("--runs", type=int, nargs="+", default=[1_000, 3_060, 10_000])
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--skip-drawing", action="store_true")
    options = parser.parse_args()
    if options.stage:
        return stage(options.stage, options.root, options.root.parent / "figures")
    print("| runs | " + " | ".join(f"{name}, s | MB" for name in STAGES) + " |")
    print("|---:|" + "---:|" * (2 * len(STAGES)))
    for num_runs in options.runs:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "results"
            generate(root, num_runs)
            cells = []
            for name in STAGES[:2] if options.skip_drawing else STAGES:
                command = [sys.executable, "-m", "tests.benchmarks.loading", "--stage", name, "--root", str(root)]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                cells += printed.strip().split(",")
            print(f"| {num_runs:,} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
