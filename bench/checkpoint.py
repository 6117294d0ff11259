"""Atomic checkpoints: two slots, each checksummed, and the online transitions in one file that only grows."""

import hashlib
import io
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.writer import StorageError, write_atomically

MAGIC = b"o2o-bench checkpoint 1\n"
SLOTS = ("slot_a.pt", "slot_b.pt")
REPLAY_FILE = "replay.f32"

Progress = tuple[int, int, int]  # gradient updates, environment steps, 1 once this point is evaluated


class Checkpoints:
    """The `checkpoint/` folder of one run.

    A slot is a header line with the SHA-256 of what follows, then a `torch.save` of tensors and plain values. Saving
    replaces the older slot, so that the newer one survives a kill at any moment. Collected transitions are appended
    to `replay.f32`; a slot counts the rows it relies on and their CRC, later rows are cut off on restore.
    """

    def __init__(self, run_directory: Path):
        self.directory = run_directory / "checkpoint"
        self._progress: dict[str, Progress] = {}  # of the readable slots
        self._replay_rows = 0
        self._replay_crc = 0

    def load(self) -> dict[Progress, dict[str, Any]]:
        """The readable slots by progress. A damaged slot is named on stderr and left out; all damaged is an error."""
        states, damaged = {}, []
        for slot in SLOTS:
            path = self.directory / slot
            if not path.exists():
                continue
            data = path.read_bytes()
            digest, payload = data[len(MAGIC) : len(MAGIC) + 64], data[len(MAGIC) + 65 :]
            if not data.startswith(MAGIC) or hashlib.sha256(payload).hexdigest().encode() != digest:
                damaged.append(slot)
                continue
            state = torch.load(io.BytesIO(payload), weights_only=True)
            self._progress[slot] = state["progress"]
            states[state["progress"]] = state
        if damaged:
            line = f"checkpoint {' and '.join(damaged)} in {self.directory} damaged (checksum)"
            if not states:
                raise StorageError(f"{line}; no slot is left: delete the run's folder to start it anew")
            print(f"warning: {line}; going on from the other slot", file=sys.stderr, flush=True)
        return states

    def discard_after(self, progress: Progress) -> None:
        """Removes slots beyond `progress`, from which the run does not go on: the files are about to be cut to it."""
        for slot, held in list(self._progress.items()):
            if held > progress:
                (self.directory / slot).unlink()
                del self._progress[slot]

    def save(self, state: dict[str, Any], new_rows: Tensor) -> None:
        """Stores `state` under its `progress` and the float32 rows (n, width) collected since the last save."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {self.directory}: {error.strerror}") from error
        self._append_replay(new_rows)
        buffer = io.BytesIO()
        torch.save({**state, "replay_rows": self._replay_rows, "replay_crc": self._replay_crc}, buffer)
        payload = buffer.getvalue()
        digest = hashlib.sha256(payload).hexdigest().encode()
        oldest = min(SLOTS, key=lambda slot: self._progress.get(slot, (-1, -1, -1)))
        write_atomically(self.directory / oldest, MAGIC + digest + b"\n" + payload)
        self._progress[oldest] = state["progress"]

    def restore_replay(self, state: dict[str, Any], width: int) -> Tensor:
        """The collected transitions that `state` relies on, float32 (rows, width); later ones are cut off."""
        rows, path = state["replay_rows"], self.directory / REPLAY_FILE
        size = rows * width * 4
        data = path.read_bytes()[:size] if path.exists() else b""
        if len(data) < size or zlib.crc32(data) != state["replay_crc"]:
            raise StorageError(f"{path} is damaged: delete the run's folder to start it anew")
        self._replay_rows, self._replay_crc = rows, state["replay_crc"]
        return (
            torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(rows, width)
            if rows
            else torch.zeros(0, width)
        )

    def _append_replay(self, rows: Tensor) -> None:
        if not len(rows):
            return
        data = rows.contiguous().numpy().tobytes()
        path = self.directory / REPLAY_FILE
        try:
            with path.open("r+b" if path.exists() else "w+b") as file:
                file.truncate(self._replay_rows * rows.shape[1] * 4)  # rows that no slot counts
                file.seek(0, os.SEEK_END)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}; the last checkpoint still stands") from error
        self._replay_rows += len(rows)
        self._replay_crc = zlib.crc32(data, self._replay_crc)
