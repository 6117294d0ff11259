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
    """Of runs by their status: `success 0.50 - at 3.9k steps`, or `return 312.5 290` where the task has no notion of
    success. The point is that of the first run: training may be further than its newest evaluation."""
    values = [(run.get("success_rate"), run.get("mean_return")) for run in runs]
    by_return = any(rate is None and mean is not None for rate, mean in values)
    words = ["return" if by_return else "success", *(score(*value) for value in values)]
    return " ".join([*words, point(runs[0].get("score_updates"), runs[0].get("score_env_steps"))]).rstrip()


def point(updates: int | None, env_steps: int | None) -> str:
    """Where a run's newest evaluation was: `at 3.9k steps`; nothing before the first, and of runs of older versions."""
    if updates is None or env_steps is None:
        return ""
    return f"at {short(env_steps)} steps" if env_steps else f"at {short(updates)} updates"


def score(success_rate: float | None, mean_return: float | None) -> str:
    """Of an evaluation: the success rate, or the return where there is no success; `-` before the first one."""
    if success_rate is not None:
        return f"{success_rate:.2f}"
    return "-" if mean_return is None else f"{mean_return:.4g}"
