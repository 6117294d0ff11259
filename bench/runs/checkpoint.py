"""Atomic checkpoints: two slots, each checksummed, and the online transitions in files that never change."""

import hashlib
import io
import os
import shutil
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.runs.writer import StorageError, write_atomically

if TYPE_CHECKING:
    from bench.runs.claims import Claim

MAGIC = b"o2o-bench checkpoint 2\n"

Progress = tuple[int, int, int]  # gradient updates, environment steps, 1 once this point is evaluated


class Checkpoints:
    """The `checkpoint/` folder of one run.

    A slot `slot-<generation>-<a|b>.pt` is a header line with the SHA-256 of what follows, then a `torch.save` of
    tensors and plain values. Saving replaces the older slot, so that the newer one survives a kill at any moment.
    Transitions collected since the save before go to a file of their own, `replay-<generation>-<first row>.f32`; a slot
    lists those it relies on with their CRC. The generation is that of the claim under which a process writes: who goes
    on with the run `adopt`s a slot, and what an older process still writes from then on is never looked at.
    """

    def __init__(self, run_directory: Path):
        self.directory = run_directory / "checkpoint"
        self._claim: Claim | None = None
        self._slots: dict[Path, Progress] = {}  # the readable ones of the newest generation
        self._segments: list[dict[str, Any]] = []  # name, rows, crc: of the transitions saved so far

    def load(self) -> dict[Progress, dict[str, Any]]:
        """The readable slots by progress. A damaged slot is named on stderr and left out; all damaged is an error."""
        self._slots, states, damaged = {}, {}, []
        slots = sorted(self.directory.glob("slot-*.pt"))
        newest = max((_generation(slot) for slot in slots), default=0)
        for slot in slots:
            if _generation(slot) < newest:
                continue
            try:
                data = slot.read_bytes()
            except FileNotFoundError:  # replaced by the process that writes the run, while this one only looks
                continue
            digest, payload = data[len(MAGIC) : len(MAGIC) + 64], data[len(MAGIC) + 65 :]
            if not data.startswith(MAGIC) or hashlib.sha256(payload).hexdigest().encode() != digest:
                damaged.append(slot.name)
                continue
            state = torch.load(io.BytesIO(payload), weights_only=True)
            self._slots[slot] = state["progress"]
            states[state["progress"]] = state
        if damaged:
            line = f"checkpoint {' and '.join(damaged)} in {self.directory} damaged (checksum)"
            if not states:
                raise StorageError(f"{line}; no slot is left: delete the run's folder to start it anew")
            print(f"warning: {line}; going on from the other slot", file=sys.stderr, flush=True)
        return states

    def adopt(self, claim: "Claim", state: dict[str, Any] | None, source: "Checkpoints | None" = None) -> None:
        """Goes on from `state` (one that `load` gave; None: from nothing) under `claim`; all other slots are removed.

        Args:
            source: the folder that `state` is from, of a run with the same offline phase; default this one.
        """
        self._claim = claim
        own = _make(self.directory) / f"slot-{claim.generation:06}-a.pt"
        outdated = [path for path in self.directory.iterdir() if path.name not in (own.name, "policy.safetensors")]
        self._segments = list(state["replay"]) if state else []
        if state:
            held = (source or self)._slots
            slot = next(path for path, progress in held.items() if progress == state["progress"])
            claim.check()
            if slot != own:
                _copy(slot, own, link=source is None)
        self._slots = {own: state["progress"]} if state else {}
        kept = {segment["name"] for segment in self._segments}
        for path in outdated:
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def save(self, state: dict[str, Any], new_rows: Tensor) -> None:
        """Stores `state` under its `progress` and the float32 rows (n, width) collected since the last save."""
        assert self._claim is not None, "adopt a state first"
        _make(self.directory)
        self._claim.check()
        segments = [*self._segments]
        if len(new_rows):
            segments.append(self._save_rows(new_rows, first=sum(segment["rows"] for segment in segments)))
        buffer = io.BytesIO()
        torch.save({**state, "replay": segments}, buffer)
        payload = buffer.getvalue()
        digest = hashlib.sha256(payload).hexdigest().encode()
        slots = [self.directory / f"slot-{self._claim.generation:06}-{letter}.pt" for letter in "ab"]
        oldest = min(slots, key=lambda slot: self._slots.get(slot, (-1, -1, -1)))
        self._claim.check()
        write_atomically(oldest, MAGIC + digest + b"\n" + payload)
        self._slots[oldest], self._segments = state["progress"], segments

    def restore_replay(self, state: dict[str, Any], width: int) -> Tensor:
        """The collected transitions that `state` relies on, float32 (rows, width)."""
        rows = sum(segment["rows"] for segment in state["replay"])
        data = bytearray()
        for segment in state["replay"]:
            path = self.directory / segment["name"]
            part = path.read_bytes() if path.exists() else b""
            if len(part) != segment["rows"] * width * 4 or zlib.crc32(part) != segment["crc"]:
                raise StorageError(f"{path} is damaged: delete the run's folder to start it anew")
            data += part
        return torch.frombuffer(data, dtype=torch.float32).reshape(rows, width) if rows else torch.zeros(0, width)

    def _save_rows(self, rows: Tensor, first: int) -> dict[str, Any]:
        assert self._claim is not None
        data = rows.contiguous().numpy().tobytes()
        name = f"replay-{self._claim.generation:06}-{first:09}.f32"
        write_atomically(self.directory / name, data)
        return {"name": name, "rows": len(rows), "crc": zlib.crc32(data)}


def _generation(slot: Path) -> int:
    number = slot.stem.split("-")[1]
    return int(number) if number.isdigit() else 0


def _copy(slot: Path, own: Path, link: bool) -> None:
    draft = own.with_name(f".{own.name}")
    try:
        draft.unlink(missing_ok=True)
        os.link(slot, draft) if link else shutil.copyfile(slot, draft)
        draft.replace(own)
    except OSError as error:
        raise StorageError(f"cannot write {own}: {error.strerror}; what was there before is unchanged") from error


def _make(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {directory}: {error.strerror}") from error
    return directory
