"""Whether an entry may stand on the board: named checks, each with all that it finds.

A check finds faults, which disqualify, and marks, which readers must know. It finds mistakes and what files betray. An
author who forges all of them alike is found by running a seed again: equal commits and configs write equal bytes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.labels.wording import counted, listed_values
from analysis.leaderboard.entries import Entry, RunFiles, shown
from analysis.leaderboard.known import PROTOCOL_COLUMNS, as_prescribed, key_faults, parity, protocols
from analysis.loading.checks import listed, twin_notes
from analysis.loading.load import refuse_config_mix
from analysis.loading.read import ResultsError
from analysis.statistics.metrics import FLOOR_SEEDS, HEAD_TO_HEAD_SEEDS
from bench.runs.contract import nearest

SMALL = (  # made for a laptop: they rank no method
    *("toy", "baselines-quick", "quick", "robomimic-quick", "mujoco-quick", "scratch-small"),
    *("velocity", "velocity-weak", "velocity-entropy", "velocity-wide", "velocity-240"),
)
FOR_ALL = ("offline_updates",)  # fields that may also be 0: agents without an offline phase


@dataclass(frozen=True)
class Finding:
    """What a check has found."""

    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.check}: {self.text}"


@dataclass(frozen=True)
class Audit:
    """One entry, and what the checks say of it."""

    entry: Entry
    faults: tuple[Finding, ...]
    marks: tuple[Finding, ...]


def audit(entry: Entry) -> Audit:
    """All checks, in the order of the table in results/README.md."""
    faults: list[Finding] = []
    marks: list[Finding] = []
    for name, (find_faults, find_marks) in CHECKS.items():
        faults += [Finding(name, text) for text in find_faults(entry)]
        marks += [Finding(name, text) for text in find_marks(entry)]
    return Audit(entry, tuple(faults), tuple(marks))


# --------------------------------------------------------------------------------------------------------- groups


def by_value(runs: Sequence[RunFiles], value: Callable[[RunFiles], Any]) -> dict[Any, list[RunFiles]]:
    groups: dict[Any, list[RunFiles]] = defaultdict(list)
    for run in runs:
        groups[value(run)].append(run)
    return dict(groups)


def cells(entry: Entry) -> dict[str, list[RunFiles]]:
    """The runs by suite, task and agent."""
    return by_value(entry.runs, lambda run: run.name.group)


def named(runs: Sequence[RunFiles]) -> str:
    return shown([run.name for run in runs])


def starts_of(run: RunFiles) -> list[dict[str, Any]]:
    return [start for start in run.provenance.get("starts", []) if isinstance(start, dict)]


def grouped(found: Sequence[tuple[str, RunFiles]]) -> Iterator[str]:
    """One line for each text, with the runs that it is of."""
    groups: dict[str, list[RunFiles]] = defaultdict(list)
    for text, run in found:
        groups[text].append(run)
    yield from (f"{text} ({named(runs)})" for text, runs in groups.items())


# --------------------------------------------------------------------------------------------------------- checks


def file_faults(entry: Entry) -> Iterator[str]:
    """Every file is what the run wrote, and follows the contract."""
    yield from (f"{run.name}: {fault}" for run in entry.runs for fault in run.faults)
    yield from (f"{stray} is not <suite>/<task>/<agent>/seed_<nnn>" for stray in entry.strays)


def config_faults(entry: Entry) -> Iterator[str]:
    """All keys and no others; runs of an agent on a task equal but for the seed."""
    yield from grouped([(text, run) for run in entry.runs if run.config for text in key_faults(run.config)])
    for runs in cells(entry).values():
        try:
            refuse_config_mix([run.run for run in runs if run.run])
        except ResultsError as error:
            yield str(error)


def grid_faults(entry: Entry) -> Iterator[str]:
    """Every task of the suite, and every run complete."""
    for (suite, agent), runs in by_value(entry.runs, lambda run: (run.name.suite, run.name.label)).items():
        if suite not in protocols():
            yield f"there is no suite {suite!r}{nearest(suite, protocols())}"
            continue
        tasks = {run.name.task for run in runs}
        lacking = [task for task in protocols()[suite] if task not in tasks]
        if lacking:
            of = f"{len(lacking)} of {counted(len(protocols()[suite]), 'task')}"
            yield f"{agent} has no run on {of} of the suite {suite}: {listed(lacking)}"
        if unknown := sorted(tasks - protocols()[suite].keys()):
            yield f"the suite {suite} has no task {listed(unknown)}"
    if unfinished := [run for run in entry.runs if not run.complete]:
        yield f"not complete: {named(unfinished)}"


def protocol_faults(entry: Entry) -> Iterator[str]:
    """Budgets, evaluations, rules, data and precision are those of the suite."""
    found: list[tuple[str, RunFiles]] = []
    for run in entry.runs:
        prescribed = protocols().get(run.name.suite, {}).get(run.name.task)
        if not prescribed or not run.config:
            continue
        for field in PROTOCOL_COLUMNS[2:]:
            value = as_prescribed(run.config, field)
            if value != prescribed[field] and not (field in FOR_ALL and value == "0"):
                found.append((f"{field} is {value or 'none'}, the suite prescribes {prescribed[field] or 'none'}", run))
    yield from grouped(found)


def seed_faults(entry: Entry) -> Iterator[str]:
    """From 0 on without a gap, enough of them, as many on every task, and no two with equal training."""
    for runs in by_value(entry.runs, lambda run: (run.name.suite, run.name.label)).values():
        last = max(run.name.seed for run in runs)
        for cell, of_cell in by_value(runs, lambda run: run.name.group).items():
            seeds = sorted(run.name.seed for run in of_cell)
            lacking = sorted(set(range(last + 1)) - set(seeds))
            if lacking:
                selected = "so that they may have been selected"
                yield f"{cell} has seeds {listed_values(seeds)} and lacks {listed_values(lacking)}, {selected}"
            elif len(seeds) < FLOOR_SEEDS:
                yield f"{cell} has {counted(len(seeds), 'seed')}, a score takes at least {FLOOR_SEEDS}"
    yield from twin_notes(entry.id, {run.run.name: run.run.checks for run in entry.runs if run.run})


def seed_marks(entry: Entry) -> Iterator[str]:
    fewest = min(map(len, cells(entry).values()))
    if FLOOR_SEEDS <= fewest < HEAD_TO_HEAD_SEEDS:
        yield f"{fewest} seeds: a claim that one agent is better takes {HEAD_TO_HEAD_SEEDS}"


def code_faults(entry: Entry) -> Iterator[str]:
    """One committed state of the code, that of entry.toml, at every start of every run."""
    stated = entry.card["commit"]
    found: list[tuple[str, RunFiles]] = []
    for run in entry.runs:
        if not run.provenance:
            continue
        if not starts_of(run):
            found.append(("no start is recorded, so no commit", run))
        for start in starts_of(run):
            commit = start.get("commit")
            if not commit:
                found.append(("started without a commit", run))
            elif commit != stated:
                found.append((f"commit {str(commit)[:12]}, entry.toml says {stated[:12]}", run))
            if start.get("dirty_diff_hash"):
                found.append(("started with changes that are not committed", run))
    yield from grouped(list({(text, run.name): (text, run) for text, run in found}.values()))


def parity_faults(entry: Entry) -> Iterator[str]:
    """The code of an agent of this project is one with which its parity tests passed."""
    found: list[tuple[str, RunFiles]] = []
    for run in entry.runs:
        known = parity().get(run.name.agent)
        for source in sorted({str(start["agent_source"]) for start in starts_of(run) if start.get("agent_source")}):
            if known is not None and source not in known:
                found.append((f"{run.name.agent} ran with code {source}, which no parity test is known of", run))
    yield from grouped(found)


def parity_marks(entry: Entry) -> Iterator[str]:
    for agent, runs in by_value(entry.runs, lambda run: run.name.agent).items():
        starts = [start for run in runs for start in starts_of(run)]
        if agent not in parity():
            yield f"{agent} is not of this project: there are no official numbers to compare it with"
        elif not all(start.get("agent_source") for start in starts):
            yield f"{agent}: not known which code ran: an older version did not record it"
        else:
            rows = [row for start in starts if (row := parity()[agent].get(str(start["agent_source"])))]
            for version, numbers in dict.fromkeys((row["version"], row["numbers"]) for row in rows):
                against = f"official numbers {numbers}" if numbers else "no official numbers"
                yield f"{agent} as tested in version {version} ({against})"


def provenance_faults(entry: Entry) -> Iterator[str]:
    """Data of the suite, not a file of the author's; the same for all runs on a task."""
    files = [run for run in entry.runs if run.provenance.get("dataset", {}).get("origin") == "user"]
    if files:
        yield f"data are a file of the user's ({named(files)})"
    for task, runs in by_value(entry.runs, lambda run: f"{run.name.suite}/{run.name.task}").items():
        data = [run.provenance["dataset"] for run in runs if run.provenance]
        hashes = sorted({str(one.get("content_hash")) for one in data if one["origin"] != "none"})
        if len(hashes) > 1:
            yield f"runs on {task} have {len(hashes)} different data sets: {', '.join(one[:12] for one in hashes)}"
    for run in entry.runs:
        wanted, read = run.config.get("dataset"), run.provenance.get("dataset", {})
        if read.get("origin", "none") != "none" and read.get("name") != wanted:
            yield f"{run.name} has read {read.get('name')}, its config says {wanted}"


def provenance_marks(entry: Entry) -> Iterator[str]:
    found: list[tuple[str, RunFiles]] = []
    for run in entry.runs:
        provenance = run.provenance
        if provenance.get("dataset", {}).get("origin") == "generated":
            found.append(("generated data, not the published set", run))
        for setting, values in provenance.get("departures", {}).items():
            if " " in setting:  # of a resumption that was asked for
                found.append((f"{setting} {values['value']}, before {values['released']}", run))
        if provenance.get("extended_from"):
            found.append(("goes on from a shorter run", run))
        if provenance.get("offline_phase"):
            found.append(("shares its offline phase", run))
        for plugin in {plugin["module"] for start in starts_of(run) for plugin in start.get("plugins") or ()}:
            found.append((f"plugin {plugin}", run))
        for device in {str(start["device"]) for start in starts_of(run) if start.get("device")}:
            found.append((f"on {device}", run))
    runs = len(entry.runs)
    groups: dict[str, int] = defaultdict(int)
    for text, _ in found:
        groups[text] += 1
    yield from (text if number == runs else f"{text} ({number} of {runs} runs)" for text, number in groups.items())


def setting_marks(entry: Entry) -> Iterator[str]:
    names = {name for run in entry.runs for name in run.provenance.get("departures", {}) if " " not in name}
    if names:
        yield f"not the published {', '.join(sorted(names))}"
    if any(run.provenance and "departures" not in run.provenance for run in entry.runs):
        yield "departures from published settings are not recorded in all runs"
    if small := sorted({run.name.suite for run in entry.runs} & set(SMALL)):
        yield f"{', '.join(small)}: a small suite, which ranks no method"


def none(_: Entry) -> Iterator[str]:
    yield from ()


CHECKS: dict[str, tuple[Callable[[Entry], Iterator[str]], Callable[[Entry], Iterator[str]]]] = {
    "files": (file_faults, none),
    "config": (config_faults, setting_marks),
    "grid": (grid_faults, none),
    "protocol": (protocol_faults, none),
    "seeds": (seed_faults, seed_marks),
    "code": (code_faults, none),
    "parity": (parity_faults, parity_marks),
    "provenance": (provenance_faults, provenance_marks),
}
