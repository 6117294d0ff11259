"""The folder for data that are made, converted or fetched here, and how files in it are written and locked."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

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
def exclusive(name: str) -> Iterator[bool]:
    """Waits until no other process holds the lock of this name. Gives False where the file system has no locks."""
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        yield lock(file, fcntl.LOCK_EX)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to; it replaces `file` at the end, or vanishes where an exception passes."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def file_sha256(file: Path) -> str:
    """Hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
