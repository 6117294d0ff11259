"""A small pool of worker processes: packs of runs side by side on this machine, or within one job of a cluster.

Run directories are the truth; what a worker's exit code says only decides what is tried next. Imports nothing heavy,
since it also watches over packs in every job of a grid.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.runs.claims import Claim, Claims
from bench.runs.contract import LOG, STATUS, StorageError, is_complete, read_json, utc, write_json
from bench.tools.mirror_process import MirrorProcess
from bench.training.execution import EXIT_PREEMPTED, Execution

POLL_SECONDS = 0.2
GPU_FAULT = ("CUDA error", "CUDA driver", "no CUDA-capable device", "NVML", "ECC error", "torch finds no GPU")


@dataclass(frozen=True)
class Work:
    """Runs that one process trains together, by their directories, which hold their configs."""

    name: str
    results: Path
    directories: tuple[Path, ...]
    after: frozenset[Path] = frozenset()  # runs that must have ended before: offline phases that these go on from

    @property
    def log(self) -> Path:
        """Where the process' output goes."""
        return self.directories[0] / LOG

    def apart(self) -> list["Work"]:
        """Each run by itself."""
        return [
            Work(f"{self.name}, {directory.name.replace('_', ' ')} alone", self.results, (directory,), self.after)
            for directory in self.directories
        ]


@dataclass(frozen=True)
class Ending:
    """How a worker ended. `crashed`: not by what a run did, as far as can be told: by a signal, by the machine."""

    work: Work
    returncode: int
    line: str = field(default="")  # the log's last one
    crashed: bool = False


class Watcher(Protocol):
    """Is told what the pool does."""

    def started(self, work: Work) -> None: ...
    def ended(self, work: Work) -> None: ...
    def divided(self, work: Work, parts: Sequence[Work]) -> None: ...
    def refresh(self) -> None: ...


class Unwatched:
    """Watches nothing."""

    def started(self, work: Work) -> None: ...
    def ended(self, work: Work) -> None: ...
    def divided(self, work: Work, parts: Sequence[Work]) -> None: ...
    def refresh(self) -> None: ...


def run_works(
    works: Sequence[Work],
    execution: Execution,
    jobs: int,
    should_stop: Callable[[], bool],
    watcher: Watcher,
    gpus: Sequence[str] = (),
) -> list[Ending]:
    """Runs all works, `jobs` at a time, each in a process of its own; returns those that failed.

    When asked to stop, passes that on: every worker checkpoints and leaves its runs `preempted`. Where a process that
    trains several runs crashes, each of them goes on in one of its own, so that one does not bring the others down.

    Args:
        gpus: names for CUDA_VISIBLE_DEVICES, shared out in turn; empty: workers see what this process sees.
    """
    waiting, running, failures = list(works), {}, []
    slots: list[int] = list(range(jobs))
    stopping = False
    directories = [directory for work in works for directory in work.directories]
    with MirrorProcess(directories, execution.mirrors) as mirror:
        while waiting or running:
            busy = {directory for work in (*waiting, *running) for directory in work.directories}
            ready = [work for work in waiting if not work.after & busy]
            while ready and slots and not stopping:
                work, slot = ready.pop(0), slots.pop(0)
                waiting.remove(work)
                running[work] = (start_worker(work, execution, gpus[slot % len(gpus)] if gpus else None), slot)
                watcher.started(work)
            if should_stop() and not stopping:
                stopping = True
                waiting.clear()
                for process, _ in running.values():
                    process.send_signal(signal.SIGTERM)
            for work, (process, slot) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[work]
                slots.append(slot)
                ending = ending_of(work, process.returncode, stopping)
                watcher.ended(work)
                parts = [part for part in work.apart() if not is_complete(part.directories[0])]
                if ending is not None and ending.crashed and len(work.directories) > 1 and parts and not stopping:
                    watcher.divided(work, parts)
                    waiting[:0] = parts
                elif ending is not None:
                    failures.append(ending)
            watcher.refresh()
            mirror.check()
            time.sleep(POLL_SECONDS)
    return failures


def start_worker(work: Work, execution: Execution, gpu: str | None = None) -> subprocess.Popen:
    """`python -m bench worker` on the work's directories; output goes to its log."""
    command = [sys.executable, "-m", "bench", "worker", "--results", str(work.results), *execution.arguments()]
    command += ["--supervised", *map(str, work.directories)]
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {})}
    with work.log.open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
            preexec_fn=_ignore_warnings_of_slurm,
        )


def _ignore_warnings_of_slurm() -> None:
    """Slurm sends USR2 to every process of a job, also to those that have not got so far as to handle it; the one that
    watches over them acts on it. Ignoring is inherited."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def ending_of(work: Work, returncode: int, stopping: bool) -> Ending | None:
    """None where the worker has done what it was to do."""
    # A worker that is still importing dies of the signal itself; it has lost nothing.
    if returncode == 0 or returncode == EXIT_PREEMPTED or (stopping and returncode == -signal.SIGTERM):
        return None
    lines = work.log.read_text(errors="replace").strip().splitlines()
    if returncode == 2:  # refused, and said so; processes that end with it may have the last word in the log
        lines = [line for line in lines if line.startswith("error: ")] or lines
    ended = f"killed by signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    last = lines[-1] if lines else "no output"
    # Who is killed says nothing of it: the last line of the log is then about something else.
    line = f"{ended} ({work.log} ends with: {last})" if returncode < 0 else f"{last} ({ended}; {work.log})"
    errors = [read_json(directory / STATUS) or {} for directory in work.directories]
    failures = [error for status in errors if status.get("state") == "failed" and (error := status.get("error"))]
    crashed = returncode < 0 or any(fault in error for error in [*failures, line] for fault in GPU_FAULT)
    return Ending(work, returncode, line, crashed)


def mark_failed(work: Work, error: str) -> None:
    """Writes `failed` into the status of the work's runs that crashed without a word of their own."""
    for directory in work.directories:
        claim = Claims().take(directory)
        if not isinstance(claim, Claim):
            continue  # alive after all, or another's: theirs to say
        try:
            status = read_json(directory / STATUS) or {}
            if not is_complete(directory):
                write_json(directory / STATUS, {**status, "state": "failed", "error": error, "updated_at": utc()})
        except StorageError as second:
            print(f"warning: {second}", file=sys.stderr, flush=True)
        finally:
            claim.release()
