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
from datasets.download.checksums import Entry, entries, key, lock_file, record, require_writable
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
        self.dataset_name, self.files, self.folder = dataset_name, files, folder
        self.lock, self.patience = lock, patience
        recorded = [self._entry(file) for file in files]
        if not all(recorded):
            require_writable(lock)
        self.sizes = {  # bytes of each file; None: not known yet
            folder / file.name: entry["bytes"] if entry else file.num_bytes
            for file, entry in zip(files, recorded, strict=True)
        }
        self.done = {target: size_of(partial_path(target)) for target in self.sizes}  # bytes of each that are here
        self.writing: dict[Path, Path] = {}  # files in work, here or in another process, and where their parts lie
        self.queue: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        for file in files:
            self.queue.put(file)
        self.stop = threading.Event()
        self.fatal: BaseException | None = None
        self.failures: list[tuple[RemoteFile, list[tuple[str, str]]]] = []  # each address, why it does not give it
        self.answered: set[str] = set()  # servers that have answered anything
        self.unreachable: dict[str, str] = {}  # those that have not, and why: other files need not find out again

    def run(self, workers: int, progress: ByteProgress | None) -> None:
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(workers, len(self.files)))]
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
        for target, part in list(self.writing.items()):
            self.done[target] = size_of(part) or size_of(target)
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
        self.writing[target] = partial_path(target)
        left = addresses(self.dataset_name, file)
        reasons = []
        try:
            while left and not target.is_file():
                with open_partial(target) as partial:
                    if partial is None:  # another process was faster
                        break
                    self.writing[target] = partial.path
                    origin = partial.version.url if partial.version else ""
                    address = next((url for url in left if without_password(url) == origin), left[0])
                    left.remove(address)
                    try:
                        if not partial.is_complete:
                            self._get_rest(session, file, address, partial)
                        self._place(file, partial)
                    except AddressError as error:
                        reasons.append((without_password(address), str(error)))
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise DataError(
                    f"no room for {target} ({error.strerror}) after {size_of(partial_path(target)):,} bytes, which are "
                    "kept; free some space and repeat the command"
                ) from error
            raise DataError(f"cannot write {target}: {error.strerror or error}") from error
        self.done[target] = size_of(target) or size_of(partial_path(target))
        del self.writing[target]
        if target.is_file():
            self.sizes[target] = self.done[target]
        else:
            self.failures.append((file, reasons))

    def _get_rest(self, session: requests.Session, file: RemoteFile, address: str, partial: Partial) -> None:
        """Asks one server again and again, as long as that brings something new."""
        server = urlsplit(address).netloc
        most, attempt = partial.offset, 0
        while server not in self.unreachable:
            try:
                with ask(session, address, partial.version, partial.offset, self.patience) as answer:
                    self.answered.add(server)
                    return self._receive(file, answer, partial)
            except TransferError as error:
                if isinstance(error, VersionError):
                    self.answered.add(server)
                    partial.clear()
                if partial.offset > most:
                    most, attempt = partial.offset, 0
                if server not in self.answered:
                    self.unreachable[server] = str(error)
                elif attempt == self.patience.retries:
                    raise AddressError(str(error)) from error
                elif self.stop.wait(self.patience.backoff * 2**attempt):
                    raise _Interruption from error
                attempt += 1
        raise AddressError(self.unreachable[server])

    def _receive(self, file: RemoteFile, answer: Answer, partial: Partial) -> None:
        target = self.folder / file.name
        entry = self._entry(file)
        size = answer.version.num_bytes
        if size is not None and entry and size != entry["bytes"]:
            raise AddressError(f"has {size:,} bytes, {self.lock} has {entry['bytes']:,}{self._if_right(file)}")
        if size is not None and file.num_bytes not in (None, size):
            raise AddressError(f"has {size:,} bytes, expected {file.num_bytes:,}")
        if not answer.shows_end and entry is None and file.num_bytes is None:
            raise AddressError("does not tell the size, without which a cut file would look whole")
        self.sizes[target] = size or self.sizes[target]
        self._check_room()
        if answer.begin == 0 and not self.stop.is_set():
            partial.start(answer.version)
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

    def _place(self, file: RemoteFile, partial: Partial) -> None:
        """Checks a complete file and gives it its name."""
        target = self.folder / file.name
        aside = target.with_name(f".{target.name}.mismatch")
        version, sha256 = partial.version, file_sha256(partial.path)
        assert version is not None
        entry = self._entry(file)
        bad = None
        if version.sha256 not in (None, sha256):
            bad = f"was damaged on the way: it has sha256 {sha256}, the server told {version.sha256}"
        elif file.num_bytes not in (None, partial.offset):
            bad = f"has {partial.offset:,} bytes, expected {file.num_bytes:,}"
        elif entry is None:
            bad = damage(partial.path, target.suffix)
        if bad:
            partial.clear()
            raise AddressError(bad)
        if entry is None:
            entry = record(self.lock, self.dataset_name, file.name, partial.offset, sha256, version.url)
        if entry["sha256"] != sha256:
            partial.move(aside)
            raise AddressError(
                f"has sha256 {sha256}, {self.lock} has {entry['sha256']} of {entry.get('date')}; kept as {aside}"
                f"{self._if_right(file)}"
            )
        partial.move(target)
        aside.unlink(missing_ok=True)

    def _entry(self, file: RemoteFile) -> Entry | None:
        return entries(self.lock).get(key(self.dataset_name, file.name))

    def _if_right(self, file: RemoteFile) -> str:
        name = key(self.dataset_name, file.name)
        return f" (if the new file is the right one, delete '{name}' from the lock file and repeat the command)"

    def _report(self) -> str:
        """One line: each address with its reason, of one file for each kind of failure where there are many."""
        failures = sorted(self.failures, key=lambda failure: self.files.index(failure[0]))
        named = failures
        if len(named) > _MOST_NAMED:
            kinds = {tuple(why for _, why in failure[1]): failure for failure in reversed(failures)}
            named = [failure for failure in failures if failure in kinds.values()][:_MOST_NAMED]
        parts = []
        for file, reasons in named:
            listed = "; ".join(f"{url}: {why}" for url, why in reasons)
            parts.append(f"{file.name} ({listed or 'no address is known'})")
        more = f" and {len(failures) - len(named)} more files" if len(failures) > len(named) else ""
        kept = "; what has arrived is kept" if any(self.done[self.folder / file.name] for file, _ in failures) else ""
        return f"{self.dataset_name}: cannot download {', '.join(parts)}{more}{kept}; try again later"
