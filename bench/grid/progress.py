"""One live line per pack on a terminal; plain heartbeat lines elsewhere."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from bench.grid.columns import Column, fitting
from bench.grid.cost import Cost, median_rates
from bench.grid.pool import Work
from bench.protocol.config import RunConfig
from bench.runs.contract import STATUS, read_json
from bench.runs.quantities import duration, scores, short

HEARTBEAT_SECONDS = 60.0


class Display:
    """Shows packs from their runs' status files; a context manager, and what a pool of workers reports to."""

    def __init__(self, costs: dict[Work, Cost], jobs: int):
        self._costs, self._jobs = dict(costs), jobs
        self._console = Console()
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True) if self._console.is_terminal else None
        )
        self._running: dict[Work, tuple[float, float]] = {}  # start time, predicted seconds left at the start
        self._left = list(costs)
        self._warned: set[str] = set()
        self._refreshed = self._beat = time.monotonic()

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, work: Work) -> None:
        status = self._status(work)
        left = self._costs[work].seconds(status.get("updates", 0), status.get("env_steps", 0))
        self._running[work] = (time.monotonic(), left)
        self._left.remove(work)

    def ended(self, work: Work) -> None:
        self._warn()
        started, _ = self._running.pop(work)
        states = {status.get("state", "not begun") for status in self._statuses(work)}
        line = f"{work.name}: {', '.join(sorted(states))} after {duration(time.monotonic() - started)}"
        self._say(f"{line}, {self._score(work)}{measured_rates(work.directories[0])}")

    def divided(self, work: Work, parts: Sequence[Work]) -> None:
        """The process of `work` crashed; its runs go on one by one."""
        self._say(f"{work.name}: its process crashed ({work.log}); its runs go on in processes of their own")
        self._left[:0] = parts
        self._costs |= dict.fromkeys(parts, self._costs[work])

    def refresh(self) -> None:
        now = time.monotonic()
        if now - self._refreshed >= 1.0:
            self._refreshed = now
            self._warn()
            if self._live:
                self._live.update(self._table(), refresh=True)
        if not self._live and now - self._beat >= HEARTBEAT_SECONDS:
            self._beat = now
            for work in self._running:
                self._say("  ".join(self._cells(work)))
            self._say(f"{len(self._running)} running, {len(self._left)} waiting, about {duration(self._eta())} left")

    def _warn(self) -> None:
        """What a run warns of, once."""
        for work in self._running:
            warning = self._status(work).get("warning")
            line = f"WARNING: {work.name}: {warning}"
            if warning and line not in self._warned:
                self._warned.add(line)
                self._say(line)

    def _say(self, line: str) -> None:
        if self._live:
            self._live.console.print(line, highlight=False)
        else:
            print(line, flush=True)

    def _statuses(self, work: Work) -> list[dict[str, Any]]:
        return [read_json(directory / STATUS) or {} for directory in work.directories]

    def _status(self, work: Work) -> dict[str, Any]:
        """Of the pack's first run: all go in step."""
        return self._statuses(work)[0]

    def _pack_left(self, work: Work) -> float:
        """Predicted seconds left, corrected by how the prediction has fared since the start."""
        started, at_start = self._running[work]
        status = self._status(work)
        predicted = self._costs[work].seconds(status.get("updates", 0), status.get("env_steps", 0))
        done, elapsed = at_start - predicted, time.monotonic() - started
        return predicted * (elapsed / done if done > 0.05 * at_start else 1.0)

    def _eta(self) -> float:
        running = sum(self._pack_left(work) for work in self._running)
        return (running + sum(self._costs[work].seconds() for work in self._left)) / self._jobs

    def _score(self, work: Work) -> str:
        return scores(self._statuses(work))

    def _cells(self, work: Work) -> list[str]:
        config, status = self._costs[work].config, self._status(work)
        phases = [f"{phase} {done}/{whole}" for phase, (done, whole) in progress_of(config, status).items() if whole]
        rates = [f"{status[key]:.1f} {unit}" for key, unit in RATES if key in status]
        return [
            work.name,
            " ".join(phases),
            *rates,
            self._score(work),
            f"{duration(self._pack_left(work))} left",
        ]

    def _table(self) -> Group:
        """A row for each pack that trains; a task that all packs share stands in the heading alone."""
        tasks = {cost.config.task for cost in self._costs.values()}
        task = tasks.pop() if len(tasks) == 1 else ""
        rows = [self._status(work) for work in self._running]
        points = [progress_of(self._costs[work].config, row) for work, row in zip(self._running, rows, strict=True)]
        of_phases = {phase: [point[phase] for point in points] for phase in PHASES}
        progress = [
            Column(phase, [f"{short(done)}/{short(whole)}" for done, whole in of_phase], "right")
            for phase, of_phase in of_phases.items()
            if any(whole for _, whole in of_phase)
        ]
        rates = [
            Column(unit, [f"{row[key]:.1f}" if key in row else "" for row in rows], "right", stays=False)
            for key, unit in RATES
        ]
        columns = [
            Column(task or "run", [work.name.removeprefix(f"{task} ") for work in self._running]),
            *progress,
            *rates,
            Column("score", [self._score(work) for work in self._running], wraps=14),
            Column("left", [duration(self._pack_left(work)) for work in self._running], "right"),
        ]
        table = fitting(columns, self._console.width)
        if not self._left:
            return Group(table)
        return Group(table, Text(f"{len(self._left)} waiting; all done in about {duration(self._eta())}", "dim"))


PHASES = {"offline": ("updates", "offline_updates"), "online": ("env_steps", "online_steps")}  # of status, and config


def progress_of(config: RunConfig, status: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """By phase, what is done of its budget, and the budget: 0 where a run has no such phase."""
    wholes = {phase: getattr(config, whole) for phase, (_, whole) in PHASES.items()}
    return {phase: (min(status.get(PHASES[phase][0], 0), whole), whole) for phase, whole in wholes.items()}


RATES = (("updates_per_second", "updates/s"), ("env_steps_per_second", "env steps/s"))


def measured_rates(directory: Path) -> str:
    """A run's median rates: `; offline 34.1 updates/s, online …`, empty where none were logged."""
    rates = median_rates(directory)
    names = (
        (("offline", "updates_per_second"), "offline {:.1f} updates/s"),
        (("online", "env_steps_per_second"), "online {:.1f} env steps/s"),
        (("online", "evaluation_seconds"), "evaluation {:.1f} s"),
    )
    return "".join(f"; {text.format(rates[key])}" for key, text in names if key in rates)
