"""The latest online transitions of S seeds, every observation stored once."""

import math
from collections import deque
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from datasets.replay.windows import Window, pinned

ONLINE_FIELDS = ("obs", "action", "reward", "terminated", "episode_end", "next_obs")  # also the packed order

_MAX_FINALS = 2**24  # a place is kept as float32, exact up to here


class OnlineRing:
    """Holds the last `slots` transitions of each seed.

    Transition n lies in row n mod (slots + 1), and its next observation is that of the row after it, which transition
    n + 1 fills with the very same numbers. Only where an episode ends do the two differ: then the next observation
    goes to `finals`, and the row says where. One row more than transitions keeps the oldest transition whole until
    it is overwritten. Memory that no transition has reached yet is reserved but, on a CPU, not used.
    """

    def __init__(self, num_seeds: int, slots: int, obs_dim: int, action_dim: int, device: torch.device):
        self.slots = slots
        self.count = 0  # transitions appended so far, per seed
        self.growths = 0  # how often `finals` has moved to a larger tensor
        self._obs_dim, self._action_dim = obs_dim, action_dim
        # A row's columns: obs, action, reward, terminated, final (0, or 1 + the place of its next_obs in `finals`).
        rows, finals = _shapes(num_seeds, slots, obs_dim, action_dim)
        self._rows, self._finals = _zeros(*rows, device=device), _zeros(*finals, device=device)
        self._seeds = torch.arange(num_seeds, device=device)[:, None, None]
        self._free: list[int] = list(range(len(self._finals)))  # places in `finals`, all seeds
        self._taken: deque[tuple[int, int]] = deque()  # (transition, place), oldest first
        self._last: tuple[Tensor, Tensor] | None = None  # next_obs and episode_end of the newest ones, on the CPU

    @property
    def num_bytes(self) -> int:
        """Memory reserved on the device."""
        return self._rows.nbytes + self._finals.nbytes

    @property
    def row_width(self) -> int:
        """Numbers per packed transition."""
        return 2 * self._obs_dim + self._action_dim + 3

    def append(self, rows: Mapping[str, Tensor]) -> None:
        """Adds one transition per seed without waiting for the device.

        Args:
            rows: ONLINE_FIELDS, each (S, …), on the CPU. `episode_end`: terminated or truncated. Raises ValueError
                where an episode goes on with another `obs` than the `next_obs` before.
        """
        fields = {name: torch.as_tensor(rows[name], dtype=torch.float32) for name in ONLINE_FIELDS}
        obs, next_obs, episode_end = fields["obs"], fields["next_obs"], fields["episode_end"]
        if self._last is not None:
            _require_continuity(*self._last, obs)
        self._last = next_obs.clone(), episode_end.clone()

        ended = episode_end.nonzero()[:, 0].tolist()
        self._give_back_places()
        places = self._take_places([self.count] * len(ended))
        staged = torch.zeros(2, *self._rows.shape[1:])  # the transitions' row, and the start of the row after it
        staged[0, :, : self._obs_dim] = obs
        staged[0, :, self._obs_dim : -3] = fields["action"]
        staged[0, :, -3] = fields["reward"]
        staged[0, :, -2] = fields["terminated"]
        for seed_index, place in zip(ended, places, strict=True):
            staged[0, seed_index, -1] = place + 1
        staged[1, :, : self._obs_dim] = next_obs

        staged = pinned(staged, self._rows.device)
        row = self.count % len(self._rows)
        if row + 1 < len(self._rows):
            self._rows[row : row + 2].copy_(staged, non_blocking=True)
        else:
            self._rows[row].copy_(staged[0], non_blocking=True)
            self._rows[0].copy_(staged[1], non_blocking=True)
        for seed_index, place in zip(ended, places, strict=True):
            self._finals[place].copy_(staged[1, seed_index, : self._obs_dim], non_blocking=True)
        self.count += 1

    def window(self, numbers: Tensor, seeds: Tensor | None = None) -> Window:
        """The windows of transitions `numbers`, int64 (S, B, H), of all seeds or of `seeds` (S, 1, 1)."""
        seeds = self._seeds if seeds is None else seeds
        row = numbers % self._rows.shape[0]
        obs, steps = self._rows[..., : self._obs_dim], self._rows[..., self._obs_dim :][row, seeds]
        seed, final = seeds[..., 0], steps[..., -1]
        following = obs[(row[..., -1] + 1) % self._rows.shape[0], seed]
        at_end = self._finals[(final[..., -1].long() - 1).clamp(min=0)]
        return Window(
            obs=obs[row[..., 0], seed],
            action=steps[..., : self._action_dim],
            reward=steps[..., -3],
            terminated=steps[..., -2],
            episode_end=(final > 0).float(),
            next_obs=torch.where(final[..., -1:] > 0, at_end, following),
        )

    def packed(self, seed_index: int, start: int, stop: int) -> Tensor:
        """Transitions number `start` to `stop` of one seed, ONLINE_FIELDS side by side: (stop - start, row width)."""
        numbers = torch.arange(start, stop, device=self._rows.device)[None, :, None]
        window = self.window(numbers, torch.full((1, 1, 1), seed_index, device=self._rows.device))
        columns = [getattr(window, name).reshape(stop - start, -1) for name in ONLINE_FIELDS]
        return torch.cat(columns, 1).cpu()

    def restore(self, packed: Iterable[Tensor]) -> None:
        """Starts anew with the first n transitions of every seed: for each, in order, (n, row width) on the CPU."""
        self._free += [place for _, place in self._taken]
        self._taken.clear()
        counts, newest = [], []
        for seed_index, rows in enumerate(packed):
            counts.append(len(rows))
            if len(rows):
                newest.append(self._restore_seed(seed_index, rows))
        if len(counts) != len(self._seeds) or len(set(counts)) > 1:
            raise ValueError(f"{len(self._seeds)} seeds with equally many transitions are needed, not {counts}")
        self.count = counts[0]
        self._taken = deque(sorted(self._taken))
        self._last = (
            (torch.stack([obs for obs, _ in newest]), torch.stack([end for _, end in newest])) if newest else None
        )

    def _restore_seed(self, seed_index: int, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Puts back what is still stored of one seed's transitions; next_obs (O,) and episode_end () of the newest."""
        total, device = len(packed), self._rows.device
        first = max(0, total - self.slots)
        widths = [self._obs_dim + self._action_dim + 2, 1, self._obs_dim]
        steps, end, next_obs = packed[first:].split(widths, -1)  # each (n, …)
        ended = end[:, 0] > 0
        _require_continuity(next_obs[:-1], ended[:-1], steps[1:, : self._obs_dim])

        places = torch.tensor(self._take_places((ended.nonzero()[:, 0] + first).tolist()), dtype=torch.long)
        final = torch.zeros_like(end)
        final[ended, 0] = (places + 1).float()
        rows = (torch.arange(first, total) % len(self._rows)).to(device)
        self._rows[rows, seed_index] = torch.cat([steps, final], -1).to(device)
        self._rows[total % len(self._rows), seed_index, : self._obs_dim] = next_obs[-1].to(device)
        self._finals[places.to(device)] = next_obs[ended].to(device)
        return next_obs[-1].clone(), ended[-1].clone()

    def _take_places(self, numbers: list[int]) -> list[int]:
        """Places in `finals` for transitions `numbers`, which end episodes."""
        while len(self._free) < len(numbers):
            size = len(self._finals)
            if 2 * size > _MAX_FINALS:
                raise ValueError(f"more than {size} episode ends among the online transitions in memory")
            larger = _zeros(2 * size, self._obs_dim, device=self._finals.device)
            larger[:size] = self._finals
            self._finals = larger
            self._free += range(size, 2 * size)
            self.growths += 1
        places = [self._free.pop() for _ in numbers]
        self._taken.extend(zip(numbers, places, strict=True))
        return places

    def _give_back_places(self) -> None:
        """Frees the places of transitions that the next one overwrites, or that are overwritten already."""
        while self._taken and self._taken[0][0] <= self.count - self.slots:
            self._free.append(self._taken.popleft()[1])


def ring_bytes(num_seeds: int, slots: int, obs_dim: int, action_dim: int) -> int:
    """Memory that a new ring reserves."""
    return 4 * sum(math.prod(shape) for shape in _shapes(num_seeds, slots, obs_dim, action_dim))


def _shapes(num_seeds: int, slots: int, obs_dim: int, action_dim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of a new ring's rows and finals."""
    return (slots + 1, num_seeds, obs_dim + action_dim + 3), (max(64, num_seeds * slots // 100), obs_dim)


def _require_continuity(next_obs: Tensor, episode_end: Tensor, obs: Tensor) -> None:
    """Raises ValueError where an episode goes on with an observation (…, O) of other bits than the one before."""
    same = (next_obs.view(torch.int32) == obs.view(torch.int32)).all(-1)
    if not (same | episode_end.bool()).all():
        raise ValueError(
            "an online transition begins with another obs than the next_obs before it, which ended no episode"
        )


def _zeros(*shape: int, device: torch.device) -> Tensor:
    """Zeros, float32. On a CPU from NumPy, whose pages take memory only once they are written; torch's do at once."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros(shape, np.float32))
    return torch.zeros(shape, device=device)
