"""Data files that a user names, wherever they lie and in whichever of the known layouts.

A file gets the name `user-<stem>-<first ten digits of its SHA-256>`, so that a run's config tells what it was trained
on. The cache remembers where each one lies.
"""

import json
import re
import shutil
from pathlib import Path

from datasets.cache import ELSEWHERE, cache_root, file_sha256, replacing
from datasets.spec import DataError, Dataset, Origin, RemoteFile, Rows, TaskSpec, one_line

SUITE = "user"


def register(file: Path, copy: bool = False) -> str:
    """Name of a user's file, which is remembered, or copied into the cache. Raises DataError where it is unreadable."""
    from datasets.user_files.flat_files import layout

    file = file.expanduser()
    if not file.is_file():
        raise DataError(f"no data file {file}; name an npz or HDF5 file")
    if layout(file) == "minari" and copy:  # raises for a file of no known layout
        raise DataError(
            f"{file} belongs to a Minari data set, whose metadata.json beside it tells the bounds of actions; "
            "name it in place, without --copy"
        )
    digest = file_sha256(file)
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", file.stem).strip("-") or "file"
    name = f"{SUITE}-{stem}-{digest[:10]}"
    folder = _record(name).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if copy:
            kept = folder / f"{name}{file.suffix}"
            with replacing(kept) as partial:
                shutil.copyfile(file, partial)
            file = kept
        with replacing(_record(name)) as partial:
            partial.write_text(json.dumps({"path": str(file.resolve()), "sha256": digest}, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"cannot write {folder}: {one_line(error)}; {ELSEWHERE}") from error
    return name


def parse(name: str) -> Dataset | None:
    """A user's file that this machine has seen. Raises DataError for one that it has not."""
    if not name.startswith(f"{SUITE}-"):
        return None
    try:
        path = Path(json.loads(_record(name).read_text())["path"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or torn by a kill
        raise DataError(
            f"data set '{name}' is a user's file that is not known here; name it again: "
            f"--data FILE, or python -m bench data import FILE"
        ) from None
    return Dataset(name, SUITE, domain="", files=(RemoteFile(path.name),), folders=(str(path.parent),))


def origin(dataset: Dataset, files: list[Path]) -> Origin:
    """ "generated" where a file says so, else "user": nothing is known of it."""
    (file,) = files
    return "generated" if _reader(file).origin(dataset, files) == "generated" else "user"


def read(dataset: Dataset, files: list[Path], tasks: list[TaskSpec]) -> Rows:
    """Rows of a file in the layout of any source, as far as it fits the tasks."""
    from datasets.user_files import flat_files

    (file,) = files
    if not dataset.name.endswith(file_sha256(file)[:10]):
        raise DataError(f"{file} has changed since it was named '{dataset.name}'; name it again: --data {file}")
    kind = flat_files.layout(file)
    if kind in ("ogbench", "robomimic") and tasks[0].suite != kind:
        raise DataError(f"{file} holds data of {kind}, task {tasks[0].name} is of {tasks[0].suite}")
    return _reader(file).read(dataset, files, tasks)


def _reader(file: Path):
    from datasets import registry as sources
    from datasets.user_files import flat_files

    kind = flat_files.layout(file)
    return flat_files if kind == "flat" else next(source for source in sources.SOURCES if kind == source.SUITE)


def _record(name: str) -> Path:
    return cache_root() / "user" / f"{name}.json"
