"""The folder for data that are made, converted or fetched here, and how files in it are written and locked."""

import errno
import fcntl
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import h5py

ELSEWHERE = "O2O_BENCH_DATA=FOLDER puts the cache elsewhere"  # ends the line on a cache that cannot be written
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # file systems that have none, like some of clusters


def cache_root() -> Path:
    """`$O2O_BENCH_DATA` or `~/.cache/o2o-bench`."""
    return Path(os.environ.get("O2O_BENCH_DATA") or "~/.cache/o2o-bench").expanduser()


def lock(file: IO, operation: int) -> bool:
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


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Waits until no other process holds the lock of this path, a file of its own that stays.

    Gives False where the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        yield lock(file, fcntl.LOCK_EX)


@contextmanager
def hdf5_file(path: Path) -> "Iterator[h5py.File]":
    """A new HDF5 file, made in memory and then written: HDF5 itself crashes the process where a disk runs full."""
    import h5py

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        yield file
    path.write_bytes(content.getbuffer())


def file_sha256(file: Path) -> str:
    """Hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
