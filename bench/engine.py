"""How an agent's update is executed: which device, which precision; nothing else knows.

Here updates run eagerly; an agent's file does not change when they are compiled or captured.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor

from agents.base import Agent
from bench.config import ConfigError
from bench.streams import SeedStreams
from datasets.batch import Batch
from datasets.replay import Replay

NOISE_BLOCK = 32  # updates whose random numbers are drawn at once


def pick_device(name: str) -> torch.device:
    """`auto`: the GPU where there is one. Raises ConfigError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"unknown device {name!r}; devices: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda asked for, but torch finds no GPU; use --device cpu")
    torch.backends.cuda.matmul.allow_tf32 = False  # Q targets reach -300: full fp32 by default
    torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def available_cores() -> int:
    """CPU cores that this process may use; a cluster's job has fewer than its machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Engine:
    """Draws batches and noise for update number n and runs the agent's update on them."""

    def __init__(self, agent: Agent, replay: Replay, seeds: list[int], batch_size: int, device: torch.device):
        self._agent = agent
        self._replay = replay
        self._batch_size = batch_size
        self._starts = SeedStreams(seeds, device, "batch", NOISE_BLOCK)
        self._noise = SeedStreams(seeds, device, "update", NOISE_BLOCK)

    def update_offline(self, number: int) -> dict[str, Tensor]:
        """Gradient update `number` of the run, on the dataset; metrics (S,)."""
        return self._update(self._agent.update_offline, number)

    def update_online(self, number: int) -> dict[str, Tensor]:
        """Gradient update `number` of the run, on dataset and collected transitions; metrics (S,)."""
        return self._update(self._agent.update_online, number)

    def _update(self, update: Callable[[Batch, SeedStreams], dict[str, Tensor]], number: int) -> dict[str, Tensor]:
        fractions = self._starts.at(number).uniform("starts", self._batch_size, dtype=torch.float64)
        return update(self._replay.sample(fractions), self._noise.at(number))
