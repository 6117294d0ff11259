"""The contract of a run's folder: names and headers of its files, its states, how runs are called and found.

`bench` writes by it and `analysis` reads by it (results/README.md explains the columns). Standard library alone, so
that every floor may import it at no cost; with it go the few things that all floors do alike: JSON files, replacing a
file whole or not at all, errors of one line, processes of this code.
"""

import datetime
import difflib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

SCHEMA_VERSION = 1  # of the files under results/

CONFIG = "config.json"
PROVENANCE = "provenance.json"
STATUS = "status.json"
COMPLETE = "complete.json"  # made by the first process that comes to the run's end: the run is complete if it is there
EPISODES = "episodes.csv"
TRAIN = "train.csv"
TIMING = "timing.csv"
LOG = "log.txt"  # output of the process that trains
VIDEOS = "videos"  # a folder
VIDEO_INDEX = "index.json"  # in the folder of videos: what each one shows
EVALUATIONS = "evaluations"  # a folder: of the final policy, asked for after the run
CHECKPOINT = "checkpoint"  # a folder
POLICY = f"{CHECKPOINT}/policy.safetensors"  # of a complete run

HEADERS = {
    EPISODES: ("phase", "updates", "env_steps", "episode_seed", "success", "return", "length"),
    TRAIN: ("phase", "updates", "env_steps", "name", "value"),
    TIMING: ("time", "phase", "updates", "env_steps", "name", "value"),
}
REPRODUCIBLE = (EPISODES, TRAIN)  # equal runs write equal bytes; timing.csv tells of the machine
STATES = ("running", "preempted", "failed", "complete")  # that status.json may tell
ORIGINS = ("published", "generated", "user", "none")  # of a run's data; none: it has none
OFFLINE_PHASES = "offline"  # folder of results/ for offline phases that runs share; they belong to no suite
GRIDS = "grids"  # folder of results/ for the records of launches
FIGURES = "figures"  # folder of results/ for what analysis draws
REFERENCE = "reference"  # folder of results/ for the archive of runs that comes with the project
REPEATED = "repeated"  # folder of results/ for runs of the archive that are trained again
LEADERBOARD = "leaderboard"  # folder of results/ for entries, each with a tree of runs
NO_SUITES = (OFFLINE_PHASES, GRIDS, FIGURES, REFERENCE, REPEATED, LEADERBOARD)  # folders of results/ without a suite
FOLDER = "\\w[\\w.,=+-]*"  # what a suite or a data set may be called; a regular expression
LONGEST_NAME = 200  # bytes of a folder's name: file systems take 255, and names of drafts are longer
VARIANT = "[\\w.,=+-]*"  # what a variant may be called; a regular expression

# --- errors


class ConfigError(Exception):
    """A mistake in a configuration or a command; the message is one line that says what would be right."""


class StorageError(Exception):
    """A file of a run could not be written or read; one line, earlier rows are safe."""


def one_line(text: object) -> str:
    """A message without line breaks."""
    return " ".join(str(text).split())


def error_line(error: BaseException) -> str:
    """`Type: message` of an exception, without line breaks."""
    return one_line(f"{type(error).__name__}: {error}")


def nearest(name: object, names: Iterable[object]) -> str:
    """` (did you mean 'x'?)` for the name closest to `name`, or the empty string where none is close."""
    matches = difflib.get_close_matches(str(name), [str(one) for one in names], n=1)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


T = TypeVar("T")


def selected(
    items: Sequence[T], wanted: Sequence[Any], names: Callable[[T], tuple[Any, ...]], lacking: str, having: str
) -> list[T]:
    """The items that one of `wanted` names, or all where none is wanted. ConfigError for a name that no item has.

    Args:
        names: of an item. Those that end with an @ (RunName.names) are not shown to whom a name is unknown.
        lacking, having: the error's words before the name, and before the names there are.
    """
    present = dict.fromkeys(name for item in items for name in names(item))
    shown = [name for name in map(str, present) if not name.endswith("@")]
    for value in wanted:
        if value not in present:
            raise ConfigError(f"{lacking} {value!r}{nearest(value, shown)}; {having} {', '.join(shown)}")
    return [item for item in items if not wanted or not set(wanted).isdisjoint(names(item))]


# --- what runs are to show


@dataclass(frozen=True)
class Statement:
    """`FIRST > SECOND on WHERE`: that one agent's mean score is higher than another's."""

    first: str  # labels of agents, or the names of their papers
    second: str
    where: str  # a suite, SUITE/TASKS, or the tasks of a suite: a task's name, or what several names begin with

    @staticmethod
    def parse(text: str) -> "Statement":
        """Raises ConfigError."""
        match = re.fullmatch(r"\s*([^<>=]+?)\s*([<>])\s*([^<>=]+?)\s+on\s+(\S+)\s*", text)
        if match is None:
            raise ConfigError(f"{text!r} is no claim; one reads 'AGENT > AGENT on SUITE', or 'on SUITE/TASK'")
        first, second = (match[1], match[3]) if match[2] == ">" else (match[3], match[1])
        if first == second:
            raise ConfigError(f"{text!r} compares {first} with itself")
        return Statement(first, second, match[4])

    def __str__(self) -> str:
        return f"{self.first} > {self.second} on {self.where}"


def is_among(task: str, tasks: str) -> bool:
    """Whether a task is meant by a name, or by what several names begin with: cube-single, of cube-single-task1."""
    return not tasks or task == tasks or task.startswith(f"{tasks}-")


# --- names of runs


def agent_label(agent: str, variant: str = "") -> str:
    """What an agent is called in paths, tables and figures: with an @ before the variant of its settings, if any."""
    return f"{agent}@{variant}" if variant else agent


@dataclass(frozen=True, order=True)
class RunName:
    """Which run: `<suite>/<task>/<agent>[@<variant>]/seed_<nnn>`, the path of its folder below the results."""

    suite: str
    task: str
    agent: str
    variant: str  # "" for the agent's own settings
    seed: int

    @property
    def label(self) -> str:
        return agent_label(self.agent, self.variant)

    @property
    def names(self) -> tuple[str, str]:
        """By which --agents selects it: an agent's stands for all its variants, and `sac@` for the one without."""
        return self.agent, f"{self.agent}@{self.variant}"

    @property
    def group(self) -> str:
        """What the seeds of one configuration have in common."""
        return f"{self.suite}/{self.task}/{self.label}"

    def __str__(self) -> str:
        return f"{self.group}/seed_{self.seed:03d}"

    def directory(self, results: Path) -> Path:
        return results / self.suite / self.task / self.label / f"seed_{self.seed:03d}"

    @staticmethod
    def of_config(config: Mapping[str, Any]) -> "RunName":
        """The run that a config.json is of. KeyError for one that lacks a part of the name."""
        variant = config.get("variant") or ""
        return RunName(config["suite"], config["task"], config["agent"], variant, config["seed"])

    @staticmethod
    def parse(text: str) -> "RunName | None":
        """The inverse of `str`, also of a path that ends with a run's name; None for any other text."""
        match = re.fullmatch(rf"(?:.*/)?([^/]+)/([^/]+)/([^/@]+)(?:@({VARIANT}))?/seed_(\d{{3,}})/?", text)
        return RunName(match[1], match[2], match[3], match[4] or "", int(match[5])) if match else None


def find_runs(folder: Path, *, label: str = "*", holding: str | None = CONFIG) -> list[Path]:
    """Folders of runs, sorted: those at or below `folder`, which may be the results, a suite, a task, an agent or a
    run. Folders that begin with a dot are no suites (a copy of the code, say).

    Args:
        label: only runs of this agent; a glob pattern.
        holding: only folders with this file; None: all.
    """
    parts = ["[!.]*", "*", label, "seed_*"]
    patterns = ["/".join([*parts[first:], *([holding] if holding else [])]) for first in range(len(parts))]
    if (folder / (holding or CONFIG)).exists():
        return [folder]
    found = (path.parent if holding else path for pattern in patterns for path in folder.glob(pattern))
    return sorted({path for path in found if path.is_dir()})


def broken_links(folder: Path, suites: Collection[str] = ()) -> list[Path]:
    """Links that lead nowhere in the place of a run, or of a folder of runs, below the results `folder`; sorted.

    `suites`: only in their folders; none: in all.
    """
    found: list[Path] = []
    folders = [folder]
    for depth in range(4):
        inner: list[Path] = []
        for entry in (entry for one in folders for entry in _entries(one)):
            if depth == 0 and (entry.name in (GRIDS, OFFLINE_PHASES) or entry.name.startswith(".")):
                continue
            if depth == 0 and suites and entry.name not in suites:
                continue
            if entry.is_symlink() and not Path(entry.path).exists() and (depth < 3 or entry.name.startswith("seed_")):
                found.append(Path(entry.path))
            elif depth < 3 and entry.is_dir():
                inner.append(Path(entry.path))
        folders = inner
    return sorted(found)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, PermissionError):  # gone meanwhile; what may not be read holds no run that one can read
        return []


def named_run(text: str, results: Path) -> Path:
    """The absolute folder of a run by its path or by its name under `results`. Raises ConfigError."""
    for path in (Path(text), results / text) if text else ():
        if (path / CONFIG).exists():
            return path.absolute()
    raise ConfigError(f"there is no run {text!r}: name its folder, or suite/task/agent/seed_000 under {results}")


def named_runs(text: str, results: Path) -> list[Path]:
    """The absolute folders of all runs at or below a path or a name under `results`, sorted. Raises ConfigError."""
    for path in (Path(text), results / text) if text else ():
        if found := find_runs(path.absolute()):
            return found
    raise ConfigError(
        f"there is no run {text!r}: name its folder, its agent's, or suite/task/agent/seed_000 under {results}"
    )


def is_complete(directory: Path) -> bool:
    """Whether the run has ended."""
    return (directory / COMPLETE).exists()


def sums_of(content: bytes) -> dict[str, Any]:
    """What complete.json says of a file."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def is_sum_of(written: Any, content: bytes) -> bool:
    """Whether complete.json's entry for a file is that of `content`; not one of another shape."""
    if not isinstance(written, Mapping) or written.get("bytes", len(content)) != len(content):
        return False
    return written.get("sha256") == hashlib.sha256(content).hexdigest()


def is_start(start: Any) -> bool:
    """Whether an entry of a provenance's `starts` has the shape that its readers rely on."""
    if not isinstance(start, dict):
        return False
    plugins = start.get("plugins") or []
    whole = isinstance(plugins, list) and all(isinstance(plugin, dict) and "module" in plugin for plugin in plugins)
    return whole and all(isinstance(start.get(key) or {}, dict) for key in ("versions", "engines"))


def config_hash(config: Mapping[str, Any]) -> str:
    """What config.json says under `config_hash`: a hash of all its other keys."""
    others = {name: value for name, value in config.items() if name != "config_hash"}
    canonical = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested object by dotted names: `{"agent_config": {"bc_coef": 1}}` as `{"agent_config.bc_coef": 1}`."""
    values: dict[str, Any] = {}
    for name, value in data.items():
        values.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return values


# --- files


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it replaces `path` at the end, or vanishes where an exception passes."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")  # no other's, on whatever machine
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces `path` by `data` or leaves it as it was; durable on return. Raises StorageError."""
    try:
        with replacing(path) as draft, draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; what was there before is unchanged") from error


def make_folder(folder: Path) -> Path:
    """The folder, made with its parents where it is missing. Raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror}") from error
    return folder


def json_bytes(data: Mapping[str, Any]) -> bytes:
    """A JSON file's content; sorted keys, so that equal objects are equal bytes."""
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replaces a JSON file. Raises StorageError."""
    write_atomically(path, json_bytes(data))


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's object, or None where there is no file. Raises StorageError where it is not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors add a mark
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StorageError(f"{path} is not valid JSON ({error}); delete it or restore it") from error
    if not isinstance(content, dict):
        raise StorageError(f"{path} holds a {type(content).__name__}, expected a JSON object; delete it or restore it")
    return content


def utc() -> str:
    """The time, UTC in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


# --- processes


def of_this_code(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that runs a module of this code: this process' own, with `variables`."""
    path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(path)}


def with_loops_of_avx2(found: Iterable[str]) -> dict[str, str]:
    """Variables with which NumPy computes as on any x86-64 processor with AVX2; none where it does already.

    Args:
        found: the SIMD extensions that `numpy.show_config` finds. Those of AVX-512 end sums and logarithms otherwise.
    """
    wider = [name for name in found if name == "X86_V4" or name.startswith("AVX512")]
    return {"NPY_DISABLE_CPU_FEATURES": " ".join(wider)} if wider else {}
