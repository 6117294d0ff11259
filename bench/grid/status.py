"""`python -m bench status | logs | cancel`: what is true of every run, for a person or a program.

Imports nothing heavy, writes nothing (but the mark of a cancelled grid), and works without a cluster.
"""

import itertools
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from bench.command_line import check_folder, check_least
from bench.grid import slurm
from bench.grid.columns import Column, fitting
from bench.grid.launches import CANCELLED, launches
from bench.grid.survey import STATE_COLOURS, GridStatus, Queue, RunStatus, survey
from bench.runs.claims import Heartbeats
from bench.runs.contract import GRIDS, LOG, ConfigError, StorageError, is_complete, named_run
from bench.runs.quantities import counted, duration, point, score

UNDER_WAY = {"running", "starting", "queued"}
WATCH_SECONDS = 10.0  # between looks at files
TELLING = re.compile(
    r"error|exceeded|killed|out of memory|oom|no space|not finite|traceback|segmentation|cancelled", re.I
)

# What is shown.


def failures(grid: GridStatus) -> list[tuple[str, list[RunStatus], list[str]]]:
    """Runs that failed or were lost by cause, with what their logs tell; the most frequent cause first."""
    causes: dict[str, list[tuple[RunStatus, str, list[str]]]] = {}
    lines_of: dict[tuple[Path, ...], list[str]] = {}  # by logs: a pack has the same ones
    for run in grid.runs:
        if run.state not in ("failed", "lost"):
            continue
        logs = tuple(logs_of(run, grid.results))
        lines = lines_of[logs] = lines_of[logs] if logs in lines_of else telling_lines(logs)
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


def logs_of(run: RunStatus, results: Path) -> list[Path]:
    """Where the output of the run's pack, and of its newest job, lies."""
    log = Path(run.owner.log) if run.owner and run.owner.log else run.directory / LOG
    logs = [log if log.exists() else run.directory / LOG]
    if run.owner is not None and run.owner.job:
        logs += sorted((results / GRIDS).glob(f"*/jobs/{run.owner.job}_0_log.out"))
    return [log for log in logs if log.exists()]


def header(grid: GridStatus) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in grid.count().items())
    suites = {run.name.suite for run in grid.runs}
    of = f" of {suites.pop()}" if len(suites) == 1 else ""
    line = f"{counted(len(grid.runs), 'run')}{of}: {counts}"
    if grid.left_seconds and grid.count().keys() != {"complete"}:
        line += f"; about {duration(grid.left_seconds)} left"
    spent = sum(run.gpu_hours for run in grid.runs)
    if spent or grid.gpu_hours_left:
        line += f"; {spent:.2f} GPU hours spent"
        if grid.gpu_hours_left:
            line += f", about {grid.gpu_hours_left:.2f} to go"
    return line


def table(grid: GridStatus, width: int) -> Table:
    """A row for each agent on each task, for a terminal of that width."""
    cells: dict[tuple[str, str, str], list[RunStatus]] = {}
    for run in grid.runs:
        cells.setdefault((run.name.suite, run.name.task, run.name.label), []).append(run)
    groups = [sorted(runs, key=lambda run: run.name.seed) for runs in cells.values()]
    one_suite = len({suite for suite, _, _ in cells}) == 1
    rates = [
        Column(
            title,
            [_mean(run.rates[key] for run in runs if key in run.rates and run.state == "running") for runs in groups],
            "right",
            stays=False,
        )
        for key, title in RATES.items()
    ]
    columns = [
        Column("task", _where_new([task if one_suite else f"{suite}/{task}" for suite, task, _ in cells])),
        Column("agent", [agent for _, _, agent in cells]),
        Column("runs", [_states(grid, runs) for runs in groups], wraps=12),
        Column("progress", [f"{100 * fmean(run.progress for run in runs):.0f} %" for runs in groups], "right"),
        *rates,
        Column("left", [_left(grid, runs) for runs in groups], "right"),
        Column(
            "score, by seed",
            [_scores(runs) for runs in groups],
            wraps=14,
        ),
    ]
    return fitting(columns, width)


def _scores(runs: Sequence[RunStatus]) -> str:
    """`0.88 0.42, 0.10 0.25 at 1.4k steps`: of a run that is not complete, training may be further than its score."""
    parts = []
    for where, group in itertools.groupby(runs, key=_point_of):
        parts.append(" ".join([*(score(run.success_rate, run.mean_return) for run in group), where]).rstrip())
    return ", ".join(parts)


def _point_of(run: RunStatus) -> str:
    return "" if run.state == "complete" else point(run.score_updates, run.score_env_steps)


def _where_new(names: Sequence[str]) -> list[str]:
    """A name that repeats the one above stays empty."""
    return [name if name != before else "" for before, name in zip(["", *names], names, strict=False)]


def _states(grid: GridStatus, runs: Sequence[RunStatus]) -> Text:
    counts = grid.count(runs).items()
    return Text(", ").join(Text(f"{count} {state}", STATE_COLOURS[state]) for state, count in counts)


RATES = {"updates_per_second": "updates/s", "env_steps_per_second": "steps/s"}


def _mean(values: Iterable[float]) -> str:
    values = list(values)
    return f"{fmean(values):.1f}" if values else ""


def _left(grid: GridStatus, runs: Sequence[RunStatus]) -> str:
    """Of those that train, the one that takes longest."""
    seconds = [grid.left_of[run.directory] for run in runs if run.state == "running" and run.directory in grid.left_of]
    return duration(max(seconds)) if seconds else ""


def view_of(grid: GridStatus, each: bool, width: int) -> Group:
    """Everything for a person, on a terminal `width` letters wide."""
    parts: list[Any] = [
        Text(header(grid), "bold"),
        *(Text(f"note: {note}", "yellow") for note in grid.notes),
        table(grid, width),
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


def as_json(grid: GridStatus) -> dict[str, Any]:
    return {
        "results": str(grid.results),
        "counts": grid.count(),
        "left_seconds": grid.left_seconds,
        "gpu_hours_spent": sum(run.gpu_hours for run in grid.runs),
        "gpu_hours_left": grid.gpu_hours_left,
        "notes": grid.notes,
        "failures": [
            {"cause": why, "runs": [str(run.name) for run in runs], "log": lines} for why, runs, lines in failures(grid)
        ],
        "runs": [
            {
                "name": str(run.name),
                "state": run.state,
                "why": run.why,
                "progress": run.progress,
                "updates": run.updates,
                "env_steps": run.env_steps,
                "success_rate": run.success_rate,
                "mean_return": run.mean_return,
                "score_updates": run.score_updates,
                "score_env_steps": run.score_env_steps,
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


@dataclass(frozen=True)
class StatusOptions:
    """What is true of every run: state, progress, rates, time left, failures."""

    suite: Positional[str | None] = None  # default: all
    watch: bool = False  # go on looking until nothing runs or waits
    runs: bool = False  # a line for each run
    json: bool = False  # for a program
    running: bool = False  # only whether a process trains one of them, or a job of one waits: exit code 0, else 1
    results: Path = Path("results")

    def __post_init__(self) -> None:
        check_folder(self)
        if self.suite == "":
            raise ConfigError("the suite's name is empty; leave it out for all suites")
        if self.running and (self.watch or self.runs or self.json):
            raise ConfigError("--running answers with its exit code: leave out --watch, --runs and --json")
        if self.json and self.runs:
            raise ConfigError("--json has every run already: leave out --runs")


@dataclass(frozen=True)
class LogsOptions:
    """The output of a run's process and of its job."""

    run: Positional[str]  # its folder, or suite/task/agent/seed_000
    lines: int = 40  # the last so many of each log
    follow: bool = False  # go on printing what is added
    results: Path = Path("results")

    def __post_init__(self) -> None:
        check_folder(self)
        check_least(self, lines=1)


@dataclass(frozen=True)
class CancelOptions:
    """End a grid's jobs. Runs keep their checkpoints; launch again to go on."""

    suite: Positional[str | None] = None  # default: all that was launched
    results: Path = Path("results")

    def __post_init__(self) -> None:
        check_folder(self)


def status_command(options: StatusOptions) -> int:
    queue = Queue()
    if not options.watch:
        grid = survey(options.results, options.suite, queue)
        if options.running:
            if is_running := bool(grid.count().keys() & UNDER_WAY):
                print("still running, see make status")
            return 0 if is_running else 1
        if options.json:
            print(json.dumps(as_json(grid), indent=1))
        else:
            print_view(grid, options.runs)
        return 0
    console, heartbeats = Console(), Heartbeats()
    with (
        Live(console=console, auto_refresh=False, vertical_overflow="visible")
        if console.is_terminal
        else nullcontext() as live
    ):
        while True:
            grid = survey(options.results, options.suite, queue, heartbeats)
            if options.json:
                print(json.dumps(as_json(grid)), flush=True)
            else:
                if live:
                    live.update(view_of(grid, options.runs, console.width), refresh=True)
                else:  # what has changed, and when
                    print(time.strftime("%Y-%m-%d %H:%M:%S"))
                    print_view(grid, options.runs)
            if not grid.count().keys() & UNDER_WAY:
                return 0
            time.sleep(WATCH_SECONDS)


def print_view(grid: GridStatus, each: bool) -> None:
    """Prints for a terminal or, elsewhere, in lines as wide as they are."""
    console = Console() if sys.stdout.isatty() else Console(width=240, highlight=False)
    with console.capture() as captured:
        console.print(view_of(grid, each, console.width))
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)


def logs_command(options: LogsOptions) -> int:
    directory = named_run(options.run, options.results)
    grid = survey(directory.parents[3], directory.parents[2].name, Queue())
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


def cancel_command(options: CancelOptions) -> int:
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
    print(f"cancelled {counted(count, 'job')}; their runs checkpoint first. Launch again to go on.")
    return 0
