"""Appends rows under a run's directory and keeps its status; the schema is results/README.md."""

import csv
import datetime
import fcntl
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.config import SCHEMA_VERSION

HEADERS = {
    "episodes.csv": ("phase", "updates", "env_steps", "episode_seed", "success", "return", "length"),
    "train.csv": ("phase", "updates", "env_steps", "name", "value"),
    "timing.csv": ("time", "phase", "updates", "env_steps", "name", "value"),
}


class StorageError(Exception):
    """A file of a run could not be written or read; one line, earlier rows are safe."""


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces `path` by `data` or leaves it as it was; durable on return. Raises StorageError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}; what was there before is unchanged") from error


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's object, or None where there is no file. Raises StorageError where it is not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StorageError(f"{path} is not valid JSON ({error}); delete it or restore it") from error


class RunWriter:
    """The CSV files of one run. Rows before `offsets` (a checkpoint's bytes per file) stay, later ones are cut off."""

    def __init__(self, directory: Path, offsets: Mapping[str, int] | None = None):
        self.directory = directory
        self._files: dict[str, io.FileIO] = {}
        self._sizes: dict[str, int] = {}
        for name, header in HEADERS.items():
            path = directory / name
            keep = (offsets or {}).get(name, 0)
            present = path.stat().st_size if path.exists() else 0
            if present < keep:
                raise StorageError(
                    f"{path} has {present} bytes, its checkpoint counts on {keep}: rows were lost or edited"
                )
            try:
                file = path.open("ab", buffering=0)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released with the process, however it ends
                file.truncate(keep)
            except BlockingIOError as error:
                raise StorageError(
                    f"{directory} is being written by another process; wait for it or stop it"
                ) from error
            except OSError as error:
                raise StorageError(f"cannot open {path}: {error.strerror}") from error
            self._files[name], self._sizes[name] = file, keep
            if keep == 0:
                self._append(name, [header])

    def _append(self, name: str, rows: Iterable[Iterable[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        data = text.getvalue().encode()
        written = 0
        try:
            while written < len(data):
                written += self._files[name].write(data[written:])
        except OSError as error:
            self._files[name].truncate(self._sizes[name])  # no half rows
            raise StorageError(
                f"cannot write {self.directory / name}: {error.strerror}; the rows written before are kept, "
                "free some space and start again to go on"
            ) from error
        self._sizes[name] += len(data)

    def episodes(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """One row per evaluation episode."""
        self._append("episodes.csv", ([row[column] for column in HEADERS["episodes.csv"]] for row in rows))

    def train(self, phase: str, updates: int, env_steps: int, values: Mapping[str, float]) -> None:
        """Scalars of training at one point."""
        self._append("train.csv", ((phase, updates, env_steps, name, f"{v:.9g}") for name, v in values.items()))

    def timing(self, phase: str, updates: int, env_steps: int, values: Mapping[str, float]) -> None:
        """Rates and durations at one point, with the wall-clock time (UTC)."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._append("timing.csv", ((now, phase, updates, env_steps, name, f"{v:.4g}") for name, v in values.items()))

    def offsets(self) -> dict[str, int]:
        """Bytes per file, all of them durable on disk: what a checkpoint may count on."""
        for name, file in self._files.items():
            try:
                os.fsync(file.fileno())
            except OSError as error:
                raise StorageError(f"cannot write {self.directory / name}: {error.strerror}") from error
        return dict(self._sizes)

    def status(self, state: str, **fields: Any) -> None:
        """Replaces status.json. `state`: running, preempted, failed or complete."""
        write_json(
            self.directory / "status.json",
            {
                "schema_version": SCHEMA_VERSION,
                "state": state,
                "updated_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                **fields,
            },
        )

    def close(self) -> None:
        for file in self._files.values():
            file.close()
