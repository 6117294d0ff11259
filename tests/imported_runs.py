"""Published rates per seed as a results folder, so that all of the analysis can be tried on them.

A rate k / 50 becomes 50 episodes of which the first k succeed. Which ones did, their returns and their lengths are not
published: those columns hold 0, and `provenance.json` says so. What was not measured is left out, not filled in.
"""

import hashlib
import json
import shutil
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.loading.read import EPISODE_COLUMNS, SCHEMA_VERSION
from analysis.published.sources import PublishedError, SeedRate, agent_of, protocol_of, read_seed_rates, source_of

EVAL_EPISODES = 50
NOTE = (
    "imported: only success rates are published; the first episodes of an evaluation stand for its successes, "
    "return and length are 0"
)


def import_as_results(path: Path | str, results_dir: Path | str) -> list[str]:
    """Writes the rates of `path` as runs under `results_dir`; returns what was done, one line each.

    A suite per domain (`qam-cube-double`), an agent per method under its name here or, where there is none, its own.
    Methods without an offline phase are left out by name: they have no evaluation at the hand-over. Raises
    PublishedError, and writes nothing, for a rate that is not a number of 50 episodes, runs that differ in their
    evaluations, and a suite that is there already.
    """
    path, root = Path(path), Path(results_dir)
    rates = read_seed_rates(path)
    check_episodes(path, rates)
    source = path.name.split(".")[0]
    offline = {rate.method for rate in rates if rate.offline_updates}
    left_out = sorted({rate.method for rate in rates} - offline)
    runs: dict[tuple[str, str, str, int], list[SeedRate]] = defaultdict(list)
    for rate in rates:
        if rate.method in offline:
            runs[suite_name(source, rate.task), rate.task, rate.method, rate.seed].append(rate)
    if not runs:
        raise PublishedError(f"{path}: no method has an offline phase, and a run begins with one")
    suites = sorted({suite for suite, *_ in runs})
    for suite in suites:
        if (root / suite).exists():
            raise PublishedError(f"{root / suite} exists: remove it, or import into another folder with --results")
    check_grids(path, runs)
    check_names(path, source, offline)
    facts = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    facts |= {"source": source_of(source).citation, "licence": source_of(source).licence, "note": NOTE}
    draft = root / f".import-{facts['sha256'][:12]}"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        for (suite, task, method, seed), points in runs.items():
            folder = draft / suite / task / agent_of(source, method) / f"seed_{seed:03d}"
            write_run(folder, config_of(source, suite, task, method, seed, points), facts, points)
        for suite in suites:
            (draft / suite).rename(root / suite)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    lines = [f"left out: {method}, it has no offline phase and no evaluation at the hand-over" for method in left_out]
    for suite in suites:
        lines.append(f"wrote {root / suite}: {sum(key[0] == suite for key in runs)} runs")
    return lines


def suite_name(source: str, task: str) -> str:
    """The domain of a task, with whose numbers they are in front."""
    return f"{source_of(source).suite_prefix or source}-{task.rsplit('-task', 1)[0]}"


def check_episodes(path: Path, rates: list[SeedRate]) -> None:
    for rate in rates:
        if abs(rate.rate * EVAL_EPISODES - round(rate.rate * EVAL_EPISODES)) > 1e-6:
            raise PublishedError(
                f"{path}, line {rate.line}: success_rate is {rate.rate}, expected a multiple of 1/{EVAL_EPISODES}: "
                f"a mean over {EVAL_EPISODES} episodes"
            )


def check_grids(path: Path, runs: dict[tuple[str, str, str, int], list[SeedRate]]) -> None:
    """Every run of a suite has the same evaluations."""
    grids: dict[str, tuple[tuple[str, str, str, int], set[tuple[int, int]]]] = {}
    for key, points in runs.items():
        own = {(rate.offline_updates, rate.online_steps) for rate in points}
        first, grid = grids.setdefault(key[0], (key, own))
        if own != grid:
            updates, steps = min(own ^ grid)
            lacking, having = (key, first) if (updates, steps) in grid else (first, key)
            names = [f"{method} on {task}, seed_index {seed}" for _, task, method, seed in (lacking, having)]
            raise PublishedError(
                f"{path}: {names[0]} has no row at offline_updates {updates}, online_steps {steps}, and {names[1]} has"
            )
        budget = max(updates for updates, _ in own)
        if (budget, 0) not in own:
            raise PublishedError(
                f"{path}: {key[2]} on {key[1]} has no row at the end of its offline phase ({budget}, 0)"
            )


def check_names(path: Path, source: str, methods: set[str]) -> None:
    """Two methods must not become one agent."""
    by_agent: dict[str, str] = {}
    for method in sorted(methods):
        agent = agent_of(source, method)
        if not agent or agent in by_agent:
            raise PublishedError(
                f"{path}: method {method!r} cannot be told from {by_agent.get(agent)!r} as agent {agent!r}"
            )
        by_agent[agent] = method


def config_of(source: str, suite: str, task: str, method: str, seed: int, points: list[SeedRate]) -> dict[str, Any]:
    """What is known of how a run was made."""
    protocol = protocol_of(source, method)
    settings = ("num_critics", "chunk_length", "critic_updates_per_offline_step")
    known = {name: value for name, value in asdict(protocol).items() if value is not None}
    config = {
        "schema_version": SCHEMA_VERSION,
        "suite": suite,
        "task": task,
        "agent": agent_of(source, method),
        "seed": seed,
        "dataset": f"published with {source}",
        "success_timing": known.get("success_timing", "unknown"),
        "offline_updates": max(point.offline_updates for point in points),
        "online_steps": max(point.online_steps for point in points),
        "eval_episodes": EVAL_EPISODES,
        "agent_config": {name: known[name] for name in settings if name in known},
    }
    config |= {"utd_ratio": known["utd_ratio"]} if "utd_ratio" in known else {}
    return config | {"config_hash": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()}


def write_run(folder: Path, config: dict[str, Any], facts: dict[str, Any], points: list[SeedRate]) -> None:
    """One run directory, complete."""
    folder.mkdir(parents=True)
    lines = [",".join(EPISODE_COLUMNS)]
    for point in sorted(points, key=lambda rate: (rate.online_steps, rate.offline_updates)):
        phase = "online" if point.online_steps else "offline"
        updates = point.offline_updates + point.online_steps * config.get("utd_ratio", 1)
        place = f"{phase},{updates},{point.online_steps}"
        solved = round(point.rate * EVAL_EPISODES)
        lines += [f"{place},{episode},{int(episode < solved)},0,0" for episode in range(EVAL_EPISODES)]
    episodes = ("\n".join(lines) + "\n").encode()
    files = {"episodes.csv": episodes, "train.csv": b"phase,updates,env_steps,name,value\n"}
    dataset = {"name": config["dataset"], "origin": "published", "content_hash": None}
    last = {"phase": "online", "updates": config["offline_updates"] + config["online_steps"]}
    objects = {
        "config.json": config,
        "provenance.json": {"dataset": dataset, "reference_returns": None, "starts": [], "imported": facts},
        "status.json": {"state": "complete", "env_steps": config["online_steps"], "error": None, **last},
        "complete.json": {
            "files": {
                name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                for name, content in files.items()
            }
        },
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for name, content in objects.items():
        text = json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=1, sort_keys=True)
        (folder / name).write_text(text + "\n", encoding="utf-8", newline="\n")
