"""Replay: the dataset first, then an online ring per seed; uniform sampling of chunk windows on the device."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from datasets.batch import Batch
from datasets.transitions import Transitions

ONLINE_FIELDS = ("obs", "action", "reward", "terminated", "episode_end", "next_obs")


class Replay:
    """`S` logical buffers that share the dataset and differ in what each seed collected online.

    A logical buffer is a ring of `capacity` transitions, filled with the dataset at the start: once it is full, the
    next online transition overwrites the oldest one, be it offline or online (the mixing of the Q-chunking and SAC
    Flow releases: no balanced sampling). The dataset is stored once for all seeds; logical position p holds the
    online transition number (p - dataset size) mod capacity if that was collected, else dataset transition p.
    """

    def __init__(
        self, transitions: Transitions, *, num_seeds: int, chunk_length: int, discount: float, device: torch.device
    ):
        self.num_seeds = num_seeds
        self.chunk_length = chunk_length
        self.device = torch.device(device)
        self._dataset = {
            name: torch.from_numpy(getattr(transitions, name)).to(self.device)
            for name in ("obs", "action", "reward", "terminated", "final")
        }
        self._episode_ends = torch.from_numpy(transitions.episode_ends).to(self.device)
        self._first = 0  # the first dataset transition in use
        self.dataset_size = transitions.num_transitions
        self.capacity = self.dataset_size
        self.num_online = 0  # transitions collected so far, per seed
        self._ring: dict[str, Tensor] = {}
        self._offsets = torch.arange(chunk_length, device=self.device)
        self._discounts = discount ** torch.arange(chunk_length, device=self.device, dtype=torch.float32)
        self._bootstrap_discount = discount**chunk_length
        if self.dataset_size < chunk_length:
            raise ValueError(
                f"{transitions.name}: {self.dataset_size} transitions, fewer than one chunk of {chunk_length}"
            )

    @property
    def size(self) -> int:
        """Transitions in each seed's buffer."""
        return min(self.dataset_size + self.num_online, self.capacity)

    @property
    def row_width(self) -> int:
        """Numbers per packed online transition."""
        return sum(math.prod(ring.shape[2:]) for ring in self._ring.values())

    @property
    def ring_slots(self) -> int:
        """Online transitions that are still stored for each seed."""
        return self._ring["reward"].shape[1] if self._ring else 0

    def open_ring(self, capacity: int, online_steps: int, dataset_rows: int | None = None) -> None:
        """Makes room for the online phase.

        Args:
            capacity: transitions per logical buffer; raised to the dataset's size + 1 where smaller (the rule of the
                official drivers: max(replay_capacity, size + 1)).
            online_steps: how many transitions will be collected at most; memory is reserved for these only.
            dataset_rows: keep only the last so many dataset transitions (cube-quadruple: the last shard).
        """
        if dataset_rows is not None and dataset_rows < self.dataset_size:
            self._first = self._first + self.dataset_size - dataset_rows
            self.dataset_size = dataset_rows
        self.capacity = max(capacity, self.dataset_size + 1)
        slots = min(self.capacity, online_steps)
        obs_dim, action_dim = self._dataset["obs"].shape[1], self._dataset["action"].shape[1]
        widths = {"obs": (obs_dim,), "action": (action_dim,), "next_obs": (obs_dim,)}
        self._ring = {
            name: torch.zeros(self.num_seeds, slots, *widths.get(name, ()), device=self.device)
            for name in ONLINE_FIELDS
        }
        self.num_online = 0

    def append(self, rows: Mapping[str, Tensor]) -> None:
        """Adds one transition per seed. `rows`: ONLINE_FIELDS, each (S, …); `episode_end`: terminated or truncated."""
        slot = self.num_online % self.ring_slots
        for name in ONLINE_FIELDS:
            self._ring[name][:, slot] = torch.as_tensor(rows[name], dtype=torch.float32).to(self.device)
        self.num_online += 1

    def online_rows(self, seed_index: int, start: int, stop: int) -> Tensor:
        """Online transitions number `start` to `stop` of one seed: float32 (stop - start, row width), on the CPU."""
        if start == stop:
            return torch.zeros(0, 0)
        slots = torch.arange(start, stop, device=self.device) % self.ring_slots
        columns = [self._ring[name][seed_index, slots].reshape(stop - start, -1) for name in ONLINE_FIELDS]
        return torch.cat(columns, 1).cpu()

    def restore_online(self, packed: Tensor) -> None:
        """Puts back what `online_rows` gave: float32 (S, n, row width) holds the first n online transitions."""
        total = packed.shape[1]
        kept = torch.arange(max(0, total - self.ring_slots), total)
        column = 0
        for name in ONLINE_FIELDS:
            ring = self._ring[name]
            width = math.prod(ring.shape[2:])
            values = packed[:, kept, column : column + width].reshape(self.num_seeds, len(kept), *ring.shape[2:])
            ring[:, kept % self.ring_slots] = values.to(self.device)
            column += width
        self.num_online = total

    def sample(self, start_fractions: Tensor) -> Batch:
        """Windows of H consecutive transitions.

        Args:
            start_fractions: float64 (S, B), uniform on [0, 1): where in the buffer, by age, a window starts. Every
                transition that has H - 1 successors in the buffer is a start with equal probability. Counting by age
                keeps windows from straddling the ring's write head.
        """
        starts = (start_fractions * (self.size - self.chunk_length + 1)).long()
        ages = starts.unsqueeze(-1) + self._offsets  # (S, B, H)
        overwritten = max(0, self.dataset_size + self.num_online - self.capacity)
        positions = (ages + overwritten) % self.capacity
        window = self._gather(positions)

        continues = 1.0 - window["episode_end"]
        valid = torch.cumprod(torch.cat([torch.ones_like(continues[..., :1]), continues[..., :-1]], -1), -1)
        survived = (1.0 - window["terminated"]).prod(-1)
        return Batch(
            obs=window["obs"],
            action_chunk=window["action"],
            chunk_return=window["reward"] @ self._discounts,
            bootstrap=self._bootstrap_discount * survived,
            next_obs=window["next_obs"],
            valid=valid,
        )

    def _gather(self, positions: Tensor) -> dict[str, Tensor]:
        """Windows at logical `positions` (S, B, H): obs of the first step, next_obs of the last, the rest of all."""
        transition = positions.clamp(max=self.dataset_size - 1) + self._first
        row = transition + torch.searchsorted(self._episode_ends, transition, right=True)
        data = self._dataset
        window = {
            "obs": data["obs"][row[..., 0]],
            "action": data["action"][row],
            "reward": data["reward"][row],
            "terminated": data["terminated"][row].float(),
            "episode_end": data["final"][row + 1].float(),
            "next_obs": data["obs"][row[..., -1] + 1],
        }
        if self.num_online == 0:
            return window

        number = (positions - self.dataset_size) % self.capacity  # of the online transition at this position
        online = number < self.num_online
        slot = torch.where(online, number, 0)
        seeds = torch.arange(self.num_seeds, device=self.device)[:, None, None]
        for name, offline in window.items():
            step = {"obs": slice(0, 1), "next_obs": slice(-1, None)}.get(name, slice(None))
            collected = self._ring[name][seeds, slot[..., step]]
            chosen = online[..., step]
            if name in ("obs", "next_obs"):
                collected, chosen = collected.squeeze(2), chosen.squeeze(2)
            window[name] = torch.where(
                chosen.reshape(chosen.shape + (1,) * (offline.dim() - chosen.dim())), collected, offline
            )
        return window
