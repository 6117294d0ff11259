"""Published rates per seed as a results folder, so that all of the analysis can be tried on them.

A rate k / 50 becomes 50 episodes of which the first k succeed. Which ones did, their returns and their lengths are not
published: those columns hold 0, and `provenance.json` says so. What was not measured is left out, not filled in.

`python -m tests.imported_runs FILE FOLDER` writes the rates of a release below a folder, to look at.
"""

import hashlib
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.published.points import SeedRate, open_table, seed_rates
from analysis.published.sources import agent_of, protocol_of, source_of
from bench.runs.contract import (
    COMPLETE,
    CONFIG,
    EPISODES,
    HEADERS,
    PROVENANCE,
    SCHEMA_VERSION,
    STATUS,
    TRAIN,
    config_hash,
    write_json,
)

EVAL_EPISODES = 50
NOTE = (
    "imported: only success rates are published; the first episodes of an evaluation stand for its successes, "
    "return and length are 0"
)


def import_as_results(path: Path, root: Path) -> None:
    """Writes the rates of `path` as runs under `root`: a suite per domain, an agent per method.

    Methods without an offline phase are left out: they have no evaluation at the hand-over.
    """
    rates = list(seed_rates(path, open_table(path)[1]))
    source = path.name.split(".")[0]
    offline = {rate.method for rate in rates if rate.offline_updates}
    runs: dict[tuple[str, str, str, int], list[SeedRate]] = defaultdict(list)
    for rate in rates:
        if rate.method in offline:
            suite = f"{source}-{rate.task.rsplit('-task', 1)[0]}"
            runs[suite, rate.task, rate.method, rate.seed].append(rate)
    facts = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    facts |= {"source": source_of(source).citation, "licence": source_of(source).licence, "note": NOTE}
    for (suite, task, method, seed), points in runs.items():
        folder = root / suite / task / agent_of(source, method) / f"seed_{seed:03d}"
        write_run(folder, config_of(source, suite, task, method, seed, points), facts, points)


def config_of(source: str, suite: str, task: str, method: str, seed: int, points: list[SeedRate]) -> dict[str, Any]:
    """What is known of how a run was made."""
    protocol = protocol_of(source, method)
    settings = ("num_critics", "chunk_length", "critic_updates_per_offline_step")
    given = {name: value for name, value in asdict(protocol).items() if value is not None}
    config = {
        "schema_version": SCHEMA_VERSION,
        "suite": suite,
        "task": task,
        "agent": agent_of(source, method),
        "seed": seed,
        "dataset": f"published with {source}",
        "success_timing": given.get("success_timing", "unknown"),
        "offline_updates": max(point.offline_updates for point in points),
        "online_steps": max(point.online_steps for point in points),
        "eval_episodes": EVAL_EPISODES,
        "episode_seeds": "own",  # releases evaluate on fresh episodes
        "agent_config": {name: given[name] for name in settings if name in given},
    }
    config |= {"utd_ratio": given["utd_ratio"]} if "utd_ratio" in given else {}
    return config | {"config_hash": config_hash(config)}


def write_run(folder: Path, config: dict[str, Any], facts: dict[str, Any], points: list[SeedRate]) -> None:
    """One run directory, complete."""
    folder.mkdir(parents=True)
    lines = [",".join(HEADERS[EPISODES])]
    for point in sorted(points, key=lambda rate: (rate.online_steps, rate.offline_updates)):
        phase = "online" if point.online_steps else "offline"
        updates = point.offline_updates + point.online_steps * config.get("utd_ratio", 1)
        place = f"{phase},{updates},{point.online_steps}"
        solved = round(point.rate * EVAL_EPISODES)
        lines += [f"{place},{episode},{int(episode < solved)},0,0" for episode in range(EVAL_EPISODES)]
    episodes = ("\n".join(lines) + "\n").encode()
    files = {EPISODES: episodes, TRAIN: (",".join(HEADERS[TRAIN]) + "\n").encode()}
    dataset = {"name": config["dataset"], "origin": "published", "content_hash": None}
    last = {"phase": "online", "updates": config["offline_updates"] + config["online_steps"]}
    objects = {
        CONFIG: config,
        PROVENANCE: {"dataset": dataset, "reference_returns": None, "starts": [], "imported": facts},
        STATUS: {"state": "complete", "env_steps": config["online_steps"], "error": None, **last},
        COMPLETE: {
            "files": {
                name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                for name, content in files.items()
            }
        },
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for name, content in objects.items():
        write_json(folder / name, {"schema_version": SCHEMA_VERSION, **content})


if __name__ == "__main__":
    import_as_results(Path(sys.argv[1]), Path(sys.argv[2]))
