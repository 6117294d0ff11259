"""Minari data sets (minari.farama.org) with actions in a Box, each of them a task: `minari:D4RL/door/human-v2`.

The environment is recovered from the data set, which must be there before its task can be told. Names in folders are
written with dots: `minari.D4RL.door.human-v2`.
"""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.minari.metadata import FILE, MAIN_FILE, Metadata, canonical_name, dataset_id, read_metadata, root
from datasets.spec import DataError, Dataset, Origin, RemoteFile, Rows, TaskSpec, one_line

if TYPE_CHECKING:
    import gymnasium

SUITE = "minari"
EXTRA = "minari"
NEEDS_OPENGL = True
TASKS: dict[str, TaskSpec] = {}  # any set that Minari can hold

_HUB = (  # known to be there with actions in a Box; any other set of Farama's or of the user's will do as well
    *(f"D4RL/{hand}/{kind}-v2" for hand in ("door", "hammer", "pen", "relocate") for kind in ("human", "cloned")),
    *(f"D4RL/{hand}/expert-v2" for hand in ("door", "hammer", "pen", "relocate")),
    *(f"D4RL/kitchen/{kind}-v2" for kind in ("complete", "partial", "mixed")),
    *(f"D4RL/pointmaze/{maze}{dense}-v2" for maze in ("open", "umaze", "medium", "large") for dense in ("", "-dense")),
    *(f"D4RL/antmaze/umaze{diverse}-v1" for diverse in ("", "-diverse")),
    *(f"D4RL/antmaze/{maze}-{kind}-v1" for maze in ("medium", "large") for kind in ("play", "diverse")),
    *(f"mujoco/{body}/{kind}-v0" for body in ("halfcheetah", "hopper", "walker2d") for kind in ("simple", "medium")),
    *(f"mujoco/{body}/expert-v0" for body in ("halfcheetah", "hopper", "walker2d")),
)
PUBLISHED = tuple(canonical_name(own) for own in _HUB)


def task(name: str) -> TaskSpec | None:
    """The task of a data set in Minari's folder; None where the name is not of the form `minari:…` or `minari.…`.

    Raises DataError for a set that is not there, with the commands that fetch it, and for one that is no task.
    """
    own = dataset_id(name)
    if own is None:
        return None
    metadata = _local(own)
    env, played = metadata.played_env, None
    if env is None:
        if "task" not in metadata.note:
            raise DataError(
                f"{metadata.where}: no environment is given (env_spec), so there is nothing to act in; "
                f"use its file with --data {metadata.folder / MAIN_FILE} on a task that fits"
            )
        from datasets.registry import task as task_of

        played = task_of(metadata.note["task"])  # exported from here: its environment is known, if not to gymnasium
    limit = played.max_episode_steps if played else (env or {}).get("max_episode_steps")
    if limit is None or limit < 1:
        from datasets.minari.files import longest_episode

        limit = longest_episode(metadata)
    return TaskSpec(
        name=canonical_name(own),
        suite=SUITE,
        domain=metadata.domain,
        task_id=1,
        obs_dim=metadata.obs_dim,
        action_dim=metadata.action_box.dim,
        max_episode_steps=int(limit),
        dataset=canonical_name(own),
        reference_returns=metadata.reference_returns or (played.reference_returns if played else None),
    )


def played_task(spec: TaskSpec) -> TaskSpec:
    """The task whose environment `spec` is played in: another one where its set was exported without gymnasium's."""
    own = dataset_id(spec.name)
    if own is None or (metadata := _local(own)).played_env is not None:
        return spec
    from datasets.registry import task as task_of

    return played_task(task_of(metadata.note["task"]))


def parse(name: str) -> Dataset | None:
    """The data set of a name of either form. Of one that is absent, the files that it most likely has."""
    own = dataset_id(name)
    if own is None:
        return None
    folder = root() / own / "data"
    metadata = read_metadata(folder)
    data = [folder / MAIN_FILE]
    if metadata is not None and metadata.data_format != "hdf5":
        data = sorted(folder.glob(f"*/*.{metadata.data_format}")) or [folder / "0" / f"part-0.{metadata.data_format}"]
    files = tuple(RemoteFile(file.relative_to(root()).as_posix()) for file in (folder / FILE, *data))
    domain = metadata.domain if metadata else canonical_name(own)
    return Dataset(canonical_name(own), SUITE, domain, files, (str(root()),))


def local_ids() -> list[str]:
    """Ids of all data sets in Minari's folder."""
    found = (file.parent.parent.relative_to(root()).as_posix() for file in root().glob(f"**/data/{FILE}"))
    return sorted(own for own in found if not own.startswith(".") and "/." not in own)


def get(name: str) -> Path:
    """Fetches a data set from Farama's hub (or `$MINARI_REMOTE`) with Minari's downloader, which names its progress.

    Returns its folder, at once where it is there; continues a download that was cut. Raises DataError where the set
    does not exist, the hub cannot be reached, or a package is missing.
    """
    own = dataset_id(name)
    if own is None:
        raise DataError(f"'{name}' is no Minari data set; names are like minari:D4RL/door/human-v2")
    folder = root() / own / "data"
    if _is_whole(folder):
        return folder
    try:
        import minari
        from huggingface_hub.utils import logging
    except ImportError as error:
        raise DataError(
            f"cannot get '{own}': {error.name} is not installed; install it: make setup EXTRAS={EXTRA} "
            f"(or pip install -r requirements-{EXTRA}.lock)"
        ) from error
    logging.set_verbosity_error()  # one line at the end says as much as those of every retry
    try:
        with redirect_stdout(sys.stderr):
            # Without force it skips a folder that exists, however little of the set is in it.
            minari.download_dataset(own, force_download=folder.parent.exists())
    except Exception as error:  # whatever the hub's client and the network raise; the user can act on all of it
        raise DataError(f"cannot get Minari data set '{own}': {type(error).__name__}: {one_line(error)}") from error
    if not _is_whole(folder):
        raise DataError(f"Minari's download of '{own}' has left no whole data set in {folder}; try again")
    return folder


def origin(dataset: Dataset, files: list[Path]) -> Origin:
    """What an export from here has noted, else "published" for sets of Farama's hub, else "user"."""
    metadata = read_metadata(files[0].parent)
    if metadata is not None:
        return metadata.origin
    from datasets.minari.files import note_of

    return note_of(files[0]).get("origin", "user")


def read(dataset: Dataset, files: list[Path], tasks: list[TaskSpec]) -> Rows:
    """The rows of a data set in Minari's folder, or of one main_data.hdf5 that lies anywhere."""
    return read_file(files[0], tasks)


def read_file(file: Path, tasks: list[TaskSpec]) -> Rows:
    """The rows of a set, given metadata.json or main_data.hdf5 of it; spaces come from the former where it is there.

    Without it, actions have the bounds of the task where that is one of Minari's, else -1 and 1. Rewards are the same
    for all tasks. Raises DataError for data that do not fit the tasks, also later on from the iterator.
    """
    from datasets.minari.files import read

    metadata = bounds = read_metadata(file.parent)
    if metadata is None and (own := dataset_id(tasks[0].name)):
        bounds = _local(own)
    return read(file, metadata, bounds.action_box if bounds else None, tasks)


def make_env(spec: TaskSpec, success_timing: str) -> "gymnasium.Env":
    from datasets.minari.env import recovered_env

    own = dataset_id(spec.name)
    assert own is not None, spec.name
    return recovered_env(spec, _local(own))


def kinds(domain: str) -> dict[str, bool]:
    return {}


def _local(own: str) -> Metadata:
    folder = root() / own / "data"
    metadata = read_metadata(folder)
    if metadata is None:
        raise DataError(
            f"Minari data set '{own}' is not in {root()}; get it: python -m bench data get --task minari:{own} "
            f"(or minari download {own})"
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
