"""Who may write a run's directory: one process at a time, on any machine that sees the file system.

A claim is a file `owner/<generation>.json`, made by a hard link, which succeeds for one process only. The newest
generation owns the run. Its heartbeat is the file's modification time; who wants the run watches that for a lease by a
clock of their own, so that the clocks of two machines are never compared. A new owner first removes the older claims:
a process whose claim is gone has lost the run, however alive it is, and learns so before its next write. What it writes
in between stays its own (bench.runs.writer, bench.runs.checkpoint): files carry the generation, or are replaced at the
take-over.
"""

import contextlib
import errno
import json
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path

from bench.runs.contract import StorageError, is_complete, utc, write_atomically

LEASE_SECONDS = 60.0
BEATS_PER_LEASE = 6
CLOCK_SECONDS = 1.0  # ahead, for which file systems that round times are to blame
LOOK_SECONDS = 0.1  # between looks at a heartbeat that is watched
FOLDER = "owner"
_GONE = (errno.ENOENT, errno.ESTALE)  # of a file that another process, here or elsewhere, has removed


class Takeover(Exception):
    """Another process has taken this run over; this one must not go on with it."""


@dataclass(frozen=True)
class Owner:
    """What a claim file says. `beat_at` is the file's modification time, by the file system's clock."""

    generation: int
    nonce: str
    host: str
    machine: str | None  # running kernel and process namespace, where the system tells them
    pid: int
    process_started: int | None  # clock ticks: tells a process from a later one with its number
    job: str | None  # Slurm's id
    restart: int  # how often Slurm has requeued that job
    lease_seconds: float
    claimed_at: str  # UTC
    released: bool = False
    log: str | None = None  # where the process' output goes
    beat_at: float = 0.0

    def __str__(self) -> str:
        job = f"job {self.job}{f' (restart {self.restart})' if self.restart else ''}, " if self.job else ""
        return f"{job}process {self.pid} on {self.host}"

    @property
    def is_gone(self) -> bool:
        """Whether it is certain that this owner writes no more: it said so, its process is dead, or Slurm has started
        its job anew, as this process. False means unknown."""
        if self.released or (self.job is not None and self.job == slurm_job() and self.restart < slurm_restart()):
            return True
        return (
            self.machine is not None and self.machine == _machine() and process_start(self.pid) != self.process_started
        )

    @property
    def sign(self) -> tuple[int, str, float]:
        """Another one with each sign of life."""
        return self.generation, self.nonce, self.beat_at

    @property
    def beat_seconds(self) -> float:
        """Time between two heartbeats."""
        return self.lease_seconds / BEATS_PER_LEASE

    @staticmethod
    def here(generation: int, lease_seconds: float, log: str | None = None) -> "Owner":
        """This process as an owner."""
        return Owner(
            generation=generation,
            nonce=secrets.token_hex(8),
            host=platform.node(),
            machine=_machine(),
            pid=os.getpid(),
            process_started=process_start(os.getpid()),
            job=slurm_job(),
            restart=slurm_restart(),
            lease_seconds=lease_seconds,
            claimed_at=utc(),
            log=log,
        )


def slurm_job() -> str | None:
    """`123` or, of an array, `123_4`; None outside Slurm."""
    if "SLURM_ARRAY_JOB_ID" in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def slurm_restart() -> int:
    """How often Slurm has started this job anew."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def owner_of(directory: Path) -> Owner | None:
    """The newest owner of a run, or None before the first. Raises StorageError for a file that says something else."""
    while True:
        generation = max(_generations(directory), default=0)
        if not generation:
            return None
        path = _claim_path(directory, generation)
        try:
            fields = json.loads(path.read_bytes())
            return Owner(**fields, beat_at=path.stat().st_mtime)
        except OSError as error:
            if error.errno not in _GONE:
                raise StorageError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise StorageError(f"{path} is no claim ({error}); delete it if no process writes this run") from error


class Claim:
    """This process' right to write one run, kept alive by a heartbeat until it is released or lost."""

    def __init__(self, directory: Path, owner: Owner, previous: Owner | None):
        self.directory = directory
        self.owner = owner
        self.previous = previous  # the owner before, and when it was last heard of
        self._path = _claim_path(directory, owner.generation)
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name=f"heartbeat of {directory}", daemon=True).start()

    @property
    def generation(self) -> int:
        return self.owner.generation

    def check(self) -> None:
        """Raises Takeover where another process owns the run by now. Opens the file anew each time, so that network
        file systems ask their server."""
        try:
            if json.loads(self._path.read_bytes())["nonce"] == self.owner.nonce:
                return
        except OSError as error:
            if error.errno not in _GONE:
                raise StorageError(f"cannot read {self._path}: {error.strerror}") from error
        raise Takeover(f"{self.directory} was taken over by {owner_of(self.directory)}; {self.owner} stops")

    def release(self) -> None:
        """Lets the next process have the run at once."""
        self._ended.set()
        try:
            self.check()
            write_atomically(self._path, _text(replace(self.owner, released=True)))
        except Takeover:
            return  # nothing is left to release
        except StorageError as error:  # a full disk: the lease runs out instead
            print(f"warning: {error}", file=sys.stderr, flush=True)

    def _beat(self) -> None:
        while not self._ended.wait(self.owner.beat_seconds):
            try:
                os.utime(self._path)
            except OSError as error:
                if error.errno in _GONE:
                    return  # lost: `check` says so before the next write
                # a file system that does not answer just now: the next beat may get through


@dataclass
class Seen:
    """Signs of life of a run's owners, by this process' clock."""

    first: float
    sign: tuple = ()
    newest: float = 0.0
    signs: int = 0


class Claims:
    """Takes runs for this process, and watches those that another one holds."""

    def __init__(self, lease_seconds: float = LEASE_SECONDS, log: str | None = None):
        self._lease_seconds, self._log = lease_seconds, log
        self._seen: dict[Path, Seen] = {}

    def take(self, directory: Path) -> Claim | Owner:
        """The run, or its owner, who may be alive. Call it again: an owner who shows no sign of life for its lease has
        lost the run to the caller."""
        while True:
            owner = owner_of(directory)
            if owner is not None and not owner.is_gone and not self._lease_is_over(directory, owner):
                return owner
            claim = self._try(directory, owner)
            if claim is not None:
                return claim

    def lives(self, directory: Path) -> bool:
        """Whether the owner that `take` gave has gone on showing signs of life for two leases: time enough for one that
        was stopped or killed at the first look to be gone."""
        seen = self._seen[directory]
        return seen.signs > 1 and time.monotonic() - seen.first >= 2 * self._lease_seconds

    def _lease_is_over(self, directory: Path, owner: Owner) -> bool:
        now = time.monotonic()
        seen = self._seen.setdefault(directory, Seen(first=now))
        if seen.sign != owner.sign:
            seen.sign, seen.newest, seen.signs = owner.sign, now, seen.signs + 1
        return now - seen.newest >= owner.lease_seconds

    def _try(self, directory: Path, previous: Owner | None) -> Claim | None:
        """None where another process was faster."""
        generation = (previous.generation if previous else 0) + 1
        owner = Owner.here(generation, self._lease_seconds, self._log)
        path = _claim_path(directory, generation)
        draft = path.with_name(f".{path.name}.{owner.nonce}")
        try:
            path.parent.mkdir(exist_ok=True)
            draft.write_bytes(_text(owner))
            if not _link(draft, path):
                return None
        except OSError as error:
            raise StorageError(f"cannot claim {directory}: {error.strerror}") from error
        finally:
            draft.unlink(missing_ok=True)
        for older in _generations(directory):
            if older < generation:
                _claim_path(directory, older).unlink(missing_ok=True)
        for leftover in path.parent.glob(".*"):  # of processes that were killed while they claimed
            leftover.unlink(missing_ok=True)
        return Claim(directory, owner, previous)


class Heartbeats:
    """When the owners of runs were last heard of, for plans and for display: who wants a run must watch it (`Claims`).

    A heartbeat ahead of the file system's clock tells no time: the folder was copied from a machine whose clock is
    wrong, say. It is watched, and such an owner was heard of when its heartbeat changed, by this process' clock.
    """

    def __init__(self) -> None:
        self._ahead: dict[Path, Seen] = {}  # `signs` counts changes

    def owners(self, directories: Iterable[Path], folder: Path) -> dict[Path, Owner]:
        """The newest owner of each run that has one; `beat_at` by the clock of `folder`, 0 where it is not known."""
        owners = {path: owner for path in directories if (owner := owner_of(path)) is not None}
        now = clock_of(folder)
        ahead = [path for path, owner in owners.items() if is_ahead(owner, now)]
        alive = [path for path in ahead if not owners[path].is_gone and not is_complete(path)]
        self._watch({path: owners[path] for path in alive})
        for path in ahead:
            seen = self._ahead.get(path)
            ago = time.monotonic() - seen.newest if seen and seen.signs else None
            owners[path] = replace(owners[path], beat_at=0.0 if ago is None else clock_of(folder) - ago)
        return owners

    def _watch(self, owners: dict[Path, Owner]) -> None:
        """Looks whether heartbeats change: those met for the first time until two of them are due."""
        started = time.monotonic()
        waiting: dict[Path, Owner] = {}
        for path, owner in owners.items():
            if path in self._ahead:
                self._look(path, owner)
            else:
                self._ahead[path] = Seen(started, owner.sign, started)
                waiting[path] = owner
        if waiting:
            longest = max(2 * owner.beat_seconds for owner in waiting.values())
            which = f"{len(waiting)} runs have heartbeats" if len(waiting) > 1 else f"{next(iter(waiting))} has one"
            print(f"{which} ahead of the clock here: watching for a change, {longest:.0f} s", file=sys.stderr)
        while waiting:
            time.sleep(LOOK_SECONDS)
            for path, owner in list(waiting.items()):
                newest = owner_of(path) or owner
                if self._look(path, newest) or time.monotonic() - started >= 2 * owner.beat_seconds:
                    del waiting[path]

    def _look(self, path: Path, owner: Owner) -> bool:
        """Whether its heartbeat is another one than when it was looked at last."""
        seen = self._ahead[path]
        if seen.sign == owner.sign:
            return False
        seen.sign, seen.newest, seen.signs = owner.sign, time.monotonic(), seen.signs + 1
        return True


def is_ahead(owner: Owner, now: float) -> bool:
    """Whether its heartbeat is of a time that has not come yet; `now` by the file system's clock."""
    return owner.beat_at > now + CLOCK_SECONDS


def is_fresh(owner: Owner, now: float) -> bool:
    """Whether an owner was heard of within its lease; `now` by the file system's clock (`clock_of`)."""
    return not owner.is_gone and not is_ahead(owner, now) and now - owner.beat_at < owner.lease_seconds


def clock_of(folder: Path) -> float:
    """The time as the file system of `folder` tells it; this machine's where nothing can be written there."""
    probe = folder / f".clock.{secrets.token_hex(4)}"
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now
    except OSError:
        return time.time()


def began(owner: Owner) -> float:
    """When it claimed the run: seconds since 1970, by its own clock."""
    return datetime.fromisoformat(owner.claimed_at).timestamp()


def spent_seconds(owner: Owner) -> float:
    """From claim to newest sign of life; one in the future counts as now."""
    return max(0.0, min(owner.beat_at, time.time()) - began(owner))


def process_start(pid: int) -> int | None:
    """Clock ticks since boot at which the process started; None where it is none, or is dead and not yet reaped, or
    the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, *rest = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if state in (b"Z", b"X") else int(rest[18])


@cache
def _machine() -> str | None:
    """The running kernel and process namespace: where both are equal, process numbers mean the same."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None  # not Linux: leases decide


def _generations(directory: Path) -> Iterable[int]:
    try:
        names = os.listdir(directory / FOLDER)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"cannot read {directory / FOLDER}: {error.strerror}") from error
    return [int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()]


def _claim_path(directory: Path, generation: int) -> Path:
    return directory / FOLDER / f"{generation:06}.json"


def _link(draft: Path, path: Path) -> bool:
    """Whether this process, and no other, has given `draft` the name `path`."""
    try:
        os.link(draft, path)
        return True
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            return draft.stat().st_nlink == 2  # NFS had done it, and its answer was lost
    except FileNotFoundError:
        pass
    return False  # the draft was swept away by another process, which thus has claimed the run


def _text(owner: Owner) -> bytes:
    fields = asdict(owner)
    del fields["beat_at"]
    return (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode()
