"""Entries as they lie on disk: `<leaderboard>/<entry>/entry.toml`, and below it a tree of runs as under `results/`."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.loading.checks import check_files, fault_of_config, listed
from analysis.loading.read import ResultsError, Run, read_json, read_marker, read_provenance, read_run
from bench.runs import contract
from bench.runs.contract import COMPLETE, CONFIG, FOLDER, PROVENANCE, RunName, StorageError, nearest

CARD = "entry.toml"
NEEDED = ("name", "authors", "url", "commit")
EITHER = ("paper", "description")
KEYS = (*NEEDED, *EITHER)
LONGEST = 400  # characters of a value


@dataclass(frozen=True)
class RunFiles:
    """One run of an entry, as far as it can be read; an object that could not be is empty."""

    name: RunName
    config: dict[str, Any]
    provenance: dict[str, Any]
    complete: bool
    run: Run | None  # where everything is as the contract says
    faults: tuple[str, ...]  # what cannot be read, or is not what the run wrote


@dataclass(frozen=True)
class Entry:
    """A folder of the leaderboard."""

    folder: Path
    card: dict[str, str]  # of entry.toml; several authors in one line
    runs: tuple[RunFiles, ...]
    strays: tuple[str, ...]  # folders in the place of a run whose names are not those of runs

    @property
    def id(self) -> str:
        return self.folder.name


def read_entries(leaderboard: Path) -> list[Entry]:
    """Every entry, by name. Raises ResultsError, one line, where a folder is no entry or there is none."""
    expected = f"an entry is a folder {leaderboard}/<entry> with {CARD} and <suite>/<task>/<agent>/seed_<nnn>"
    if not leaderboard.is_dir():
        raise ResultsError(f"no leaderboard at {leaderboard}: {expected}")
    folders = sorted(path for path in leaderboard.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise ResultsError(f"{leaderboard} has no entries: {expected}")
    return [read_entry(folder) for folder in folders]


def read_entry(folder: Path) -> Entry:
    if not re.fullmatch(FOLDER, folder.name):
        raise ResultsError(f"{folder}: an entry's name has letters, digits, '-' and '_' only")
    card = read_card(folder / CARD)
    found = [path.relative_to(folder).as_posix() for path in contract.find_runs(folder, holding=None)]
    names = {path: name for path in found if (name := RunName.parse(path)) and str(name) == path}
    if not names:
        raise ResultsError(f"{folder} has no runs: expected <suite>/<task>/<agent>/seed_<nnn> beside {CARD}")
    runs = tuple(read_files(folder, name) for name in sorted(names.values()))
    return Entry(folder, card, runs, tuple(path for path in found if path not in names))


def read_card(path: Path) -> dict[str, str]:
    """What entry.toml says. Raises ResultsError, one line, for keys that are missing, unknown or hold no text."""
    if not path.is_file():
        raise ResultsError(f"{path.parent} is not an entry: it has no {CARD} (keys: {', '.join(KEYS)})")
    try:
        card = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} is not valid TOML: {contract.one_line(error)}") from None
    for key in card:
        if key not in KEYS:
            raise ResultsError(f"{path}: unknown key {key!r}{nearest(key, KEYS)}; keys are {', '.join(KEYS)}")
    for key in NEEDED:
        if key not in card:
            raise ResultsError(f"{path}: no key {key!r}")
    if not any(key in card for key in EITHER):
        raise ResultsError(f"{path}: no key {' or '.join(map(repr, EITHER))}; say what the entry is")
    texts: dict[str, str] = {}
    for key, value in card.items():
        parts: list[Any] = value if key == "authors" and isinstance(value, list) else [value]
        if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
            many = ", or a list of them" if key == "authors" else ""
            raise ResultsError(f"{path}: {key} is {value!r}, expected text{many}")
        texts[key] = contract.one_line(", ".join(parts))
        if len(texts[key]) > LONGEST:
            raise ResultsError(f"{path}: {key} has {len(texts[key])} characters, at most {LONGEST} are shown")
    if not re.fullmatch("[0-9a-f]{40}", texts["commit"]):
        raise ResultsError(f"{path}: commit is {texts['commit']!r}, expected its 40 hexadecimal digits")
    return texts


def read_files(root: Path, name: RunName) -> RunFiles:
    """One run; each fault on a line of its own, and all of them."""
    folder = name.directory(root)
    faults: list[str] = []
    config, provenance, marker = {}, {}, None
    try:
        config = read_json(folder / CONFIG, ("suite", "task", "agent", "seed"))
        faults += [f"{CONFIG}: {fault}"] if (fault := fault_of_config(config)) else []
    except (ResultsError, OSError) as error:
        faults.append(short(error, folder))
    try:
        provenance = read_provenance(folder / PROVENANCE)
    except (ResultsError, OSError) as error:
        faults.append(short(error, folder))
    try:
        marker = read_marker(folder / COMPLETE)
        if marker is not None:
            checks, fault = check_files(folder, config, marker)
            faults += [fault] if fault else []
            if checks.unchecked:
                faults.append(f"there is no sum or hash of {listed(checks.unchecked)}")
    except (ResultsError, OSError) as error:
        faults.append(short(error, folder))
    run = None
    if not faults and marker is not None:
        try:
            run = read_run(root, str(name))
        except (StorageError, OSError, KeyError, TypeError, ValueError) as error:
            faults.append(short(error, folder))
    return RunFiles(name, config, provenance, marker is not None, run, tuple(faults))


def short(error: Exception, folder: Path) -> str:
    """A message without the way to the run's folder, which the line begins with."""
    text = contract.one_line(error) if isinstance(error, StorageError) else contract.error_line(error)
    return text.replace(f"{folder}/", "").removeprefix(f"{folder}: ")


def shown(names: Sequence[RunName]) -> str:
    """Runs for a line: of each agent and task the seeds."""
    groups: dict[str, list[int]] = {}
    for name in names:
        groups.setdefault(name.group, []).append(name.seed)
    return "; ".join(f"{group} {seeds_of(seeds)}" for group, seeds in groups.items())


def seeds_of(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"
