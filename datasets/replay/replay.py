"""Replay: the dataset first, then an online ring per seed; uniform sampling of chunk windows."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from datasets.batch import Batch
from datasets.replay.placement import PLACEMENTS, Placement, dataset_on, fitting_placement, require_room
from datasets.replay.ring import ONLINE_FIELDS, OnlineRing, ring_bytes
from datasets.replay.streaming import Gatherer, Gathering, StreamedWindows
from datasets.replay.windows import PackedWindow, Window
from datasets.transitions import Transitions

__all__ = ["ONLINE_FIELDS", "Replay"]


class Replay:
    """`S` logical buffers that share the dataset and differ in what each seed collected online.

    A logical buffer is a ring of `capacity` transitions, filled with the dataset at the start: once it is full, the
    next online transition overwrites the oldest one, be it offline or online (the mixing of the Q-chunking and SAC
    Flow releases; `open_ring` offers QAM's, which keeps all, and RLPD's balanced sampling too). The dataset is stored
    once for all seeds. Position p is dataset transition p or, from the dataset's end on, online transition p - end: a
    buffer is the positions from its oldest one on. Without data all positions are online. Where shards take turns,
    position p of the dataset is transition p - `shift`.

    Placement of data and rings:
        device: on the training device (on a CPU: mapped in place). `on_device` is True, `sample` is pure tensor code.
        host: mapped in place; windows are gathered on the host and copied over from pinned memory.
        stream: as `host`, but windows are read from the files, so that memory does not grow with the dataset.
        auto: the first of these that fits (DEVICE_SHARE of a GPU, HOST_SHARE and HOST_BYTES of the host); decided
            anew by `open_ring`, after which less of the dataset may be in use. Data that are on the device stay there.
    All placements give the same windows. The Python attributes are read by the driver only: `sample` uses their
    tensor twins, which `append` updates in place, so that a compiled or captured `sample` stays right. Whenever other
    tensors take the place of those that `sample` reads, `version` increases, and a captured graph must be made anew.
    """

    def __init__(
        self,
        transitions: Transitions,
        *,
        num_seeds: int,
        chunk_length: int,
        discount: float,
        device: torch.device,
        placement: Placement = "auto",
        ring_rows: int = 0,
    ):
        """
        Args:
            ring_rows: how many online transitions of each seed will be held at most, from `open_ring` on: they must
                find room beside the data.

        Raises ValueError, and ConfigError where there is no room for what is collected, here or in `open_ring`.
        """
        if 0 < transitions.num_transitions < chunk_length:
            raise ValueError(
                f"{transitions.name}: {transitions.num_transitions} transitions, fewer than one chunk of {chunk_length}"
            )
        if placement not in PLACEMENTS:
            raise ValueError(f"unknown placement {placement!r}; placements: {', '.join(PLACEMENTS)}")
        self.num_seeds = num_seeds
        self.chunk_length = chunk_length
        self.device = torch.device(device)
        self._transitions = transitions
        self._placement_option: Placement = placement
        self._end = transitions.num_transitions  # the position from which on transitions are online
        self._first = 0  # the position of the first dataset transition in use
        self._turn: int | None = None  # online transitions after which the next shard takes the dataset's positions
        self.capacity = self.dataset_size
        self._version = 0
        self._ring: OnlineRing | None = None
        self._online_share: float | None = None
        self._gatherer: Gatherer | None = None
        self._ahead: dict[int, _Ahead] = {}
        self._bootstrap_discount = discount**chunk_length
        self._discounts = discount ** torch.arange(chunk_length, device=self.device, dtype=torch.float32)
        self.placement: Placement | None = None  # in effect
        self._set_placement(ring_rows)
        self._set_counters()

    @property
    def on_device(self) -> bool:
        """`sample` is pure tensor code on the training device; else it works on the host and `prefetch` pays."""
        return self._gatherer is None

    @property
    def version(self) -> int:
        """Increases whenever `sample` reads other tensors than before."""
        return self._version + (self._ring.growths if self._ring else 0)

    @property
    def dataset_size(self) -> int:
        """Dataset transitions in use, before any was overwritten."""
        return self._end - self._first

    @property
    def num_online(self) -> int:
        """Transitions collected so far, per seed."""
        return self._ring.count if self._ring else 0

    @property
    def size(self) -> int:
        """Transitions in each seed's buffer."""
        return min(self.dataset_size + self.num_online, self.capacity)

    @property
    def row_width(self) -> int:
        """Numbers per packed online transition."""
        return self._ring.row_width if self._ring else 0

    @property
    def ring_slots(self) -> int:
        """Online transitions that are still stored for each seed."""
        return self._ring.slots if self._ring else 0

    def open_ring(
        self,
        capacity: int | None,
        online_steps: int,
        dataset_rows: int | None = None,
        online_share: float | None = None,
        turn: int | None = None,
    ) -> None:
        """Makes room for the online phase.

        Args:
            capacity: transitions per logical buffer; raised to the dataset's size + 1 where smaller (the rule of
                Q-chunking's driver: max(replay_capacity, size + 1)). None: room for all (the rule of QAM's driver).
            online_steps: how many transitions will be collected at most; memory is reserved for these only.
            dataset_rows: keep only the last so many dataset transitions (cube-quadruple: the last shard).
            turn: after each so many online transitions the next `dataset_rows` of the dataset take the place of those
                in the buffer, from the first ones on and in circles; a rest that is smaller than that is left out.
                None: the last ones stay. The last transition of a shard ends an episode.
            online_share: of the windows of each batch, how many are of online transitions; the others are of the
                dataset, of which none is overwritten, and `capacity` counts online transitions alone (RLPD, arXiv
                2302.02948). None: one buffer, sampled uniformly.
        """
        if dataset_rows is not None:
            if dataset_rows < self.chunk_length:
                raise ValueError(f"{dataset_rows} dataset transitions are fewer than one chunk of {self.chunk_length}")
            self._first = max(self._first, self._end - dataset_rows)
        self._turn = turn
        self._online_share = online_share
        if capacity is None or online_share is not None:
            self.capacity = self.dataset_size + (online_steps if capacity is None else capacity)
        else:
            self.capacity = max(capacity, self.dataset_size + 1)
        self._version = self.version + 1
        slots = min(self.capacity if online_share is None else self.capacity - self.dataset_size, online_steps)
        self._ring = None
        self._set_placement(slots)
        self._ring = OnlineRing(self.num_seeds, slots, *self._widths, self._home)
        self._set_counters()

    def append(self, rows: Mapping[str, Tensor]) -> None:
        """Adds one transition per seed, without waiting for the device.

        `rows`: ONLINE_FIELDS, each (S, …), on the CPU; `episode_end`: terminated or truncated.
        """
        if self._ring is None:
            raise ValueError("append needs an open ring")
        is_full = self.size == self.capacity
        self._ring.append(rows)
        if self._online_share is None:
            (self._oldest if is_full else self._num_starts).add_(1)
            if self._turn is not None:
                self._shift.fill_(self._span[-1])
        else:
            self._set_counters()

    def online_rows(self, seed_index: int, start: int, stop: int) -> Tensor:
        """Online transitions number `start` to `stop` of one seed: float32 (stop - start, row width), on the CPU."""
        if self._ring is None or start == stop:
            return torch.zeros(0, 0)
        return self._ring.packed(seed_index, start, stop)

    def restore_online(self, packed: Iterable[Tensor]) -> None:
        """Puts back what `online_rows` gave: for each seed the first n online transitions, float32 (n, row width).

        A generator that reads one seed's rows after the other keeps no more than those in memory.
        """
        if self._ring is None:
            raise ValueError("restore_online needs an open ring")
        self._ring.restore(packed)
        self._set_counters()

    def sample(self, start_fractions: Tensor, number: int | None = None) -> Batch:
        """Windows of H consecutive transitions.

        Args:
            start_fractions: float64 (S, B), uniform on [0, 1): where in the buffer, by age, a window starts. Every
                transition that has H - 1 successors in the buffer is a start with equal probability. Counting by age
                keeps windows from straddling the ring's write head.
            number: of the gradient update; one that was prefetched is not gathered again. The batch is the same.
        """
        if self._gatherer is None:
            positions = self._positions(start_fractions)
            if not self._end and self._ring is not None:
                return self.batch(self._ring.window(positions))
            return self.batch(self._with_online(positions, self._dataset.window(self._of_dataset(positions))))

        gathered = self.gather(start_fractions, number)
        if self.device.type != "cpu":
            gathered = gathered.copied_to(self.device)
        return self.batch(gathered.fields)

    def gather(self, start_fractions: Tensor, number: int | None = None) -> PackedWindow:
        """The windows that `sample` makes a batch of, on the host, in one block of memory that a GPU can copy from.

        Of a replay that is not `on_device`. Args: as of `sample`.
        """
        assert self._gatherer is not None
        pinned = self.device.type == "cuda"
        if not self._end and self._ring is not None:
            return self._ring.window(self._positions(start_fractions.cpu())).packed(pinned)
        ahead = self._ahead.pop(number, None) if number is not None else None
        if ahead is None or ahead.span != self._span:
            ahead = self._start(self._gatherer, start_fractions)
        gathered = ahead.gathering.result(pinned)
        for field, mixed in zip(gathered.fields, self._with_online(ahead.positions, gathered.fields), strict=True):
            if mixed is not field:
                field.copy_(mixed)
        return gathered

    def prefetch(self, number: int, start_fractions: Tensor) -> None:
        """Begins to gather the batch of gradient update `number` in the background; nothing to do on the device.

        Fractions on the CPU save a wait for the device. A batch that is no longer the one to be sampled then, because
        a transition was appended, is gathered anew by `sample`. Each holds its memory until it is sampled.
        """
        if self._gatherer is not None and self._end:
            self._ahead[number] = self._start(self._gatherer, start_fractions)

    def _start(self, gatherer: Gatherer, start_fractions: Tensor) -> "_Ahead":
        positions = self._positions(start_fractions.cpu())
        return _Ahead(self._span, positions, gatherer.start(self._of_dataset(positions)))

    @property
    def _span(self) -> tuple[int, int, int, int, int]:
        """The oldest position in the buffers and how many windows can start from there on; the same for windows of
        online transitions alone, where a share of the batch is made of these; the shift of the dataset's positions."""
        overwritten = max(0, self.dataset_size + self.num_online - self.capacity)
        shift = 0
        if self._turn is not None:
            shard = self.num_online // self._turn % (self._end // self.dataset_size)
            shift = self._first - shard * self.dataset_size
        if self._online_share is None:
            return self._first + overwritten, self.size - self.chunk_length + 1, 0, 0, shift
        online = max(0, self.num_online - overwritten - self.chunk_length + 1)
        return self._first, self.dataset_size - self.chunk_length + 1, self._end + overwritten, online, shift

    def _of_dataset(self, positions: Tensor) -> Tensor:
        """The dataset transitions at `positions`; some transition of it at those of online ones."""
        rows = positions.clamp(max=self._end - 1)
        return rows if self._turn is None else rows - self._shift

    def _positions(self, start_fractions: Tensor) -> Tensor:
        """Positions (S, B, H) of the windows that start at these fractions (S, B)."""
        starts = (start_fractions * self._num_starts).long() + self._oldest
        if self._online_share is not None:
            online = (start_fractions * self._online_starts).long() + self._online_oldest
            place = torch.arange(starts.shape[1], device=starts.device)
            is_online = place < round(self._online_share * starts.shape[1])
            starts = torch.where(is_online & (self._online_starts > 0), online, starts)
        return starts.unsqueeze(-1) + self._offsets

    def _with_online(self, positions: Tensor, dataset: Window) -> Window:
        """The windows at `positions`, given what the dataset has there: its share of them."""
        if self._ring is None:
            return dataset
        online = positions >= self._end
        collected = self._ring.window((positions - self._end).clamp(min=0))
        first, last = online[..., :1], online[..., -1:]
        dataset_end = dataset.episode_end
        if self._turn is not None:  # the last row of a shard, which need not end an episode there
            dataset_end = dataset_end.maximum((positions == self._end - 1).float())
        return Window(
            obs=torch.where(first, collected.obs, dataset.obs),
            action=torch.where(online.unsqueeze(-1), collected.action, dataset.action),
            reward=torch.where(online, collected.reward, dataset.reward),
            terminated=torch.where(online, collected.terminated, dataset.terminated),
            episode_end=torch.where(online, collected.episode_end, dataset_end),
            next_obs=torch.where(last, collected.next_obs, dataset.next_obs),
        )

    def batch(self, window: Window) -> Batch:
        """What agents train on, of windows (S, B, …) on the training device."""
        continues = 1.0 - window.episode_end
        valid = torch.cumprod(torch.cat([torch.ones_like(continues[..., :1]), continues[..., :-1]], -1), -1)
        survived = (1.0 - window.terminated).prod(-1)
        return Batch(
            obs=window.obs,
            action_chunk=window.action,
            chunk_return=window.reward @ self._discounts,
            bootstrap=self._bootstrap_discount * survived,
            next_obs=window.next_obs,
            valid=valid,
        )

    @property
    def _widths(self) -> tuple[int, int]:
        """Numbers of an observation and of an action."""
        return self._transitions.obs.shape[1], self._transitions.action.shape[1]

    def _set_placement(self, slots: int) -> None:
        """Puts the dataset where it belongs, with rings of so many transitions beside it; what is on the device stays.
        ConfigError where the rings do not fit."""
        data, collected = self._transitions, ring_bytes(self.num_seeds, slots, *self._widths) if slots else 0
        first_row = data.row(self._first) if self._turn is None else 0
        placement = self._placement_option
        if placement == "auto":
            placement = fitting_placement(data, data.num_bytes(first_row), collected, self.device)
        if placement != self.placement and self.placement != "device":
            if self._gatherer is not None:
                self._gatherer.close()
                self._gatherer = None
            self.placement = placement
            if placement == "device":
                self._dataset = dataset_on(data, first_row, self.device)
            elif placement == "host":
                self._gatherer = Gatherer(dataset_on(data, 0, torch.device("cpu")))
            else:
                self._gatherer = Gatherer(StreamedWindows(data))
        self._ahead.clear()
        self._home = self.device if self.on_device else torch.device("cpu")
        require_room(collected, self.num_seeds, self._home)
        self._offsets = torch.arange(self.chunk_length, device=self._home)
        self._oldest, self._num_starts, self._online_oldest, self._online_starts, self._shift = (
            torch.zeros((), dtype=torch.int64, device=self._home) for _ in range(5)
        )

    def _set_counters(self) -> None:
        tensors = (self._oldest, self._num_starts, self._online_oldest, self._online_starts, self._shift)
        for tensor, value in zip(tensors, self._span, strict=True):
            tensor.fill_(value)


class _Ahead(NamedTuple):
    """A batch on its way, and the span of positions it was drawn from."""

    span: tuple[int, int, int, int, int]
    positions: Tensor
    gathering: Gathering
