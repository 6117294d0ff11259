"""Reads the files of Minari data sets, HDF5 and Arrow, into rows.

An episode of T transitions holds T + 1 observations. `terminations` end the task but not the episode, which a set made
of OGBench's data relies on; `truncations` end an episode also where the file goes on with the same one.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.runs.contract import error_line, one_line
from datasets.minari.metadata import FILE, MAIN_FILE, NOTE, ActionBox, Metadata, Space, checked_note, flat_dim, flatten
from datasets.minari.tasks import SUITE
from datasets.scale import ActionScale
from datasets.source import Block, Rows
from datasets.spec import DataError, Dataset, TaskSpec
from datasets.transitions import row_form
from datasets.unreadable import in_place_of_array, why_unreadable

if TYPE_CHECKING:
    import h5py

_BLOCK_ROWS = 65_536
_EPISODE = re.compile(r"episode_(\d+)")


class _Episode(NamedTuple):
    obs: Any  # T + 1 observations, arrays nested as the observation space is
    action: np.ndarray  # (T, …)
    reward: np.ndarray  # (T,)
    terminated: np.ndarray  # (T,)
    truncated: np.ndarray  # (T,)


def read(dataset: Dataset, file: Path, metadata: Metadata | None, box: ActionBox | None, tasks: list[TaskSpec]) -> Rows:
    """The rows of a data set, with the one reward that it has for each of `tasks` (see `source.read`).

    `box`: of the data's actions; None: they are in [-1, 1] already. Raises DataError for data that do not fit the
    tasks, also later on from the iterator.
    """
    if metadata and file == metadata.folder / FILE:
        file = data_path(metadata)
    note = metadata.note if metadata else note_of(file)
    for task in tasks:
        rewarded = note.get("domain", task.domain), note.get("task_id", task.task_id)
        if task.suite != SUITE and rewarded != (task.domain, task.task_id):
            raise DataError(f"{file} was exported from task {note['task']}; its rewards are not those of {task.name}")
    with _open(file, metadata) as episodes:
        if not episodes.names:
            raise DataError(f"{file} holds no episodes")
        space = metadata.obs_space if metadata else _hdf5_space(episodes, file)
        obs_dim = flat_dim(space, f"{file}: the observation space")
        for task in tasks:
            if obs_dim != task.obs_dim:
                raise DataError(f"{file}: observations are {obs_dim} numbers, task {task.name} has {task.obs_dim}")
            if box and box.dim != task.action_dim:
                raise DataError(f"{file}: actions are {box.dim} numbers, task {task.name} takes {task.action_dim}")
        num_rows = sum(_num_rows(file, name, episodes) for name in episodes.names)
    remedy = "the action space in metadata.json has other bounds"
    if box is None:
        remedy = "no metadata.json lies beside the file to tell the bounds; put it there, or scale actions to [-1, 1]"
    scale = ActionScale(dataset, file, refuses=not dataset.domain, remedy=remedy)
    warnings: list[str] = []
    return Rows(num_rows, _blocks(file, metadata, space, box, tasks, scale, warnings), warnings)


def data_path(metadata: Metadata) -> Path:
    """The file with a data set's transitions, or the folder of its files."""
    return metadata.folder / MAIN_FILE if metadata.data_format == "hdf5" else metadata.folder


def longest_episode(metadata: Metadata) -> int:
    """Transitions of a data set's longest episode. Raises DataError for a set that is empty or cannot be read."""
    with _open(data_path(metadata), metadata) as episodes:
        lengths = [episodes.length(name) for name in episodes.names]
    if not lengths:
        raise DataError(f"{metadata.folder} holds no episodes")
    return max(lengths)


def note_of(file: Path) -> Mapping[str, Any]:
    """What an export from here wrote into a main_data.hdf5; empty for others. Raises DataError for a damaged file."""
    with _open_hdf5(file) as episodes:
        text = episodes.handle.attrs.get(NOTE)
    if text is None:
        return {}
    try:
        return checked_note(json.loads(str(text)), str(file))
    except ValueError as error:
        raise DataError(f"{file}: attribute '{NOTE}' is not JSON ({one_line(error)})") from error


@contextmanager
def _open(file: Path, metadata: Metadata | None) -> Iterator["_Hdf5Episodes | _ArrowEpisodes"]:
    if metadata is None or metadata.data_format == "hdf5":
        with _open_hdf5(file) as episodes:
            yield episodes
    else:
        yield _ArrowEpisodes(metadata)


@contextmanager
def _open_hdf5(file: Path) -> Iterator["_Hdf5Episodes"]:
    import h5py

    try:
        handle = h5py.File(file, "r")
    except OSError as error:
        raise DataError(why_unreadable(file, error, "get it again", damage="is not a whole HDF5 file")) from error
    with handle:
        yield _Hdf5Episodes(file, handle)


def _num_rows(file: Path, name: str, episodes: "_Hdf5Episodes | _ArrowEpisodes") -> int:
    length, truncated = episodes.length(name), episodes.truncated(name)
    if length == 0:
        raise DataError(f"{file}: {name} has no transitions")
    if truncated.shape != (length,):
        raise DataError(f"{file}: {name}/truncations has shape {truncated.shape}, expected ({length},) as rewards have")
    return length + int(_ends(truncated).sum())


def _ends(truncated: np.ndarray) -> np.ndarray:
    """(T,) bool: the transitions after which rows of another episode follow."""
    ends = truncated.astype(bool)
    ends[-1] = True
    return ends


def _blocks(
    file: Path,
    metadata: Metadata | None,
    space: Space,
    box: ActionBox | None,
    tasks: list[TaskSpec],
    scale: ActionScale,
    warnings: list[str],
) -> Iterator[Block]:
    waiting: list[tuple[np.ndarray, ...]] = []
    with _open(file, metadata) as episodes:
        for name in episodes.names:
            episode = episodes.read(name, space)
            waiting.append(_rows(file, name, episode, space, box, tasks, scale))
            if sum(len(final) for _, _, final, _, _ in waiting) >= _BLOCK_ROWS:
                yield _block(waiting, tasks)
                waiting = []
    if waiting:
        yield _block(waiting, tasks)
    warnings += scale.lines()


def _block(episodes: list[tuple[np.ndarray, ...]], tasks: list[TaskSpec]) -> Block:
    obs, action, final, reward, terminated = (np.concatenate(parts) for parts in zip(*episodes, strict=True))
    return Block(obs, action, final, {task.name: reward for task in tasks}, {task.name: terminated for task in tasks})


def _rows(
    file: Path,
    name: str,
    episode: _Episode,
    space: Space,
    box: ActionBox | None,
    tasks: list[TaskSpec],
    scale: ActionScale,
) -> tuple[np.ndarray, ...]:
    """obs, action, final, reward and terminated of one episode, or of several that truncations part."""
    length = len(episode.reward)
    for key, array in (("rewards", episode.reward), ("terminations", episode.terminated)):
        if array.shape != (length,) or array.dtype.kind not in "biuf":
            raise DataError(f"{file}: {name}/{key} is {array.dtype} {array.shape}, expected ({length},) numbers")
    try:
        with np.errstate(over="ignore"):  # what is too large for single precision counts as infinite
            obs, reward = flatten(space, episode.obs, length + 1), episode.reward.astype(np.float32)
    except ValueError as error:
        raise DataError(f"{file}: {name}/observations: {error}") from error
    action_dim = tasks[0].action_dim
    if episode.action.size != length * action_dim or len(episode.action) != length:
        shape = episode.action.shape
        raise DataError(f"{file}: {name}/actions has shape {shape}, expected {length} x {action_dim} numbers")
    action = episode.action.reshape(length, action_dim)
    for key, array in (("observations", obs), ("actions", action), ("rewards", reward[:, None])):
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array).all(1))[0])
            raise DataError(f"{file}: {name}/{key} is not finite in row {row}")
    if box is not None:
        action = box.scaled(action)
    return row_form(
        obs[:-1],
        scale.clipped(action, f"{name}/actions"),
        reward,
        episode.terminated,
        next_obs=obs[1:],
        ends=_ends(episode.truncated),
    )


class _Hdf5Episodes:
    """One HDF5 file: a group `episode_<n>` each. Numbers may have gaps, as when episodes were taken out."""

    def __init__(self, file: Path, handle: "h5py.File") -> None:
        self.file, self.handle = file, handle
        numbered = [(int(match[1]), match[0]) for key in map(str, self.handle) if (match := _EPISODE.fullmatch(key))]
        self.names = [name for _, name in sorted(numbered)]

    def length(self, name: str) -> int:
        shape = self._member(f"{name}/rewards").shape
        return shape[0] if shape else 0

    def truncated(self, name: str) -> np.ndarray:
        return self._array(f"{name}/truncations")

    def read(self, name: str, space: Space) -> _Episode:
        action, reward, terminated = (self._array(f"{name}/{key}") for key in ("actions", "rewards", "terminations"))
        return _Episode(self._nested(f"{name}/observations", space), action, reward, terminated, self.truncated(name))

    def _nested(self, key: str, space: Space) -> Any:
        if space["type"] == "Dict":
            return {part: self._nested(f"{key}/{part}", inside) for part, inside in space["subspaces"].items()}
        if space["type"] == "Tuple":
            parts = enumerate(space["subspaces"])
            return tuple(self._nested(f"{key}/_index_{number}", inside) for number, inside in parts)
        return self._array(key)

    def _array(self, key: str) -> np.ndarray:
        try:
            return self._member(key)[()]
        except OSError as error:
            line = why_unreadable(self.file, error, "get the file again", what=key, damage="is damaged")
            raise DataError(line) from error

    def _member(self, key: str) -> Any:
        import h5py

        member = self.handle.get(key)
        if isinstance(member, h5py.Group):
            raise DataError(in_place_of_array(f"{self.file}: '{key}'", map(str, member)))
        if not isinstance(member, h5py.Dataset):
            raise DataError(f"{self.file}: '{key}' is missing")
        return member


def _hdf5_space(episodes: "_Hdf5Episodes | _ArrowEpisodes", file: Path) -> Space:
    """The observation space of a file without metadata: what its first episode looks like."""
    import h5py

    assert isinstance(episodes, _Hdf5Episodes)

    def space_of(member: Any) -> Space:
        if isinstance(member, h5py.Dataset):
            return {"type": "Box", "dtype": str(member.dtype), "shape": list(member.shape[1:])}
        parts = {key: space_of(inside) for key, inside in member.items()}
        if parts and all(re.fullmatch(r"_index_\d+", key) for key in parts):
            return {"type": "Tuple", "subspaces": [parts[f"_index_{number}"] for number in range(len(parts))]}
        return {"type": "Dict", "subspaces": parts}

    member = episodes.handle.get(f"{episodes.names[0]}/observations")
    if member is None:
        raise DataError(f"{file}: '{episodes.names[0]}/observations' is missing")
    return space_of(member)


class _ArrowEpisodes:
    """A folder `<n>` per episode with Arrow or Parquet files, which Minari itself reads."""

    def __init__(self, metadata: Metadata) -> None:
        self.where = metadata.where
        try:
            from minari import MinariDataset

            self.dataset = MinariDataset(metadata.folder)
        except ImportError as error:
            raise DataError(
                f"{metadata.where}: data are in the {metadata.data_format} format, which needs packages that are not "
                "installed; pip install 'minari[arrow]'"
            ) from error
        except (ValueError, KeyError) as error:
            raise DataError(f"{metadata.where}: {error_line(error)}") from error
        self.names = [str(number) for number in range(self.dataset.total_episodes)]

    def length(self, name: str) -> int:
        (facts,) = self._guarded(lambda: self.dataset.storage.get_episode_metadata([int(name)]))
        return int(facts["total_steps"])

    def truncated(self, name: str) -> np.ndarray:
        return self.read(name).truncated

    def read(self, name: str, space: Space | None = None) -> _Episode:
        (found,) = self._guarded(lambda: self.dataset.iterate_episodes([int(name)]))
        return _Episode(found.observations, found.actions, found.rewards, found.terminations, found.truncations)

    def _guarded(self, read: Callable[[], Iterable[Any]]) -> list[Any]:
        try:
            return list(read())
        except (OSError, ValueError, KeyError) as error:  # pyarrow's are of these
            raise DataError(
                f"{self.where}: an episode cannot be read ({one_line(error)}); get the set again"
            ) from error
