"""The columns of flat files, npz or HDF5: which arrays there are, what they mean, their rows block by block."""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from datasets.spec import DataError
from datasets.unreadable import in_place_of_array, why_unreadable

KEYS = {  # what an array means: the keys it goes by
    "obs": ("observations", "observation", "obs", "states", "state"),  # (N, O)
    "action": ("actions", "action"),  # (N, A), within [-1, 1]
    "reward": ("rewards", "reward"),  # (N,) or (N, 1), as all below but where it says otherwise
    "next_obs": (  # (N, O)
        *("next_observations", "next_observation", "next_obs", "new_obs", "next_states", "next_state"),
    ),
    # Flags. What tells ends is read by `ends`.
    "terminated": (  # 1: the task ends; beside masks as done
        *("terminals", "terminal", "terminations", "terminated", "terminateds"),
    ),
    "done": ("dones", "done", "dones_float", "episode_terminals"),  # 1: an episode ends, for whatever reason
    "truncated": ("timeouts", "timeout", "truncations", "truncated", "truncateds"),  # 1: the time limit came
    "mask": ("masks", "mask", "not_dones", "not_done"),  # 0: the task ends
    "valid": ("valids", "valid"),  # 0: no transition, only the observation that an episode ends in
    "start": ("episode_starts", "episode_start", "is_first"),  # 1: the first row of an episode
    # Whole numbers.
    "length": (  # (E,) rows
        *("traj_lengths", "traj_length", "traj_lens", "trajectory_lengths", "path_lengths", "lengths"),
        *("episode_lengths", "episode_length", "ep_lengths", "ep_lens"),
    ),
    "end": ("episode_ends", "traj_ends", "trajectory_ends"),  # (E,) rows up to and including each episode
    "index": (  # (N,) the same within an episode, another in every other one
        *("episode_index", "episode_id", "episode_ids", "episode_idx", "traj_index", "traj_id", "traj_ids", "traj_idx"),
        *("trajectory_id", "trajectory_ids", "trajectory_index", "ep_id", "eps_id", "path_id", "rollout_id"),
    ),
}
REQUIRED = ("obs", "action", "reward")  # and one of:
TELLING_TASK_ENDS = ("terminated", "done", "mask")
FLAGS = ("terminated", "done", "truncated", "mask", "valid", "start")
PER_EPISODE = ("length", "end")
READ_ONCE = ("obs", "action", "reward", "next_obs")  # of several spellings the first counts

SAVE_FLAT = (
    "save its arrays as a flat npz file: np.savez(FILE, observations=…, actions=…, rewards=…, terminals=…, timeouts=…)"
)
_BLOCK_ROWS = 16_384
_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", b"PK"
_OTHERS = {  # how files of other formats begin
    b"\x93NUMPY": "is a single array or object in NumPy's npy format",
    b"\x80": "is a pickle, which may run any code and is never loaded",
    b"PAR1": "is a Parquet file",
    b"ARROW1": "is an Arrow file",
    b"\x1f\x8b": "is compressed with gzip",
}
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Column:
    """One array of an open file."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    stream: Callable[[], Iterator[np.ndarray]]  # its rows from the first to the last, a block at a time

    def _arrays(self) -> Iterator[np.ndarray]:
        """The rows as the file has them. Raises DataError from the iterator, for damage."""
        stream = self.stream()
        while True:
            with _reading(self.file, self.key):
                array = next(stream, None)
            if array is None:
                return
            yield array

    def blocks(self) -> Iterator[np.ndarray]:
        """(r, …) float32, finite. Raises DataError from the iterator, for other numbers and for damage."""
        start = 0
        for array in self._arrays():
            with np.errstate(over="ignore"):  # what is too large for single precision counts as infinite
                array = array.astype(np.float32, copy=False)
            finite = np.isfinite(array).reshape(len(array), -1).all(1)
            if not finite.all():
                raise DataError(f"{self.file}: key '{self.key}' is not finite in row {start + int(finite.argmin())}")
            yield array
            start += len(array)

    def scalars(self) -> np.ndarray:
        """(N,) float32, finite. Raises DataError as `blocks` does."""
        return np.concatenate(list(self.blocks())).reshape(-1)

    def flags(self) -> np.ndarray:
        """(N,) bool. Raises DataError for other numbers than 0 and 1."""
        numbers = self.scalars()
        wrong = (numbers != 0) & (numbers != 1)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(f"{self.file}: key '{self.key}' is {numbers[row]:g} in row {row}, expected a flag 0 or 1")
        return numbers.astype(bool)

    def integers(self) -> np.ndarray:
        """(M,) int64. Raises DataError for other numbers."""
        blocks = []
        for array in self._arrays():
            with np.errstate(invalid="ignore"):  # what is not finite is no whole number
                numbers = array.astype(np.int64)
            if (numbers != array).any():
                raise DataError(f"{self.file}: key '{self.key}' has {array[numbers != array][0]}, no whole number")
            blocks.append(numbers.reshape(-1))
        return np.concatenate(blocks)


class Content(NamedTuple):
    """What an open file holds."""

    file: Path
    is_hdf5: bool
    columns: dict[str, Column]
    groups: list[str]  # of an HDF5 file, down to the second level
    notes: dict[str, str]  # "origin" and "recipe" of a file written here

    def spelled(self, meaning: str) -> list[Column]:
        """The columns of a meaning."""
        return [self.columns[key] for key in KEYS[meaning] if key in self.columns]

    def key(self, meaning: str) -> str:
        """The first key of a meaning that the file has."""
        return self.spelled(meaning)[0].key

    def column(self, meaning: str) -> Column:
        """The first column of a meaning. Raises DataError where there is none."""
        found = self.spelled(meaning)
        if not found:
            self.check_no_group(meaning)
            raise DataError(f"{self.file}: key '{KEYS[meaning][0]}' is missing, it has {self._keys()}")
        return found[0]

    def without_ends(self) -> str:
        """What to say of a file of which no key tells where the task ends."""
        line = f"{self.file}: no key for terminals among its keys {self._keys()}"
        kept = [key for meaning in ("truncated", "valid", "start", "length", "end", "index") for key in KEYS[meaning]]
        other = [key for key in kept if key in self.columns]
        if not other:
            return line
        return (
            f"{line}; '{other[0]}' tells where episodes end, which may be ends of the task or time limits: add "
            "'terminals' (1 where the task ends, else 0), or 'masks' (0 there, else 1)"
        )

    def check_no_group(self, meaning: str) -> None:
        """Raises DataError where a key of the meaning is a group of an HDF5 file in place of an array."""
        for key in KEYS[meaning]:
            if key in self.groups:
                members = (name.partition("/")[2] for name in self.groups if name.startswith(f"{key}/"))
                where = f"{self.file}: '{key}'"
                raise DataError(f"{in_place_of_array(where, members)} with a row per step")

    def _keys(self) -> str:
        return ", ".join(sorted({*self.columns, *(name.split("/")[0] for name in self.groups)})) or "none"


@contextmanager
def open_file(file: Path) -> Iterator[Content]:
    """An npz or HDF5 file, told by its first bytes. Raises DataError for others, and for one that cannot be read."""
    with _reading(file), file.open("rb") as handle:
        magic = handle.read(len(_HDF5))
    if magic == _HDF5:
        import h5py

        with _reading(file):
            root = h5py.File(file, "r")
        with root:
            with _reading(file):
                content = _hdf5_content(file, root)
            yield content
    elif magic.startswith(_ZIP):
        with _reading(file):
            archive = zipfile.ZipFile(file)
        with archive:
            with _reading(file):
                content = _npz_content(file, archive)
            yield content
    else:
        for start, what in _OTHERS.items():
            if magic.startswith(start):
                raise DataError(f"{file} {what}; {SAVE_FLAT}")
        if not magic:
            raise DataError(f"{file} is empty; {SAVE_FLAT}")
        raise DataError(f"{file} is neither an npz nor an HDF5 file, or not a whole one")


@contextmanager
def _reading(file: Path, key: str | None = None) -> Iterator[None]:
    """Whatever goes wrong inside becomes a DataError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"no data file {file}") from error
    except _DAMAGE as error:
        what = f"key '{key}'" if key else ""
        raise DataError(why_unreadable(file, error, "get the file again", what=what)) from error


def _hdf5_content(file: Path, root: Any) -> Content:
    import h5py

    columns, groups = {}, []
    for key in map(str, root):  # h5py has bytes for a name that is damaged
        item = root.get(key)
        if isinstance(item, h5py.Dataset):
            columns[key] = Column(file, key, item.shape or (), item.dtype, lambda item=item: _hdf5_blocks(item))
        elif isinstance(item, h5py.Group):
            groups += [key, *(f"{key}/{name}" for name in item)]
        else:
            raise ValueError(f"'{key}' cannot be opened")
    notes = {key: str(root.attrs[key]) for key in ("origin", "recipe") if key in root.attrs}
    return Content(file, True, columns, groups, notes)


def _hdf5_blocks(item: Any) -> Iterator[np.ndarray]:
    for start in range(0, len(item), _BLOCK_ROWS):
        yield item[start : start + _BLOCK_ROWS]


def _npz_content(file: Path, archive: zipfile.ZipFile) -> Content:
    columns, notes = {}, {}
    for member in archive.namelist():
        if not member.endswith(".npy"):
            raise ValueError(f"'{member}' in it is no NumPy array, so it is a zip file of another kind than npz")
        key = member.removesuffix(".npy")
        with archive.open(member) as handle:
            shape, is_fortran, dtype = _npy_header(handle)
            if key in ("origin", "recipe") and shape == () and dtype.kind == "U":
                notes[key] = str(np.frombuffer(handle.read(dtype.itemsize), dtype)[0])
                continue
        stream = lambda member=member, is_fortran=is_fortran: _npz_blocks(archive, member, is_fortran)  # noqa: E731
        columns[key] = Column(file, key, shape, dtype, stream)
    return Content(file, False, columns, [], notes)


def _npy_header(handle: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(handle)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(handle)
    return np.lib.format.read_array_header_2_0(handle)


def _npz_blocks(archive: zipfile.ZipFile, member: str, is_fortran: bool) -> Iterator[np.ndarray]:
    with archive.open(member) as handle:
        if is_fortran:  # rows do not lie together
            array = np.lib.format.read_array(handle, allow_pickle=False)
            yield from (array[start : start + _BLOCK_ROWS] for start in range(0, len(array), _BLOCK_ROWS))
            return
        (num_rows, *columns), _, dtype = _npy_header(handle)
        row_bytes = dtype.itemsize * int(np.prod(columns))
        for start in range(0, num_rows, _BLOCK_ROWS):
            length = min(_BLOCK_ROWS, num_rows - start)
            data = handle.read(length * row_bytes)
            if len(data) < length * row_bytes:
                raise EOFError(f"it ends after {start + len(data) // row_bytes} of {num_rows} rows")
            yield np.frombuffer(data, dtype).reshape(length, *columns)
        handle.read(1)  # past the last row, where its checksum is compared
