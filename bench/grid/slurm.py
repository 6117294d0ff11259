"""What Slurm says of this project's jobs. Always one call, however many runs there are; and only ever a hint.

A grid's array has a name of its own, so that it is known again also where its number was lost. `sacct` is not used:
many clusters have none, and what became of a run stands in its directory.
"""

import getpass
import os
import re
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

PREFIX = "o2o-"
SECONDS = 60.0  # for an answer
DEFAULT_ARRAY_LIMIT = 1001  # Slurm's own


class SlurmError(Exception):
    """Slurm is not there, does not answer or refuses; one line."""


@dataclass(frozen=True)
class Task:
    """One task of an array as Slurm sees it."""

    job: str  # `123_4`, or `123` where the array has one task
    state: str  # PENDING, RUNNING, …
    reason: str  # why it waits
    nodes: str
    started: float = 0.0  # seconds since 1970, of its newest start; 0 before the first


def queue(seconds: float = SECONDS) -> dict[tuple[str, int], Task]:
    """The user's jobs of this project that wait or run, by name of the array and index of the task; waits for them no
    longer than `seconds`. Raises SlurmError."""
    columns = "%F|%K|%T|%j|%N|%S|%r"
    text = call("squeue", "-h", "-u", getpass.getuser(), "-o", columns, seconds=seconds, SLURM_BITSTR_LEN="0")
    tasks: dict[tuple[str, int], Task] = {}
    for line in text.splitlines():
        array, indices, state, name, nodes, started, reason = line.split("|", 6)
        if not name.startswith(PREFIX) or state == "COMPLETING":  # that one ends, whatever for
            continue
        for index in expand(indices):
            job = array if indices == "N/A" else f"{array}_{index}"
            tasks[name, index] = Task(job, state, reason, nodes, _seconds(started))
    return tasks


def _seconds(text: str) -> float:
    """A time as squeue prints it, in this machine's zone; N/A is 0."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def expand(indices: str) -> list[int]:
    """`0-3,7%4` as numbers, with steps as in `0-8:2`; N/A, of a job that is no array, is 0."""
    if indices == "N/A":
        return [0]
    numbers: list[int] = []
    for part in indices.strip("[]").split("%")[0].split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if found is None:
            raise SlurmError(f"squeue's array indices {indices!r} make no sense")
        first, last, step = int(found[1]), int(found[2] or found[1]), int(found[3] or 1)
        numbers += range(first, last + 1, step)
    return numbers


def array_limit() -> int:
    """Tasks that one array may have. Slurm limits the largest index, and ours begin at 0."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"))
    return int(found[1]) if found else DEFAULT_ARRAY_LIMIT


def state_of(job: str) -> str:
    """JobState of one job, as its node's supervisor asks about itself."""
    found = re.search(r"JobState=(\S+)", call("scontrol", "show", "job", job, "-o"))
    return found[1] if found else "UNKNOWN"


def call(*command: str, seconds: float = SECONDS, **environment: str) -> str:
    """What a command of Slurm's prints. Raises SlurmError."""
    try:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=seconds, check=True
        )
    except FileNotFoundError:
        raise SlurmError(
            f"there is no {command[0]} here: log in to the cluster's login node, or run on this machine with --local"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{command[0]} gives no answer within {seconds:.0f} s: try again when Slurm's controller is up"
        ) from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr.strip() or error.stdout.strip() or f"exit code {error.returncode}").splitlines()
        raise SlurmError(f"{command[0]}: {lines[-1]}") from None
    return done.stdout


def exists(command: str) -> bool:
    return any((Path(folder) / command).exists() for folder in os.environ.get("PATH", "").split(os.pathsep) if folder)
