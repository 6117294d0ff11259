"""Means of metrics between two logs, and wall-clock rates."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.runs.state import MetricSums


class MetricMeans:
    """Means of per-seed metrics between two logs, summed on the device without waiting for it.

    Sums keep their place in memory, so that a captured update can add to them.
    """

    def __init__(self, states: Sequence[MetricSums] = (), device: torch.device | str = "cpu"):
        """From one state per seed, or from nothing."""
        self._counts: dict[str, int] = dict(states[0].count) if states else {}
        self.sums: dict[str, Tensor] = {  # (S,) float64
            name: torch.stack([state.sums[name] for state in states]).to(device) for name in self._counts
        }

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Adds the metrics (S,) of one update, which `count` must count."""
        for name, value in metrics.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(value, dtype=torch.float64)
            self.sums[name] += value

    def count(self, names: Sequence[str], updates: int) -> None:
        """Counts `updates` whose metrics of these names were added."""
        for name in names:
            self._counts[name] = self._counts.get(name, 0) + updates

    def take(self, num_seeds: int, go_on: bool = False) -> list[dict[str, float]]:
        """The means per seed, sorted by name; starts anew, or goes on with the same sums."""
        names = sorted(self._counts)
        if not names:
            return [{} for _ in range(num_seeds)]
        sums = torch.stack([self.sums[name] for name in names]).cpu()  # one wait for the device
        means = {name: (row / self._counts[name]).tolist() for name, row in zip(names, sums, strict=True)}
        if not go_on:
            for total in self.sums.values():
                total.zero_()
            self._counts = {}
        return [{name: values[index] for name, values in means.items()} for index in range(num_seeds)]

    def state_of_seed(self, index: int) -> MetricSums:
        return MetricSums(
            count=dict(self._counts), sums={name: self.sums[name][index].cpu().clone() for name in self._counts}
        )


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

    def count(self, what: str, number: int = 1) -> None:
        self._counts[what] = self._counts.get(what, 0) + number

    def exclude(self, seconds: float) -> None:
        self._excluded += seconds

    def rates(self, restart: bool = True) -> dict[str, float]:
        """Counts per second since the last restart."""
        seconds = max(time.monotonic() - self._since - self._excluded, 1e-9)
        self.recent = {f"{what}_per_second": count / seconds for what, count in self._counts.items()}
        if restart:
            self._since, self._excluded, self._counts = time.monotonic(), 0.0, {}
        return self.recent
