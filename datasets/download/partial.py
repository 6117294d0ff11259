"""The part of a file that has been downloaded: where it lies, what version it is part of, who may write to it."""

import errno
import fcntl
import hashlib
import json
import os
import socket
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from bench.runs.contract import one_line
from datasets.cache import lock

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Version:
    """One state of a file on a server; bytes of two of them are never put together."""

    url: str  # as it may be shown
    validator: str | None  # ETag, else Last-Modified; None: a cut download cannot be continued
    num_bytes: int | None  # None: the server does not tell
    sha256: str | None  # where the server tells it


def partial_path(target: Path) -> Path:
    """Where the part of `target` lies that has arrived."""
    return target.with_name(f".{target.name}.partial")


def note_path(partial: Path) -> Path:
    """What version the partial file is part of, beside it."""
    return partial.with_name(f"{partial.name}.json")


class Partial:
    """An open partial file, `.name.partial`, and the version that it is part of, `.name.partial.json`.

    Killed at any time, it leaves bytes of the version in the note, or none.
    """

    def __init__(self, path: Path, handle: IO[bytes]) -> None:
        self.path = path
        self.note = note_path(path)
        self._handle = handle
        self.version = self._read_note()
        self.offset = handle.seek(0, os.SEEK_END)  # bytes that are here
        self._sha256 = hashlib.sha256()
        self._hashed = 0  # bytes
        size = self.version.num_bytes if self.version else 0
        if self.version is None or (size is not None and self.offset > size):
            self.clear()

    def _read_note(self) -> Version | None:
        try:
            return Version(**json.loads(self.note.read_text()))
        except (FileNotFoundError, ValueError, TypeError):  # none, or torn by a kill: the file is begun anew
            return None

    @property
    def is_complete(self) -> bool:
        return self.version is not None and self.offset > 0 and self.version.num_bytes == self.offset

    def clear(self) -> None:
        """Forgets the bytes, then the version: in the other order a kill would leave bytes under a wrong one."""
        self._handle.truncate(0)
        self.offset = self._hashed = 0
        self._sha256 = hashlib.sha256()
        self.note.unlink(missing_ok=True)
        self.version = None

    def start(self, version: Version) -> None:
        """Begins anew, with the first byte of a version."""
        self.clear()
        self.note.write_text(json.dumps(asdict(version)))
        self.version = version

    def append(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        self._hash_unread()
        while left:
            written = self._handle.write(left)
            self._sha256.update(left[:written])
            self.offset += written
            self._hashed += written
            left = left[written:]

    def finish(self) -> None:
        """All has arrived: brings it to the disk and notes its size, which a server need not have told."""
        os.fsync(self._handle.fileno())
        assert self.version is not None
        if self.version.num_bytes is None:
            self.version = replace(self.version, num_bytes=self.offset)
            self.note.write_text(json.dumps(asdict(self.version)))

    def sha256(self) -> str:
        """Of all bytes that are here, hexadecimal."""
        self._hash_unread()
        return self._sha256.hexdigest()

    def _hash_unread(self) -> None:
        """Reads what an earlier process has left."""
        if self._hashed < self.offset:
            self._handle.seek(self._hashed)
            while chunk := self._handle.read(_CHUNK):
                self._sha256.update(chunk)
                self._hashed += len(chunk)

    def move(self, target: Path) -> None:
        """Gives the complete file its name, in one step."""
        self.path.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.note.unlink(missing_ok=True)


@contextmanager
def open_partial(target: Path, waiting_for: dict[Path, Path]) -> Iterator[Partial | None]:
    """The partial file of `target`, of which no other process or thread has hold; None where `target` is there.

    While another has hold of it, it stands in `waiting_for` under `target`. Where the file system has no locks, each
    process has a partial file of its own and removes it at the end.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    path = partial_path(target)
    is_shared = True
    while True:
        with path.open("a+b", buffering=0) as handle:
            if is_shared and not lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
                waiting_for[target] = path
                is_shared = lock(handle, fcntl.LOCK_EX)
                del waiting_for[target]
                if not is_shared:
                    with suppress(FileNotFoundError):
                        if not path.stat().st_size:
                            path.unlink()
                    path = target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}.partial")
                    continue
            if not _is_open_at(handle, path):  # who had hold of it has finished or given up
                continue
            try:
                if target.is_file():
                    handle.truncate(0)
                    yield None
                else:
                    yield Partial(path, handle)
            finally:
                if _is_open_at(handle, path) and not (is_shared and path.stat().st_size):
                    note_path(path).unlink(missing_ok=True)
                    path.unlink()
            return


def _is_open_at(handle: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def damage(file: Path, suffix: str) -> str | None:
    """What shows that a file with the format of `suffix` is not whole; None where nothing does."""
    if suffix == ".npz":
        try:
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
            return f"is not a whole npz file ({one_line(error)})"
        return f"is a damaged npz file (checksum of {broken} is wrong)" if broken else None
    if suffix in (".hdf5", ".h5"):
        import h5py

        try:
            with h5py.File(file, locking=False):
                return None
        except OSError as error:
            return f"is not a whole HDF5 file ({one_line(error)})"
    return None
