"""Files in OGBench's format, npz: read into rows with the rewards of each task, and written from episodes.

A file holds the rows of whole episodes; the last row of each has a terminal of 1 and only its observation and state
mean anything. There are no rewards in it: they follow from the simulator state.
"""

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, get_args

import numpy as np

from bench.runs.contract import one_line
from datasets.ogbench.tasks import DOMAINS, TASK_IDS, relabel
from datasets.scale import ActionScale
from datasets.source import Block, Rows
from datasets.spec import DataError, Dataset, Origin, TaskSpec
from datasets.transitions import episode_ends
from datasets.unreadable import why_unreadable

_BLOCK_ROWS = 250_000  # at a time: rewards are computed in float64


def origin(dataset: Dataset, files: list[Path]) -> Origin:
    """Generated if the name says so or a file does, whatever its name is now. Raises DataError for a bad file."""
    if dataset.recipe is not None:
        return "generated"
    for file in files:
        with NpzFile(file) as source:
            if "origin" in source.keys:
                file_origin = str(source.read("origin"))
                if file_origin not in get_args(Origin):
                    raise DataError(f"{file}: key 'origin' is '{file_origin}', expected one of {get_args(Origin)}")
                if file_origin == "generated":
                    return "generated"
    return "published"


def read(dataset: Dataset, files: list[Path], tasks: list[TaskSpec]) -> Rows:
    """The rows of all files, one file in memory at a time. Raises DataError for bad ones, also from the iterator."""
    finals = []
    for file in files:
        with NpzFile(file) as source:
            finals.append(source.flags("terminals"))
    warnings: list[str] = []
    scale = ActionScale(dataset, files[0], refuses=not dataset.domain)
    return Rows(sum(map(len, finals)), _blocks(files, finals, tasks, scale, warnings), warnings)


def _blocks(
    files: list[Path], finals: list[np.ndarray], tasks: list[TaskSpec], scale: ActionScale, warnings: list[str]
) -> Iterator[Block]:
    from datasets.ogbench.env import task_goals

    domain = DOMAINS[tasks[0].domain]
    goals = task_goals(tasks[0].domain)
    for file, final in zip(files, finals, strict=True):
        with NpzFile(file) as source:
            obs = source.numbers("observations", (len(final), domain.obs_dim))
            action = source.numbers("actions", (len(final), domain.action_dim))
            action = scale.clipped(action, "actions", counted=~final)
            qpos = source.numbers("qpos", (len(final), domain.qpos_dim))
            buttons = source.states("button_states", (len(final), domain.num_buttons)) if domain.num_buttons else None
        for start in range(0, len(final), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            pressed = None if buttons is None else buttons[rows]
            labels = {task.name: relabel(domain, qpos[rows], pressed, goals[task.task_id]) for task in tasks}
            yield Block(
                obs=obs[rows],
                action=action[rows],
                final=final[rows],
                reward={name: reward for name, (reward, _) in labels.items()},
                terminated={name: terminated for name, (_, terminated) in labels.items()},
            )
    warnings += scale.lines()


def recipe_of(file: Path) -> object:
    """The recipe that a generated file says it follows; None where it says none or cannot be read."""
    try:
        with np.load(file) as arrays:
            return json.loads(str(arrays["recipe"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def write_set(dataset: Dataset, parts: list[Path], file: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """Writes all parts as one npz file; facts for the manifest."""
    from datasets.ogbench.env import task_goals

    lengths = []
    solved = dict.fromkeys(TASK_IDS, 0)
    domain, goals = DOMAINS[dataset.domain], task_goals(dataset.domain)
    for part in parts:
        with np.load(part) as episode:
            qpos, buttons = episode["qpos"], episode.get("button_states")
        lengths.append(len(qpos))
        for task_id in TASK_IDS:
            solved[task_id] += bool(relabel(domain, qpos, buttons, goals[task_id])[1].any())
    notes = {"origin": np.array("generated"), "recipe": np.array(json.dumps(recipe))}
    with file.open("wb") as handle:
        _write_npz(handle, parts, sum(lengths), notes)
    return {
        "transitions": sum(lengths) - len(parts),
        "success_share": {f"task{task_id}": round(count / len(parts), 4) for task_id, count in solved.items()},
    }


def _write_npz(handle: IO[bytes], parts: list[Path], num_rows: int, notes: dict[str, np.ndarray]) -> None:
    """As np.savez_compressed would, without holding the arrays in memory; equal arrays give equal bytes."""
    with np.load(parts[0]) as episode:
        headers = {key: (array.dtype, array.shape[1:]) for key, array in episode.items()}
    with zipfile.ZipFile(handle, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, (dtype, columns) in headers.items():
            header = {"descr": dtype.str, "fortran_order": False, "shape": (num_rows, *columns)}
            with _member(archive, key) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for part in parts:
                    with np.load(part) as episode:
                        member.write(episode[key].tobytes())
        for key, array in notes.items():
            with _member(archive, key) as member:
                np.lib.format.write_array(member, array)


def _member(archive: zipfile.ZipFile, key: str) -> IO[bytes]:
    info = zipfile.ZipInfo(f"{key}.npy")  # dated 1980, whenever it is written
    info.compress_type = zipfile.ZIP_DEFLATED
    return archive.open(info, "w", force_zip64=True)


class NpzFile:
    """An open npz file; whatever is wrong in it becomes a DataError that names file and key."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> "NpzFile":
        try:
            self.arrays = np.load(self.file)
            self.keys = set(self.arrays.keys())
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            damage = "is not a whole npz file"
            raise DataError(why_unreadable(self.file, error, "delete it and get it again", damage=damage)) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.arrays.close()

    def read(self, key: str) -> np.ndarray:
        if key not in self.keys:
            raise DataError(f"{self.file}: key '{key}' is missing, it has {', '.join(sorted(self.keys))}")
        try:
            return self.arrays[key]
        except ValueError as error:
            if not str(error).startswith("Object arrays"):
                raise self._damaged(key, error) from error
            raise DataError(
                f"{self.file}: key '{key}' holds objects (lists of unequal arrays, or text), expected numbers"
            ) from error
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise self._damaged(key, error) from error

    def _damaged(self, key: str, error: Exception) -> DataError:
        return DataError(f"{self.file}: key '{key}' is damaged ({one_line(error)}); delete the file and get it again")

    def flags(self, key: str) -> np.ndarray:
        """(R,) bool, the rows that end an episode."""
        array = self.read(key)
        if array.ndim != 1 or array.dtype.kind not in "bfiu" or not np.isin(array, (0, 1)).all():
            raise DataError(f"{self.file}: key '{key}' is {array.dtype} {array.shape}, expected a flag 0 or 1 per row")
        final = array.astype(bool)
        episode_ends(final, where=f"{self.file}: key '{key}'")
        return final

    def states(self, key: str, shape: tuple[int, int]) -> np.ndarray:
        """Whole numbers 0 and 1 of the given shape."""
        array = self.read(key)
        if array.shape != shape or array.dtype.kind not in "bfiu" or not np.isin(array, (0, 1)).all():
            raise DataError(f"{self.file}: key '{key}' is {array.dtype} {array.shape}, expected states 0 or 1 {shape}")
        return array.astype(np.int64)

    def numbers(self, key: str, shape: tuple[int, int]) -> np.ndarray:
        """Finite float32 numbers of the given shape."""
        array = self.read(key)
        if array.shape != shape or array.dtype.kind != "f":
            raise DataError(f"{self.file}: key '{key}' is {array.dtype} {array.shape}, expected floats {shape}")
        array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array).all(1))[0])
            raise DataError(f"{self.file}: key '{key}' is not finite in row {row}")
        return array
