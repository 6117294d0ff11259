"""How an agent's update is executed: eagerly, compiled, as a CUDA graph; nothing else knows which.

An update here is: draw a batch, draw noise, run the agent's update, add up its metrics. Before a fast way of executing
it is used, its first updates are compared with eager ones from the same state; if they differ, or the fast way is not
to be had, the engine says so and goes on with the next slower way.
"""

import hashlib
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from agents.blocks.base import Agent, Metrics, Phase
from agents.blocks.streams import NoiseTape, SeedStreams, Stream, TapeNoise
from bench.protocol.config import ConfigError
from bench.runs.contract import error_line, nearest
from bench.training.execution import Mode, available_cores, compile_processes
from bench.training.meters import MetricMeans
from datasets.batch import Batch
from datasets.cache import cache_root
from datasets.replay.replay import Replay
from datasets.replay.trajectories import TrajectoryStore
from datasets.replay.windows import PackedWindow

MODES = get_args(Mode)

SLOWER: dict[Mode, Mode] = {"compiled-graph": "graph", "graph": "compiled", "compiled": "eager"}

NOISE_BLOCK = 32  # updates whose random numbers are drawn at once
GRAPH_UPDATES = 8  # at most, captured in one graph where so many follow each other; whole periods of the agent
PREFETCHED = 8  # batches on their way from a replay on the host
COMPILE_FROM = 100_000  # updates from which on compiling (a minute or two on a CPU) pays

CHECKED_UPDATES = 2  # at least, and each turn of the agent's period
# Largest distance of fast from eager execution, as a share of how far eager execution moved from the start. Adam's
# means are linear in gradients; parameters get more room, because Adam's first steps are signs of gradients and
# rounding turns those of gradients near 0. Counts are equal: in a norm their steps of 1 would outweigh all else.
TOLERANCE = {"metrics": 1e-3, "gradients": 1e-3, "parameters": 5e-2, "counts": 0.0}


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


def pick_mode(name: str, device: torch.device, updates: int) -> Mode:
    """`auto`: compiled and captured on a GPU; on a CPU compiled where the run is long enough, else eager.

    Args:
        updates: of the whole run, so that a resumed one is executed as it began.
    Raises ConfigError for a mode that does not exist or that the device cannot run.
    """
    if name == "auto":
        if device.type == "cuda":
            return "compiled-graph"
        return "compiled" if updates >= COMPILE_FROM else "eager"
    if "graph" in name and device.type != "cuda":
        raise ConfigError(f"engine {name} needs a GPU; use --engine compiled or eager")
    for mode in MODES:
        if mode == name:
            return mode
    raise ConfigError(f"unknown engine {name!r}{nearest(name, MODES)}; engines: auto, {', '.join(MODES)}")


class MismatchError(Exception):
    """A fast way of executing updates does not give what eager execution gives."""


State = dict[str, Tensor]
Ways = dict[tuple[int, int], Callable[[], object]]  # turn of the first update, number of updates -> what makes them


class Engine:
    """Executes gradient updates by number: batches, noise and results do not depend on how."""

    def __init__(
        self,
        agent: Agent,
        replay: Replay,
        metrics: MetricMeans,
        *,
        seeds: Sequence[int],
        batch_size: int,
        online_batch_size: int | None = None,
        first_online: int = 0,
        device: torch.device,
        mode: Mode = "eager",
        compiler: str = "inductor",
        on_policy: TrajectoryStore | None = None,
    ):
        """
        Args:
            metrics: every update's metrics are added to these.
            online_batch_size: that of online updates where it differs.
            first_online: number of the run's first online update, from which the agent's turns are counted.
            compiler: back end of torch.compile.
            on_policy: what online updates are made on instead of the replay.
        """
        self.mode: Mode = mode  # in effect: a fallback changes it
        self.warning: str | None = None  # that, and why
        self._agent, self._replay, self._metrics, self._device = agent, replay, metrics, device
        self._periods: dict[Phase, int] = {"offline": 1, "online": agent.period}
        self._first_online = first_online
        self._sources: dict[Phase, Replay | TrajectoryStore] = {"offline": replay, "online": on_policy or replay}
        # Starts of windows choose the data: drawn on the CPU, they are the same on every device.
        self._host_starts = SeedStreams(seeds, "cpu", "batch", NOISE_BLOCK)
        self._starts = NoiseTape(self._host_starts, device)
        self._start = Stream("starts", 0, "uniform", (batch_size,), torch.float64)
        self._online_start = self._start._replace(shape=(online_batch_size or batch_size,))
        self._noise = NoiseTape(SeedStreams(seeds, device, "update", NOISE_BLOCK), device)
        self._acting = NoiseTape(SeedStreams(seeds, device, "acting"), device)
        self._measured_starts = SeedStreams(seeds, "cpu", "gradient_norms_batch")
        self._norms_noise = SeedStreams(seeds, device, "gradient_norms")
        self._policy_noise = SeedStreams(seeds, device, "policy_metrics")
        num_envs = on_policy.num_envs if on_policy else 1
        self._obs = torch.zeros(len(seeds), num_envs, agent.obs_dim, device=device)
        self._act: Callable[[], tuple[Tensor, Tensor]] | None = None
        self._compiler = compiler
        self._ways: dict[Phase, Ways] = {}
        self._metric_names: dict[tuple[Phase, int], tuple[str, ...]] = {}  # of each turn
        self._replay_version = replay.version
        self._given: PackedWindow | None = None  # gathered on the host
        self._prefetched = -1  # the last update whose batch is on its way

    @property
    def burst(self) -> int:
        """Updates worth asking for at once; a driver that must react to signals asks for no more."""
        return NOISE_BLOCK if self._device.type == "cuda" else 1

    def update_offline(self, number: int, count: int = 1) -> None:
        """Gradient updates `number` to `number` + `count` - 1 of the run, on the dataset."""
        self._run("offline", number, count)

    def update_online(self, number: int, count: int = 1) -> None:
        """Gradient updates `number` to `number` + `count` - 1, on dataset and collected transitions."""
        self._run("online", number, count)

    def act(self, obs: Tensor, env_step: int) -> tuple[Tensor, Tensor]:
        """Training action chunks (S, E, H, A), and the agent's record (S, E, W) of each, on the CPU.

        For obs (S, E, O) of E environments; waits for the updates before it.
        """
        self._obs.copy_(obs)
        self._acting.seek(env_step)
        if self._act is None:
            self._act = self._prepare_acting()
        action_chunk, record = self._act()
        return action_chunk.cpu(), record.cpu()

    # Measurements after `number` updates: executed eagerly whatever the mode, on a batch as large as an update's. Batch
    # and noise have streams of their own, so that no update depends on what was measured.

    def gradient_norms(self, phase: Phase, number: int) -> list[dict[str, float]]:
        """The agent's `gradient_norms` by seed."""
        batch, noise = self._measured_batch(number), self._norms_noise.at(number)
        return self._by_seed(self._agent.gradient_norms(batch, noise, phase) if batch else {})

    def policy_metrics(self, number: int) -> list[dict[str, float]]:
        """The agent's `policy_metrics` by seed."""
        batch, noise = self._measured_batch(number), self._policy_noise.at(number)
        return self._by_seed(self._agent.policy_metrics(batch, noise) if batch else {})

    def _measured_batch(self, number: int) -> Batch | None:
        """None where the replay holds nothing to measure on: in an on-policy run without data it never does."""
        if self._replay.size < self._replay.chunk_length:
            return None
        fractions = self._measured_starts.at(number).slice(self._start)
        return self._replay.sample(fractions.to(self._device) if self._replay.on_device else fractions)

    def _by_seed(self, metrics: Metrics) -> list[dict[str, float]]:
        if not metrics:
            return [{} for _ in range(self._agent.num_seeds)]
        rows = torch.stack(list(metrics.values()), 1).tolist()  # one wait for the device
        return [dict(zip(metrics, row, strict=True)) for row in rows]

    def _run(self, phase: Phase, number: int, count: int) -> None:
        if self._replay.version != self._replay_version:  # graphs hold tensors that the replay no longer uses
            self._ways, self._given, self._replay_version = {}, None, self._replay.version
        if phase not in self._ways:
            self._ways[phase] = self._prepare(phase, number)
        self._make(phase, self._ways[phase], number, count)
        period = self._periods[phase]
        for ahead in range(min(count, period)):
            names = self._metric_names[phase, self._turn(phase, number + ahead)]
            self._metrics.count(names, len(range(ahead, count, period)))

    def _turn(self, phase: Phase, number: int) -> int:
        """Which of the agent's updates number `number` of the run is: a resumed run goes on within a period."""
        return (number - self._first_online) % self._periods[phase]

    def _make(self, phase: Phase, ways: Ways, number: int, count: int) -> None:
        """Makes `count` updates from `number` on by the largest steps that `ways` offers."""
        end = number + count
        while number < end:
            on_tape = self._starts.seek(number)
            self._noise.seek(number)
            turn, most = self._turn(phase, number), min(end - number, on_tape)
            size = max(size for first, size in ways if first == turn and size <= most)
            if not self._sources[phase].on_device:
                self._gather(phase, number)
                size = 1
            ways[turn, size]()
            number += size

    def _gather(self, phase: Phase, number: int) -> None:
        """The windows of update `number` from a replay on the host, on their way to where updates read them; offline,
        the next ones begin to be gathered."""
        gathered = self._replay.gather(self._fractions(number), number)
        if phase == "offline":
            for ahead in range(max(self._prefetched, number) + 1, number + 1 + PREFETCHED):
                self._replay.prefetch(ahead, self._fractions(ahead))
                self._prefetched = ahead
        if self._given is None:
            self._given = gathered.copied_to(self._device)
        else:
            self._given.numbers.copy_(gathered.numbers, non_blocking=True)

    def _fractions(self, number: int) -> Tensor:
        return self._host_starts.at(number).slice(self._start)

    def _update(self, phase: Phase, turn: int = 0) -> dict[str, Tensor]:
        """One update, as it is executed, traced or captured: every state it leaves is in tensors that stay in place."""
        source = self._sources[phase]
        if source is self._replay and self._given is not None:
            batch = self._replay.batch(self._given.fields)
        else:
            batch = source.sample(self._starts.slice(self._start if phase == "offline" else self._online_start))
        update: Callable[..., Metrics] = self._agent.update_offline
        if phase == "online":
            update = partial(self._agent.update_turn, turn=turn)
        metrics = update(batch, TapeNoise(self._noise))
        self._metrics.add(metrics)
        self._starts.offset += 1
        self._noise.offset += 1
        return metrics

    # Setting up a fast way, and checking it.

    def _prepare(self, phase: Phase, number: int) -> Ways:
        """The way to execute updates: that of the current mode, or of the next slower one that works."""

        def eager(turn: int) -> None:
            self._metric_names[phase, turn] = tuple(self._update(phase, turn))

        period = self._periods[phase]
        slow: Ways = {(turn, 1): partial(eager, turn) for turn in range(period)}
        while self.mode != "eager":
            # The first updates, eagerly, then the same ones the fast way.
            started = time.monotonic()
            checked = max(CHECKED_UPDATES, period)
            if "graph" in self.mode:
                checked += period - 1 + _graph_updates(period)
            before = self._state()
            self._make(phase, slow, number, checked)
            expected = self._state()
            self._restore(before)
            try:
                ways = self._fast_ways(phase, number)
                self._restore(before)
                self._make(phase, ways, number, checked)
                apart = _distances(before, expected, self._state())
                if any(not apart[kind] <= tolerance for kind, tolerance in TOLERANCE.items()):
                    raise MismatchError(f"{_list(apart)} from eager updates; allowed: {_list(TOLERANCE)}")
            except Exception as error:  # whatever a compiler or a capture may raise: it is said, and the rest goes on
                slower = SLOWER[self.mode]
                self.warning = f"{phase} updates are NOT {self.mode}, they run {slower} and take longer: {_line(error)}"
                self.mode = slower
                _say(f"WARNING: {self.warning}")
            else:
                seconds = time.monotonic() - started
                _say(f"{phase} updates are {self.mode}, set up in {seconds:.0f} s; {_list(apart)} from eager ones")
                return ways
            finally:
                self._restore(before)
        return slow

    def _prepare_acting(self) -> Callable[[], tuple[Tensor, Tensor]]:
        """The agent's `collect`; as a CUDA graph where updates are graphs too and it gives the same."""

        def eager() -> tuple[Tensor, Tensor]:
            return self._agent.collect(self._obs, TapeNoise(self._acting))

        expected = eager()
        if "graph" not in self.mode:
            return eager
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = eager()

            def replay() -> tuple[Tensor, Tensor]:
                graph.replay()
                return captured

            pairs = zip(replay(), expected, strict=True)
            if not all(torch.allclose(*pair, rtol=1e-3, atol=1e-4, equal_nan=True) for pair in pairs):
                raise MismatchError("a captured chunk differs from an eager one")
        except Exception as error:  # as above: said, and done the slower way
            self.warning = f"training actions are NOT captured and take longer: {_line(error)}"
            _say(f"WARNING: {self.warning}")
            return eager
        return replay

    def _fast_ways(self, phase: Phase, number: int) -> Ways:
        def one(turn: int) -> Callable[[], object]:
            def update() -> None:
                self._update(phase, turn)

            if "compiled" not in self.mode:
                return update
            set_up_compiler()
            return torch.compile(update, fullgraph=True, dynamic=False, backend=self._compiler)

        period = self._periods[phase]
        ones: Ways = {(turn, 1): one(turn) for turn in range(period)}
        if "graph" not in self.mode:
            return ones
        # Outside the capture first: libraries make their workspaces, the compiler its kernels.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._make(phase, ones, number, max(3, period))
        torch.cuda.current_stream().wait_stream(side)
        sizes = list(ones)
        if self._sources[phase].on_device:
            sizes.append((0, _graph_updates(period)))
        graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        for first, size in sizes:
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(graphs.values())).pool() if graphs else None
            with torch.cuda.graph(graph, pool=pool):
                for turn in range(first, first + size):
                    ones[turn % period, 1]()
            graphs[first, size] = graph
        return {way: graph.replay for way, graph in graphs.items()}

    def _state(self) -> State:
        """Copies of all tensors that an update changes, the tapes' offsets apart."""
        sums = {f"metric {name}": total for name, total in self._metrics.sums.items()}
        return {name: tensor.detach().clone() for name, tensor in (self._agent.state_tensors() | sums).items()}

    @torch.no_grad()
    def _restore(self, state: State) -> None:
        for name, tensor in self._agent.state_tensors().items():
            tensor.copy_(state[name])
        for name, total in self._metrics.sums.items():
            total.copy_(state.get(f"metric {name}", torch.zeros_like(total)))


def _distances(before: State, expected: State, got: State) -> dict[str, float]:
    """How far `got` is from `expected`, as a share of how far `expected` is from `before`, by kind of tensor.

    Of counts it is the root of how many differ.
    """
    moved, apart = dict.fromkeys(TOLERANCE, 0.0), dict.fromkeys(TOLERANCE, 0.0)
    for name, eager in expected.items():
        kind = "metrics" if name.startswith("metric ") else "gradients" if "/" in name else "parameters"
        if name.endswith("/steps") or not eager.is_floating_point():
            apart["counts"] += float((got[name] != eager).sum())
            continue
        # A metric may be new. A seed that diverged holds NaN on both sides.
        start, eager, fast = (
            torch.nan_to_num(state[name].double(), 0, 0, 0) if name in state else torch.zeros((), dtype=torch.float64)
            for state in (before, expected, got)
        )
        moved[kind] += float((eager - start).square().sum())
        apart[kind] += float((fast - eager).square().sum())
    moved["counts"] = 1.0
    return {kind: math.sqrt(apart[kind] / (moved[kind] or math.nan)) if apart[kind] else 0.0 for kind in TOLERANCE}


def set_up_compiler() -> None:
    """Settings of torch.compile, and a place for what it has compiled that survives the process."""
    from torch._inductor import config as inductor  # seconds

    torch._dynamo.config.trace_autograd_ops = True  # an update takes its gradients inside
    torch._dynamo.config.recompile_limit = 64  # engines in one process: every agent and phase is a new compilation
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        inductor.compile_threads = compile_processes(available_cores())
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        # Machine code is for one kind of processor; a home directory may be shared by several.
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
        features = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
        kind = hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:12]
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_root() / "compiled" / kind)


def _graph_updates(period: int) -> int:
    """Updates captured in one graph: whole periods, so that each begins with the first turn."""
    return max(1, GRAPH_UPDATES // period) * period


def _list(shares: dict[str, float]) -> str:
    return ", ".join(f"{kind} {share:.0e}" for kind, share in shares.items())


def _line(error: Exception) -> str:
    return error_line(error)[:300]


def _say(message: str) -> None:
    print(f"engine: {message}", file=sys.stderr, flush=True)
