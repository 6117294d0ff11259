"""Every way of executing updates gives what eager execution gives, and says so when it does not."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from agents import AGENTS
from agents.blocks.base import Adam, Agent, OnPolicyAgent
from agents.blocks.config import settings_of, with_settings
from agents.blocks.streams import NoiseTape, SeedStreams, Stream
from bench.protocol.config import ConfigError
from bench.training.engine import COMPILE_FROM, NOISE_BLOCK, Engine, pick_mode
from bench.training.execution import available_cores
from bench.training.meters import MetricMeans
from datasets.replay import trajectories
from datasets.replay.replay import ONLINE_FIELDS, Replay
from datasets.replay.trajectories import TrajectoryStore
from datasets.transitions import Transitions
from tests.tiny_runs import small_agent_config

OBS_DIM, ACTION_DIM, BATCH_SIZE = 6, 3, 32
TRACED = "aot_eager_decomp_partition"  # traces and decomposes as inductor does, without minutes of compilation
CPU = torch.device("cpu")
# Tracing and compiling take time per operation.
FEW_OPERATIONS = {
    "critic_hidden_dims": (16,),
    "policy_hidden_dims": (16,),
    "flow_steps": 2,
    "denoising_steps": 2,
    "num_critics": 2,
}


def made_up_transitions(episodes: int = 6, length: int = 20) -> Transitions:
    numbers = np.random.default_rng(0)
    rows = episodes * (length + 1)
    final = np.zeros(rows, bool)
    final[length :: length + 1] = True
    return Transitions(
        obs=numbers.normal(size=(rows, OBS_DIM)).astype(np.float32),
        action=numbers.uniform(-1, 1, (rows, ACTION_DIM)).astype(np.float32),
        reward=-numbers.integers(0, 3, rows).astype(np.float32),
        terminated=numbers.random(rows) < 0.05,
        final=final,
        name="made-up",
        origin="generated",
        content_hash="0",
    )


class Setup:
    """An engine with the agent, replay and metrics that it works on."""

    def __init__(self, agent: str, seeds: tuple[int, ...] = (0, 1), device: torch.device = CPU, **options: Any):
        placement, data = options.pop("placement", "auto"), options.pop("data", None)
        self.agent = self.make_agent(agent, SeedStreams(seeds, device, "init"))
        self.replay = Replay(
            data or made_up_transitions(),
            num_seeds=len(seeds),
            chunk_length=self.agent.chunk_length,
            discount=0.99,
            device=device,
            placement=placement,
        )
        self.metrics = MetricMeans([], device)
        self.store: TrajectoryStore | None = None
        if isinstance(self.agent, OnPolicyAgent):
            self.store = TrajectoryStore(
                len(seeds), num_envs=2, num_steps=6, obs_dim=OBS_DIM, discount=0.99, device=device
            )
        self.num_envs = self.store.num_envs if self.store else 1
        self.engine = Engine(
            self.agent,
            self.replay,
            self.metrics,
            seeds=seeds,
            batch_size=BATCH_SIZE,
            device=device,
            on_policy=self.store,
            **options,
        )
        self.seeds = seeds

    def make_agent(self, name: str, noise: SeedStreams) -> Agent:
        agent_class, config = AGENTS[name][0], small_agent_config(name)
        few = {name: value for name, value in FEW_OPERATIONS.items() if name in settings_of(config)}
        return agent_class(with_settings(config, **few), OBS_DIM, ACTION_DIM, noise)

    def collect(self, steps: int) -> None:
        """Online transitions, the same for every setup."""
        if self.replay.ring_slots == 0:
            self.replay.open_ring(capacity=1, online_steps=50)  # raised to the dataset + 1: the ring overwrites at once
        for step in range(self.replay.num_online, self.replay.num_online + steps):
            draw = SeedStreams(self.seeds, "cpu", "collected").at(step)
            widths = {"obs": (OBS_DIM,), "next_obs": (OBS_DIM,), "action": (ACTION_DIM,)}
            rows = {name: draw.uniform(name, *widths.get(name, ())) for name in ONLINE_FIELDS}
            rows["terminated"] = torch.zeros(len(self.seeds))
            rows["episode_end"] = torch.ones(len(self.seeds))
            self.replay.append(rows)

    def collect_on_policy(self, store: TrajectoryStore) -> None:
        """A whole rollout of made-up observations, with a decision at every other step."""
        assert isinstance(self.agent, OnPolicyAgent)
        while not store.is_full:
            draw = SeedStreams(self.seeds, "cpu", "collected").at(store.count)
            if store.count % self.num_envs == 0:
                _, record = self.engine.act(draw.normal("obs", self.num_envs, OBS_DIM), store.count)
                begins = torch.full((len(self.seeds), self.num_envs), float(store.count % (2 * self.num_envs) == 0))
                store.decide(begins, record)
            rows = {name: draw.uniform(name) for name in trajectories.FIELDS}
            rows |= {name: draw.normal(name, OBS_DIM) for name in ("obs", "next_obs")}
            rows["chunk_end"] = torch.full((len(self.seeds),), float(store.count // self.num_envs % 2))
            rows["terminated"] = rows["episode_end"] = torch.zeros(len(self.seeds))
            store.append(rows)
        own = store.trajectories()
        store.offer(own, *self.agent.estimate(own))

    def train(self, offline: int = 3, online: int = 3) -> None:
        """Offline updates, then steps with an update each; of an on-policy agent all updates on one rollout."""
        self.engine.update_offline(0, offline)
        if self.store is not None:
            self.collect_on_policy(self.store)
            self.engine.update_online(offline, online)
            return
        for number in range(offline, offline + online):
            self.collect(1)
            self.engine.update_online(number)

    def outcome(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.agent.state_tensors().items()}


def assert_close(found: Setup, expected: Setup) -> None:
    """The same metrics, and parameters that went the same way but for a few per cent (Adam's first steps are signs)."""
    assert len(found.seeds) == len(expected.seeds)
    for ours, theirs in zip(found.metrics.take(2), expected.metrics.take(2), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    theirs = expected.outcome()
    for name, value in found.outcome().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-2, atol=2e-4, msg=lambda text, name=name: name + text)


# --- compiled, on every agent


# Tracing takes ten seconds of an agent, decomposing as much again: that is done for some of different structure.
# Entries that differ from another by numbers alone are traced with --slow.
DECOMPOSED = ("sac_flow_g", "fql", "qam")
LIKE_ANOTHER = ("qc_fql", "bfn", "rlpd", "rlpd_ac")
# BatchRenorm removes some of its biases while training: Adam makes whole steps of the rounding of their gradients, and
# targets, computed with running statistics, see them. Two ways of executing are held against each other without them.
DRIFTING = ("sac_flow_t_scratch",)
ROUNDING = 1e-6


@pytest.fixture
def without_rounding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients that are rounding alone are 0 for Adam, in an agent that has them."""
    step = Adam.step

    def rounded(adam: Adam, gradients: Sequence[torch.Tensor]) -> None:
        step(adam, [torch.where(g.abs().max() < ROUNDING, torch.zeros_like(g), g) for g in gradients])

    if request.getfixturevalue("name") in DRIFTING:
        monkeypatch.setattr(Adam, "step", rounded)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in LIKE_ANOTHER)) for name in AGENTS],
)
@pytest.mark.usefixtures("without_rounding")
def test_compiled_updates_equal_eager_ones(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    compiled = Setup(name, mode="compiled", compiler=TRACED if name in DECOMPOSED else "eager")
    eager = Setup(name)
    compiled.train()
    eager.train()
    said = capsys.readouterr().err
    assert compiled.engine.mode == "compiled", said
    assert "offline updates are compiled" in said and "online updates are compiled" in said
    assert_close(compiled, eager)


@pytest.mark.thorough
def test_a_process_compiles_for_as_many_engines_as_it_makes() -> None:
    # One that plans a grid measures every agent of it; torch compiles a code no more often than its limit.
    with torch._dynamo.config.patch(recompile_limit=1):
        for _ in range(3):
            setup = Setup("bc", mode="compiled", compiler="eager")
            setup.train()
            assert setup.engine.mode == "compiled"


@pytest.mark.thorough
def test_a_seed_of_a_compiled_pack_is_the_seed_alone() -> None:
    # Within the tolerance that is stated for packs: fused loops over all seeds round differently than over one.
    pack, alone = (
        Setup("sac_flow_g", seeds=seeds, mode="compiled", compiler=TRACED, placement="device")
        for seeds in ((0, 1), (1,))
    )
    pack.engine.update_offline(0, 5)
    alone.engine.update_offline(0, 5)
    assert pack.engine.mode == alone.engine.mode == "compiled"
    assert pack.metrics.take(2)[1] == pytest.approx(alone.metrics.take(1)[0], rel=1e-4)


def test_a_growing_and_wrapping_ring_needs_no_new_compilation() -> None:
    setup = Setup("fql", mode="compiled", compiler=TRACED)
    setup.train()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(6, 70):
            setup.collect(1)
            setup.engine.update_online(number)
    assert setup.replay.num_online > setup.replay.ring_slots


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["qc_fql", pytest.param("sac_flow_t", marks=pytest.mark.slow)])
def test_updates_compiled_to_machine_code_equal_eager_ones(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
    compiled, eager = Setup(name, mode="compiled"), Setup(name)
    compiled.train(online=0)
    eager.train(online=0)
    assert compiled.engine.mode == "compiled"
    assert_close(compiled, eager)


# --- falling back


def failing(graph: Any, inputs: Any) -> Callable:
    raise RuntimeError("no compiler\non this machine")


def wrong(graph: Any, inputs: list[torch.Tensor]) -> Callable:
    """A compiler whose code moves the first large tensor too far."""

    def run(*tensors: torch.Tensor) -> Any:
        result = graph(*tensors)
        with torch.no_grad():
            next(tensor for tensor in tensors if isinstance(tensor, torch.nn.Parameter)).add_(0.1)
        return result

    return run


@pytest.mark.parametrize(("compiler", "reason"), [(failing, "no compiler on this machine"), (wrong, "allowed: ")])
def test_a_compiler_that_fails_or_errs_is_left_for_eager_updates_with_a_loud_line(
    compiler: Callable, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    setup, eager = Setup("fql", mode="compiled", compiler=compiler), Setup("fql")
    setup.train()
    eager.train()
    said = capsys.readouterr().err
    *trace, warning = said.strip().splitlines()
    assert warning.startswith("engine: WARNING: offline updates are NOT compiled, they run eager") and reason in warning
    assert bool(trace) == (compiler is failing)
    assert setup.engine.mode == "eager"
    for name, value in setup.outcome().items():
        assert torch.equal(value, eager.outcome()[name]), name
    assert setup.metrics.take(2) == eager.metrics.take(2)


@pytest.mark.thorough
def test_the_check_leaves_no_trace() -> None:
    # A run that resumes is checked again at another update: its numbers must not show it.
    whole, resumed = (Setup("sac_flow_g", mode="compiled", compiler=TRACED) for _ in range(2))
    whole.engine.update_offline(0, 6)
    first = Setup("sac_flow_g", mode="compiled", compiler=TRACED)
    first.engine.update_offline(0, 4)
    resumed.agent.load_seed_states([first.agent.state_of_seed(index) for index in range(2)])
    resumed.engine.update_offline(4, 2)
    for name, value in resumed.outcome().items():
        assert torch.equal(value, whole.outcome()[name]), name


# --- numbers, whatever the way


@pytest.mark.parametrize("placement", ["host", "device"])
def test_batches_do_not_depend_on_where_the_data_lie_or_on_how_many_updates_are_asked_for(placement: str) -> None:
    several, single = Setup("fql", placement=placement), Setup("fql")
    count = NOISE_BLOCK + 5
    several.engine.update_offline(0, count)
    for number in range(count):
        single.engine.update_offline(number)
    for name, value in several.outcome().items():
        assert torch.equal(value, single.outcome()[name]), name
    assert several.metrics.take(2) == single.metrics.take(2)


@pytest.mark.thorough
def test_a_seed_that_is_nan_is_no_reason_to_fall_back() -> None:
    setup, healthy = (Setup("fql", mode="compiled", compiler=TRACED) for _ in range(2))
    for parameter in setup.agent.parameters():
        parameter.data[1] = torch.nan
    setup.train()
    healthy.train()
    assert setup.engine.mode == "compiled"
    ours, theirs = setup.agent.state_of_seed(0), healthy.agent.state_of_seed(0)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_tape_holds_the_numbers_of_the_streams_at_every_step() -> None:
    streams, tape = (SeedStreams([3, 5], "cpu", "update", 4) for _ in range(2))
    tape = NoiseTape(tape, CPU)
    kinds = [Stream("a", 0, "normal", (3,), torch.float32), Stream("b", 1, "uniform", (2, 2), torch.float64)]
    for step in (0, 1, 2, 3, 4, 9, 2):
        assert tape.seek(step) == 4 - step % 4
        for kind in kinds[: 1 if step == 0 else 2]:  # the second joins later
            assert torch.equal(tape.slice(kind), streams.at(step).slice(kind))


def test_auto_compiles_long_runs_on_a_cpu_and_captures_on_a_gpu() -> None:
    assert pick_mode("auto", CPU, COMPILE_FROM) == "compiled"
    assert pick_mode("auto", CPU, COMPILE_FROM - 1) == "eager"
    assert pick_mode("auto", torch.device("cuda"), 1) == "compiled-graph"
    assert pick_mode("graph", torch.device("cuda"), 1) == "graph"


@pytest.mark.parametrize(("name", "reason"), [("fast", "unknown engine"), ("graph", "needs a GPU")])
def test_an_engine_that_cannot_be_had_is_named(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        pick_mode(name, CPU, 1)


def test_actions_are_those_of_the_agent_at_every_step() -> None:
    setup = Setup("sac_flow_g")
    acting = SeedStreams(setup.seeds, "cpu", "acting")
    for step in (0, 5, 5, 3):
        obs = torch.randn(2, 1, OBS_DIM)
        expected = setup.agent.act(obs, acting.at(step), mode="collect")
        assert torch.equal(setup.engine.act(obs, step)[0], expected)


def test_this_process_has_a_core() -> None:
    assert available_cores() >= 1
