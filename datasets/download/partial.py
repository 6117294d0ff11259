"""The part of a file that has been downloaded: where it lies, what version it is part of, who may write to it."""

import json
import os
import socket
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.runs.contract import one_line
from datasets.cache import exclusive


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


def size_of(file: Path) -> int:
    """Bytes; 0 where there is no such file."""
    try:
        return file.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


class Partial:
    """An open partial file and its note. Killed at any time, it leaves bytes of the version in the note, or none."""

    def __init__(self, path: Path) -> None:
        self.path, self.note = path, note_path(path)
        self.file = path.open("ab", buffering=0)
        try:
            self.version = Version(**json.loads(self.note.read_text()))
        except (FileNotFoundError, ValueError, TypeError):  # none, or torn by a kill
            self.begin(None)

    @property
    def offset(self) -> int:
        """Bytes that are here."""
        return self.file.seek(0, os.SEEK_END)

    def begin(self, version: Version | None) -> None:
        """Forgets the bytes, then their version: in the other order a kill would leave bytes under a wrong one."""
        self.file.truncate(0)
        self.note.unlink(missing_ok=True)
        if version:
            self.note.write_text(json.dumps(asdict(version)))
        self.version = version

    def append(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        while left:
            left = left[self.file.write(left) :]

    def move(self, target: Path) -> None:
        """Gives the file, whole and on the disk, its name in one step."""
        os.fsync(self.file.fileno())
        self.path.replace(target)
        self.note.unlink(missing_ok=True)


@contextmanager
def open_partial(target: Path) -> Iterator[Partial | None]:
    """The partial file of `target`, which no other process or thread has open; None where `target` is there.

    Where the file system has no locks, each process has a partial file of its own and removes it at the end.
    """
    path = partial_path(target)
    with exclusive(path) as is_shared:
        is_here = target.is_file()
        if is_here or not (is_shared or size_of(path)):
            path.unlink(missing_ok=True)
        if is_here:
            note_path(path).unlink(missing_ok=True)
            yield None
            return
        if not is_shared:
            path = target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}.partial")
        partial = Partial(path)
        with partial.file:
            try:
                yield partial
            finally:
                if not (is_shared and (target.is_file() or partial.offset)):
                    partial.note.unlink(missing_ok=True)
                    path.unlink(missing_ok=True)


def damage(file: Path, suffix: str) -> str | None:
    """What shows that a file is not what its name, of this suffix, says; None where nothing does."""
    with file.open("rb") as handle:
        head = handle.read(512)  # servers send pages and pointers as if they were the file
    if not head:
        return "is empty"
    head = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a Git LFS pointer, not the file itself"
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "is a web page, not the file (a page for logging in, or of an error)"
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
            h5py.File(file, locking=False).close()
        except OSError as error:
            return f"is not a whole HDF5 file ({one_line(error)})"
    return None
