"""`python -m bench status | logs | cancel`: what is true of every run, from its own files; Slurm's word is a hint.

Imports nothing heavy, writes nothing (but the mark of a cancelled grid), and works without a cluster.
"""

import argparse
import json
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bench.grid import slurm
from bench.grid.job import bad_nodes
from bench.grid.launches import CANCELLED, FOLDER, Job, Launch, launches, queued_runs
from bench.grid.progress import duration, size
from bench.runs.claims import Owner, began, clock_of, is_fresh, owner_of, spent_seconds
from bench.runs.contract import ConfigError
from bench.runs.writer import StorageError, is_complete, read_json

STATES = {  # in the order in which they are shown, with their colours
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
WATCH_SECONDS = 10.0  # between looks at files
QUEUE_SECONDS = 30.0  # between questions to Slurm
ANSWER_SECONDS = 15.0  # that a person waits for its answer
TELLING = re.compile(
    r"error|exceeded|killed|out of memory|oom|no space|not finite|traceback|segmentation|cancelled", re.I
)


@dataclass(frozen=True)
class Run:
    """What is true of one run."""

    directory: Path
    suite: str
    task: str
    agent: str
    seed: int
    state: str  # one of STATES
    why: str  # of a state that asks for one
    offline_updates: int  # budgets
    online_steps: int
    updates: int
    env_steps: int
    success_rate: float | None
    mean_return: float | None
    rates: dict[str, float]
    owner: Owner | None
    queued: slurm.Task | None
    job: Job | None  # of the newest launch that holds the run
    gpu_hours: float
    hours: float  # of its processes, shared by the runs of a pack
    updated_at: str | None

    @property
    def name(self) -> str:
        return f"{self.suite}/{self.task}/{self.agent}/{self.directory.name}"

    @property
    def progress(self) -> float:
        """Share of the budget, offline updates and environment steps counted alike."""
        if self.state == "complete":
            return 1.0
        return (min(self.updates, self.offline_updates) + self.env_steps) / (self.offline_updates + self.online_steps)

    @property
    def process(self) -> str:
        """Equal for the runs of a pack that trains: they go in step."""
        return f"{self.owner.host} {self.owner.pid} {self.owner.process_started}" if self.owner else self.name


@dataclass
class Grid:
    """All runs of some suites, and what holds for them together."""

    results: Path
    runs: list[Run]
    notes: list[str] = field(default_factory=list)
    left_seconds: float | None = None
    gpu_hours_left: float | None = None

    def count(self, runs: Iterable[Run] | None = None) -> dict[str, int]:
        counted = Counter(run.state for run in (self.runs if runs is None else runs))
        return {state: counted[state] for state in STATES if counted[state]}


class Queue:
    """Slurm's queue, asked for at most once in QUEUE_SECONDS, whatever the number of runs."""

    def __init__(self) -> None:
        self._asked = -QUEUE_SECONDS
        self.tasks: dict[tuple[str, int], slurm.Task] | None = None  # None: not known
        self.problem: str | None = None

    def look(self) -> None:
        if time.monotonic() - self._asked < QUEUE_SECONDS or not slurm.exists("squeue"):
            return
        self._asked = time.monotonic()
        try:
            self.tasks, self.problem = slurm.queue(ANSWER_SECONDS), None
        except slurm.SlurmError as error:  # its last word, if there was one, still helps
            self.problem = str(error)


def look(results: Path, suite: str | None, queue: Queue) -> Grid:
    """The truth about all runs under `results`, or about one suite's. Raises ConfigError where there are none."""
    results = results.absolute()
    launched = launches(results, suite)
    if launched:
        queue.look()
    waiting = queued_runs(results, queue.tasks) if queue.tasks else {}
    jobs = {
        path: (launch, job)
        for launch in launched
        for array in launch.arrays
        for job in array.jobs
        for path in job.directories
    }
    found = sorted(path.parent for path in results.glob(f"{suite or '[!.]*'}/*/*/seed_*/config.json"))
    if not found:
        raise ConfigError(
            f"no runs{f' of {suite}' if suite else ''} under {results}; python -m bench plan says what a suite is"
        )
    now = clock_of(results)
    runs = [
        look_at(path, now, waiting.get(path), *jobs.get(path, (None, None)), queue.tasks is not None) for path in found
    ]
    grid = Grid(results, runs)
    estimate_left(grid)
    if queue.problem:
        grid.notes.append(f"Slurm does not answer ({queue.problem}): its part of what follows may be old")
    elif launched and queue.tasks is None:
        grid.notes.append("no Slurm here: what waits in its queue is not known")
    bad = bad_nodes(results)
    if bad:
        grid.notes.append(f"kept away from {', '.join(sorted(bad))}: workers crashed there again and again")
    free = free_bytes(results)
    if free < 200_000_000:
        grid.notes.append(f"only {size(free)} are free on the disk of {results}")
    return grid


def look_at(
    directory: Path, now: float, queued: slurm.Task | None, launch: Launch | None, job: Job | None, asked: bool
) -> Run:
    """The truth about one run. `asked`: whether Slurm's queue is known, so that a run absent from it is in no job."""
    config = read_json(directory / "config.json") or {}
    status = read_json(directory / "status.json") or {}
    provenance = read_json(directory / "provenance.json") or {"starts": []}
    owner = owner_of(directory)
    state, why = state_of(directory, status, owner, now, queued, launch, asked)
    hours = gpu_hours = 0.0
    for number, start in enumerate(provenance["starts"]):
        newest = number == len(provenance["starts"]) - 1
        seconds = start.get("seconds", spent_seconds(owner) if newest and owner else 0.0) / len(start["pack"])
        hours += seconds / 3600
        gpu_hours += seconds / 3600 * gpus_of(start)
    keys = ("updates_per_second", "env_steps_per_second")
    return Run(
        directory=directory,
        **{name: config[name] for name in ("suite", "task", "agent", "seed", "offline_updates", "online_steps")},
        state=state,
        why=why,
        updates=status.get("updates", 0),
        env_steps=status.get("env_steps", 0),
        success_rate=status.get("success_rate"),
        mean_return=status.get("mean_return"),
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
    """One of STATES, and why. What a living process or the run's own files say comes before what Slurm says."""
    written = status.get("state", "planned")
    if is_complete(directory) or written == "complete":
        return "complete", ""
    if owner is not None and is_fresh(owner, now):
        return "running", str(owner)
    silent = f"{owner} ended without a word, {duration(max(0.0, now - owner.beat_at))} ago" if owner else ""
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


def estimate_left(grid: Grid) -> None:
    """Time and GPU hours to the end, from measured rates where there are some, else from the launch's estimate."""
    known: dict[str, list[float]] = {}  # seconds of complete runs' processes, by agent
    for run in grid.runs:
        if run.state == "complete" and run.hours:
            known.setdefault(run.agent, []).append(run.hours * 3600)
    packs: dict[tuple[str, ...], list[Run]] = {}
    for run in grid.runs:
        if run.state != "complete":
            key = (
                (run.process,)
                if run.state == "running"
                else tuple(map(str, run.job.directories))
                if run.job
                else (run.name,)
            )
            packs.setdefault(key, []).append(run)
    left, gpu_left, side_by_side = 0.0, 0.0, 0
    for runs in packs.values():
        seconds = [_left_of(run, known.get(run.agent), len(runs)) for run in runs]
        if any(one is None for one in seconds):
            return
        longest = max(one for one in seconds if one is not None)
        left += longest
        gpu_left += longest / 3600 * (fmean(_gpu_share(run) for run in runs) if runs else 0)
        side_by_side += runs[0].state == "running"
    grid.left_seconds, grid.gpu_hours_left = left / max(1, side_by_side), gpu_left


def _left_of(run: Run, known: list[float] | None, together: int) -> float | None:
    updates = max(0, run.offline_updates - run.updates)
    steps = run.online_steps - run.env_steps
    offline, online = run.rates.get("updates_per_second"), run.rates.get("env_steps_per_second")
    if run.state == "running" and run.env_steps and online:
        return steps / online
    if run.state == "running" and offline and not steps:
        return updates / offline
    if run.job is not None and run.job.seconds is not None:
        return run.job.seconds * (1 - run.progress)
    if known:
        return fmean(known) * together * (1 - run.progress)
    return updates / offline + steps / offline if offline else None  # an online step takes about as long as an update


def _gpu_share(run: Run) -> float:
    return run.gpu_hours / run.hours if run.hours else 0.0


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


# What is shown.


def failures(grid: Grid) -> list[tuple[str, list[Run], list[str]]]:
    """Runs that failed or were lost by cause, with what their logs tell; the most frequent cause first."""
    causes: dict[str, list[tuple[Run, str, list[str]]]] = {}
    told: dict[tuple[Path, ...], list[str]] = {}  # by logs: a pack has the same ones
    for run in grid.runs:
        if run.state not in ("failed", "lost"):
            continue
        logs = tuple(logs_of(run, grid.results))
        lines = told[logs] = told[logs] if logs in told else telling_lines(logs)
        why = run.why if run.state == "failed" else f"{cause_of_death(lines)}: {run.why}"
        kind = why if run.state == "failed" else cause_of_death(lines)
        causes.setdefault(re.sub(r"(?<![a-z])(0x)?\d[\d.]*|seed_\d+|/\S+", "…", kind), []).append((run, why, lines))
    ordered = sorted(causes.values(), key=len, reverse=True)
    return [(group[0][1], [run for run, _, _ in group], group[0][2]) for group in ordered]


def cause_of_death(lines: Iterable[str]) -> str:
    """What the logs say of a process that ended without a word of its own."""
    text = "\n".join(lines).lower()
    for cause, signs in DEATHS.items():
        if any(sign in text for sign in signs):
            return cause
    return "killed"


DEATHS = {
    "out of memory": ("exceeded memory", "exceeded job memory", "out of memory", "oom"),
    "no space on the disk": ("no space left", "quota exceeded"),
    "time limit": ("due to time limit",),
    "node failure": ("node failure", "node_fail"),
    "cancelled in Slurm": ("cancelled",),
}


def telling_lines(logs: Iterable[Path], most: int = 3) -> list[str]:
    """The last lines of logs that speak of an error, the newest of each log."""
    lines: list[str] = []
    for log in logs:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65_536))
            text = file.read().decode(errors="replace")
        lines += [line.strip() for line in text.splitlines() if TELLING.search(line)][-most:]
    return lines[-most:]


def logs_of(run: Run, results: Path) -> list[Path]:
    """Where the output of the run's pack, and of its newest job, lies."""
    own = Path(run.owner.log) if run.owner and run.owner.log else run.directory / "log.txt"
    logs = [own if own.exists() else run.directory / "log.txt"]
    if run.owner is not None and run.owner.job:
        logs += sorted((results / FOLDER).glob(f"*/jobs/{run.owner.job}_0_log.out"))
    return [log for log in logs if log.exists()]


def header(grid: Grid) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in grid.count().items())
    line = f"{len(grid.runs)} runs: {counts}"
    if grid.left_seconds and grid.count().keys() != {"complete"}:
        line += f"; about {duration(grid.left_seconds)} left"
    spent = sum(run.gpu_hours for run in grid.runs)
    if spent or grid.gpu_hours_left:
        line += f"; {spent:.2f} GPU hours spent"
        if grid.gpu_hours_left:
            line += f", about {grid.gpu_hours_left:.2f} to go"
    return line


def table(grid: Grid) -> Table:
    """A row for each agent on each task."""
    view = Table(box=None, pad_edge=False, show_edge=False)
    for title in ("suite", "task", "agent"):
        view.add_column(title, no_wrap=True)
    view.add_column("runs", no_wrap=True)
    for title in ("progress", "updates/s", "steps/s", "score, by seed"):
        view.add_column(title, justify="right" if title != "score, by seed" else "left", no_wrap=True)
    cells: dict[tuple[str, str, str], list[Run]] = {}
    for run in grid.runs:
        cells.setdefault((run.suite, run.task, run.agent), []).append(run)
    before = ("", "")
    for (suite, task, agent), runs in cells.items():
        states = Text(", ").join(Text(f"{count} {state}", STATES[state]) for state, count in grid.count(runs).items())
        rates = [_mean(run.rates[key] for run in runs if key in run.rates and run.state == "running") for key in RATES]
        view.add_row(
            "" if suite == before[0] else suite,
            "" if (suite, task) == before else task,
            agent,
            states,
            f"{100 * fmean(run.progress for run in runs):.0f} %",
            *rates,
            " ".join(map(score, sorted(runs, key=lambda run: run.seed)[:12])) + (" …" if len(runs) > 12 else ""),
        )
        before = (suite, task)
    return view


RATES = ("updates_per_second", "env_steps_per_second")


def _mean(values: Iterable[float]) -> str:
    values = list(values)
    return f"{fmean(values):.1f}" if values else ""


def score(run: Run) -> str:
    """Of the newest evaluation: success rate, or return where there is no success; `-` before the first."""
    if run.success_rate is not None:
        return f"{run.success_rate:.2f}"
    return "-" if run.mean_return is None else f"{run.mean_return:.4g}"


def shown(grid: Grid, each: bool) -> Group:
    """Everything for a person."""
    parts: list[Any] = [
        Text(header(grid), "bold"),
        *(Text(f"note: {note}", "yellow") for note in grid.notes),
        table(grid),
    ]
    if each:
        for run in grid.runs:
            parts.append(Text(f"{run.name}: {run.state}{f' ({run.why})' if run.why else ''}, {run.progress:.0%}"))
    for why, runs, lines in failures(grid):
        others = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        parts.append(Text(f"{len(runs)} {runs[0].state}: {why}", "red"))
        parts.append(Text(f"    {runs[0].name}{others}"))
        parts += [Text(f"    | {line}", "dim") for line in lines]
    waiting = Counter(run.queued.reason for run in grid.runs if run.state == "queued" and run.queued)
    if waiting:
        parts.append(Text("waiting for: " + ", ".join(f"{reason} ({count})" for reason, count in waiting.items())))
    return Group(*parts)


def as_json(grid: Grid) -> dict[str, Any]:
    return {
        "results": str(grid.results),
        "counts": grid.count(),
        "left_seconds": grid.left_seconds,
        "gpu_hours_spent": sum(run.gpu_hours for run in grid.runs),
        "gpu_hours_left": grid.gpu_hours_left,
        "notes": grid.notes,
        "failures": [
            {"cause": why, "runs": [run.name for run in runs], "log": lines} for why, runs, lines in failures(grid)
        ],
        "runs": [
            {
                "name": run.name,
                "state": run.state,
                "why": run.why,
                "progress": run.progress,
                "updates": run.updates,
                "env_steps": run.env_steps,
                "success_rate": run.success_rate,
                "mean_return": run.mean_return,
                **run.rates,
                "job": run.queued.job if run.queued else run.owner.job if run.owner else None,
                "host": run.owner.host if run.owner else None,
                "gpu_hours": run.gpu_hours,
                "updated_at": run.updated_at,
            }
            for run in grid.runs
        ],
    }


# The commands.


def add_status_commands(commands: argparse._SubParsersAction) -> None:
    """The `status`, `logs` and `cancel` commands."""

    def command(name: str, function: Callable, help: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        parser.set_defaults(command=function)
        parser.add_argument("--results", type=Path, default=Path("results"))
        return parser

    status = command("status", status_command, "what is true of every run: state, progress, rates, time left, failures")
    status.add_argument("suite", nargs="?", help="default: all")
    status.add_argument("--watch", action="store_true", help="go on looking until nothing runs or waits")
    status.add_argument("--runs", action="store_true", help="a line for each run")
    status.add_argument("--json", action="store_true")
    logs = command("logs", logs_command, "the output of a run's process and of its job")
    logs.add_argument("run", help="its folder, or suite/task/agent/seed_000")
    logs.add_argument("--lines", type=int, default=40)
    logs.add_argument("--follow", action="store_true", help="go on printing what is added")
    cancel = command("cancel", cancel_command, "end a grid's jobs; runs keep their checkpoints, launch again to go on")
    cancel.add_argument("suite", nargs="?", help="default: all that was launched")


def status_command(options: argparse.Namespace, _: dict[str, str]) -> int:
    queue = Queue()
    if not options.watch:
        grid = look(options.results, options.suite, queue)
        if options.json:
            print(json.dumps(as_json(grid), indent=1))
        else:
            printed(shown(grid, options.runs))
        return 0
    console = Console()
    with (
        Live(console=console, auto_refresh=False, vertical_overflow="visible")
        if console.is_terminal
        else _Plain() as live
    ):
        while True:
            grid = look(options.results, options.suite, queue)
            if options.json:
                print(json.dumps(as_json(grid)), flush=True)
            else:
                live.update(shown(grid, options.runs), refresh=True)
            if not grid.count().keys() & {"running", "starting", "queued"}:
                return 0
            time.sleep(WATCH_SECONDS)


class _Plain:
    """In place of a live view where the output is no terminal: what has changed, and when."""

    def __enter__(self) -> "_Plain":
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, view: Group, refresh: bool) -> None:
        print(time.strftime("%Y-%m-%d %H:%M:%S"))
        printed(view)


def printed(view: Group) -> None:
    """Prints for a terminal or, elsewhere, in lines as wide as they are."""
    console = Console() if sys.stdout.isatty() else Console(width=240, highlight=False)
    with console.capture() as captured:
        console.print(view)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)


def logs_command(options: argparse.Namespace, _: dict[str, str]) -> int:
    directory = find_run(options.run, options.results)
    grid = look(directory.parents[3], directory.parents[2].name, Queue())
    run = next(run for run in grid.runs if run.directory == directory)
    logs = logs_of(run, grid.results)
    if not logs:
        raise ConfigError(f"{run.name} is {run.state}: no process of it has written a log yet")
    print(f"{run.name}: {run.state}{f' ({run.why})' if run.why else ''}")
    for log in logs:
        print(f"==> {log} <==")
        sys.stdout.writelines(line + "\n" for line in log.read_text(errors="replace").splitlines()[-options.lines :])
    sys.stdout.flush()
    if options.follow:
        with logs[0].open(errors="replace") as file:
            file.seek(0, 2)
            while not is_complete(directory):
                print(file.read(), end="", flush=True)
                time.sleep(0.5)
    return 0


def find_run(text: str, results: Path) -> Path:
    """The folder of a run by its path or name. Raises ConfigError."""
    for path in (Path(text), results / text):
        if (path / "config.json").exists():
            return path.absolute()
    raise ConfigError(f"there is no run {text!r}: name its folder, or suite/task/agent/seed_000 under {results}")


def cancel_command(options: argparse.Namespace, _: dict[str, str]) -> int:
    results = options.results.absolute()
    launched = [launch for launch in launches(results, options.suite) if not launch.is_cancelled]
    if not launched:
        raise ConfigError(f"no launch{f' of {options.suite}' if options.suite else ''} is recorded under {results}")
    tasks = slurm.queue()
    names = {array.name for launch in launched for array in launch.arrays}
    jobs = sorted({task.job.split("_")[0] for (name, _), task in tasks.items() if name in names})
    for launch in launched:
        try:
            (launch.folder / CANCELLED).touch()  # jobs look for it, also those that Slurm loses sight of
        except OSError as error:
            raise StorageError(f"cannot write {launch.folder / CANCELLED}: {error.strerror}") from error
    if not jobs:
        print("none of its jobs is in Slurm's queue")
        return 0
    slurm.call("scancel", *jobs)
    count = sum(name in names for name, _ in tasks)
    print(f"cancelled {count} jobs; their runs checkpoint first. Launch again to go on.")
    return 0
