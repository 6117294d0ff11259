"""How an agent's update is executed: eagerly, compiled, as a CUDA graph; nothing else knows which.

An update here is: draw a batch, draw noise, run the agent's update, add up its metrics. Before a fast way of executing
it is used, its first updates are compared with eager ones from the same state; if they differ, or the fast way is not
to be had, the engine says so and goes on with the next slower way.
"""

import itertools
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType, MappingProxyType
from typing import Any, get_args

import torch
from torch import Tensor

from agents.blocks.base import Agent, Metrics, Phase
from agents.blocks.kernels import Matmul, multiplies, products_in
from agents.blocks.streams import NoiseTape, SeedStreams, Stream, TapeNoise
from bench.protocol.config import ConfigError
from bench.runs.contract import nearest
from bench.training import compiled
from bench.training.agreement import (
    TOLERANCE,
    TOLERANCE_IN_FEW_BITS,
    TOLERANCE_OF_SEVERAL,
    TOLERANCE_OF_SEVERAL_IN_FEW_BITS,
    MismatchError,
    State,
    check_agreement,
    in_words,
)
from bench.training.capture import GraphFamily
from bench.training.causes import cause_of
from bench.training.execution import Mode, available_cores, compile_processes
from bench.training.meters import MetricMeans
from datasets.batch import Batch
from datasets.replay.replay import Replay
from datasets.replay.trajectories import TrajectoryStore
from datasets.replay.windows import PackedWindow

MODES = get_args(Mode)

SLOWER: dict[Mode, Mode] = {"compiled-graph": "graph", "graph": "compiled", "compiled": "eager"}

NOISE_BLOCK = 32  # updates whose random numbers are drawn at once
GRAPH_UPDATES = 8  # at most, captured in one graph where so many follow each other; whole periods of the agent
PREFETCHED = 8  # batches on their way from a replay on the host
# Updates from which on compiling pays on a CPU, where it takes minutes (tests/benchmarks/README.md, Small networks).
# No rate measured here and now decides: a run that is repeated must be executed alike, or it has other bytes.
COMPILE_FROM = 20_000

CHECKED_UPDATES = 2  # at least, and each turn of the agent's period


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


def check_matmul(matmul: Matmul, device: torch.device) -> None:
    """Raises ConfigError for a precision of products that the device does not have."""
    if not multiplies(matmul, device):
        needs = "a GPU (Ampere or newer)"
        if matmul == "bf16":
            needs = f"a processor with instructions for it (AVX-512 BF16, AMX) or {needs}"
        raise ConfigError(f"matmul {matmul} needs {needs}; use --matmul fp32")


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
        keep: Mapping[str, Mode] = MappingProxyType({}),
        may_change: bool = False,
        compiler: str = "inductor",
        matmul: Matmul = "fp32",
        on_policy: TrajectoryStore | None = None,
        cuda: Any = torch.cuda,
    ):
        """
        Args:
            metrics: every update's metrics are added to these.
            keep: ways in which the run was executed so far (see `engines`), which it goes on in. Where one is not to be
                had here, updating or acting raises ConfigError, unless it `may_change`.
            online_batch_size: that of online updates where it differs.
            first_online: number of the run's first online update, from which the agent's turns are counted.
            matmul: precision of products in updates; actions, estimates and measurements are fp32.
            compiler: back end of torch.compile.
            on_policy: what online updates are made on instead of the replay.
            cuda: what captures graphs (bench.training.capture).
        """
        self.mode: Mode = keep.get("online") or keep.get("offline") or mode  # in effect: a fallback changes it
        self.engines: dict[str, Mode] = {}  # the same by part, once it has begun: `offline`, `online`, `acting`
        self.warnings: list[str] = []  # of fallbacks, each with its cause
        self._keep, self._may_change = dict(keep), may_change
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
        self._matmul: Matmul = matmul
        self._update_graphs, self._acting_graphs = GraphFamily(cuda), GraphFamily(cuda)
        self._phase: Phase | None = None  # that `_ways` are of
        self._ways: Ways = {}
        self._metric_names: dict[tuple[Phase, int], tuple[str, ...]] = {}  # of each turn
        self._replay_version = replay.version
        self._given: PackedWindow | None = None  # gathered on the host
        self._prefetched = -1  # the last update whose batch is on its way

    @property
    def burst(self) -> int:
        """Updates worth asking for at once; a driver that must react to signals asks for no more."""
        return NOISE_BLOCK if self._device.type != "cpu" else 1

    def update_offline(self, number: int, count: int = 1) -> None:
        """Gradient updates `number` to `number` + `count` - 1 of the run, on the dataset."""
        with products_in(self._matmul):
            self._run("offline", number, count)

    def update_online(self, number: int, count: int = 1) -> None:
        """Gradient updates `number` to `number` + `count` - 1, on dataset and collected transitions."""
        with products_in(self._matmul):
            self._run("online", number, count)

    def close(self) -> None:
        """Frees graphs, and lets go of what leads back to this engine, so that its tensors can be freed."""
        self._ways, self._act, self._phase = {}, None, None
        self._update_graphs.end()
        self._acting_graphs.end()

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
            self._phase, self._given, self._replay_version = None, None, self._replay.version
        if self._phase != phase:
            self.close()
            self._ways, self._phase = self._prepare(phase, number), phase
        self._make(phase, self._ways, number, count)
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

        slow: Ways = {(turn, 1): partial(eager, turn) for turn in range(self._periods[phase])}
        self.mode = self.engines.get(phase) or self._keep.get(phase) or self.mode
        while self.mode != "eager":
            started = time.monotonic()
            before = self._state()
            states = [before]
            for ahead in range(max(CHECKED_UPDATES, self._periods[phase])):
                states.append(self._after(states[-1], phase, slow, number + ahead, 1))
            try:
                ways = self._fast_ways(phase, number)
                apart = self._check(states, phase, slow, ways, number)
            except Exception as error:  # whatever a compiler or a capture may raise: it is said, and the rest goes on
                self._update_graphs.end()
                self._fall_back(phase, f"{phase} updates", self.mode, SLOWER[self.mode], error)
                self.mode = SLOWER[self.mode]
            else:
                if "compiled" in self.mode:
                    compiled.share(type(self._agent).__name__)
                seconds = time.monotonic() - started
                _say(f"{phase} updates are {self.mode}, set up in {seconds:.0f} s; {in_words(apart)} from eager ones")
                self.engines[phase] = self.mode
                return ways
            finally:
                self._restore(before)
        self.engines[phase] = self.mode
        return slow

    def _check(self, states: Sequence[State], phase: Phase, slow: Ways, ways: Ways, number: int) -> dict[str, float]:
        """How far the ways are from the eager updates that lead from each of the states to the next.

        Each begins where the eager one began: what rounding makes of Adam's first steps, which are signs of gradients,
        would grow from one to the next. Raises MismatchError.
        """
        of_one, of_several = TOLERANCE, TOLERANCE_OF_SEVERAL
        if self._matmul != "fp32":
            of_one, of_several = TOLERANCE_IN_FEW_BITS, TOLERANCE_OF_SEVERAL_IN_FEW_BITS
        singles = {(turn, size): way for (turn, size), way in ways.items() if size == 1}
        apart = dict.fromkeys(TOLERANCE, 0.0)
        for ahead, (start, expected) in enumerate(itertools.pairwise(states)):
            after = self._after(start, phase, singles, number + ahead, 1)
            found = check_agreement(start, expected, after, of_one)
            apart = {kind: max(share, found[kind]) for kind, share in apart.items()}
        for first, size in ways.keys() - singles.keys():
            places = itertools.count(number)  # of updates that such a step could make
            at = next(n for n in places if self._turn(phase, n) == first and n % NOISE_BLOCK + size <= NOISE_BLOCK)
            several, as_many = (self._after(states[0], phase, each, at, size) for each in (slow, ways))
            check_agreement(states[0], several, as_many, of_several)
        return apart

    def _after(self, before: State, phase: Phase, ways: Ways, number: int, count: int) -> State:
        """The state that so many updates lead to from `before`."""
        self._restore(before)
        self._make(phase, ways, number, count)
        return self._state()

    def _prepare_acting(self) -> Callable[[], tuple[Tensor, Tensor]]:
        """The agent's `collect`; as a CUDA graph where updates are graphs too and it gives the same."""

        def eager() -> tuple[Tensor, Tensor]:
            return self._agent.collect(self._obs, TapeNoise(self._acting))

        expected = eager()
        way = self.engines.get("acting") or self._keep.get("acting") or ("graph" if "graph" in self.mode else "eager")
        if way == "eager":
            self.engines["acting"] = way
            return eager
        try:
            self._acting_graphs.warm_up(eager)
            captured: list[tuple[Tensor, Tensor]] = []
            replay = self._acting_graphs.capture(lambda: captured.append(eager()))

            def act() -> tuple[Tensor, Tensor]:
                replay()
                return captured[0]

            pairs = zip(act(), expected, strict=True)
            if not all(torch.allclose(*pair, rtol=1e-3, atol=1e-4, equal_nan=True) for pair in pairs):
                raise MismatchError("a captured chunk differs from an eager one")
        except Exception as error:  # as above: said, and done the slower way
            self._acting_graphs.end()
            self._fall_back("acting", "training actions", "graph", "eager", error)
            self.engines["acting"] = "eager"
            return eager
        self.engines["acting"] = "graph"
        return act

    def _fall_back(self, part: str, what: str, way: Mode, slower: Mode, error: Exception) -> None:
        """Says why a part is executed a slower way, and keeps it; a traceback goes to the log.

        Raises ConfigError where the run must go on as it was executed so far.
        """
        if isinstance(error, MismatchError):
            cause = str(error)
        else:
            traceback.print_exception(error, file=sys.stderr)
            cause = cause_of(error)
        if part in self._keep and part not in self.engines and not self._may_change:
            raise ConfigError(
                f"{what} of this run were {way} so far, and here they cannot be: {cause}; the run would not end as an "
                f"undisturbed one; go on where it began, or here as {slower} with --accept-change engine"
            ) from error
        self.warnings.append(f"{what} are NOT {way}, they run {slower} and take longer: {cause}")
        _say(f"WARNING: {self.warnings[-1]}")

    def _fast_ways(self, phase: Phase, number: int) -> Ways:
        def one(turn: int) -> Callable[[], object]:
            def update() -> None:
                self._update(phase, turn)

            if "compiled" not in self.mode:
                return update
            set_up_compiler(type(self._agent).__name__)
            # torch keeps what it compiles with the code, and allows a code a few: each way is a code of its own.
            own = FunctionType(update.__code__.replace(), update.__globals__, closure=update.__closure__)
            return torch.compile(own, fullgraph=True, dynamic=False, backend=self._compiler)

        period = self._periods[phase]
        ones: Ways = {(turn, 1): one(turn) for turn in range(period)}
        if "graph" not in self.mode:
            return ones
        self._update_graphs.warm_up(lambda: self._make(phase, ones, number, max(3, period)))
        sizes = list(ones)
        if self._sources[phase].on_device:
            sizes.append((0, max(1, GRAPH_UPDATES // period) * period))

        def several(first: int, size: int) -> None:
            for turn in range(first, first + size):
                ones[turn % period, 1]()

        for tape in (self._starts, self._noise):
            tape.offset.zero_()  # room for all that is captured: it is done where a test has no CUDA
        return {way: self._update_graphs.capture(partial(several, *way)) for way in sizes}

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


def set_up_compiler(agent: str = "") -> None:
    """Settings of torch.compile, and a place for what it compiles for an agent, by its class, that survives the
    process."""
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor  # seconds

    torch._dynamo.config.trace_autograd_ops = True  # an update takes its gradients inside
    # Without it a graph with autograd functions of our own is traced anew in every process. Their code is in the graph,
    # and so in the name under which it is kept.
    functorch.autograd_cache_allow_custom_autograd_functions = True
    inductor.deterministic = True  # no choice of kernels by their time: a restart might choose others
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        inductor.compile_threads = compile_processes(available_cores())
    compiled.use_folder(agent)


def _say(message: str) -> None:
    print(f"engine: {message}", file=sys.stderr, flush=True)
