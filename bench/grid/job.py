"""What one job of a grid does on its node: watches over the workers of its packs, and comes back when it is cut off.

submitit starts `run_job` in each task of an array. Nothing that steers the grid goes through submitit from there on:
runs tell of themselves in their directories, and a job that was stopped before their end asks Slurm to start it again.
"""

import json
import os
import platform
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bench.grid import slurm
from bench.grid.launches import Launch
from bench.grid.pool import Ending, Unwatched, Work, mark_failed, run_works
from bench.runs.claims import slurm_job, slurm_restart
from bench.runs.contract import GRIDS, StorageError, is_complete, make_folder, read_json, utc, write_atomically

MARKER_SECONDS = 5.0  # between looks for the mark of a cancelled grid
CRASHES_OF_A_RUN = 3  # on whatever node, after which it has failed
CRASHES_OF_A_NODE = 3  # of at least two packs within a day, after which the grid keeps away from it
DAY = 86_400.0
ATTEMPTS = 20  # to reach Slurm's controller, while it lets this job live


class Interruption:
    """The signals of a job's end. USR2 comes some time before the time limit or, where the site has it so, a
    preemption; TERM with a preemption, a cancellation or a requeue."""

    def __init__(self, launch: Launch):
        self.signal: int | None = None
        self._launch, self._looked, self._cancelled = launch, 0.0, False
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self.signal = self.signal or number

    @property
    def is_cancelled(self) -> bool:
        if time.monotonic() - self._looked > MARKER_SECONDS:
            self._looked, self._cancelled = time.monotonic(), self._cancelled or self._launch.is_cancelled
        return self._cancelled

    def __call__(self) -> bool:
        return self.signal is not None or self.is_cancelled


def run_job(folder: str, array: int, index: int) -> None:
    """Job `index` of array number `array` of the launch in `folder`; the entry point that submitit pickles by name.

    Ends the process with exit code 1 where a run has failed.
    """
    launch = Launch.load(Path(folder))
    job = launch.arrays[array].jobs[index]
    interruption = Interruption(launch)
    node = os.environ.get("SLURMD_NODENAME") or platform.node()
    say(f"job {slurm_job()}, start {slurm_restart()} on {node}, GPUs {os.environ.get('CUDA_VISIBLE_DEVICES', 'none')}")
    works = [work for work in map(unfinished, job.works) if work is not None]
    for work in works:
        say(f"{work.name}: {work.log}")
    if not works or interruption.is_cancelled:
        say("nothing to do: " + ("the grid was cancelled" if works else "every run is complete"))
        return
    endings = run_works(works, launch.execution, len(works), interruption, Unwatched())
    for ending in endings:
        say(f"{ending.work.name}: {ending.line}")
    crashed = [ending for ending in endings if ending.crashed and unfinished(ending.work)]
    elsewhere = any([note_crash(launch, ending, node) for ending in crashed])
    failed = {directory for ending in endings for directory in ending.work.directories}
    stopped = [work for work in map(unfinished, job.works) if work and not failed.issuperset(work.directories)]
    if elsewhere or (stopped and interruption.signal is not None and not interruption.is_cancelled):
        come_back(launch, {node} if elsewhere else set())
    elif endings:
        sys.exit(1)


def unfinished(work: Work) -> Work | None:
    """The work's runs that are not complete."""
    left = tuple(directory for directory in work.directories if not is_complete(directory))
    return Work(work.name, work.results, left, work.after) if left else None


def come_back(launch: Launch, crashed_on: set[str]) -> None:
    """Has Slurm start this job again, unless Slurm itself ends it or starts it again: on another node where its workers
    have crashed on this one. Keeps the launch's waiting jobs away from nodes that have turned out bad."""
    job = os.environ["SLURM_JOB_ID"]
    # Slurm's answer to a requeue, which must not end what is still to be said to it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(ATTEMPTS):
        try:
            state = slurm.state_of(job)
            if state not in ("RUNNING", "SUSPENDED", "PREEMPTED"):
                say(f"Slurm says {state} of this job: left to it")
                break
            slurm.call("scontrol", "requeue", job)
            say("asked Slurm to start this job again; it goes on from the checkpoints")
            break
        except slurm.SlurmError as error:
            say(f"{error}; trying again")
            time.sleep(2.0)
    else:
        say("Slurm does not take the job back: launch the suite again to go on")
        return
    bad = bad_nodes(launch.results)
    keep_away(job, {*launch.exclude, *bad, *crashed_on})
    for array in launch.arrays:
        if array.job_id is not None:
            keep_away(array.job_id, {*launch.exclude, *bad})


def keep_away(job: str, nodes: set[str]) -> None:
    """Has Slurm start what waits of a job or array elsewhere than on these nodes."""
    if not nodes:
        return
    names = ",".join(sorted(nodes))
    try:
        slurm.call("scontrol", "update", f"JobId={job}", f"ExcNodeList={names}")
        say(f"job {job} keeps away from {names}")
    except slurm.SlurmError as error:  # nothing of it waits, or no node would be left
        say(f"job {job} may still go to {names}: {error}")


def note_crash(launch: Launch, ending: Ending, node: str) -> bool:
    """Records that a worker crashed on `node`; True where its runs may go on on another one, False once they have
    crashed too often since they were launched: they have failed then."""
    runs = [str(directory.relative_to(launch.results)) for directory in ending.work.directories]
    crash = {"launch": launch.id, "runs": runs, "node": node, "at": time.time(), "line": ending.line}
    try:
        folder = make_folder(crash_folder(launch.results))
        write_atomically(folder / f"{secrets.token_hex(8)}.json", json.dumps(crash).encode())
    except StorageError as error:
        say(f"cannot note the crash ({error}): the runs stop here")
        return False
    of_launch = [crash for crash in crashes(launch.results) if crash["launch"] == launch.id]
    count = sum(set(runs) <= set(crash["runs"]) for crash in of_launch)
    if count < CRASHES_OF_A_RUN:
        return True
    mark_failed(ending.work, f"crashed {count} times, the last time on {node}: {ending.line}")
    return False


def bad_nodes(results: Path) -> set[str]:
    """Nodes on which workers of at least two packs have crashed, and often, within a day."""
    by_node: dict[str, list[tuple[str, ...]]] = {}
    for crash in crashes(results):
        if abs(time.time() - crash["at"]) < DAY:  # either way: clocks may be wrong
            by_node.setdefault(crash["node"], []).append(tuple(crash["runs"]))
    return {node for node, packs in by_node.items() if len(packs) >= CRASHES_OF_A_NODE and len(set(packs)) >= 2}


def crashes(results: Path) -> list[dict[str, Any]]:
    """All that were noted under this results folder."""
    return [crash for path in crash_folder(results).glob("*.json") if (crash := read_json(path))]


def crash_folder(results: Path) -> Path:
    return results / GRIDS / "crashes"


def say(line: str) -> None:
    print(f"{utc()} {line}", flush=True)
