"""Noise sources for tests of agents: seeded streams, and recorded numbers."""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class SeededNoise:
    """Streams keyed by (seed, name, number of the draw); a seed's numbers do not depend on the other seeds."""

    device = torch.device("cpu")

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self.num_seeds = len(self.seeds)
        self.draws: Counter[str] = Counter()

    def normal(self, name: str, *shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=generator) for generator in self._generators(name)])

    def uniform(self, name: str, *shape: int) -> Tensor:
        return torch.stack([torch.rand(shape, generator=generator) for generator in self._generators(name)])

    def _generators(self, name: str) -> list[torch.Generator]:
        self.draws[name] += 1
        keys = [f"{seed}/{name}/{self.draws[name]}" for seed in self.seeds]
        return [torch.Generator().manual_seed(zlib.crc32(key.encode())) for key in keys]


class RecordedNoise:
    """Hands out recorded arrays by name, repeated for each seed; refuses a name or shape that was not recorded."""

    device = torch.device("cpu")

    def __init__(self, arrays: Mapping[str, Tensor], num_seeds: int = 1) -> None:
        self.arrays = dict(arrays)
        self.num_seeds = num_seeds

    def normal(self, name: str, *shape: int) -> Tensor:
        array = self.arrays.pop(name)  # each is drawn once
        assert array.shape == shape, (name, array.shape, shape)
        return array.unsqueeze(0).repeat(self.num_seeds, *[1] * len(shape))

    uniform = normal
