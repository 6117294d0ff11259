"""One live line per pack on a terminal; plain heartbeat lines elsewhere."""

import csv
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bench.writer import read_json

if TYPE_CHECKING:
    from bench.cost import Cost
    from bench.launch import Pack

HEARTBEAT_SECONDS = 60.0


def duration(seconds: float) -> str:
    """Seconds as a person says it: 40 s, 12 min, 3.5 h, 2.1 d."""
    for unit, size, digits in (("d", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """Bytes as a person says it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class Display:
    """Shows packs from their runs' status files; a context manager."""

    def __init__(self, results: Path, costs: "dict[Pack, Cost]", jobs: int):
        self._results, self._costs, self._jobs = results, costs, jobs
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._running: dict[Pack, tuple[float, float]] = {}  # start time, predicted seconds left at the start
        self._left = list(costs)
        self._warned: set[str] = set()
        self._refreshed = self._beat = time.monotonic()

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def started(self, pack: "Pack") -> None:
        status = self._status(pack)
        left = self._costs[pack].seconds(status.get("updates", 0), status.get("env_steps", 0))
        self._running[pack] = (time.monotonic(), left)
        self._left.remove(pack)

    def finished(self, pack: "Pack") -> None:
        self._warn()
        started, _ = self._running.pop(pack)
        states = {status.get("state", "not begun") for status in self._statuses(pack)}
        line = f"{pack.name}: {', '.join(sorted(states))} after {duration(time.monotonic() - started)}"
        self._say(f"{line}, {self._score(pack)}{measured_rates(pack.configs[0].directory(self._results))}")

    def refresh(self) -> None:
        now = time.monotonic()
        if now - self._refreshed >= 1.0:
            self._refreshed = now
            self._warn()
            if self._live:
                self._live.update(self._table(), refresh=True)
        if not self._live and now - self._beat >= HEARTBEAT_SECONDS:
            self._beat = now
            for pack in self._running:
                self._say("  ".join(self._cells(pack)))
            self._say(f"{len(self._running)} running, {len(self._left)} waiting, about {duration(self._eta())} left")

    def _warn(self) -> None:
        """What a run warns of, once."""
        for pack in self._running:
            warning = self._status(pack).get("warning")
            line = f"WARNING: {pack.name}: {warning}"
            if warning and line not in self._warned:
                self._warned.add(line)
                self._say(line)

    def _say(self, line: str) -> None:
        if self._live:
            self._live.console.print(line, highlight=False)
        else:
            print(line, flush=True)

    def _statuses(self, pack: "Pack") -> list[dict[str, Any]]:
        return [read_json(config.directory(self._results) / "status.json") or {} for config in pack.configs]

    def _status(self, pack: "Pack") -> dict[str, Any]:
        """Of the pack's first run: all go in step."""
        return self._statuses(pack)[0]

    def _pack_left(self, pack: "Pack") -> float:
        """Predicted seconds left, corrected by how the prediction has fared since the start."""
        started, at_start = self._running[pack]
        status = self._status(pack)
        predicted = self._costs[pack].seconds(status.get("updates", 0), status.get("env_steps", 0))
        done, elapsed = at_start - predicted, time.monotonic() - started
        return predicted * (elapsed / done if done > 0.05 * at_start else 1.0)

    def _eta(self) -> float:
        running = sum(self._pack_left(pack) for pack in self._running)
        return (running + sum(self._costs[pack].seconds() for pack in self._left)) / self._jobs

    def _score(self, pack: "Pack") -> str:
        """`success 0.50 0.75`, or `return 312.5 290` where the task has no notion of success."""
        statuses = self._statuses(pack)
        scored_by_return = any(
            status.get("success_rate") is None and status.get("mean_return") is not None for status in statuses
        )
        name, key, form = ("return", "mean_return", ".4g") if scored_by_return else ("success", "success_rate", ".2f")
        values = [status.get(key) for status in statuses]
        return " ".join([name, *("-" if value is None else format(value, form) for value in values)])

    def _cells(self, pack: "Pack") -> list[str]:
        config, status = pack.configs[0], self._status(pack)
        updates, steps = status.get("updates", 0), status.get("env_steps", 0)
        offline = f"offline {min(updates, config.offline_updates)}/{config.offline_updates}"
        online = f"online {steps}/{config.online_steps}"
        rates = [f"{status[key]:.1f} {unit}" for key, unit in RATES if key in status]
        return [
            pack.name,
            f"{offline} {online}",
            *rates,
            self._score(pack),
            f"{duration(self._pack_left(pack))} left",
        ]

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for title in ("run", "offline updates", "online steps", "updates/s", "env steps/s", "score", "left"):
            table.add_column(title, justify="left" if title == "run" else "right", no_wrap=True)
        for pack in self._running:
            config, status = pack.configs[0], self._status(pack)
            updates = min(status.get("updates", 0), config.offline_updates)
            table.add_row(
                pack.name,
                f"{updates:,}/{config.offline_updates:,}",
                f"{status.get('env_steps', 0):,}/{config.online_steps:,}",
                *(f"{status[key]:.1f}" if key in status else "" for key, _ in RATES),
                self._score(pack),
                duration(self._pack_left(pack)),
            )
        if self._left:
            table.add_row(f"[dim]{len(self._left)} waiting; all done in about {duration(self._eta())}[/dim]")
        return table


RATES = (("updates_per_second", "updates/s"), ("env_steps_per_second", "env steps/s"))


def measured_rates(directory: Path) -> str:
    """Median rates of a run's timing.csv: `; offline 34.1 updates/s, online …`, empty where none were logged."""
    values: dict[tuple[str, str], list[float]] = {}
    if not (directory / "timing.csv").exists():
        return ""
    with (directory / "timing.csv").open() as file:
        for row in csv.DictReader(file):
            values.setdefault((row["phase"], row["name"]), []).append(float(row["value"]))
    shown = (
        (("offline", "updates_per_second"), "offline {:.1f} updates/s"),
        (("online", "env_steps_per_second"), "online {:.1f} env steps/s"),
        (("online", "evaluation_seconds"), "evaluation {:.1f} s"),
    )
    return "".join(f"; {text.format(statistics.median(values[key]))}" for key, text in shown if key in values)


def is_terminal() -> bool:
    return sys.stdout.isatty()
