"""The columns of flat files, npz or HDF5: which arrays there are, what they mean, their rows block by block."""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from bench.runs.contract import one_line
from datasets.spec import DataError

KEYS = {  # what an array means: the keys it goes by; where a file has several of a line, the first counts
    "obs": ("observations", "observation", "obs", "states"),  # (N, O)
    "action": ("actions", "action"),  # (N, A), within [-1, 1]
    "reward": ("rewards", "reward"),  # (N,) or (N, 1), as all below but the last
    "terminated": ("terminals", "terminal", "terminations", "terminated", "dones", "done"),
    "truncated": ("timeouts", "timeout", "truncations", "truncated"),  # may be absent
    "next_obs": ("next_observations", "next_observation", "next_obs"),  # (N, O); may be absent
}
REQUIRED = ("obs", "action", "reward", "terminated")

_BLOCK_ROWS = 16_384
_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", b"PK"
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Column:
    """One array of an open file."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    stream: Callable[[], Iterator[np.ndarray]]  # its rows from the first to the last, a block at a time

    def blocks(self) -> Iterator[np.ndarray]:
        """(r, …) float32, finite. Raises DataError from the iterator, for other numbers and for damage."""
        start = 0
        stream = self.stream()
        while True:
            with _reading(self.file, self.key):
                array = next(stream, None)
            if array is None:
                return
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


class Content(NamedTuple):
    """What an open file holds."""

    file: Path
    is_hdf5: bool
    columns: dict[str, Column]
    groups: list[str]  # of an HDF5 file, down to the second level
    notes: dict[str, str]  # "origin" and "recipe" of a file written here

    def meanings(self) -> dict[str, Column]:
        """The columns by what they mean. Raises DataError where one is missing."""
        columns = {}
        for meaning, keys in KEYS.items():
            present = [key for key in keys if key in self.columns]
            if present:
                columns[meaning] = self.columns[present[0]]
            elif meaning in REQUIRED:
                raise DataError(
                    f"{self.file}: key '{keys[0]}' is missing, it has {', '.join(sorted(self.columns)) or 'none'}"
                )
        return columns


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
        raise DataError(f"{file} is neither an npz nor an HDF5 file, or not a whole one")


@contextmanager
def _reading(file: Path, key: str | None = None) -> Iterator[None]:
    """Whatever goes wrong inside becomes a DataError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"no data file {file}") from error
    except _DAMAGE as error:
        which = f"{file}: key '{key}'" if key else str(file)
        raise DataError(f"{which} cannot be read ({one_line(error)}); get the file again") from error


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
