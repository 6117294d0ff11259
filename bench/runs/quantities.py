"""Durations, sizes and counts as a person says them."""

from collections.abc import Mapping, Sequence
from typing import Any


def duration(seconds: float) -> str:
    """40 s, 12 min, 3.5 h, 2.1 d."""
    for unit, size, digits in (("d", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """A number of bytes: 900 B, 12 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def short(count: int) -> str:
    """A count in about three digits: 950, 1.23k, 234k, 1M."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if count >= size:
            digits = 2 if count < 10 * size else 1 if count < 100 * size else 0
            number = f"{count / size:.{digits}f}"
            return (number.rstrip("0").rstrip(".") if digits else number) + unit
    return str(count)


def counted(count: int, what: str) -> str:
    """1 run, 3 runs; 1 process, 2 processes."""
    ending = "es" if what.endswith("s") else "s"
    return f"{count:,} {what}{'' if count == 1 else ending}"


def scores(runs: Sequence[Mapping[str, Any]]) -> str:
    """Of runs by their status: `success 0.50 -`, or `return 312.5 290` where the task has no notion of success."""
    by_return = any(run.get("success_rate") is None and run.get("mean_return") is not None for run in runs)
    name, key, form = ("return", "mean_return", ".4g") if by_return else ("success", "success_rate", ".2f")
    values = [run.get(key) for run in runs]
    return " ".join([name, *("-" if value is None else format(value, form) for value in values)])
