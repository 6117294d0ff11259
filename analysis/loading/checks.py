"""Whether a run's files are what it wrote: against the sums in complete.json and the hash in config.json."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.runs.contract import COMPLETE, CONFIG, REPRODUCIBLE, TRAIN, RunName, config_hash, is_sum_of

HASH = re.compile("[0-9a-f]{16}")  # as `bench` writes it; of other forms, as of imported runs, nothing is known
TWINS = 8  # runs with equal rows that a note names, and sets of them


@dataclass(frozen=True)
class Checks:
    """What came of checking one run whose files are as it wrote them, as far as that can be told."""

    unchecked: tuple[str, ...]  # files of a complete run of which no sum or hash is known
    line_ends: tuple[str, ...]  # files that equal what the run wrote but for \r\n in place of \n
    training: str | None  # SHA-256 of the rows of train.csv; None without losses


def read_rows(path: Path) -> bytes:
    """The content of a CSV file. Lines end with \\n, also where the file went through a system that writes \\r\\n."""
    return path.read_bytes().replace(b"\r\n", b"\n")


def fault_of_config(config: Mapping[str, Any]) -> str | None:
    """What is wrong with the hash of a config.json, or None."""
    written = config.get("config_hash")
    if not can_be_checked(config) or written == config_hash(config):
        return None
    return f"its settings are not those of its config_hash {written}: it was edited, or is another run's"


def can_be_checked(config: Mapping[str, Any]) -> bool:
    return bool(HASH.fullmatch(str(config.get("config_hash"))))


def check_files(folder: Path, config: Mapping[str, Any], marker: Mapping[str, Any] | None) -> tuple[Checks, str | None]:
    """The checks of one run, and what is wrong with its files, or None.

    Args:
        marker: the content of complete.json; None where the run has none, so that nothing tells what it wrote.
    """
    sums = (marker or {}).get("files", {})
    shape = isinstance(sums, dict) and all(isinstance(one, dict) and "sha256" in one for one in sums.values())
    if not shape:
        return Checks((), (), None), f"{COMPLETE}: files is {sums!r}, expected bytes and sha256 of each file"
    unchecked = [] if can_be_checked(config) else [CONFIG]
    line_ends, training, faults = [], None, []
    for name in REPRODUCIBLE:
        path = folder / name
        content = path.read_bytes() if path.is_file() else None
        rows = None if content is None else content.replace(b"\r\n", b"\n")
        if name not in sums:
            unchecked.append(name)
        elif content is None or rows is None:
            faults.append(f"{name} is missing, and {COMPLETE} says what it held")
        elif not is_sum_of(sums[name], content):
            if rows != content and is_sum_of(sums[name], rows):
                line_ends.append(name)
            else:
                was = f"{sums[name].get('bytes')} bytes with SHA-256 {str(sums[name]['sha256'])[:12]}"
                now = f"{len(content)} with {hashlib.sha256(content).hexdigest()[:12]}"
                edited = "it was edited, damaged, or is another run's"
                faults.append(f"{name} is not what the run wrote ({COMPLETE}: {was}; now {now}): {edited}")
        if name == TRAIN and rows and has_losses(rows):
            training = hashlib.sha256(rows).hexdigest()
    return Checks(tuple(unchecked), tuple(line_ends), training), "; ".join(faults) or None


def has_losses(rows: bytes) -> bool:
    """Whether a train.csv has rows of gradient updates: episodes alone may be equal in runs of different seeds."""
    return rows.count(b"\n") - 1 > rows.count(b",behaviour_")


def notes_of(suite: str, checks: Mapping[str, Checks]) -> list[str]:
    """What a reader of a suite must know of the checks of its runs, by name: one line for each kind."""
    return [*unchecked_notes(suite, checks), *line_end_notes(suite, checks), *twin_notes(suite, checks)]


def unchecked_notes(suite: str, checks: Mapping[str, Checks]) -> list[str]:
    """One line for each set of files of which nothing is known."""
    by_files: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, check in checks.items():
        if check.unchecked:
            by_files[check.unchecked].append(name)
    return [
        f"suite {suite}: whether {', '.join(files)} changed since the run cannot be checked, as in runs of older "
        f"versions: {listed(sorted(names))}"
        for files, names in sorted(by_files.items())
    ]


def line_end_notes(suite: str, checks: Mapping[str, Checks]) -> list[str]:
    """One line on the files that have gone through a system with other line ends."""
    names = sorted(f"{name} ({', '.join(check.line_ends)})" for name, check in checks.items() if check.line_ends)
    if not names:
        return []
    return [f"suite {suite}: rows end with \\r\\n in place of \\n, and are what the run wrote: {listed(names)}"]


def twin_notes(suite: str, checks: Mapping[str, Checks]) -> list[str]:
    """One line on runs of different seeds or tasks with the same rows of training."""
    by_rows: dict[str, list[str]] = defaultdict(list)
    for name, check in checks.items():
        if check.training:
            by_rows[check.training].append(name)
    groups = []
    for names in by_rows.values():
        runs = {(run.task, run.seed) for run in map(RunName.parse, names) if run}
        if len(runs) > 1:
            groups.append(listed(sorted(names), TWINS, " = "))
    if not groups:
        return []
    why = "losses of different seeds cannot be equal: a seed was not passed on, or a run was copied"
    return [f"suite {suite}: equal bytes in {TRAIN} of {listed(groups, TWINS, '; ')}; {why}"]


def listed(names: Sequence[str], limit: int = 4, separator: str = ", ") -> str:
    """Names for a one-line message: the first few, and how many more."""
    rest = len(names) - limit
    return separator.join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
