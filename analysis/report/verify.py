"""Whether the runs of an archived cell, trained again, are the same: byte for byte on the machine type and versions of
the archive, elsewhere by the interval of the difference of their mean scores."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.labels.wording import alternatives, two_digits
from analysis.loading.checks import read_rows
from analysis.loading.load import assemble, find_runs, read_runs
from analysis.loading.read import SUCCESS, ResultsError, Run
from analysis.statistics.comparisons import mean_difference
from analysis.statistics.metrics import clipped
from analysis.statistics.pairs import finals
from analysis.statistics.scores import evaluations_behind
from bench.runs.contract import REPRODUCIBLE, RunName


@dataclass(frozen=True)
class Verification:
    """What is to be said of the seeds and of the cell, and whether it is what it should be."""

    lines: tuple[str, ...]
    agrees: bool


def verify(reference: Path, repeated: Path, name: str) -> Verification:
    """The runs of the cell `suite/task/agent` in the archive `reference`, against those trained again.

    Raises ResultsError, one line, for a cell that the archive lacks, runs that are not there or not complete, and too
    few seeds for an interval.
    """
    runs, again = runs_of(reference, name), runs_of(repeated, name, "; train them first: make verify-reference")
    by_seed = {run.config["seed"]: run for run in runs}
    lines, broken, apart = [], False, False
    for run in again:
        seed = run.config["seed"]
        if seed not in by_seed:
            raise ResultsError(f"{repeated / run.name} is not in the archive {reference}; remove it")
        then = by_seed[seed]
        if run.config != then.config:
            raise ResultsError(
                f"{repeated / run.name} has other settings than in {reference}; remove it, train it again"
            )
        other = first_difference(reference / run.name, repeated / run.name)
        where = "; ".join(changed_facts(then.provenance, run.provenance))
        if other is None:
            lines.append(f"{run.name}: same bytes")
        elif where:
            apart = True
            lines.append(f"{run.name}: other bytes, as elsewhere ({where})")
        else:
            broken = True
            lines.append(f"{run.name}: differs on the same type of machine: {other}")
    commits = [commit_of(of) for of in (runs, again)]
    lines.append(f"code: {commits[0]} in the archive, {commits[1]} now")
    count = f"{len(again)} of {len(runs)} seeds trained again"
    if not broken and not apart:
        return Verification((*lines, f"{name}: agrees, same bytes; {count}"), True)
    said, contains = interval(name, runs, again)
    if broken:
        return Verification((*lines, f"{name}: differs, {said}; {count}"), False)
    if contains is None:
        raise ResultsError(f"{name}: other bytes on another type of machine, and {said}; train more of its seeds again")
    return Verification((*lines, f"{name}: {'agrees' if contains else 'differs'}, {said}; {count}"), contains)


def runs_of(root: Path, name: str, advice: str = "") -> list[Run]:
    """The complete runs of a cell. Raises ResultsError."""
    cells: dict[str, list[str]] = {}
    for run in find_runs(root) if root.is_dir() or not advice else ():
        if parsed := RunName.parse(run):
            cells.setdefault(parsed.group, []).append(run)
    if name not in cells:
        raise ResultsError(f"no runs of {name!r} under {root}{advice or alternatives(name, cells)}")
    runs = read_runs(root, cells[name])
    for run in runs:
        if not run.complete:
            raise ResultsError(f"{root / run.name} is not complete{advice}")
    return runs


def first_difference(first: Path, second: Path) -> str | None:
    """The first row in which two runs differ, or None."""
    for file in REPRODUCIBLE:
        rows = [read_rows(folder / file).decode().split("\n") for folder in (first, second)]
        for number, (a, b) in enumerate(itertools.zip_longest(*rows), 1):
            if a != b:
                return f"{file}, line {number}: {a!r} in the archive, {b!r} now"
    return None


def changed_facts(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What may make other bytes of the same run, where it is not the same."""
    facts = [dict(facts_of(provenance)) for provenance in (then, now)]
    for key in sorted(facts[0].keys() & facts[1].keys()):
        if facts[0][key] != facts[1][key]:
            yield f"{key}: {' and '.join(sorted(facts[0][key]))} then, {' and '.join(sorted(facts[1][key]))} now"


def facts_of(provenance: Mapping[str, Any]) -> Iterator[tuple[str, set[str]]]:
    """Of all starts: machine, device, vector instructions, threads, engines, versions of packages; and the data."""
    starts = provenance["starts"]
    for key in ("machine", "device_type", "device", "vectors", "threads"):
        yield key, {str(start.get(key, "unknown")) for start in starts}
    for key in ("versions", "engines"):
        of_starts = [start.get(key) or {} for start in starts]
        for name in sorted({name for values in of_starts for name in values}):
            yield name, {str(values[name]) for values in of_starts if name in values}
    yield "data", {str(provenance["dataset"].get("content_hash"))[:12]}


def interval(name: str, runs: list[Run], again: list[Run]) -> tuple[str, bool | None]:
    """The difference of the mean final scores in words, and whether its interval contains 0; None without interval."""
    suites = [assemble(name.split("/")[0], members) for members in (again, runs)]
    now, then = (cell for suite in suites for cell in suite.cells.values())
    measure = suites[0].measures[now.task]
    episodes = suites[0].eval_episodes * evaluations_behind("final", now) if measure == SUCCESS else None
    difference, _ = mean_difference([finals(now)], [finals(then)], episodes=episodes)
    worst, best = measure.bounds
    difference = clipped(difference, (worst - best, best - worst))
    low, high = float(difference.low), float(difference.high)
    said = f"mean {measure.name} {two_digits(float(difference.mean))} from the archive's"
    if math.isnan(low):
        return f"{said} without an interval, as of one seed", None
    return f"{said}, 95 % interval [{two_digits(low)}, {two_digits(high)}]", low <= 0.0 <= high


def commit_of(runs: list[Run]) -> str:
    """The commits of the runs' starts, in short."""
    states = {
        str(start.get("commit") or "no repository")[:9] + (" with changes" if start.get("dirty_diff_hash") else "")
        for run in runs
        for start in run.provenance["starts"]
    }
    return " and ".join(sorted(states))
