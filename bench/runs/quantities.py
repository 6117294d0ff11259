"""Durations and sizes as a person says them."""


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
