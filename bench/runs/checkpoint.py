"""Atomic checkpoints: two slots, each checksummed, and the online transitions in files that never change."""

import hashlib
import io
import os
import shutil
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.runs.claims import Claim
from bench.runs.contract import CHECKPOINT, POLICY, StorageError, make_folder, replacing, write_atomically
from bench.runs.state import ReplaySegment, RunState, TrainingPoint

MAGIC = b"o2o-bench checkpoint 2\n"
BEFORE_ALL = TrainingPoint(-1, -1, False)


class Checkpoints:
    """The `checkpoint/` folder of one run.

    A slot `slot-<generation>-<a|b>.pt` is a header line with the SHA-256 of what follows, then a `torch.save` of
    tensors and plain values. Saving replaces the older slot, so that the newer one survives a kill at any moment.
    Transitions collected since the save before go to a file of their own, `replay-<generation>-<first row>.f32`; a slot
    lists those it relies on with their CRC. The generation is that of the claim under which a process writes: who goes
    on with the run `adopt`s a slot, and what an older process still writes from then on is never looked at.
    """

    def __init__(self, run_directory: Path):
        self.directory = run_directory / CHECKPOINT
        self._claim: Claim | None = None
        self._slots: dict[Path, TrainingPoint] = {}  # the readable ones of the newest generation
        self._segments: list[ReplaySegment] = []  # of the transitions saved so far

    def load(self) -> dict[TrainingPoint, RunState]:
        """The readable slots by point. A damaged slot is named on stderr and left out; all damaged is an error."""
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
            state = RunState.from_saved(torch.load(io.BytesIO(payload), weights_only=True))
            self._slots[slot] = state.point
            states[state.point] = state
        if damaged:
            line = f"checkpoint {' and '.join(damaged)} in {self.directory} damaged (checksum)"
            if not states:
                raise StorageError(f"{line}; no slot is left: delete the run's folder to start it anew")
            print(f"warning: {line}; going on from the other slot", file=sys.stderr, flush=True)
        return states

    def adopt(self, claim: Claim, state: RunState | None, source: "Checkpoints | None" = None) -> None:
        """Goes on from `state` (one that `load` gave; None: from nothing) under `claim`; all other slots are removed.

        Args:
            source: the folder that `state` is from, of a run with the same offline phase; default this one.
        """
        self._claim = claim
        adopted = make_folder(self.directory) / f"slot-{claim.generation:06}-a.pt"
        kept = {adopted.name, Path(POLICY).name}
        outdated = [path for path in self.directory.iterdir() if path.name not in kept]
        self._segments = list(state.replay) if state else []
        if state:
            slots = (source or self)._slots
            slot = next(path for path, point in slots.items() if point == state.point)
            claim.check()
            if slot != adopted:
                _copy(slot, adopted, link=source is None)
        self._slots = {adopted: state.point} if state else {}
        kept = {segment.name for segment in self._segments}
        for path in outdated:
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def begin(self, claim: Claim, state: RunState, source: "Checkpoints") -> None:
        """Begins a run's folder with `state`, of another run whose folder is `source`; copies what it relies on.

        Raises StorageError where some of that is damaged.
        """
        make_folder(self.directory)
        self._claim, self._slots, self._segments = claim, {}, []
        for segment in state.replay:
            data = source.read_segment(segment)
            claim.check()
            write_atomically(self.directory / segment.name, data)
            self._segments.append(segment)
        self.save(state, torch.zeros(0, 0))

    def read_segment(self, segment: ReplaySegment) -> bytes:
        """Transitions of one file, as they were saved. Raises StorageError."""
        path = self.directory / segment.name
        data = path.read_bytes() if path.exists() else b""
        if zlib.crc32(data) != segment.crc:
            raise StorageError(
                f"{path} is damaged or missing, and without it nothing goes on from here: delete the run's folder to "
                "start it anew"
            )
        return data

    def save(self, state: RunState, new_rows: Tensor) -> None:
        """Stores `state` and the float32 rows (n, width) collected since the last save."""
        assert self._claim is not None, "adopt a state first"
        make_folder(self.directory)
        self._claim.check()
        segments = [*self._segments]
        if len(new_rows):
            segments.append(self._save_rows(new_rows, first=sum(segment.rows for segment in segments)))
        buffer = io.BytesIO()
        torch.save(replace(state, replay=segments).to_saved(), buffer)
        payload = buffer.getvalue()
        digest = hashlib.sha256(payload).hexdigest().encode()
        slots = [self.directory / f"slot-{self._claim.generation:06}-{letter}.pt" for letter in "ab"]
        oldest = min(slots, key=lambda slot: self._slots.get(slot, BEFORE_ALL))
        self._claim.check()
        write_atomically(oldest, MAGIC + digest + b"\n" + payload)
        self._slots[oldest], self._segments = state.point, segments

    def restore_replay(self, state: RunState, width: int) -> Tensor:
        """The collected transitions that `state` relies on, float32 (rows, width)."""
        rows = sum(segment.rows for segment in state.replay)
        data = bytearray()
        for segment in state.replay:
            data += self.read_segment(segment)
        if len(data) != rows * width * 4:
            raise StorageError(f"the replay files in {self.directory} have rows of another width than this checkout's")
        return torch.frombuffer(data, dtype=torch.float32).reshape(rows, width) if rows else torch.zeros(0, width)

    def _save_rows(self, rows: Tensor, first: int) -> ReplaySegment:
        assert self._claim is not None
        data = rows.contiguous().numpy().tobytes()
        name = f"replay-{self._claim.generation:06}-{first:09}.f32"
        write_atomically(self.directory / name, data)
        return ReplaySegment(name, len(rows), zlib.crc32(data))


def _generation(slot: Path) -> int:
    number = slot.stem.split("-")[1]
    return int(number) if number.isdigit() else 0


def _copy(slot: Path, copy: Path, link: bool) -> None:
    try:
        with replacing(copy) as draft:
            os.link(slot, draft) if link else shutil.copyfile(slot, draft)
    except OSError as error:
        raise StorageError(f"cannot write {copy}: {error.strerror}; what was there before is unchanged") from error
