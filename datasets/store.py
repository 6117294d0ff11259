"""Where data lie, and their one conversion from any source's format to flat memory-mapped arrays.

A data set is named by the published scheme (`cube-double-play-v0`, `lift-mh-v15`), by the recipe that makes it again
(`cube-double-play-generated-1000ep-seed0`), or, a user's own file, by its hash. Source files are looked for in the
folder asked for, in those where other projects keep them, and in the cache.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from bench.runs.contract import one_line
from datasets.cache import ELSEWHERE, NO_LOCKS, cache_root, exclusive, file_sha256
from datasets.registry import DOWNLOADERS, TASKS, default_dataset, parse_name, reader_of
from datasets.registry import task as find_task
from datasets.scale import RewardScale
from datasets.spec import DataError, Dataset, TaskSpec
from datasets.transitions import Transitions, no_transitions

if TYPE_CHECKING:
    from datasets.download.fetch import ByteProgress

OFFLINE = "O2O_BENCH_OFFLINE"  # an environment variable: nothing is ever downloaded
FORMAT_VERSION = 4  # of the flat arrays and of how files are read: a change makes every set be converted anew


def generated_dir(name: str) -> Path:
    """The folder of a generated set in the cache."""
    return cache_root() / "generated" / name


def find(dataset: Dataset, data_dir: str | Path | None = None) -> list[Path]:
    """Source files of a data set, empty where it is absent. Raises DataError where some of its files are."""
    for folder in _folders(dataset, data_dir):
        whole = [file.name for file in dataset.files]
        bare = [Path(name).name for name in whole]
        # A bare name counts where it tells the data: that of robomimic's files is the same for all their sets.
        for names in (whole, bare) if all(name.startswith(dataset.domain) for name in bare) else (whole,):
            files = [folder / name for name in names]
            missing = [file for file in files if not file.is_file()]
            if not missing:
                return files
            if len(missing) < len(files):
                raise DataError(
                    f"{dataset.name}: {len(missing)} of its {len(files)} files are missing in {files[0].parent}, "
                    f"the first is {missing[0].name}; get it: python -m bench data get {dataset.name}"
                )
    return []


def get(
    name: str,
    data_dir: str | Path | None = None,
    workers: int = 4,
    progress: "ByteProgress | None" = None,
) -> list[Path]:
    """Files of a published data set, downloaded where they are absent: into `data_dir`, or where other projects keep
    them. A download that was cut goes on. Raises DataError where no server has them, and for a set not published.
    """
    dataset = parse_name(name)
    if dataset.recipe is not None:
        raise DataError(f"data set '{name}' is not published; make it: {command(dataset)}")
    folders = _folders(dataset, data_dir)
    with suppress(DataError):  # some of the files are missing: that is what follows
        if files := find(dataset, data_dir):
            return files
    from datasets.download.fetch import fetch

    if not can_download(dataset):
        raise DataError(_missing(dataset, data_dir))
    if own_downloader := DOWNLOADERS.get(dataset.suite):
        if data_dir is not None:
            raise DataError(
                f"{name} goes to Minari's own folder {folders[-1]}, not to {data_dir}; MINARI_DATASETS_PATH=FOLDER "
                "puts it elsewhere"
            )
        own_downloader(name)
        return find(parse_name(name))
    try:
        return fetch(dataset.name, dataset.files, folders[0], workers=workers, progress=progress)
    except DataError as error:
        raise DataError(f"{error}{_instead(dataset)}") from error


def can_download(dataset: Dataset) -> bool:
    """There is somewhere to get its files from, and that is not forbidden."""
    from datasets.download.fetch import MIRROR

    is_published = dataset.recipe is None and dataset.domain != ""
    has_address = any(file.urls for file in dataset.files) or dataset.suite in DOWNLOADERS or os.environ.get(MIRROR)
    return is_published and bool(has_address) and not _is_offline()


def _is_offline() -> bool:
    return os.environ.get(OFFLINE, "0") not in ("", "0")


def verify(name: str, data_dir: str | Path | None = None, record: bool = False) -> list[tuple[str, bool]]:
    """For each file of a data set a line on how it compares with its recorded checksum, and whether it differs.

    Raises DataError for a set that is absent and a file that cannot be read.
    """
    from datasets.download.checksums import verify

    dataset = parse_name(name)
    files = find(dataset, data_dir)
    if not files:
        raise DataError(_missing(dataset, data_dir))
    return verify(dataset.name, [file.name for file in dataset.files], files, record)


def describe(name: str, data_dir: str | Path | None = None) -> dict[str, Any]:
    """`name`, `origin`, `path` (file, or folder of shards), `bytes`, and `present` of a data set, without reading it.

    Raises DataError for a name outside the grammar and for files that cannot be opened.
    """
    dataset = parse_name(name)
    files = find(dataset, data_dir)
    facts = {"name": name, "bytes": sum(file.stat().st_size for file in files), "present": bool(files)}
    if files:
        origin = reader_of(dataset).origin(dataset, files)
    else:
        origin = "generated" if dataset.recipe else "published"
        files = [_folders(dataset, data_dir)[-1] / file.name for file in dataset.files]
    return {**facts, "origin": origin, "path": str(files[0] if len(files) == 1 else files[0].parent)}


def made_here() -> list[str]:
    """Names of the generated sets in the cache that are complete, and of the user's files it remembers."""
    generated = [folder.name for folder in (cache_root() / "generated").glob("*")]
    user = [file.stem for file in (cache_root() / "user").glob("*.json")]
    return sorted(name for name in (*generated, *user) if _is_here(name))


def _is_here(name: str) -> bool:
    try:
        return bool(find(parse_name(name)))
    except DataError:  # another folder in the cache, or a record that a kill has torn
        return False


def check_dataset(spec: TaskSpec, name: str) -> Dataset:
    """The data set of a name, here or not. Raises DataError where it is of another domain than the task."""
    dataset = parse_name(name)
    if dataset.domain not in ("", spec.domain):
        raise DataError(f"data set '{name}' is of {dataset.domain}, task {spec.name} needs data of {spec.domain}")
    return dataset


def load(
    task_name: str, dataset: str | None = None, data_dir: str | Path | None = None, *, quiet: bool = False
) -> Transitions:
    """Transitions of a task from `dataset`, or from the task's own data set, which is converted at its first use.

    Looks in `data_dir`, where given, before the usual places. Prints the data's warnings unless `quiet`. Raises
    DataError, which says what to do, for data that are missing, damaged or of another domain, and for a task without.
    """
    spec = find_task(task_name)
    return _load(spec, check_dataset(spec, dataset or default_dataset(task_name)), data_dir, quiet)


def no_data(task_name: str) -> Transitions:
    """What a run from scratch on a task has in place of `load`."""
    spec = find_task(task_name)
    return no_transitions(spec.obs_dim, spec.action_dim)


def _load(spec: TaskSpec, dataset: Dataset, data_dir: str | Path | None, quiet: bool) -> Transitions:
    files = find(dataset, data_dir)
    if not files:
        raise DataError(_missing(dataset, data_dir))
    flat = cache_root() / "flat" / f"{dataset.name}-{_source_key(files, _own_task(dataset, spec))}"
    if not flat.exists():
        _convert(dataset, spec, files, flat)
    try:
        try:
            return _mapped(flat, spec, dataset.name, quiet)
        except FileNotFoundError:  # another process has taken it for outdated and removed it meanwhile
            _convert(dataset, spec, files, flat)
            return _mapped(flat, spec, dataset.name, quiet)
    except (OSError, ValueError) as error:
        raise DataError(f"{flat} is damaged ({error}); delete it and it is made again from {files[0]}") from error


def _mapped(flat: Path, spec: TaskSpec, name: str, quiet: bool) -> Transitions:
    """A conversion, which no other process removes while it is in use."""
    with ExitStack() as on_error:
        in_use = on_error.enter_context((flat / "meta.json").open())
        _lock(in_use, fcntl.LOCK_SH)
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
        facts = {"origin": meta["origin"], "content_hash": meta["content_hash"][task]}
        data = Transitions(**arrays, **facts, name=name, warnings=tuple(meta["warnings"]))
        for line in () if quiet else data.warnings:
            print(f"warning: {line}", file=sys.stderr, flush=True)
        weakref.finalize(data, in_use.close)
        on_error.pop_all()
    return data


def _folders(dataset: Dataset, data_dir: str | Path | None) -> list[Path]:
    """Where to look, in order."""
    first_choice = [Path(data_dir).expanduser()] if data_dir is not None and dataset.domain else []
    if dataset.recipe is not None:
        return [*first_choice, generated_dir(dataset.name)]
    return [*first_choice, *(Path(folder).expanduser() for folder in dataset.folders)]


def command(dataset: Dataset) -> str:
    """The command that makes a generated set."""
    recipe = dataset.made_by
    task = f"{dataset.domain}-task{recipe.task_id}" if recipe.task_id else dataset.domain
    numbers = f"--episodes {recipe.episodes} --seed {recipe.seed}"
    return f"python -m bench data generate --task {task} --kind {recipe.kind} {numbers}"


def _missing(dataset: Dataset, data_dir: str | Path | None) -> str:
    looked_in = " and ".join(str(folder) for folder in _folders(dataset, data_dir))
    what = f"data set '{dataset.name}' is missing: no {dataset.files[0].name} in {looked_in}"
    if dataset.recipe is not None:
        return f"{what}; make it: {command(dataset)}"
    if not dataset.domain:
        return f"{what}; name it again: --data FILE"
    urls = dataset.files[0].urls
    where = f" (from {urls[0]})" if urls else ""
    offline = f" ({OFFLINE} is set, so nothing is downloaded)" if _is_offline() else ""
    return f"{what}; get it: python -m bench data get {dataset.name}{where}{_instead(dataset)}{offline}"


def _instead(dataset: Dataset) -> str:
    """What to do without a published set."""
    if dataset.substitute is None:
        return ", or use a file of yours with --data FILE"
    make = command(parse_name(dataset.substitute))
    return f", or make a substitute ({make}) and run with --dataset {dataset.substitute}"


def _own_task(dataset: Dataset, spec: TaskSpec) -> str:
    """The one task that a conversion is for, where data are of no domain; else "": it is for all of the domain's."""
    return "" if dataset.domain else spec.name


def _source_key(files: list[Path], task: str) -> str:
    """Short hash by which a changed source is recognised without reading it; of a user's file, by task as well."""
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = [FORMAT_VERSION, stats, *([task] if task else [])]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]


def _convert(dataset: Dataset, spec: TaskSpec, files: list[Path], flat: Path) -> None:
    """Write the folder `flat`, whole or not at all, and remove what killed and outdated conversions have left."""
    try:
        flat.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(cache_root() / "locks" / f"{dataset.name}.lock") as is_alone:
            if flat.exists():  # another process was faster
                return
            if is_alone:
                for left_over in flat.parent.glob(f".partial-{dataset.name}-*"):
                    shutil.rmtree(left_over)
            with tempfile.TemporaryDirectory(prefix=f".partial-{flat.name}-", dir=flat.parent) as partial:
                new = Path(partial) / "flat"
                new.mkdir()
                content_hash, warnings = _write_arrays(dataset, spec, files, new)
                meta = {
                    "format_version": FORMAT_VERSION,
                    "name": dataset.name,
                    "origin": reader_of(dataset).origin(dataset, files),
                    "content_hash": content_hash,
                    "warnings": warnings,
                    "folder": str(files[0].parent.resolve()),
                    "task": _own_task(dataset, spec),
                    "sources": [
                        {"file": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in files
                    ],
                }
                (new / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
                try:
                    new.rename(flat)
                except OSError:
                    if not flat.exists():  # else another process was faster, with the same result
                        raise
            if is_alone:
                _remove_outdated(dataset, flat, (meta["folder"], meta["task"]))
    except OSError as error:
        raise DataError(f"cannot write {flat}: {one_line(error)}; {ELSEWHERE}") from error


def _remove_outdated(dataset: Dataset, flat: Path, of: tuple[str, str]) -> None:
    """Remove conversions of the same source folder's earlier content, `of` (folder, task), except those in use."""
    for old in flat.parent.glob(f"{dataset.name}-*"):
        if old == flat or not re.fullmatch("[0-9a-f]{12}", old.name.removeprefix(f"{dataset.name}-")):
            continue
        try:
            meta_file = (old / "meta.json").open("r+")
        except (FileNotFoundError, PermissionError):  # another process's, or another user's
            continue
        with meta_file:
            try:
                meta = json.load(meta_file)
                is_outdated = (meta.get("folder"), meta.get("task", "")) == of
            except ValueError:
                continue  # damaged: `load` says so where somebody needs it
            if is_outdated and _lock(meta_file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(old)


def _lock(file: IO, operation: int) -> bool:
    """Lock a file until it is closed; False where others hold it or the file system has no locks.

    By hand, since what many processes use at once needs a shared lock, and filelock's files have none.
    """
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _write_arrays(
    dataset: Dataset, spec: TaskSpec, files: list[Path], folder: Path
) -> tuple[dict[str, str], list[str]]:
    """Write the flat arrays, block by block; return the content hash of each task that the data set is for, and what
    its reader warns of."""
    of_domain = [task for task in TASKS.values() if task.domain == dataset.domain] or [spec]
    tasks = list({task.task_id: task for task in of_domain}.values())  # of those with one reward, one
    rows = reader_of(dataset).read(dataset, files, tasks)
    rewards = [] if dataset.domain else [RewardScale(dataset, files[0], task) for task in tasks]
    layout = {
        "obs": (np.float32, (spec.obs_dim,)),
        "action": (np.float32, (spec.action_dim,)),
        "final": (np.bool_, ()),
    }
    for task in tasks:
        layout |= {f"task{task.task_id}-reward": (np.float32, ()), f"task{task.task_id}-terminated": (np.bool_, ())}
    with ExitStack() as stack:
        writers = {
            key: stack.enter_context(_ArrayWriter(folder / f"{key}.npy", dtype, (rows.num_rows, *columns)))
            for key, (dtype, columns) in layout.items()
        }
        for block in rows.blocks:
            writers["obs"].append(block.obs)
            writers["action"].append(block.action)
            writers["final"].append(block.final)
            for task in tasks:
                writers[f"task{task.task_id}-reward"].append(block.reward[task.name])
                writers[f"task{task.task_id}-terminated"].append(block.terminated[task.name])
            for scale, task in zip(rewards, tasks, strict=False):
                scale.add(block.reward[task.name][~block.final], block.terminated[task.name][~block.final])
    hashes = {key: writer.digest.hexdigest() for key, writer in writers.items()}
    shared = hashes["obs"] + hashes["action"] + hashes["final"]
    return {
        task: hashlib.sha256((shared + hashes[f"{task}-reward"] + hashes[f"{task}-terminated"]).encode()).hexdigest()
        for task in (f"task{task.task_id}" for task in tasks)
    }, [*rows.warnings, *(line for scale in rewards for line in scale.lines())]


class _ArrayWriter:
    """Writes one `.npy` file piece by piece and hashes dtype, shape and bytes on the way."""

    def __init__(self, file: Path, dtype: type, shape: tuple[int, ...]) -> None:
        self.dtype = np.dtype(dtype)
        self.rows_left, self.columns = shape[0], shape[1:]
        self.handle = file.open("wb")
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.handle, header)
        self.digest = hashlib.sha256(f"{self.dtype.str} {shape}".encode())

    def append(self, rows: np.ndarray) -> None:
        self.rows_left -= len(rows)
        assert rows.shape[1:] == self.columns and self.rows_left >= 0, f"{rows.shape} do not fit {self.columns}"
        data = np.ascontiguousarray(rows, self.dtype).data
        self.handle.write(data)
        self.digest.update(data)

    def __enter__(self) -> "_ArrayWriter":
        return self

    def __exit__(self, error: type | None, *_: object) -> None:
        self.handle.close()
        assert error or not self.rows_left, f"{self.rows_left} rows fewer than announced"
