"""What is true of every run, from its own files; Slurm's word is a hint.

Imports nothing heavy, writes nothing, and works without a cluster.
"""

import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.grid import slurm
from bench.grid.job import bad_nodes
from bench.grid.launches import Job, Launch, launches, queued_runs
from bench.runs.claims import Heartbeats, Owner, began, clock_of, is_fresh, spent_seconds
from bench.runs.contract import (
    CONFIG,
    PROVENANCE,
    STATUS,
    ConfigError,
    RunName,
    broken_links,
    find_runs,
    is_complete,
    read_json,
)
from bench.runs.quantities import duration, size

STATE_COLOURS = {  # in the order in which they are shown, with their colours
    "complete": "green",
    "running": "cyan",
    "starting": "cyan",
    "queued": "blue",
    "preempted": "yellow",
    "planned": "white",
    "cancelled": "yellow",
    "lost": "red",
    "failed": "red",
}
QUEUE_SECONDS = 30.0  # between questions to Slurm
ANSWER_SECONDS = 15.0  # that a person waits for its answer


@dataclass(frozen=True)
class RunStatus:
    """What is true of one run."""

    directory: Path
    name: RunName
    state: str  # one of STATE_COLOURS
    why: str  # of a state that asks for one
    offline_updates: int  # budgets
    online_steps: int
    updates: int
    env_steps: int
    success_rate: float | None
    mean_return: float | None
    score_updates: int | None  # where the evaluation of these was: training may be further
    score_env_steps: int | None
    rates: dict[str, float]
    owner: Owner | None
    queued: slurm.Task | None
    job: Job | None  # of the newest launch that holds the run
    gpu_hours: float
    hours: float  # of its processes, shared by the runs of a pack
    updated_at: str | None

    @property
    def progress(self) -> float:
        """Share of the budget, offline updates and environment steps counted alike."""
        if self.state == "complete":
            return 1.0
        return (min(self.updates, self.offline_updates) + self.env_steps) / (self.offline_updates + self.online_steps)

    @property
    def process(self) -> str:
        """Equal for the runs of a pack that trains: they go in step."""
        return f"{self.owner.host} {self.owner.pid} {self.owner.process_started}" if self.owner else str(self.name)


@dataclass
class GridStatus:
    """All runs of some suites, and what holds for them together."""

    results: Path
    runs: list[RunStatus]
    notes: list[str] = field(default_factory=list)
    left_seconds: float | None = None  # None: not known
    left_of: dict[Path, float] = field(default_factory=dict)  # by directory, of each run whose time is known
    gpu_hours_left: float | None = None

    def count(self, runs: Iterable[RunStatus] | None = None) -> dict[str, int]:
        counted = Counter(run.state for run in (self.runs if runs is None else runs))
        return {state: counted[state] for state in STATE_COLOURS if counted[state]}


class Queue:
    """Slurm's queue, asked for at most once in QUEUE_SECONDS, whatever the number of runs."""

    def __init__(self) -> None:
        self._asked = -QUEUE_SECONDS
        self.tasks: dict[tuple[str, int], slurm.Task] | None = None  # None: not known
        self.problem: str | None = None

    def ask(self) -> None:
        """Anew, where the last answer is old."""
        if time.monotonic() - self._asked < QUEUE_SECONDS or not slurm.exists("squeue"):
            return
        self._asked = time.monotonic()
        try:
            self.tasks, self.problem = slurm.queue(ANSWER_SECONDS), None
        except slurm.SlurmError as error:  # its last word, if there was one, still helps
            self.problem = str(error)


def survey(results: Path, suite: str | None, queue: Queue, heartbeats: Heartbeats | None = None) -> GridStatus:
    """The truth about all runs under `results`, or about one suite's. Raises ConfigError where there are none.

    Args:
        heartbeats: what earlier calls have seen of owners; one that is new watches those ahead of the clock first.
    """
    results = results.absolute()
    launched = launches(results, suite)
    if launched:
        queue.ask()
    waiting = queued_runs(results, queue.tasks) if queue.tasks else {}
    jobs = {
        path: (launch, job)
        for launch in launched
        for array in launch.arrays
        for job in array.jobs
        for path in job.directories
    }
    found = find_runs(results / suite if suite else results)
    if not found:
        raise ConfigError(
            f"no runs{f' of {suite}' if suite else ''} under {results}; python -m bench plan says what a suite is"
        )
    owners = (heartbeats or Heartbeats()).owners(found, results)
    now = clock_of(results)
    asked = queue.tasks is not None
    runs = [
        status_of(path, owners.get(path), now, waiting.get(path), *jobs.get(path, (None, None)), asked)
        for path in found
    ]
    grid = GridStatus(results, runs)
    estimate_left(grid)
    if queue.problem:
        grid.notes.append(f"Slurm does not answer ({queue.problem}): its part of what follows may be old")
    elif launched and queue.tasks is None:
        grid.notes.append("no Slurm here: what waits in its queue is not known")
    bad = bad_nodes(results)
    if bad:
        grid.notes.append(f"kept away from {', '.join(sorted(bad))}: workers crashed there again and again")
    lost = [str(link.relative_to(results)) for link in broken_links(results, (suite,) if suite else ())]
    if lost:
        grid.notes.append(f"links that lead nowhere are left out: {', '.join(lost)}")
    free = free_bytes(results)
    if free < 200_000_000:
        grid.notes.append(f"only {size(free)} are free on the disk of {results}")
    return grid


def status_of(
    directory: Path,
    owner: Owner | None,
    now: float,
    queued: slurm.Task | None,
    launch: Launch | None,
    job: Job | None,
    asked: bool,
) -> RunStatus:
    """The truth about one run. `asked`: whether Slurm's queue is known, so that a run absent from it is in no job."""
    config = read_json(directory / CONFIG) or {}
    status = read_json(directory / STATUS) or {}
    provenance = read_json(directory / PROVENANCE) or {"starts": []}
    state, why = state_of(directory, status, owner, now, queued, launch, asked)
    hours = gpu_hours = 0.0
    for number, start in enumerate(provenance["starts"]):
        newest = number == len(provenance["starts"]) - 1
        seconds = start.get("seconds", spent_seconds(owner) if newest and owner else 0.0) / len(start["pack"])
        hours += seconds / 3600
        gpu_hours += seconds / 3600 * gpus_of(start)
    keys = ("updates_per_second", "env_steps_per_second")
    return RunStatus(
        directory=directory,
        name=RunName.of_config(config),
        **{name: config[name] for name in ("offline_updates", "online_steps")},
        state=state,
        why=why,
        updates=status.get("updates", 0),
        env_steps=status.get("env_steps", 0),
        success_rate=status.get("success_rate"),
        mean_return=status.get("mean_return"),
        score_updates=status.get("score_updates"),
        score_env_steps=status.get("score_env_steps"),
        rates={key: status[key] for key in keys if key in status},
        owner=owner,
        queued=queued,
        job=job,
        gpu_hours=gpu_hours,
        hours=hours,
        updated_at=status.get("updated_at"),
    )


def state_of(
    directory: Path,
    status: dict[str, Any],
    owner: Owner | None,
    now: float,
    queued: slurm.Task | None,
    launch: Launch | None,
    asked: bool,
) -> tuple[str, str]:
    """One of STATE_COLOURS, and why. What a living process or the run's own files say comes before what Slurm says."""
    written = status.get("state", "planned")
    if is_complete(directory) or written == "complete":
        return "complete", ""
    if owner is not None and is_fresh(owner, now):
        return "running", str(owner)
    silent = ""
    if owner is not None:
        ago = f"{duration(max(0.0, now - owner.beat_at))} ago" if owner.beat_at else "by a clock ahead of the one here"
        silent = f"{owner} ended without a word, {ago}"
    if queued is not None and queued.state == "PENDING":
        return "queued", f"job {queued.job}: {queued.reason}"
    if queued is not None and owner is not None and not owner.released and began(owner) >= queued.started:
        return "lost", f"{silent}; Slurm still has job {queued.job} as {queued.state.lower()} on {queued.nodes}"
    if queued is not None:
        return "starting", f"job {queued.job} {queued.state.lower()} on {queued.nodes}"
    if written == "failed":
        return "failed", status.get("error") or "no error was written"
    if written == "preempted" or (owner is not None and owner.released):
        cancelled = launch is not None and launch.is_cancelled
        return ("cancelled" if cancelled else "preempted"), "launch or run again to go on"
    if owner is None:
        return "planned", "" if launch is None or not asked else "in no job: launch again"
    if launch is not None and not asked:
        return "lost", f"{silent}, or waits in Slurm's queue"
    return "lost", silent


def gpus_of(start: dict[str, Any]) -> int:
    """GPUs that a start of a run held."""
    if start.get("device_type") != "cuda" and not start.get("slurm_job"):
        return 0
    visible = start.get("visible_gpus")
    return len(visible.split(",")) if visible else int(start.get("device_type") == "cuda")


def estimate_left(grid: GridStatus) -> None:
    """Time and GPU hours to the end, from measured rates where there are some, else from the launch's estimate.

    Runs that wait in no job are trained as a pack later, like those of their agent and task.
    """
    complete_seconds: dict[str, list[float]] = {}  # of complete runs' processes, by agent and variant
    for run in grid.runs:
        if run.state == "complete" and run.hours:
            complete_seconds.setdefault(run.name.label, []).append(run.hours * 3600)
    packs: dict[tuple[str, ...], list[RunStatus]] = {}
    for run in grid.runs:
        if run.state != "complete":
            packs.setdefault(_pack_of(run), []).append(run)
    left: list[float] = []  # of the packs whose time is known
    gpu_left, side_by_side = 0.0, 0
    for runs in packs.values():
        for run in runs:
            if (seconds := _left_of(run, complete_seconds.get(run.name.label), len(runs))) is not None:
                grid.left_of[run.directory] = seconds
        if any(run.directory not in grid.left_of for run in runs):
            continue
        left.append(max(grid.left_of[run.directory] for run in runs))
        gpu_left += left[-1] / 3600 * fmean(_gpu_share(run) for run in runs)
        side_by_side += runs[0].state == "running"
    if len(left) == len(packs):
        grid.left_seconds, grid.gpu_hours_left = max([sum(left) / max(1, side_by_side), *left]), gpu_left


def _pack_of(run: RunStatus) -> tuple[str, ...]:
    """Equal for runs that train, or will, in step with each other."""
    if run.state == "running":
        return (run.process,)
    if run.job is not None:
        return tuple(map(str, run.job.directories))
    return (run.name.suite, run.name.task, run.name.label)


def _left_of(run: RunStatus, complete_seconds: list[float] | None, together: int) -> float | None:
    updates = max(0, run.offline_updates - run.updates)
    steps = run.online_steps - run.env_steps
    offline, online = run.rates.get("updates_per_second"), run.rates.get("env_steps_per_second")
    if run.state == "running" and run.updates > run.offline_updates and online:  # not while it warms up, which is fast
        return steps / online
    if run.state == "running" and offline and not steps:
        return updates / offline
    if run.job is not None and run.job.seconds is not None:
        return run.job.seconds * (1 - run.progress)
    if complete_seconds:
        return fmean(complete_seconds) * together * (1 - run.progress)
    return updates / offline + steps / offline if offline else None  # an online step takes about as long as an update


def _gpu_share(run: RunStatus) -> float:
    return run.gpu_hours / run.hours if run.hours else 0.0


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free
