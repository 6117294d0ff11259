"""Where the driver's wall-clock time goes: shares of it by what the driver does or waits for."""

import contextlib
import time
from collections.abc import Iterator

PARTS: tuple[str, ...] = (
    "update",
    "act",
    "env_wait",
    "evaluation_wait",
    "write",
)  # names in timing.csv, each with `_share`


class Stopwatch:
    """Times parts of the driver's loop; what no part claims is left over.

    On a GPU a part is what the host waits for: updates are queued, and waiting for them may show in `act`.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._since = time.monotonic()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `name`; blocks do not nest."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - started

    def shares(self) -> dict[str, float]:
        """Shares of the time since the last call, by `<part>_share`; starts anew."""
        now = time.monotonic()
        total = max(now - self._since, 1e-9)
        shares = {f"{name}_share": seconds / total for name, seconds in self._seconds.items()}
        self._seconds, self._since = dict.fromkeys(PARTS, 0.0), now
        return shares
