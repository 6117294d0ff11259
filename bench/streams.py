"""Random numbers keyed by (run seed, purpose, name, step): no draw depends on the pack or on a restart."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def stream_key(*parts: object) -> int:
    """A 63-bit seed that is a pure function of `parts`."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class SeedStreams:
    """The noise source of `S` runs: every draw has shape (S, …), one independent stream per run seed.

    Position it with `at(step)` and draw by name; a second draw under one name at one step is a stream of its own.
    Nothing is carried from step to step, so a checkpoint needs no generator state. Draws are made in blocks of
    `block` consecutive steps (one generator call per seed and block) and cut into slices.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str, purpose: str, block: int = 1):
        self.seeds = tuple(seeds)
        self.device = torch.device(device)
        self.purpose = purpose
        self.block = block
        self._generator = torch.Generator(self.device)
        self._drawn: dict[tuple, tuple[int, Tensor]] = {}  # stream -> (block index, (S, block, …))
        self._counts: dict[str, int] = {}
        self._step = 0

    @property
    def num_seeds(self) -> int:
        return len(self.seeds)

    def at(self, step: int) -> "SeedStreams":
        """Moves to `step` (gradient update, environment step, …; the purpose fixes the unit)."""
        self._step = step
        self._counts = {}
        return self

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal, float32 (S, *shape)."""
        return self._draw(torch.randn, name, shape, torch.float32)

    def uniform(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform on [0, 1), (S, *shape)."""
        return self._draw(torch.rand, name, shape, dtype)

    def _draw(self, distribution, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        index, offset = divmod(self._step, self.block)
        stream = (name, count, distribution, shape, dtype)
        held = self._drawn.get(stream)
        if held is None or held[0] != index:
            rows = []
            for seed in self.seeds:
                self._generator.manual_seed(stream_key(seed, self.purpose, name, count, index))
                rows.append(
                    distribution((self.block, *shape), generator=self._generator, device=self.device, dtype=dtype)
                )
            held = (index, torch.stack(rows))
            if self.block > 1:
                self._drawn[stream] = held
        return held[1][:, offset]
