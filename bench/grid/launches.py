"""The records of what was launched: `results/grids/<launch>/launch.json`, written before anything is submitted.

From them and the queue follows which runs wait in which job, also after a crash between the two, from any shell. What
became of a run is in its own directory. Imports nothing heavy.
"""

import json
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.grid.pool import Work
from bench.grid.slurm import PREFIX, Task
from bench.runs.contract import GRIDS, SCHEMA_VERSION, ConfigError, make_folder, read_json, utc, write_json
from bench.training.execution import Execution

CANCELLED = "cancelled"


@dataclass(frozen=True)
class Job:
    """What one task of an array does: works side by side, sharing its GPU."""

    works: tuple[Work, ...]
    seconds: float | None  # estimated; None: nothing is known about the speed there

    @property
    def directories(self) -> tuple[Path, ...]:
        return tuple(directory for work in self.works for directory in work.directories)


@dataclass(frozen=True)
class Need:
    """What each job of an array asks for."""

    cores: int
    memory: str  # as Slurm takes it


@dataclass(frozen=True)
class Array:
    """Jobs that are submitted together."""

    name: str  # of the array in Slurm's queue: of no other
    jobs: tuple[Job, ...]
    need: Need
    after: tuple[str, ...] = ()  # arrays of this launch, or jobs of earlier ones, that must have ended before
    job_id: str | None = None  # Slurm's number; None: not submitted, or its number is not known


@dataclass(frozen=True)
class Launch:
    """One call of `python -m bench launch --slurm`."""

    id: str
    suite: str
    results: Path
    code: Path
    arguments: tuple[str, ...]  # of the command, for `retry`
    execution: Execution
    gpus_per_job: int
    exclude: tuple[str, ...] = ()  # nodes
    created_at: str = field(default_factory=utc)
    arrays: tuple[Array, ...] = ()

    @property
    def folder(self) -> Path:
        return self.results / GRIDS / self.id

    @property
    def is_cancelled(self) -> bool:
        return (self.folder / CANCELLED).exists()

    def with_job_id(self, array: Array, job_id: str) -> "Launch":
        submitted = replace(array, job_id=job_id)
        arrays = tuple(submitted if other.name == array.name else other for other in self.arrays)
        return replace(self, arrays=arrays)

    def divided(self, number: int) -> "Launch":
        """With an array in two halves, each with a name of its own; those before it keep their places."""
        array = self.arrays[number]
        parts = array.jobs[: len(array.jobs) // 2], array.jobs[len(array.jobs) // 2 :]
        halves = [replace(array, name=f"{array.name}.{part}", jobs=jobs) for part, jobs in enumerate(parts)]
        names = {array.name: [half.name for half in halves]}
        arrays = (*self.arrays[:number], *halves, *self.arrays[number + 1 :])
        afters = [tuple(name for before in other.after for name in names.get(before, [before])) for other in arrays]
        return replace(self, arrays=tuple(replace(other, after=own) for other, own in zip(arrays, afters, strict=True)))

    def save(self) -> None:
        """Replaces launch.json. Raises StorageError."""
        make_folder(self.folder)
        record = json.loads(json.dumps(asdict(self), default=_plain))
        write_json(self.folder / "launch.json", {"schema_version": SCHEMA_VERSION, **record})

    @staticmethod
    def load(folder: Path) -> "Launch":
        """The inverse of `save`. Raises ConfigError where the folder holds no launch of this checkout's schema."""
        record = read_json(folder / "launch.json")
        if record is None:
            raise ConfigError(f"{folder} holds no launch.json")
        if record.pop("schema_version", None) != SCHEMA_VERSION:
            raise ConfigError(f"{folder / 'launch.json'} was written by another version of this project")
        execution = record.pop("execution")
        data_dir = Path(named) if (named := execution.pop("data_dir")) else None
        execution |= {name: tuple(execution.get(name, ())) for name in ("mirrors", "plugins", "accept_change")}
        asked = {"cores": record.pop("cpus_per_job", 0), "memory": ""}  # of all arrays, in older records
        record.pop("environments", None)
        arrays = tuple(_array({"need": asked, **array}) for array in record.pop("arrays"))
        return Launch(
            results=Path(record.pop("results")),
            code=Path(record.pop("code")),
            arguments=tuple(record.pop("arguments")),
            exclude=tuple(record.pop("exclude")),
            execution=Execution(**execution, data_dir=data_dir),
            arrays=arrays,
            **record,
        )


def new_id(suite: str) -> str:
    return f"{suite}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def array_name(launch_id: str, number: int) -> str:
    return f"{PREFIX}{launch_id}-{number}"


def launches(results: Path, suite: str | None = None) -> list[Launch]:
    """All launches of a results folder, oldest first."""
    found = [Launch.load(path.parent) for path in (results / GRIDS).glob("*/launch.json")]
    return sorted((one for one in found if suite in (None, one.suite)), key=lambda one: (one.created_at, one.id))


def queued_runs(results: Path, tasks: Mapping[tuple[str, int], Task]) -> dict[Path, Task]:
    """By directory, the runs of this results folder that wait or run in Slurm's queue."""
    names = {name for name, _ in tasks}
    runs: dict[Path, Task] = {}
    for launch_id in {name.removeprefix(PREFIX).rpartition("-")[0] for name in names}:
        if not (results / GRIDS / launch_id / "launch.json").exists():
            continue  # of another results folder
        for array in Launch.load(results / GRIDS / launch_id).arrays:
            for index, job in enumerate(array.jobs):
                task = tasks.get((array.name, index))
                if task is not None:
                    runs |= dict.fromkeys(job.directories, task)
    return runs


def _array(record: dict[str, Any]) -> Array:
    jobs = [Job(tuple(_work(work) for work in job["works"]), job["seconds"]) for job in record["jobs"]]
    return Array(record["name"], tuple(jobs), Need(**record["need"]), tuple(record["after"]), record["job_id"])


def _work(record: dict[str, Any]) -> Work:
    return Work(
        record["name"], Path(record["results"]), _paths(record["directories"]), frozenset(_paths(record["after"]))
    )


def _paths(texts: Iterable[str]) -> tuple[Path, ...]:
    return tuple(map(Path, texts))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else sorted(value)
