"""Data files that a user names, wherever they lie and in whichever of the known layouts.

A file gets the name `user-<stem>-<first ten digits of its SHA-256>`, so that a run's config tells what it was trained
on; options of reading it are part of the name and of the digits. The cache remembers where each one lies.
"""

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from bench.runs.contract import one_line, replacing
from datasets.cache import ELSEWHERE, cache_root, file_sha256
from datasets.flat_files import reading
from datasets.flat_files.columns import KEYS, REQUIRED, SAVE_FLAT, TELLING_TASK_ENDS, open_file
from datasets.source import Rows, Source
from datasets.spec import DataError, Dataset, FileOptions, Origin, RemoteFile, TaskSpec
from datasets.unreadable import why_unreadable

SUITE = "user"
AS_IT_IS = FileOptions()
Layout = Literal["ogbench", "robomimic", "minari", "flat"]


def register(file: Path, copy: bool = False, options: FileOptions = AS_IT_IS) -> str:
    """Name of a user's file, which is remembered, or copied into the cache. Raises DataError where it is unreadable."""
    file = file.expanduser()
    try:
        file.stat()
    except PermissionError as error:
        raise DataError(why_unreadable(file, error, "get the file again")) from error
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    if file.is_dir():
        what = "is a LeRobot data set" if (file / "meta" / "info.json").is_file() else "is a folder"
        raise DataError(f"{file} {what}, not a data file; {SAVE_FLAT}")
    if not file.is_file():
        raise DataError(f"no data file {file}; name an npz or HDF5 file")
    layout = layout_of(file)  # raises for a file of no known layout
    if options.filter_key is not None and layout != "robomimic":
        raise DataError(f"--filter-key is for files in robomimic's layout; {file} is {layout}")
    if layout == "minari" and copy:
        raise DataError(
            f"{file} belongs to a Minari data set, whose metadata.json beside it tells the bounds of actions; "
            "name it in place, without --copy"
        )
    digest = file_sha256(file)
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", "-".join(filter(None, (file.stem, options.label)))).strip("-") or "file"
    name = f"{SUITE}-{stem}-{_short_digest(digest, options)}"
    folder = _record(name).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if copy:
            duplicate = folder / f"{name}{file.suffix}"
            with replacing(duplicate) as partial:
                shutil.copyfile(file, partial)
            file = duplicate
        with replacing(_record(name)) as partial:
            record = {"path": str(file.resolve()), "sha256": digest, "options": asdict(options)}
            partial.write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"cannot write {folder}: {one_line(error)}; {ELSEWHERE}") from error
    return name


def layout_of(file: Path) -> Layout:
    """The layout that a file's keys tell. Raises DataError for a damaged file and for one of no known layout."""
    with open_file(file) as content:
        keys = set(content.columns)
        if content.is_hdf5 and any(name.startswith("data/demo_") for name in content.groups):
            return "robomimic"
        if content.is_hdf5 and any(name.startswith("episode_") for name in content.groups):
            return "minari"
        if not content.is_hdf5 and {"observations", "qpos"} <= keys and not keys.intersection(KEYS["reward"]):
            return "ogbench"
        for meaning in REQUIRED:
            if not keys.intersection(KEYS[meaning]):
                content.check_no_group(meaning)
        missing = [KEYS[meaning][0] for meaning in REQUIRED if not keys.intersection(KEYS[meaning])]
        if not any(keys.intersection(KEYS[meaning]) for meaning in TELLING_TASK_ENDS):
            missing.append("terminals")
        if not missing:
            return "flat"
        if missing == ["terminals"]:
            raise DataError(content.without_ends())
        present = ", ".join(sorted({*keys, *(name.split("/")[0] for name in content.groups)})) or "none"
        if any(keys.intersection(KEYS[meaning]) for meaning in REQUIRED):
            raise DataError(f"{file}: no key for {' and '.join(missing)} among its keys {present}")
        raise DataError(
            f"{file}: no known layout has its keys {present}; known are observations, actions, "
            "rewards, terminals (flat npz or HDF5), observations and qpos (OGBench npz), data/demo_0 (robomimic HDF5) "
            "and episode_0 (Minari HDF5)"
        )


class UserFiles:
    """The reader of files that users name: leaves each to the source of its layout.

    Args:
        sources: those of layouts that are not flat.
        may_share_rewards: False where the task of a name is known to have other rewards than a task.
    """

    SUITE = SUITE

    def __init__(self, sources: Iterable[Source], may_share_rewards: Callable[[str, TaskSpec], bool]) -> None:
        self._sources = {source.SUITE: source for source in sources}
        self._may_share_rewards = may_share_rewards

    def parse(self, name: str) -> Dataset | None:
        """A user's file that this machine has seen. Raises DataError for one that it has not."""
        if not name.startswith(f"{SUITE}-"):
            return None
        try:
            record = json.loads(_record(name).read_text())
            path = Path(record["path"])
            options = FileOptions(**record.get("options", {}))  # files named by earlier versions have none
        except (OSError, ValueError, KeyError, TypeError):  # none, or torn by a kill
            raise DataError(
                f"data set '{name}' is a user's file that is not known here; name it again: "
                f"--data FILE, or python -m bench data import FILE"
            ) from None
        file, folder = RemoteFile(path.name), str(path.parent)
        return Dataset(name, SUITE, domain="", files=(file,), folders=(folder,), options=options)

    def origin(self, dataset: Dataset, files: list[Path]) -> Origin:
        """ "generated" where a file says so, else "user": nothing is known of it. Raises DataError for a bad file."""
        (file,) = files
        layout = layout_of(file)
        origin = reading.origin if layout == "flat" else self._sources[layout].origin
        return "generated" if origin(dataset, files) == "generated" else "user"

    def read(self, dataset: Dataset, files: list[Path], tasks: list[TaskSpec]) -> Rows:
        """Rows of a file in the layout of any source, as far as it fits the tasks. Raises DataError where it does not,
        also later on from the iterator."""
        (file,) = files
        if not dataset.name.endswith(_short_digest(file_sha256(file), dataset.options)):
            raise DataError(f"{file} has changed since it was named '{dataset.name}'; name it again: --data {file}")
        layout = layout_of(file)
        if layout in ("ogbench", "robomimic") and tasks[0].suite != layout:
            raise DataError(f"{file} holds data of {layout}, task {tasks[0].name} is of {tasks[0].suite}")
        if layout != "flat":
            return self._sources[layout].read(dataset, files, tasks)
        name = reading.rewarded_task(file)
        for task in tasks:
            if name is not None and not self._may_share_rewards(name, task):
                raise DataError(f"{file} was exported from task {name}; its rewards are not those of {task.name}")
        # A sparse demonstration that comes to rest looks like d4rl-pybullet's layout; PyBullet's rewards are dense.
        on_arrival = tasks[0].suite == "bullet" and reading.is_told_on_arrival(file)
        return reading.read(dataset, files, tasks, on_arrival=on_arrival)


def _short_digest(sha256: str, options: FileOptions) -> str:
    """Ten digits of a file's own digest, or of it and of how the file is to be read."""
    if options == AS_IT_IS:
        return sha256[:10]
    return hashlib.sha256(f"{sha256} {json.dumps(asdict(options))}".encode()).hexdigest()[:10]


def _record(name: str) -> Path:
    return cache_root() / "user" / f"{name}.json"
