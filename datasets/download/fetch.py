"""Downloads files of data sets: in parallel, resumed where they were cut, checked, never half under their final name.

A finished file must be as the lock file recorded it at its first download. Before that it must be whole as far as its
format shows, and is recorded.
"""

import errno
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

import requests

from datasets.cache import file_sha256
from datasets.download.checksums import entries, key, lock_file, record, require_writable
from datasets.download.partial import Partial, damage, open_partial, partial_path, size_of
from datasets.download.servers import (
    AddressError,
    Answer,
    Patience,
    TransferError,
    VersionError,
    ask,
    open_session,
    without_password,
)
from datasets.spec import DataError, RemoteFile

MIRROR = "O2O_BENCH_MIRROR"  # an environment variable: an address or a folder that is tried before all others
ByteProgress = Callable[[int, int | None], None]  # bytes that are here, bytes in all (None: not known yet)

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MOST_NAMED = 3  # files, in an error's line


def fetch(
    dataset_name: str,
    files: Sequence[RemoteFile],
    folder: str | Path,
    *,
    workers: int = 4,
    progress: ByteProgress | None = None,
    lock: Path | None = None,
    patience: Patience | None = None,
) -> list[Path]:
    """Downloads the files that `folder` lacks, `workers` at once, and returns the paths of all.

    Tries `$O2O_BENCH_MIRROR`, then each file's addresses in order. Continues partial downloads, and waits for those of
    other processes. Sizes and hashes are compared with `lock`, default `checksums.lock_file()`, or recorded there.
    `progress` is called in this thread, about ten times a second. Raises DataError, one line, where files cannot be had
    (with each address and its reason), differ from what is recorded, or cannot be written. What has arrived is kept.
    """
    folder = Path(folder).expanduser()
    missing = [file for file in files if not (folder / file.name).is_file()]
    if missing:
        _Download(dataset_name, missing, folder, lock or lock_file(), patience or Patience()).run(workers, progress)
    return [folder / file.name for file in files]


def addresses(dataset_name: str, file: RemoteFile) -> list[str]:
    """Where a file is looked for, in order. A mirror has it under its name, or under that in a folder of the set."""
    mirror = os.environ.get(MIRROR, "").strip()
    if not mirror:
        return list(file.urls)
    names = (file.name, f"{dataset_name}/{file.name}")
    if "://" in mirror:
        return [*(f"{mirror.rstrip('/')}/{quote(name)}" for name in names), *file.urls]
    return [*(str(Path(mirror).expanduser().absolute() / name) for name in names), *file.urls]


class _Interruption(Exception):
    """Another file's failure, or the user, has ended the whole download."""


class _Download:
    """One call of `fetch`, and its threads."""

    def __init__(self, dataset_name: str, files: list[RemoteFile], folder: Path, lock: Path, patience: Patience):
        self.dataset_name, self.folder, self.lock, self.patience = dataset_name, folder, lock, patience
        recorded = entries(lock)
        self.recorded = {file: recorded.get(key(dataset_name, file.name)) for file in files}
        if not all(self.recorded.values()):
            require_writable(lock)
        # Bytes of each file; None: not known.
        self.expected = {file: entry["bytes"] if entry else file.num_bytes for file, entry in self.recorded.items()}
        self.sizes = dict(self.expected)  # as servers tell them, too
        self.done = {file: size_of(partial_path(folder / file.name)) for file in files}  # bytes of each that are here
        self.parts: dict[RemoteFile, Path] = {}  # of files in work, here or in another process
        self.queue: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        for file in files:
            self.queue.put(file)
        self.stop = threading.Event()
        self.fatal: BaseException | None = None
        self.failures: dict[RemoteFile, dict[str, str]] = {}  # of each address, why the file is not to be had there
        self.answered: set[str] = set()  # servers that have answered anything
        self.delivered: set[str] = set()  # servers that have sent some of a file
        self.useless: dict[str, str] = {}  # those that have not, and why: other files need not find out again

    def run(self, workers: int, progress: ByteProgress | None) -> None:
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(workers, len(self.sizes)))]
        try:
            for thread in threads:
                thread.start()
            while alive := [thread for thread in threads if thread.is_alive()]:
                alive[0].join(0.1)
                if progress:
                    progress(*self._totals())
        finally:  # a thread that waits for a stalled server is left behind: it writes nothing any more
            self.stop.set()
            deadline = time.monotonic() + 1
            for thread in threads:
                thread.join(max(0, deadline - time.monotonic()))
        if self.fatal:
            raise self.fatal
        if self.failures:
            raise DataError(self._report())

    def _totals(self) -> tuple[int, int | None]:
        """Bytes here and in all. Files of unknown size count like the average one as soon as two are known."""
        for file, part in list(self.parts.items()):
            self.done[file] = size_of(part) or size_of(self.folder / file.name)
        done = sum(self.done.values())
        sizes = [size for size in self.sizes.values() if size is not None]
        if len(sizes) < min(2, len(self.sizes)):
            return done, None
        return done, sum(sizes) * len(self.sizes) // len(sizes)

    def _work(self) -> None:
        try:
            with open_session(self.patience) as session:
                while not self.stop.is_set():
                    self._fetch_file(session, self.queue.get_nowait())
        except (queue.Empty, _Interruption):
            pass
        except BaseException as error:  # goes on in `run`
            self.fatal = self.fatal or error
            self.stop.set()

    def _fetch_file(self, session: requests.Session, file: RemoteFile) -> None:
        """Asks one address after the other until the file is in its place."""
        target = self.folder / file.name
        part = self.parts[file] = partial_path(target)
        reasons = {}
        try:
            with open_partial(target) as partial:
                if partial:  # else another process was faster
                    self.parts[file] = partial.path
                    reasons = self._try_addresses(session, file, partial)
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise DataError(
                    f"no room for {target} ({error.strerror}) after {size_of(part):,} bytes, which are kept; "
                    "free some space and repeat the command"
                ) from error
            raise DataError(f"cannot write {target}: {error.strerror or error}") from error
        del self.parts[file]
        self.done[file] = size_of(target) or size_of(part)
        if target.is_file():
            self.sizes[file] = self.done[file]
        else:
            self.failures[file] = reasons

    def _try_addresses(self, session: requests.Session, file: RemoteFile, partial: Partial) -> dict[str, str]:
        """Why each of those that were asked does not have it."""
        reasons = {}
        begun_at = partial.version.url if partial.version else ""
        for address in sorted(addresses(self.dataset_name, file), key=lambda url: without_password(url) != begun_at):
            try:
                if partial.version is None or partial.offset != partial.version.num_bytes:
                    self._get_rest(session, file, address, partial)
                if fault := self._fault(file, partial):
                    partial.begin(None)
                    raise AddressError(fault)
                partial.move(self.folder / file.name)
                break
            except AddressError as error:
                reasons[without_password(address)] = str(error)
        return reasons

    def _get_rest(self, session: requests.Session, file: RemoteFile, address: str, partial: Partial) -> None:
        """Asks one server again and again, as long as that brings something new."""
        server = urlsplit(address).netloc
        most, attempt = partial.offset, 0
        while server not in self.useless:
            try:
                with ask(session, address, partial.version, partial.offset, self.patience) as answer:
                    self.answered.add(server)
                    self._receive(file, answer, partial)
                self.delivered.add(server)
                return
            except TransferError as error:
                if isinstance(error, VersionError):
                    self.answered.add(server)
                    partial.begin(None)
                if partial.offset > most:
                    most, attempt = partial.offset, 0
                    self.delivered.add(server)
                if server not in self.answered or attempt == self.patience.retries:
                    if server in self.delivered:
                        raise AddressError(str(error)) from error
                    self.useless[server] = str(error)
                elif self.stop.wait(self.patience.backoff * 2**attempt):
                    raise _Interruption from error
                attempt += 1
        raise AddressError(self.useless[server])

    def _receive(self, file: RemoteFile, answer: Answer, partial: Partial) -> None:
        size, expected = answer.version.num_bytes, self.expected[file]
        if size is not None and expected not in (None, size):
            raise AddressError(f"has {size:,} bytes, expected {expected:,}{self._if_right(file)}")
        if not answer.shows_end and expected is None:
            raise AddressError("does not tell the size, without which a cut file would look whole")
        self.sizes[file] = size or self.sizes[file]
        if answer.begin == 0 and not self.stop.is_set():
            partial.begin(answer.version)
        self._check_room()
        for chunk in answer.chunks:
            if self.stop.is_set():
                raise _Interruption
            partial.append(chunk)
        if size is not None and partial.offset != size:
            raise TransferError(f"connection cut after {partial.offset:,} of {size:,} bytes")

    def _check_room(self) -> None:
        done, total = self._totals()
        left = (total or sum(size or 0 for size in self.sizes.values())) - done
        free = shutil.disk_usage(self.folder).free
        if left > free:
            raise DataError(
                f"{self.dataset_name}: {left / 1e9:,.3f} GB are still to come and {free / 1e9:,.3f} GB are free in "
                f"{self.folder}; free some space, or choose another folder with --data-dir"
            )

    def _fault(self, file: RemoteFile, partial: Partial) -> str | None:
        """What is wrong with a complete file; None where it is the right one, which is recorded if it is the first."""
        version, sha256, expected = partial.version, file_sha256(partial.path), self.expected[file]
        assert version is not None
        if version.sha256 not in (None, sha256):
            return f"was damaged on the way: it has sha256 {sha256}, the server told {version.sha256}"
        if expected not in (None, partial.offset):
            return f"has {partial.offset:,} bytes, expected {expected:,}{self._if_right(file)}"
        if not self.recorded[file] and (fault := damage(partial.path, Path(file.name).suffix)):
            return fault
        entry = self.recorded[file] or record(
            self.lock, self.dataset_name, file.name, partial.offset, sha256, version.url
        )
        self.recorded[file] = entry
        if entry["sha256"] != sha256:
            return f"has sha256 {sha256}, expected {entry['sha256']}{self._if_right(file)}"
        return None

    def _if_right(self, file: RemoteFile) -> str:
        if not (entry := self.recorded[file]):
            return ""
        return (
            f" as {self.lock} has it since {entry.get('date')} (if the new file is the right one, delete "
            f"'{key(self.dataset_name, file.name)}' from the lock file and repeat the command)"
        )

    def _report(self) -> str:
        """One line: each address with its reason, of one file for each kind of failure where there are many."""
        kinds: dict[tuple[str, ...], RemoteFile] = {}
        for file in (failed := [file for file in self.sizes if file in self.failures]):
            kinds.setdefault(tuple(self.failures[file].values()), file)
        named = failed if len(failed) <= _MOST_NAMED else list(kinds.values())[:_MOST_NAMED]
        listed = []
        for file in named:
            reasons = "; ".join(f"{url}: {why}" for url, why in self.failures[file].items())
            listed.append(f"{file.name} ({reasons or 'no address is known'})")
        more = f" and {len(failed) - len(named)} more files" if len(failed) > len(named) else ""
        kept = "; what has arrived is kept" if any(self.done[file] for file in failed) else ""
        return f"{self.dataset_name}: cannot download {', '.join(listed)}{more}{kept}; try again later"
