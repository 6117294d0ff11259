"""Where data lie, and their one conversion from the published format to flat memory-mapped arrays.

A data set is named by the published scheme (`cube-double-play-v0`; `cube-quadruple-play-100m-v0` for one in 100 files)
or by the recipe that makes it again (`cube-double-play-generated-1000ep-seed0`,
`cube-single-task1-mixed-generated-60ep-seed0`). Source files are looked for in the folder asked for, in OGBench's
`~/.ogbench/data`, and, generated ones, in the cache: `$O2O_BENCH_DATA` or `~/.cache/o2o-bench`.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, get_args

import numpy as np

from datasets.ogbench_cube import (
    ACTION_DIM,
    NUM_CUBES,
    PUBLISHED_EPISODES,
    TASK_IDS,
    URL,
    obs_dim,
    qpos_dim,
    relabel,
)
from datasets.spec import DataError, TaskSpec, nearest
from datasets.transitions import Origin, Transitions, episode_ends

FORMAT_VERSION = 1  # of the flat arrays: a change makes every set be converted anew
NUM_SHARDS = 100
ACTION_LIMIT = 1 - 1e-5  # keeps the inverse of a tanh squashing finite
_RELABELLED_ROWS = 250_000  # at a time: rewards are computed in float64
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # file systems that have none, like some of clusters

_PUBLISHED = [f"{domain}-{kind}-v0" for domain in NUM_CUBES for kind in ("play", "noisy")] + [
    "cube-double-play-100m-v0",
    "cube-triple-play-100m-v0",
    "cube-quadruple-play-100m-v0",
    "cube-quadruple-noisy-100m-v0",
]
_GENERATED = re.compile(
    rf"(?P<domain>{'|'.join(NUM_CUBES)})(-task(?P<task_id>[1-5])-mixed|-(?P<kind>play|noisy))"
    r"-generated-(?P<episodes>[1-9][0-9]*)ep-seed(?P<seed>0|[1-9][0-9]*)"
)


@dataclass(frozen=True)
class DatasetName:
    """A data set's name, taken apart."""

    name: str
    domain: str
    kind: str  # "play", "noisy" or "mixed"
    task_id: int = 0  # of a mixed set: the task its directed episodes pursue
    episodes: int = 0  # of a generated set
    seed: int = 0  # of a generated set

    @property
    def is_generated(self) -> bool:
        """The name is that of a set made here; a file under a published name may be one as well."""
        return self.episodes > 0

    @property
    def is_sharded(self) -> bool:
        return "-100m-" in self.name

    @property
    def file_names(self) -> list[str]:
        """The files that make up the set; validation twins (`…-val.npz`) do not belong to it."""
        if not self.is_sharded:
            return [f"{self.name}.npz"]
        return [f"{self.name.replace('-100m', '')}-{shard:03}.npz" for shard in range(NUM_SHARDS)]


def parse_name(name: str) -> DatasetName:
    """The parts of a data set's name. Raises DataError for a name outside the grammar of this module."""
    if name in _PUBLISHED:
        domain, kind = name.removesuffix("-v0").removesuffix("-100m").rsplit("-", 1)
        return DatasetName(name, domain, kind)
    if match := _GENERATED.fullmatch(name):
        kind = match["kind"] or "mixed"
        task_id = int(match["task_id"] or 0)
        return DatasetName(name, match["domain"], kind, task_id, int(match["episodes"]), int(match["seed"]))
    raise DataError(
        f"unknown data set '{name}'{nearest(name, _PUBLISHED)}; names are like {_PUBLISHED[0]}, "
        f"cube-double-play-generated-1000ep-seed0 or cube-single-task1-mixed-generated-60ep-seed0"
    )


def cache_root() -> Path:
    """The folder for generated and converted data."""
    return Path(os.environ.get("O2O_BENCH_DATA") or "~/.cache/o2o-bench").expanduser()


def generated_dir(name: str) -> Path:
    """The folder of a generated set in the cache."""
    return cache_root() / "generated" / name


def find(dataset: DatasetName, data_dir: str | Path | None = None) -> list[Path]:
    """Source files of a data set, empty where it is absent. Raises DataError where some of its shards are."""
    for folder in _folders(dataset, data_dir):
        files = [folder / file_name for file_name in dataset.file_names]
        missing = [file for file in files if not file.is_file()]
        if not missing:
            return files
        if len(missing) < len(files):
            raise DataError(
                f"{dataset.name}: {len(missing)} of its {len(files)} files are missing in {folder}, "
                f"the first is {missing[0].name}; get it from {_url(dataset)}"
            )
    return []


def describe(name: str, data_dir: str | Path | None = None) -> dict[str, Any]:
    """`name`, `origin`, `path` (file, or folder of shards), `bytes`, and `present` of a data set, without reading it.

    Raises DataError for a name outside the grammar and for files that cannot be opened.
    """
    dataset = parse_name(name)
    files = find(dataset, data_dir)
    if not files:
        folder = _folders(dataset, data_dir)[-1]
        path = folder if dataset.is_sharded else folder / dataset.file_names[0]
        origin = "generated" if dataset.is_generated else "published"
        return {"name": name, "origin": origin, "path": str(path), "bytes": 0, "present": False}
    return {
        "name": name,
        "origin": _origin(dataset, files),
        "path": str(files[0].parent if dataset.is_sharded else files[0]),
        "bytes": sum(file.stat().st_size for file in files),
        "present": True,
    }


def load_task(spec: TaskSpec, name: str, data_dir: str | Path | None = None) -> Transitions:
    """Transitions of a data set with the rewards of a task; converts the set at its first use."""
    dataset = parse_name(name)
    if dataset.domain != spec.domain:
        raise DataError(f"data set '{name}' is of {dataset.domain}, task {spec.name} needs data of {spec.domain}")
    files = find(dataset, data_dir)
    if not files:
        raise DataError(_missing(dataset, data_dir))
    flat = cache_root() / "flat" / f"{name}-{_source_key(files)}"
    if not flat.exists():
        _convert(dataset, files, flat)
    with ExitStack() as on_error:
        try:
            in_use = on_error.enter_context((flat / "meta.json").open())
            _lock(in_use, fcntl.LOCK_SH)  # until it is closed no other process removes the conversion
            meta = json.load(in_use)
            task = f"task{spec.task_id}"
            arrays = {
                key: np.load(flat / f"{file_name}.npy", mmap_mode="c")
                for key, file_name in {
                    "obs": "obs",
                    "action": "action",
                    "reward": f"{task}-reward",
                    "terminated": f"{task}-terminated",
                    "final": "final",
                }.items()
            }
        except (OSError, ValueError) as error:
            raise DataError(f"{flat} is damaged ({error}); delete it and it is made again from {files[0]}") from error
        data = Transitions(**arrays, name=name, origin=meta["origin"], content_hash=meta["content_hash"][task])
        weakref.finalize(data, in_use.close)
        on_error.pop_all()
    return data


def _folders(dataset: DatasetName, data_dir: str | Path | None) -> list[Path]:
    """Where to look, in order; of shards, a folder of the set's name inside each place as well."""
    places = [Path(data_dir).expanduser()] if data_dir is not None else []
    if dataset.is_generated:
        return [*places, generated_dir(dataset.name)]
    places.append(Path("~/.ogbench/data").expanduser())
    return [folder for place in places for folder in (place / dataset.name, place)] if dataset.is_sharded else places


def _url(dataset: DatasetName) -> str:
    return f"{URL}/{dataset.name}/" if dataset.is_sharded else f"{URL}/{dataset.file_names[0]}"


def _command(dataset: DatasetName) -> str:
    """The command that makes a generated set."""
    task = f"{dataset.domain}-task{dataset.task_id}" if dataset.kind == "mixed" else dataset.domain
    numbers = f"--episodes {dataset.episodes} --seed {dataset.seed}"
    return f"python -m bench data generate --task {task} --kind {dataset.kind} {numbers}"


def _missing(dataset: DatasetName, data_dir: str | Path | None) -> str:
    folders = _folders(dataset, data_dir)
    looked_in = " and ".join(str(folder) for folder in folders)
    what = f"data set '{dataset.name}' is missing: no {dataset.file_names[0]} in {looked_in}"
    if dataset.is_generated:
        return f"{what}; make it: {_command(dataset)}"
    episodes = PUBLISHED_EPISODES[dataset.domain]
    substitute = parse_name(f"{dataset.domain}-{dataset.kind}-generated-{episodes}ep-seed0")
    return (
        f"{what}; download {_url(dataset)} to {folders[-1]}, "
        f"or make a substitute ({_command(substitute)}) and run with --dataset {substitute.name}"
    )


def _source_key(files: list[Path]) -> str:
    """Short hash by which a changed source is recognised without reading it."""
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([FORMAT_VERSION, stats]).encode()).hexdigest()[:12]


def _origin(dataset: DatasetName, files: list[Path]) -> Origin:
    """Generated if the name says so or a file does, whatever it has been renamed to."""
    if dataset.is_generated:
        return "generated"
    for file in files:
        with _Source(file, dataset) as source:
            if "origin" in source.keys:
                origin = str(source.read("origin"))
                if origin not in get_args(Origin):
                    raise DataError(f"{file}: key 'origin' is '{origin}', expected one of {get_args(Origin)}")
                if origin == "generated":
                    return "generated"
    return "published"


def _convert(dataset: DatasetName, files: list[Path], flat: Path) -> None:
    """Write the folder `flat`, whole or not at all, and remove what killed and outdated conversions have left."""
    try:
        flat.parent.mkdir(parents=True, exist_ok=True)
        with _converting(dataset) as is_alone:
            if flat.exists():  # another process was faster
                return
            if is_alone:
                for left_over in flat.parent.glob(f".partial-{dataset.name}-*"):
                    shutil.rmtree(left_over)
            with tempfile.TemporaryDirectory(prefix=f".partial-{flat.name}-", dir=flat.parent) as partial:
                new = Path(partial) / "flat"
                new.mkdir()
                meta = {
                    "format_version": FORMAT_VERSION,
                    "name": dataset.name,
                    "origin": _origin(dataset, files),
                    "content_hash": _write_arrays(dataset, files, new),
                    "folder": str(files[0].parent.resolve()),
                    "sources": [
                        {"file": file.name, "bytes": file.stat().st_size, "sha256": _file_sha256(file)}
                        for file in files
                    ],
                }
                (new / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
                try:
                    new.rename(flat)
                except OSError:
                    if not flat.exists():  # else another process was faster, with the same result
                        raise
            if is_alone:
                _remove_outdated(dataset, flat, meta["folder"])
    except OSError as error:
        raise DataError(f"cannot write {flat}: {one_line(error)}") from error


@contextmanager
def _converting(dataset: DatasetName) -> Iterator[bool]:
    """Waits until no other process converts this data set. Gives False where the file system has no locks."""
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{dataset.name}.lock").open("w") as file:
        yield _lock(file, fcntl.LOCK_EX)


def _remove_outdated(dataset: DatasetName, flat: Path, folder: str) -> None:
    """Remove conversions of the same source folder's earlier content, except those that a process is using."""
    for old in flat.parent.glob(f"{dataset.name}-*"):
        if old == flat or not re.fullmatch("[0-9a-f]{12}", old.name.removeprefix(f"{dataset.name}-")):
            continue
        try:
            meta_file = (old / "meta.json").open("r+")
        except (FileNotFoundError, PermissionError):  # another process's, or another user's
            continue
        with meta_file:
            try:
                is_outdated = json.load(meta_file).get("folder") == folder
            except ValueError:
                continue  # damaged: `load_task` says so where somebody needs it
            if is_outdated and _lock(meta_file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(old)


def _lock(file: IO[str], operation: int) -> bool:
    """Lock a file until it is closed; False where another process holds it or the file system has no locks."""
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _write_arrays(dataset: DatasetName, files: list[Path], folder: Path) -> dict[str, str]:
    """Write the flat arrays, holding one source file in memory at a time; return the content hash of each task."""
    from datasets.ogbench_env import goal_positions

    finals = []
    for file in files:
        with _Source(file, dataset) as source:
            finals.append(source.flags("terminals"))
    num_rows = sum(map(len, finals))
    layout = {
        "obs": (np.float32, (obs_dim(dataset.domain),)),
        "action": (np.float32, (ACTION_DIM,)),
        "final": (np.bool_, ()),
    }
    for task_id in TASK_IDS:
        layout |= {f"task{task_id}-reward": (np.float32, ()), f"task{task_id}-terminated": (np.bool_, ())}
    goals = goal_positions(dataset.domain)
    with ExitStack() as stack:
        writers = {
            key: stack.enter_context(_ArrayWriter(folder / f"{key}.npy", dtype, (num_rows, *columns)))
            for key, (dtype, columns) in layout.items()
        }
        for file, final in zip(files, finals, strict=True):
            with _Source(file, dataset) as source:
                writers["obs"].append(source.numbers("observations", (len(final), obs_dim(dataset.domain))))
                action = source.numbers("actions", (len(final), ACTION_DIM))
                writers["action"].append(action.clip(-ACTION_LIMIT, ACTION_LIMIT))
                writers["final"].append(final)
                qpos = source.numbers("qpos", (len(final), qpos_dim(dataset.domain)))
            for start in range(0, len(qpos), _RELABELLED_ROWS):
                for task_id in TASK_IDS:
                    reward, terminated = relabel(qpos[start : start + _RELABELLED_ROWS], goals[task_id])
                    writers[f"task{task_id}-reward"].append(reward)
                    writers[f"task{task_id}-terminated"].append(terminated)
    hashes = {key: writer.digest.hexdigest() for key, writer in writers.items()}
    shared = hashes["obs"] + hashes["action"] + hashes["final"]
    return {
        task: hashlib.sha256((shared + hashes[f"{task}-reward"] + hashes[f"{task}-terminated"]).encode()).hexdigest()
        for task in (f"task{task_id}" for task_id in TASK_IDS)
    }


def _file_sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class _ArrayWriter:
    """Writes one `.npy` file piece by piece and hashes dtype, shape and bytes on the way."""

    def __init__(self, file: Path, dtype: type, shape: tuple[int, ...]) -> None:
        self.dtype = np.dtype(dtype)
        self.handle = file.open("wb")
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.handle, header)
        self.digest = hashlib.sha256(f"{self.dtype.str} {shape}".encode())

    def append(self, rows: np.ndarray) -> None:
        data = np.ascontiguousarray(rows, self.dtype).data
        self.handle.write(data)
        self.digest.update(data)

    def __enter__(self) -> "_ArrayWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.close()


class _Source:
    """An open source file; whatever is wrong in it becomes a DataError that names file and key."""

    def __init__(self, file: Path, dataset: DatasetName) -> None:
        self.file = file
        again = _command(dataset) if dataset.is_generated else _url(dataset)
        self.advice = f"delete the file and get it again: {again}"

    def __enter__(self) -> "_Source":
        try:
            self.arrays = np.load(self.file)
            self.keys = set(self.arrays.keys())
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.file} is not a whole npz file ({one_line(error)}); {self.advice}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self.arrays.close()

    def read(self, key: str) -> np.ndarray:
        if key not in self.keys:
            raise DataError(f"{self.file}: key '{key}' is missing, it has {', '.join(sorted(self.keys))}")
        try:
            return self.arrays[key]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.file}: key '{key}' is damaged ({one_line(error)}); {self.advice}") from error

    def flags(self, key: str) -> np.ndarray:
        """(R,) bool, the rows that end an episode."""
        array = self.read(key)
        if array.ndim != 1 or array.dtype.kind not in "bfiu" or not np.isin(array, (0, 1)).all():
            raise DataError(f"{self.file}: key '{key}' is {array.dtype} {array.shape}, expected a flag 0 or 1 per row")
        final = array.astype(bool)
        episode_ends(final, where=f"{self.file}: key '{key}'")
        return final

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


def one_line(error: Exception) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())
