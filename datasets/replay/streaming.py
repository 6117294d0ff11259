"""Windows of a data set that does not lie on the training device: gathered on the host, ahead of their use."""

import os
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from datasets.replay.windows import PackedWindow, Window, packed_room
from datasets.spec import DataError
from datasets.transitions import Transitions, is_mapped

THREADS = 8  # reads in flight: a disk answers many small ones faster than one after the other
_MIN_PART = 32  # windows per thread, below which handing them out costs more than it saves


class WindowSource(Protocol):
    """Anything that gathers the windows of transitions, int64 (..., H), on the CPU."""

    def window(self, transitions: Tensor) -> Window: ...


class StreamedWindows:
    """Reads the observations and actions of each window from their files; nothing of them stays in memory.

    Plain reads and not a memory map: they measured faster, with and without the page cache, and pages of a map count
    as memory of the process until they are dropped. Reward and termination, five bytes a row (0.5 GB of 100M rows),
    stay mapped.
    """

    def __init__(self, transitions: Transitions):
        self._episode_ends = torch.from_numpy(transitions.episode_ends)
        self._reward = torch.from_numpy(transitions.reward)
        self._terminated = torch.from_numpy(transitions.terminated)
        self._obs = _RowFile(transitions.name, "obs", transitions.obs)
        self._action = _RowFile(transitions.name, "action", transitions.action)

    def window(self, transitions: Tensor) -> Window:
        """The windows of the transitions with these numbers, int64 (P, H). Raises DataError for a file that was cut."""
        episode = torch.searchsorted(self._episode_ends, transitions, right=True)
        row = transitions + episode
        first = row[:, 0]
        span = int((row[:, -1] + 1 - first).max()) + 1  # rows up to the next observation; more where an episode ends
        first = first.clamp(max=len(self._reward) - span)
        place = (row - first[:, None]).numpy()
        windows = np.arange(len(place))
        obs = self._obs.read(first.tolist(), span)
        action = self._action.read(first.tolist(), span)
        return Window(
            obs=torch.from_numpy(obs[windows, place[:, 0]]),
            action=torch.from_numpy(action[windows[:, None], place]),
            reward=self._reward[row],
            terminated=self._terminated[row].float(),
            episode_end=(self._episode_ends[episode] == transitions + 1).float(),
            next_obs=torch.from_numpy(obs[windows, place[:, -1] + 1]),
        )


class _RowFile:
    """A float32 array (R, W) in a file, read by rows."""

    def __init__(self, name: str, key: str, array: np.ndarray):
        if not is_mapped(array):
            raise ValueError(f"{name}: placement 'stream' reads files, but '{key}' lies in memory; use device or host")
        self._path, self._offset, self._width = str(array.filename), array.offset, array.shape[1]
        self._file = os.open(self._path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead

    def read(self, first_rows: list[int], span: int) -> np.ndarray:
        """`span` rows from each of `first_rows`: float32 (n, span, W)."""
        row_bytes = 4 * self._width
        parts = [os.pread(self._file, span * row_bytes, self._offset + row * row_bytes) for row in first_rows]
        data = b"".join(parts)
        if len(data) != span * row_bytes * len(parts):
            raise DataError(f"{self._path} has become shorter while it was in use")
        return np.frombuffer(data, np.float32).reshape(len(parts), span, self._width)


class Gatherer:
    """Gathers windows with a few threads, so that they are there when they are needed."""

    def __init__(self, source: WindowSource):
        self._source = source
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="replay")

    def start(self, transitions: Tensor) -> "Gathering":
        """Begins to gather the windows of `transitions`, int64 (S, B, H) on the CPU."""
        flat = transitions.flatten(0, 1)
        parts = flat.chunk(max(1, min(THREADS, len(flat) // _MIN_PART)))
        return Gathering([self._threads.submit(self._source.window, part) for part in parts], transitions.shape[:2])

    def close(self) -> None:
        """Ends the threads; what they have not begun is dropped."""
        self._threads.shutdown(cancel_futures=True)


class Gathering:
    """Windows on their way."""

    def __init__(self, parts: list[Future[Window]], shape: torch.Size):
        self._parts, self._shape = parts, shape

    def result(self, pinned: bool) -> PackedWindow:
        """The windows, (S, B, …) on the CPU, where that is asked for in pinned memory; waits for them."""
        parts = [part.result() for part in self._parts]
        shapes = [torch.Size([*self._shape, *field.shape[1:]]) for field in parts[0]]
        room = packed_room(shapes, torch.device("cpu"), pinned)
        for field, pieces in zip(room.fields, zip(*parts, strict=True), strict=True):
            torch.cat(pieces, out=field.flatten(0, 1))
        return room
