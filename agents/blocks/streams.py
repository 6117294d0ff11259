"""Random numbers keyed by (run seed, purpose, name, step): no draw depends on the pack or on a restart."""

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten


def stream_key(*parts: object) -> int:
    """A 63-bit seed that is a pure function of `parts`."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Stream(NamedTuple):
    """One kind of draw: within a step, the `count`-th one under its name."""

    name: str
    count: int
    distribution: Literal["normal", "uniform"]
    shape: tuple[int, ...]
    dtype: torch.dtype


class NamedDraws:
    """Draws by name, all of shape (S, …); a second draw under one name is a stream of its own."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal, float32 (S, *shape)."""
        return self.slice(Stream(name, self._count(name), "normal", shape, torch.float32))

    def uniform(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform on [0, 1), (S, *shape)."""
        return self.slice(Stream(name, self._count(name), "uniform", shape, dtype))

    def slice(self, stream: Stream) -> Tensor:
        """What the stream holds at the current step: (S, *stream.shape)."""
        raise NotImplementedError

    def _count(self, name: str) -> int:
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        return count


class SeedStreams(NamedDraws):
    """The noise source of `S` runs, with one independent stream per run seed and name.

    Position it with `at(step)`. Nothing is carried from step to step, so a checkpoint needs no generator state.
    Numbers are drawn for `block` consecutive steps at once; the newest two blocks of a stream are kept.

    A CPU's numbers are those of torch's generator, one call for each seed. A GPU's generator deals its numbers out to
    as many threads as the GPU has room for, so that large draws differ between models. There the numbers are Philox
    4x32-10 (Random123, doi 10.1145/2063384.2063405) of key and place alone, for all seeds in one call.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str, purpose: str, block: int = 1):
        super().__init__()
        self.seeds = tuple(seeds)
        self.device = torch.device(device)
        self.purpose = purpose
        self.block = block
        self._generator = torch.Generator("cpu")
        self._step = 0
        self._kept: dict[Stream, dict[int, Tensor]] = {}  # blocks by their index

    @property
    def num_seeds(self) -> int:
        return len(self.seeds)

    def at(self, step: int) -> "SeedStreams":
        """Moves to `step` (gradient update, environment step, …; the purpose fixes the unit)."""
        self._step = step
        self._counts = {}
        return self

    def slice(self, stream: Stream) -> Tensor:
        index, offset = divmod(self._step, self.block)
        if self.block == 1:
            return self.draw_block(stream, index)[:, 0]
        # Two: batches are gathered ahead of their use, some of them from the next block.
        kept = self._kept.setdefault(stream, {})
        if index not in kept:
            kept[index] = self.draw_block(stream, index)
            for old in sorted(kept, key=lambda other: abs(other - index))[2:]:
                del kept[old]
        return kept[index][:, offset]

    def draw_block(self, stream: Stream, index: int) -> Tensor:
        """The draws of steps index * block to (index + 1) * block - 1: (S, block, *stream.shape)."""
        shape = (self.block, *stream.shape)
        if self.device.type != "cpu":
            block = torch.empty(self.num_seeds, *shape, dtype=stream.dtype, device=self.device)
            return self._fill(block, stream, index)
        draw = torch.randn if stream.distribution == "normal" else torch.rand
        rows = []
        for key in self._keys(stream, index):
            self._generator.manual_seed(key)
            rows.append(draw(shape, generator=self._generator, dtype=stream.dtype))
        return torch.stack(rows)

    def refill(self, block: Tensor, stream: Stream, index: int) -> None:
        """Puts `draw_block(stream, index)` into `block`, on whatever device it lies, without waiting for that."""
        if self.device.type != "cpu":
            self._fill(block, stream, index)
        else:
            block.copy_(_pinned(self.draw_block(stream, index), block.device), non_blocking=True)

    def _fill(self, block: Tensor, stream: Stream, index: int) -> Tensor:
        keys = torch.tensor([[key, 0] for key in self._keys(stream, index)], dtype=torch.uint64)  # (key, first place)
        keys = _pinned(keys, block.device).to(block.device, non_blocking=True)
        fill = aten._philox_normal_ if stream.distribution == "normal" else aten._philox_uniform_
        return fill(block, keys.view(-1, *[1] * (block.dim() - 1), 2))

    def _keys(self, stream: Stream, index: int) -> list[int]:
        return [stream_key(seed, self.purpose, stream.name, stream.count, index) for seed in self.seeds]


class NoiseTape:
    """The draws of a block of steps in tensors that stay where they are, for compiled and captured updates.

    An update reads the slice at `offset`, itself a tensor, and moves it on; `seek` puts the tape at a step and refills
    it where a block begins. The numbers are those of `SeedStreams`.
    """

    def __init__(self, streams: SeedStreams, device: torch.device):
        self.device = device
        self.num_seeds = streams.num_seeds
        self.offset = torch.zeros(1, dtype=torch.int64, device=device)
        self.blocks: dict[Stream, Tensor] = {}  # (S, block, …)
        self._streams = streams
        self._index = -1

    def seek(self, step: int) -> int:
        """Moves to `step`; how many steps can be read from there on before the next `seek`."""
        index, offset = divmod(step, self._streams.block)
        if index != self._index:
            self._index = index
            for stream, block in self.blocks.items():
                self._streams.refill(block, stream, index)
        self.offset.fill_(offset)
        return self._streams.block - offset

    def slice(self, stream: Stream) -> Tensor:
        """(S, *shape) at the current step. A stream that was never read before joins the tape."""
        if stream not in self.blocks:
            self.blocks[stream] = self._streams.draw_block(stream, self._index).to(self.device)
        return self.blocks[stream].index_select(1, self.offset).squeeze(1)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor, where it is to go to a GPU in memory from which that copies while this process goes on; torch hands
    such memory out again only after the copy."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


class TapeNoise(NamedDraws):
    """The noise source of one update, read from a tape."""

    def __init__(self, tape: NoiseTape):
        super().__init__()
        self._tape = tape

    @property
    def num_seeds(self) -> int:
        return self._tape.num_seeds

    @property
    def device(self) -> torch.device:
        return self._tape.device

    def slice(self, stream: Stream) -> Tensor:
        return self._tape.slice(stream)
