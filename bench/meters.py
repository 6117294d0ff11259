"""Means of metrics between two logs, and wall-clock rates."""

import time
from typing import Any

import torch
from torch import Tensor


class MetricMeans:
    """Means of per-seed metrics between two logs, summed on the device without waiting for it."""

    def __init__(self, states: list[dict[str, Any]]):
        saved = [state["metrics"] for state in states]
        self._count: dict[str, int] = dict(saved[0]["count"]) if saved else {}
        self._sums: dict[str, Tensor] = {
            name: torch.stack([member["sums"][name] for member in saved]) for name in self._count
        }

    def add(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            total = self._sums.get(name)
            self._sums[name] = value.double() if total is None else total.to(value.device) + value
            self._count[name] = self._count.get(name, 0) + 1

    def take(self, num_seeds: int) -> list[dict[str, float]]:
        """The means per seed, sorted by name; starts anew."""
        means = {name: (self._sums[name] / self._count[name]).tolist() for name in sorted(self._sums)}
        self._sums, self._count = {}, {}
        return [{name: values[index] for name, values in means.items()} for index in range(num_seeds)]

    def state_of_seed(self, index: int) -> dict[str, Any]:
        return {"count": dict(self._count), "sums": {name: total[index].cpu() for name, total in self._sums.items()}}


class Clock:
    """Wall-clock rates and periods; evaluation time does not count towards training rates."""

    def __init__(self) -> None:
        now = time.monotonic()
        self._since, self._excluded = now, 0.0
        self._last = {"checkpoint": now, "status": now}
        self._counts: dict[str, int] = {}
        self.recent: dict[str, float] = {}

    def due(self, what: str, seconds: float) -> bool:
        if time.monotonic() - self._last[what] < seconds:
            return False
        self._last[what] = time.monotonic()
        if what == "status":
            self.rates(restart=False)
        return True

    def count(self, what: str) -> None:
        self._counts[what] = self._counts.get(what, 0) + 1

    def exclude(self, seconds: float) -> None:
        self._excluded += seconds

    def rates(self, restart: bool = True) -> dict[str, float]:
        """Counts per second since the last restart."""
        seconds = max(time.monotonic() - self._since - self._excluded, 1e-9)
        self.recent = {f"{what}_per_second": count / seconds for what, count in self._counts.items()}
        if restart:
            self._since, self._excluded, self._counts = time.monotonic(), 0.0, {}
        return self.recent
