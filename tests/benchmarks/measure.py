"""Interleaved timing of alternatives, and the table that benchmarks print.

Machines are noisy: alternatives take turns within one run, the median of all turns counts, and results are read as
ratios.
"""

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one alternative: the median over all turns and its quartiles."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, as a share of the median."""
        return (self.high - self.low) / (2 * self.median)


def interleaved(
    alternatives: Mapping[str, Callable[[], object]],
    *,
    turns: int = 7,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times `calls` calls of each alternative, one after the other, `turns` times, after one turn that does not count.

    Args:
        clock: `time.perf_counter` for wall-clock time, `time.process_time` for CPU time of this process.
    """
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for turn in range(turns + 1):
        for name, call in alternatives.items():
            started = clock()
            for _ in range(calls):
                call()
            if turn:
                seconds[name].append((clock() - started) / calls)
    return {name: timing(values) for name, values in seconds.items()}


def timing(seconds: Sequence[float]) -> Timing:
    """Median and quartiles of at least two measurements."""
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, low, high)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns: the first column left, the others right."""
    cells = [[str(value) for value in row] for row in [columns, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)) + "|"
    return "\n".join([f"\n{title}", line(cells[0]), rule, *map(line, cells[1:])])


def peak_megabytes() -> float:
    """Most memory that this process has held; not ru_maxrss where possible, which begins with its parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def machine_line() -> str:
    """Processor, cores, GPU and versions: the first line of every benchmark."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{platform.machine()} {capability}, {cores} cores, {gpu}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
