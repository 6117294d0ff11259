"""What Minari offers, by `datasets.source.Source`, and its downloader. Imports no simulator before one is needed.

The environment is recovered from the data set, which must be there before its task can be told.
"""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from bench.runs.contract import one_line
from datasets.minari import files as minari_files
from datasets.minari.metadata import FILE, MAIN_FILE, Metadata, canonical_name, dataset_id, read_metadata, root
from datasets.minari.tasks import PUBLISHED, SUITE, TASKS, unsupported
from datasets.source import Rows
from datasets.spec import DataError, Dataset, Origin, RemoteFile, TaskSpec

if TYPE_CHECKING:
    import gymnasium

__all__ = [
    "EXTRA",
    "NEEDS_OPENGL",
    "PUBLISHED",
    "SUITE",
    "TASKS",
    "get",
    "kinds",
    "local_ids",
    "make_env",
    "origin",
    "parse",
    "read",
    "task",
    "unsupported",
]

EXTRA = "minari"
NEEDS_OPENGL = True


def task(name: str) -> TaskSpec | None:
    """The task of a data set in Minari's folder; None where the name is not of the form `minari:…` or `minari.…`.

    Raises DataError for a set that is not there, with the commands that fetch it, and for one that is no task.
    """
    set_id = dataset_id(name)
    if set_id is None:
        return None
    metadata = _local(set_id)
    obs_dim, action_dim = metadata.obs_dim, metadata.action_box.dim  # of spaces that agents can use
    env = metadata.played_env
    if env is None and "task" not in metadata.note:
        raise DataError(
            f"{metadata.where}: no environment is given (env_spec), so there is nothing to act in; "
            f"use its file with --data {metadata.folder / MAIN_FILE} on a task that fits"
        )
    limit = (metadata.note if env is None else env).get("max_episode_steps")
    if limit is None or limit < 1:
        limit = minari_files.longest_episode(metadata)
    return TaskSpec(
        name=canonical_name(set_id),
        suite=SUITE,
        domain=metadata.domain,
        task_id=1,
        obs_dim=obs_dim,
        action_dim=action_dim,
        max_episode_steps=int(limit),
        dataset=canonical_name(set_id),
        reference_returns=metadata.reference_returns,
        # Of a set exported from here whose environment is known, if not to gymnasium.
        played_in=metadata.note["task"] if env is None else None,
    )


def parse(name: str) -> Dataset | None:
    """The data set of a name of either form. Of one that is absent, the files that it most likely has.

    Raises DataError for what is no id of a data set and for metadata that cannot be read.
    """
    set_id = dataset_id(name)
    if set_id is None:
        return None
    folder = root() / set_id / "data"
    metadata = read_metadata(folder)
    data = [folder / MAIN_FILE]
    if metadata is not None and metadata.data_format != "hdf5":
        data = sorted(folder.glob(f"*/*.{metadata.data_format}")) or [folder / "0" / f"part-0.{metadata.data_format}"]
    files = tuple(RemoteFile(file.relative_to(root()).as_posix()) for file in (folder / FILE, *data))
    domain = metadata.domain if metadata else canonical_name(set_id)
    return Dataset(canonical_name(set_id), SUITE, domain, files, (str(root()),))


def local_ids() -> list[str]:
    """Ids of all data sets in Minari's folder."""
    set_ids = (file.parent.parent.relative_to(root()).as_posix() for file in root().glob(f"**/data/{FILE}"))
    return sorted(set_id for set_id in set_ids if not set_id.startswith(".") and "/." not in set_id)


def get(name: str) -> Path:
    """Fetches a data set from Farama's hub (or `$MINARI_REMOTE`) with Minari's downloader, which names its progress.

    Returns its folder, at once where it is there; continues a download that was cut. Raises DataError where the set
    does not exist, the hub cannot be reached, or a package is missing.
    """
    set_id = dataset_id(name)
    if set_id is None:
        raise DataError(f"'{name}' is no Minari data set; names are like minari:D4RL/door/human-v2")
    folder = root() / set_id / "data"
    if _is_whole(folder):
        return folder
    try:
        import minari
        from huggingface_hub.utils import logging
    except ImportError as error:
        raise DataError(
            f"cannot get '{set_id}': {error.name} is not installed; install it: make setup EXTRAS={EXTRA} "
            f"(or pip install -r requirements-{EXTRA}.lock)"
        ) from error
    logging.set_verbosity_error()  # one line at the end says as much as those of every retry
    try:
        with redirect_stdout(sys.stderr):
            # Without force it skips a folder that exists, however little of the set is in it.
            minari.download_dataset(set_id, force_download=folder.parent.exists())
    except Exception as error:  # whatever the hub's client and the network raise; the user can act on all of it
        raise DataError(f"cannot get Minari data set '{set_id}': {type(error).__name__}: {one_line(error)}") from error
    if not _is_whole(folder):
        raise DataError(f"Minari's download of '{set_id}' has left no whole data set in {folder}; try again")
    return folder


def origin(dataset: Dataset, files: list[Path]) -> Origin:
    """What an export from here has noted, else "published" for sets of Farama's hub, else "user".

    Raises DataError for files that cannot be read.
    """
    metadata = read_metadata(files[0].parent)
    if metadata is not None:
        return metadata.origin
    return minari_files.note_of(files[0]).get("origin", "user")


def read(dataset: Dataset, files: list[Path], tasks: list[TaskSpec]) -> Rows:
    """The rows of a data set in Minari's folder, or of one main_data.hdf5 that lies anywhere.

    Spaces come from the metadata.json beside it. Without it, actions have the bounds of the task where that is one of
    Minari's, else -1 and 1. Rewards are the same for all tasks. Raises DataError for data that do not fit the tasks,
    also later on from the iterator.
    """
    file = files[0]
    metadata = bounds = read_metadata(file.parent)
    if metadata is None and (set_id := dataset_id(tasks[0].name)):
        bounds = _local(set_id)
    return minari_files.read(dataset, file, metadata, bounds.action_box if bounds else None, tasks)


def make_env(spec: TaskSpec, success_timing: str) -> "gymnasium.Env":
    from datasets.minari.env import recovered_env

    set_id = dataset_id(spec.name)
    assert set_id is not None, spec.name
    return recovered_env(spec, _local(set_id))


def kinds(domain: str) -> dict[str, bool]:
    return {}


def _local(set_id: str) -> Metadata:
    folder = root() / set_id / "data"
    metadata = read_metadata(folder)
    if metadata is None:
        raise DataError(
            f"Minari data set '{set_id}' is not in {root()}; get it: python -m bench data get --task minari:{set_id} "
            f"(or minari download {set_id})"
        )
    return metadata


def _is_whole(folder: Path) -> bool:
    """A set's files are placed one by one, so metadata may be there without data."""
    metadata = read_metadata(folder)
    if metadata is None:
        return False
    if metadata.data_format == "hdf5":
        return (folder / MAIN_FILE).is_file()
    parts = {file.parent for file in folder.glob(f"*/*.{metadata.data_format}")}
    return len(parts) == metadata.fields.get("total_episodes")
