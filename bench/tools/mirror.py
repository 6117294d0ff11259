"""`python -m bench mirror`: runs' numbers in TensorBoard or W&B, copied from their CSV files by a process of its own.

A mirror is a function of those files. It follows them while they grow; where that may not be all that has happened (a
process took the run over and cut rows off, this process is not the one that mirrored before) it is made anew from the
first row. So it needs no state of its own, and holds every point once. Imports no torch.
"""

import bisect
import csv
import errno
import os
import platform
import resource
import select
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Annotated

from tyro.conf import Positional, arg

from bench.command_line import check_folder
from bench.runs.claims import owner_of, process_start
from bench.runs.contract import (
    CONFIG,
    EPISODES,
    HEADERS,
    PROVENANCE,
    SCHEMA_VERSION,
    TIMING,
    TRAIN,
    ConfigError,
    StorageError,
    error_line,
    find_runs,
    is_complete,
    read_json,
)
from bench.tools.mirror_process import LAST_ROWS_SECONDS
from bench.tools.trackers import MIRRORS, LoggedPoint, Mirror, check_mirrors

LOOK_SECONDS = 5.0  # between looks at the files
NICENESS = 19  # whatever else there is to do comes first
KINDS = {EPISODES: "evaluation", TRAIN: "train", TIMING: "timing"}  # second part of scalars' names
FILES_PER_RUN = 4  # open at the same time


class Tail:
    """New rows of a CSV file that another process appends to, and may replace."""

    def __init__(self, path: Path):
        self.path = path
        self._header = ",".join(HEADERS[path.name])
        self._file = path.open("rb")
        self._read = 0  # bytes, whole lines

    @property
    def is_replaced(self) -> bool:
        """Whether there is another file in its place, or it has been cut."""
        try:
            opened, there = os.fstat(self._file.fileno()), self.path.stat()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):  # NFS, of a file that another machine has replaced
                return True
            raise
        return (opened.st_dev, opened.st_ino) != (there.st_dev, there.st_ino) or opened.st_size < self._read

    def rows(self) -> list[dict[str, str]]:
        """Those added since the last call; a row that is half written comes when it is whole. Raises StorageError."""
        self._file.seek(self._read)
        data = self._file.read()
        data = data[: data.rfind(b"\n") + 1]
        lines = data.decode().splitlines()
        if not self._read and lines and lines.pop(0) != self._header:
            raise StorageError(f"{self.path} does not begin with the header {self._header}")
        self._read += len(data)
        names = HEADERS[self.path.name]
        rows = list(csv.reader(lines))
        for row in rows:
            if len(row) != len(names):
                raise StorageError(f"{self.path} has the row {','.join(row)!r}; it should have {len(names)} fields")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def close(self) -> None:
        self._file.close()


class Follower:
    """Copies one run's rows to mirrors, each scalar once. Raises ConfigError for a directory that holds no run."""

    def __init__(self, directory: Path, mirrors: Sequence[str]):
        self.directory = directory
        self._names = mirrors
        self.has_begun = False
        config = read_json(directory / CONFIG)
        if config is None:
            raise ConfigError(f"{directory} holds no config.json")
        if config.get("schema_version") != SCHEMA_VERSION:
            version = config.get("schema_version")
            raise ConfigError(f"{directory} is of schema {version}, this checkout writes {SCHEMA_VERSION}")
        self._config = config
        self._tails: dict[str, Tail] = {}
        self._mirrors: list[Mirror] = []
        self._clear()

    def follow(self) -> bool:
        """Copies what is new; True once a complete run's last row is copied. A run that has not begun has nothing."""
        ended = is_complete(self.directory)  # asked first: its rows are all there then
        if any(tail.is_replaced for tail in self._tails.values()):
            self.close()
        for name in HEADERS:
            if name not in self._tails and (self.directory / name).exists():
                self._tails[name] = Tail(self.directory / name)
        if self._tails and not self._mirrors:
            self._mirrors = [MIRRORS[name](self.directory, self._config) for name in self._names]
            self.has_begun = True
        scalars = [*self._timing(), *self._train(), *self._evaluations()]
        for mirror in self._mirrors:
            for point, values in scalars:
                mirror.write(point, values)
            if scalars:
                mirror.flush()
        return ended

    def close(self) -> None:
        for tail in self._tails.values():
            tail.close()
        for mirror in self._mirrors:
            mirror.close()
        self._clear()

    def _clear(self) -> None:
        self._tails, self._mirrors = {}, []
        self._times: list[tuple[int, float]] = []  # updates + env_steps, which only grows, and when it was logged
        self._open: dict[tuple[str, int, int], list[dict[str, str]]] = {}  # evaluations whose episodes are coming in
        self._references: list[float] | None = None

    def _rows(self, name: str) -> list[dict[str, str]]:
        return self._tails[name].rows() if name in self._tails else []

    def _timing(self) -> Iterable[tuple[LoggedPoint, dict[str, float]]]:
        rows = self._rows(TIMING)
        for row in rows:
            done = int(row["updates"]) + int(row["env_steps"])
            if row["name"].endswith("_per_second") and (not self._times or done > self._times[-1][0]):
                self._times.append((done, datetime.fromisoformat(row["time"]).timestamp()))
        return self._by_point(rows, TIMING)

    def _train(self) -> Iterable[tuple[LoggedPoint, dict[str, float]]]:
        return self._by_point(self._rows(TRAIN), TRAIN)

    def _by_point(self, rows: list[dict[str, str]], file: str) -> Iterable[tuple[LoggedPoint, dict[str, float]]]:
        points: dict[tuple[int, int], dict[str, float]] = {}
        for row in rows:
            point = int(row["updates"]), int(row["env_steps"])
            points.setdefault(point, {})[f"{row['phase']}/{KINDS[file]}/{row['name']}"] = float(row["value"])
        return [(self._point(*point), values) for point, values in points.items()]

    def _evaluations(self) -> Iterable[tuple[LoggedPoint, dict[str, float]]]:
        """Means over the episodes of evaluations that have all of theirs."""
        for row in self._rows(EPISODES):
            phase, updates, env_steps = row["phase"], int(row["updates"]), int(row["env_steps"])
            episodes = self._open.setdefault((phase, updates, env_steps), [])
            episodes.append(row)
            if len(episodes) < self._config["eval_episodes"]:
                continue
            del self._open[phase, updates, env_steps]
            scores = self._scores(episodes)
            phases = [phase]
            if phase == "offline" and updates == self._config["offline_updates"] and self._config["online_steps"]:
                phases.append("online")  # the hand-over is online step 0 as well
            kind = KINDS[EPISODES]
            values = {f"{phase}/{kind}/{name}": value for phase in phases for name, value in scores.items()}
            yield self._point(updates, env_steps), values

    def _scores(self, episodes: list[dict[str, str]]) -> dict[str, float]:
        means = {name: fmean(float(row[name]) for row in episodes) for name in ("return", "length")}
        scores = {f"mean_{name}": value for name, value in means.items()}
        if episodes[0]["success"]:
            scores["success_rate"] = fmean(int(row["success"]) for row in episodes)
        if self._references is None:
            provenance = read_json(self.directory / PROVENANCE) or {}
            self._references = provenance.get("reference_returns") or []
        if self._references:
            random, expert = self._references
            scores["normalised_return"] = (means["return"] - random) / (expert - random)
        return scores

    def _point(self, updates: int, env_steps: int) -> LoggedPoint:
        """With the time of the first log at or after it, or now, if that is still to come."""
        at = bisect.bisect_left(self._times, (updates + env_steps, 0.0))
        return LoggedPoint(updates, env_steps, self._times[at][1] if at < len(self._times) else time.time())


# The command.


@dataclass(frozen=True)
class MirrorOptions:
    """Copy runs' numbers to TensorBoard or W&B, while they run or afterwards."""

    runs: Positional[tuple[str, ...]]  # a run, all runs of a suite, or all (.)
    to: Annotated[tuple[str, ...], arg(help=" or ".join(MIRRORS))]
    follow: bool = False  # go on until the runs are complete, or Ctrl-C
    beside: bool = False  # for `run --mirror`: go on until the standard input ends
    results: Path = Path("results")

    def __post_init__(self) -> None:
        check_folder(self)


def mirror_command(options: MirrorOptions) -> int:
    """Mirrors runs one after the other or, following, side by side. 1 where one of them could not be mirrored."""
    mirrors = check_mirrors(options.to)
    followers = [Follower(directory, mirrors) for directory in chosen_runs(options.runs, options.results)]
    allow_open_files(FILES_PER_RUN * len(followers) + 256)
    os.nice(NICENESS)
    end = sys.stdin.fileno() if options.beside else end_by_signal() if options.follow else None
    left, failed = followers, []
    while end is not None and left:
        left = follow_all(left, failed)
        if select.select([end], [], [], LOOK_SECONDS)[0]:
            break
    if options.beside and left and os.read(sys.stdin.fileno(), 1) == b"":
        await_orphans(left)
    follow_all(left, failed, last=True)
    begun = sum(follower.has_begun and follower.directory not in failed for follower in followers)
    print(f"{begun} of {len(followers)} runs are mirrored to {' and '.join(mirrors)}", flush=True)
    return 1 if failed else 0


def follow_all(followers: list[Follower], failed: list[Path], last: bool = False) -> list[Follower]:
    """Copies what is new; returns those that want another look. What fails for one run does not end the others."""
    left = []
    for follower in followers:
        try:
            if follower.follow() or last:
                follower.close()
            else:
                left.append(follower)
        except Exception as error:
            line = error_line(error)
            print(f"failed: {follower.directory}: {line}", file=sys.stderr, flush=True)
            failed.append(follower.directory)
    return left


def chosen_runs(texts: Iterable[str], results: Path) -> list[Path]:
    """The runs in folders or under `results`; shared offline phases only where they are named. Raises ConfigError."""
    chosen: dict[Path, None] = {}
    for text in texts:
        runs = find_runs(results / text) or find_runs(Path(text))
        if not runs:
            raise ConfigError(
                f"there is no run in {text!r}: name a run's folder, a suite under {results}, or . for all"
            )
        chosen |= dict.fromkeys(path.absolute() for path in runs)
    return list(chosen)


def end_by_signal() -> int:
    """A file that can be read from once SIGINT or SIGTERM has come; the second Ctrl-C ends the process at once."""
    readable, writable = os.pipe()

    def stop(number: int, _frame: object) -> None:
        os.write(writable, b".")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return readable


def await_orphans(followers: Iterable[Follower]) -> None:
    """Waits until no process on this machine writes the runs any longer: those of a driver that was killed end soon."""
    deadline = time.monotonic() + LAST_ROWS_SECONDS
    while time.monotonic() < deadline and any(lives_here(follower.directory) for follower in followers):
        time.sleep(0.1)


def lives_here(directory: Path) -> bool:
    owner = owner_of(directory)
    if owner is None or owner.is_gone:
        return False
    return owner.host == platform.node() and process_start(owner.pid) == owner.process_started


def allow_open_files(count: int) -> None:
    """Raises this process' limit, within what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard)
        )
