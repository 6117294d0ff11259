"""Appends rows under a run's directory and keeps its status; the schema is results/README.md."""

import csv
import io
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.runs.claims import Claim
from bench.runs.contract import (
    COMPLETE,
    EPISODES,
    HEADERS,
    REPRODUCIBLE,
    SCHEMA_VERSION,
    STATUS,
    TIMING,
    TRAIN,
    StorageError,
    read_json,
    sums_of,
    utc,
    write_json,
)


class RunWriter:
    """The CSV files of one run that this process has claimed.

    Rows before `offsets` (a checkpoint's bytes per file) stay, later ones are cut off: files are copied up to there and
    put in the place of the old ones. An older process that is still alive goes on writing into files without a name,
    so that rows of two processes never meet. Each write raises Takeover once the run is another's.

    Args:
        source: the folder whose files are copied, of a run with the same offline phase; default this one.
    """

    def __init__(
        self,
        directory: Path,
        claim: Claim,
        offsets: Mapping[str, int] | None = None,
        source: Path | None = None,
    ):
        self.directory = directory
        self._claim = claim
        self._files: dict[str, io.FileIO] = {}
        self._sizes: dict[str, int] = {}
        for leftover in directory.glob(".*.json.*"):  # of processes that were killed while they replaced a file
            leftover.unlink(missing_ok=True)
        for name, header in HEADERS.items():
            keep = (offsets or {}).get(name, 0)
            self._files[name] = self._replaced(name, (source or directory) / name, keep, csv_bytes([header]))
            self._sizes[name] = keep or len(csv_bytes([header]))

    def _replaced(self, name: str, copied: Path, keep: int, header: bytes) -> io.FileIO:
        """A new file in the place of the old one, open at its end: the first `keep` bytes of `copied`, or a header."""
        path = self.directory / name
        present = copied.stat().st_size if copied.exists() else 0
        if present < keep:
            raise StorageError(
                f"{copied} has {present} bytes, its checkpoint counts on {keep}: rows were lost or edited"
            )
        draft = self.directory / f".{name}.{self._claim.generation:06}"
        for old in self.directory.glob(f".{name}.*"):
            old.unlink(missing_ok=True)
        try:
            file = draft.open("ab", buffering=0)
            with copied.open("rb") if keep else io.BytesIO(header) as rows:
                shutil.copyfileobj(rows, file)
            file.truncate(keep or len(header))
            if keep:
                check_rows(copied, draft.read_bytes())
            os.fsync(file.fileno())
            self._claim.check()
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise StorageError(f"cannot write {path}: {error.strerror}; what was there before is unchanged") from error
        except StorageError:
            draft.unlink(missing_ok=True)
            raise
        return file

    def _append(self, name: str, rows: Iterable[Iterable[Any]]) -> None:
        data = csv_bytes(rows)
        if data:
            self._claim.check()
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
        self._append(EPISODES, ([row[column] for column in HEADERS[EPISODES]] for row in rows))

    def train(self, phase: str, updates: int, env_steps: int, values: Mapping[str, float]) -> None:
        """Scalars of training at one point."""
        self._append(TRAIN, ((phase, updates, env_steps, name, f"{v:.9g}") for name, v in values.items()))

    def timing(self, phase: str, updates: int, env_steps: int, values: Mapping[str, float]) -> None:
        """Rates and durations at one point, with the wall-clock time (UTC)."""
        now = utc()
        self._append(TIMING, ((now, phase, updates, env_steps, name, f"{v:.4g}") for name, v in values.items()))

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
        self._claim.check()
        write_json(
            self.directory / STATUS,
            {"schema_version": SCHEMA_VERSION, "state": state, "updated_at": utc(), **fields},
        )

    def complete(self) -> None:
        """Publishes `complete.json`, which says what the run's files hold. Raises Takeover for a process that has
        lost the run, also when it loses it at this very moment."""
        self.offsets()
        marker = self.directory / COMPLETE
        draft = marker.with_name(f".{COMPLETE}.{self._claim.generation:06}")
        marker_content = {
            "schema_version": SCHEMA_VERSION,
            "completed_at": utc(),
            "generation": self._claim.generation,
            "owner": str(self._claim.owner),
            "files": {name: sums_of((self.directory / name).read_bytes()) for name in REPRODUCIBLE},
        }
        write_json(draft, marker_content)
        self._claim.check()
        try:
            os.link(draft, marker)
            draft.unlink()
        except FileExistsError:  # of one who was losing the run to this process, and is about to take it back
            draft.replace(marker)
        except OSError as error:
            raise StorageError(f"cannot write {marker}: {error.strerror}") from error
        try:
            self._claim.check()
        except Exception:  # the new owner has seen this marker and left, or goes on and will make one: either is right
            if read_json(marker) == marker_content:
                marker.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def check_rows(path: Path, kept: bytes) -> None:
    """StorageError where the bytes that a checkpoint counts on are not whole rows as this writer ends them."""
    if b"\r\n" in kept:
        raise StorageError(f"{path} has lines that end with \\r\\n, its checkpoint counts on \\n: convert it back")
    if not kept.endswith(b"\n"):
        raise StorageError(f"{path} has no end of a row where its checkpoint has one: rows were lost or edited")


def csv_bytes(rows: Iterable[Iterable[Any]]) -> bytes:
    """Rows as the CSV files of runs hold them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
