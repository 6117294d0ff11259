"""What was read of complete runs, kept beside them, so that thousands are there in seconds the next time.

One file, `results/.cache/analysis.npz`, that anybody may delete. An entry counts as long as size and times of the run's
files are those of when it was read, and the code that reads them is the same.
"""

import contextlib
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from analysis.loading import checks, read
from analysis.loading.checks import Checks
from analysis.loading.read import NORMALISED_RETURN, RETURN, SUCCESS, Evaluations, Run
from bench.runs import contract
from bench.runs.contract import COMPLETE, CONFIG, EPISODES, PROVENANCE, STATUS, TRAIN, replacing

READ_FILES = (CONFIG, PROVENANCE, STATUS, COMPLETE, EPISODES, TRAIN)
LEAST_RUNS = 100  # fewer are read anew as fast
SETTLED_SECONDS = 2.0  # a file that is younger may change again without another time: clocks of file systems are coarse
MEASURES = {measure.file_name: measure for measure in (SUCCESS, NORMALISED_RETURN, RETURN)}
ARRAYS = ("online", "updates", "env_steps", "score")
Fingerprint = list[list[int]]  # of each file: size, time of the last change of its content and of itself


class Cache:
    """The runs among `names` that need not be read anew, under `runs`."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.runs: dict[str, Run] = {}
        self._others: dict[str, tuple[Run, Fingerprint]] = {}  # not asked for now, and kept
        self._root, self._path = root, root / ".cache" / "analysis.npz"
        self._opened = time.time()
        self._prints = {name: fingerprint(root / name) for name in names} if len(names) >= LEAST_RUNS else {}
        if self._prints:
            # A file that is cut off or of another version is as good as none: everything is read anew.
            with contextlib.suppress(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
                self._read()

    def _read(self) -> None:
        with np.load(self._path, allow_pickle=False) as stored:
            texts = {name: stored[name].tobytes().decode() for name in ("code", "entries")}
            arrays = {name: stored[name] for name in ARRAYS}
        if texts["code"] != code_version():
            return
        start = 0
        for entry in json.loads(texts["entries"]):
            stop = start + entry["points"]
            run = Run(
                name=entry["name"],
                config=entry["config"],
                provenance=entry["provenance"],
                state="complete",
                measure=MEASURES[entry["measure"]],
                evaluations=Evaluations(**{name: array[start:stop].copy() for name, array in arrays.items()}),
                behaviour_success=entry["behaviour_success"],
                checks=Checks(tuple(entry["unchecked"]), tuple(entry["line_ends"]), entry["training"]),
                notes=tuple(entry["notes"]),
            )
            if run.name not in self._prints:
                self._others[run.name] = run, entry["fingerprint"]
            elif self._prints[run.name] == entry["fingerprint"]:
                self.runs[run.name] = run
            start = stop

    def add(self, runs: Iterable[Run]) -> None:
        """Takes in runs that were read just now; what is complete and at rest is kept for the next time."""
        new = {run.name: run for run in runs}
        self.runs |= new
        if not self._prints or not new:
            return
        kept = [
            (run, self._prints[name])
            for name, run in self.runs.items()
            if run.complete and run.measure and max(changed for *_, changed in self._prints[name]) < self._settled
        ]
        kept += [(run, prints) for run, prints in self._others.values() if (self._root / run.name).is_dir()]
        # Results that one may read but not write are read anew each time.
        with contextlib.suppress(PermissionError):
            self._write(kept)

    @property
    def _settled(self) -> int:
        """Time, in ns, before which a file must have changed last."""
        return int((self._opened - SETTLED_SECONDS) * 1e9)

    def _write(self, kept: Sequence[tuple[Run, Fingerprint]]) -> None:
        entries = [
            {
                "name": run.name,
                "fingerprint": prints,
                "points": len(run.evaluations.score),
                "config": run.config,
                "provenance": run.provenance,
                "measure": run.measure.file_name if run.measure else None,
                "behaviour_success": run.behaviour_success,
                **asdict(run.checks),
                "notes": run.notes,
            }
            for run, prints in kept
        ]
        texts = {"code": code_version(), "entries": json.dumps(entries)}
        content: dict[str, Any] = {name: np.frombuffer(text.encode(), dtype=np.uint8) for name, text in texts.items()}
        for name in ARRAYS:
            content[name] = np.concatenate([getattr(run.evaluations, name) for run, _ in kept] or [np.zeros(0)])
        packed = io.BytesIO()
        np.savez(packed, allow_pickle=False, **content)
        self._path.parent.mkdir(exist_ok=True)
        with replacing(self._path) as draft:
            draft.write_bytes(packed.getvalue())


def fingerprint(folder: Path) -> Fingerprint:
    """Size and times of the files of a run that are read; [0, 0, 0] for a file that is not there."""
    found = []
    for name in READ_FILES:
        try:
            stat = (folder / name).stat()
        except FileNotFoundError:
            found.append([0, 0, 0])
        else:
            found.append([stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
    return found


def code_version() -> str:
    """Changes whenever the code that reads runs does."""
    sources = [Path(module).read_bytes() for module in (contract.__file__, checks.__file__, read.__file__, __file__)]
    return hashlib.sha256(b"".join(sources)).hexdigest()
