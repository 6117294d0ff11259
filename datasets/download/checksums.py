"""The lock file of checksums: what each downloaded file was at its first download, since no upstream publishes any.

It is JSON with one entry per `data set/file`, sorted, to be committed: whoever shares it gets the same bytes or a line
that says so.
"""

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from bench.runs.contract import one_line, replacing
from datasets.cache import exclusive, file_sha256
from datasets.spec import DataError

LOCK = "O2O_BENCH_LOCK"  # an environment variable: another lock file than the checkout's
_threads = threading.Lock()  # for file systems without locks, where `exclusive` excludes nobody


class Entry(TypedDict):
    """One file as it was recorded."""

    bytes: int
    sha256: str  # hexadecimal
    url: str | None  # None: the user had put the file there
    date: str  # ISO 8601, UTC


def lock_file() -> Path:
    """`$O2O_BENCH_LOCK` or `datasets/lock.json` in the checkout."""
    return Path(os.environ.get(LOCK) or Path(__file__).parents[1] / "lock.json").expanduser()


def entries(lock: Path) -> dict[str, Entry]:
    """All that is recorded. Raises DataError where the file cannot be read or is no lock file."""
    try:
        content = json.loads(lock.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(
            f"{lock} cannot be read as JSON ({one_line(error)}); mend it, or take the committed one"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        for entry in content.values()
    ):
        raise DataError(f"{lock} has an entry without 'bytes' or 'sha256'; mend it, or take the committed one")
    return content


def require_writable(lock: Path) -> None:
    """Raises DataError where nothing could be recorded: better before a download than after it."""
    folder = lock.parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(lock if lock.exists() else folder, os.W_OK) or not os.access(folder, os.W_OK):
        raise DataError(_cannot_record(lock, "no permission to write there"))


def _cannot_record(lock: Path, reason: str | None) -> str:
    return f"cannot record checksums in {lock}: {reason}; name a file that can be written: {LOCK}=FILE"


def key(dataset_name: str, file_name: str) -> str:
    """Of a file's entry."""
    return f"{dataset_name}/{file_name}"


def record(lock: Path, dataset_name: str, file_name: str, num_bytes: int, sha256: str, url: str | None) -> Entry:
    """The entry of a file, a new one where there is none. Raises DataError where the lock file cannot be written."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with _threads, exclusive(lock.with_name(f".{lock.name}.lock")):
            recorded = entries(lock)
            name = key(dataset_name, file_name)
            if name not in recorded:
                date = datetime.now(UTC).date().isoformat()
                recorded[name] = {"bytes": num_bytes, "sha256": sha256, "url": url, "date": date}
                with replacing(lock) as partial:
                    partial.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise DataError(_cannot_record(lock, error.strerror)) from error
    return recorded[name]


def to_replace(dataset_name: str, file_name: str, path: Path) -> str:
    """What to do about a file that is not what its name says: the words of an error, without its end.

    Where the first download has recorded this very file, the right one would be refused as long as the entry is there.
    Raises DataError where the lock file cannot be read.
    """
    lock, name = lock_file(), key(dataset_name, file_name)
    entry = entries(lock).get(name)
    is_recorded = entry is not None and entry["bytes"] == path.stat().st_size and entry["sha256"] == file_sha256(path)
    what = f"it and its entry '{name}' in {lock}" if is_recorded else "it"
    return f"delete {what}, then get it again: python -m bench data get {dataset_name}"


def verify(
    dataset_name: str,
    file_names: list[str],
    paths: list[Path],
    record_new: bool = False,
    lock: Path | None = None,
) -> list[tuple[str, bool]]:
    """For each file a line on how it compares with what is recorded, and whether it differs.

    `file_names` are the names in the data set, `paths` where the files lie. With `record_new`, files that have no entry
    get one. Raises DataError for a file that cannot be read.
    """
    lock = lock or lock_file()
    recorded = entries(lock)
    lines = []
    for name, path in zip(file_names, paths, strict=True):
        entry = recorded.get(key(dataset_name, name))
        try:
            num_bytes, sha256 = path.stat().st_size, file_sha256(path)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        is_same = entry is not None and entry["sha256"] == sha256
        if is_same:
            line = f"{path}: as recorded, sha256 {sha256}"
        elif entry:
            line = (
                f"{path} differs: it has {num_bytes:,} bytes and sha256 {sha256}, {lock} has {entry['bytes']:,} bytes "
                f"and sha256 {entry['sha256']} (from {entry.get('url') or 'a file that was here'}, "
                f"{entry.get('date')}); move it away and get it again: python -m bench data get {dataset_name}"
            )
        elif record_new:
            record(lock, dataset_name, name, num_bytes, sha256, None)
            line = f"{path}: recorded now, {num_bytes:,} bytes, sha256 {sha256}"
        else:
            again = f"python -m bench data verify {dataset_name} --record"
            line = f"{path}: not recorded yet, sha256 {sha256}; record it: {again}"
        lines.append((line, entry is not None and not is_same))
    return lines
