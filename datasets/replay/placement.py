"""Where the data of a replay lie: on the training device, on the host, or in their files."""

import os
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bench.runs.contract import ConfigError
from datasets.replay.windows import DatasetWindows
from datasets.transitions import Transitions, is_mapped

Placement = Literal["auto", "device", "host", "stream"]
PLACEMENTS = get_args(Placement)

DEVICE_SHARE = 0.5  # of the free GPU memory, for data and rings; the rest is for networks and batches
HOST_SHARE = 0.25  # of the machine's memory, for data mapped in place
HOST_BYTES = 3 * 2**30  # and never more than this, so that a process stays below 4 GB
_UPLOAD_BYTES = 64 * 2**20  # copied to a GPU at a time


def machine_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that this process can have: what is free there, and what torch holds of it without a use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def fitting_placement(transitions: Transitions, num_bytes: int, collected: int, device: torch.device) -> Placement:
    """The first placement with room for `num_bytes` of the dataset, and on a GPU for `collected` bytes beside them."""
    if device.type == "cuda" and num_bytes + collected <= DEVICE_SHARE * free_bytes(device):
        return "device"
    in_place: Placement = "host" if device.type == "cuda" else "device"
    if num_bytes <= min(HOST_BYTES, HOST_SHARE * machine_bytes()) or not is_mapped(transitions.obs):
        return in_place
    return "stream"


def require_room(collected: int, num_seeds: int, device: torch.device) -> None:
    """ConfigError where so many bytes of online transitions do not fit on a device beside what is there."""
    where, room = ("GPU", free_bytes(device)) if device.type == "cuda" else ("machine", machine_bytes())
    if collected > room:
        collecting = "1 seed collects" if num_seeds == 1 else f"{num_seeds} seeds collect"
        raise ConfigError(
            f"what {collecting} online takes {collected / 1e9:.1f} GB, and this {where} has {room / 1e9:.1f} GB for "
            "it; a smaller --replay-capacity, --online-steps or --pack fits"
        )


def dataset_on(transitions: Transitions, first_row: int, device: torch.device) -> DatasetWindows:
    """The dataset's rows from `first_row` on; on a CPU all of them, where they are."""
    if device.type == "cpu":
        first_row = 0
    return DatasetWindows(
        obs=_upload(transitions.obs, first_row, device),
        action=_upload(transitions.action, first_row, device),
        reward=_upload(transitions.reward, first_row, device),
        terminated=_upload(transitions.terminated, first_row, device),
        episode_ends=torch.from_numpy(transitions.episode_ends).to(device),
        first_row=first_row,
    )


def _upload(array: np.ndarray, first_row: int, device: torch.device) -> Tensor:
    """Rows of an array on a device; of a mapped file, piece by piece, so that its pages do not gather in memory."""
    if device.type == "cpu":
        return torch.from_numpy(array)
    rows = torch.from_numpy(array[first_row:])
    if not is_mapped(array) or array.filename is None:
        return rows.to(device)
    uploaded = torch.empty_like(rows, device=device)
    step = max(1, _UPLOAD_BYTES // (array.nbytes // len(array)))
    for start in range(0, len(rows), step):
        stop = min(len(rows), start + step)
        offset = array.offset + (first_row + start) * array.strides[0]
        piece = np.memmap(array.filename, array.dtype, "c", offset, (stop - start, *array.shape[1:]))
        uploaded[start:stop].copy_(torch.from_numpy(piece))
    return uploaded
