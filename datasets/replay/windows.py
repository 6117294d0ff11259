"""Windows of H consecutive transitions gathered from a data set's tensors; tensor code only, fit for a CUDA graph."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_ALIGNED = 16  # float32 numbers between which fields begin: 64 bytes, as torch aligns tensors of their own


class Window(NamedTuple):
    """What a chunk's update needs of H transitions, with any leading axes; float32."""

    obs: Tensor  # (..., O) of the first transition
    action: Tensor  # (..., H, A)
    reward: Tensor  # (..., H)
    terminated: Tensor  # (..., H) 0 or 1
    episode_end: Tensor  # (..., H) 0 or 1
    next_obs: Tensor  # (..., O) of the last transition

    def packed(self, pinned: bool) -> "PackedWindow":
        """A copy on the CPU, in pinned memory where that is asked for."""
        room = packed_room([field.shape for field in self], torch.device("cpu"), pinned)
        for place, field in zip(room.fields, self, strict=True):
            place.copy_(field)
        return room


class PackedWindow(NamedTuple):
    """A window whose fields are views of one tensor, so that one copy takes all of them to a device."""

    numbers: Tensor  # float32 (N,)
    fields: Window

    def copied_to(self, device: torch.device) -> "PackedWindow":
        """The same on a device, without waiting for it."""
        room = packed_room([field.shape for field in self.fields], device)
        room.numbers.copy_(self.numbers, non_blocking=True)
        return room


def packed_room(shapes: Sequence[torch.Size], device: torch.device, pinned: bool = False) -> PackedWindow:
    """Room for fields of these shapes. Pinned: from where copies to a GPU need not be waited for."""
    sizes = [-(-shape.numel() // _ALIGNED) * _ALIGNED for shape in shapes]
    numbers = torch.empty(sum(sizes), device=device, pin_memory=pinned)
    parts = zip(numbers.split(sizes), shapes, strict=True)
    return PackedWindow(numbers, Window(*(part[: shape.numel()].view(shape) for part, shape in parts)))


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor that is to go to `device`; for a GPU in memory from where the copy need not be waited for. Torch
    hands such memory out again only after the copy."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


class DatasetWindows:
    """The arrays of a data set, or of its last rows, as tensors, on a device or mapped from files.

    Observations are stored once: the next one of row r is row r + 1, and the last row of an episode holds only that.
    """

    def __init__(
        self,
        obs: Tensor,  # (R, O) float32
        action: Tensor,  # (R, A) float32
        reward: Tensor,  # (R,) float32
        terminated: Tensor,  # (R,) bool
        episode_ends: Tensor,  # (E,) int64, transitions up to and including each episode of the whole set
        first_row: int = 0,  # the row of the whole set that comes first here
    ):
        self.obs, self.action, self.reward, self.terminated = obs, action, reward, terminated
        self.episode_ends = episode_ends
        self.first_row = first_row

    def window(self, transitions: Tensor) -> Window:
        """The windows of the transitions with these numbers, int64 (..., H)."""
        episode = torch.searchsorted(self.episode_ends, transitions, right=True)
        row = transitions + episode - self.first_row  # every episode before this one has a row more than transitions
        return Window(
            obs=self.obs[row[..., 0]],
            action=self.action[row],
            reward=self.reward[row],
            terminated=self.terminated[row].float(),
            episode_end=(self.episode_ends[episode] == transitions + 1).float(),
            next_obs=self.obs[row[..., -1] + 1],
        )
