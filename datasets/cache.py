"""The folder for data that are made, converted or fetched here, and how files in it are written and locked."""

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    import h5py

ELSEWHERE = "O2O_BENCH_DATA=FOLDER puts the cache elsewhere"  # ends the line on a cache that cannot be written
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # file systems that have none, like some of clusters


def cache_root() -> Path:
    """`$O2O_BENCH_DATA` or `~/.cache/o2o-bench`."""
    return Path(os.environ.get("O2O_BENCH_DATA") or "~/.cache/o2o-bench").expanduser()


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Waits until no other process or thread holds the lock of this path, a file that is made if absent and stays.

    Its holder may write to it, move and delete it. Gives False where the file system has no locks. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()  # filelock itself would wait for ever where some file systems refuse
    held: list[int] = []  # descriptors
    # The fallback, a file that exists while the lock is held, would stay where a process is killed. Many jobs may wait
    # for one of them to convert a set: not all of them ask twenty times a second.
    lock = FileLock(path, fallback_to_soft=False, on_acquired=held.append, poll_interval=0.2)
    try:
        lock.acquire()
        while not _is_file_at(held[-1], path):  # its last holder has moved it away
            lock.release()
            lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


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
