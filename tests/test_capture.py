"""CUDA graphs of updates and acting are captured, replayed and ended in the right order: on a double, on the CPU."""

import ast
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from agents.blocks.base import Agent, Metrics, Noise
from agents.blocks.streams import SeedStreams
from bench.training.agreement import TOLERANCE_OF_SEVERAL, MismatchError, check_agreement
from bench.training.engine import GRAPH_UPDATES, NOISE_BLOCK
from datasets.batch import Batch
from tests.cuda_double import CudaDouble, GraphDouble
from tests.test_engine import ACTION_DIM, OBS_DIM, Setup
from tests.test_turns import Delayed, DelayedConfig, DelayedSetup, assert_equal

ROOT = Path(__file__).resolve().parent.parent


def captured(name: str = "fql", **options: Any) -> tuple[Setup, CudaDouble]:
    cuda = CudaDouble()
    return Setup(name, mode="graph", cuda=cuda, **options), cuda


def obs_of(setup: Setup, step: int) -> Tensor:
    return SeedStreams(setup.seeds, "cpu", "observed").at(step).normal("obs", setup.num_envs, OBS_DIM)


def streams_of(graphs: list[GraphDouble]) -> set[int]:
    return {graph.stream.number for graph in graphs if graph.stream is not None}


@pytest.mark.parametrize("name", ["fql", "sac_flow_g", "reinflow"])
def test_acting_and_updates_are_captured_through_the_hand_over_and_equal_eager_ones(name: str) -> None:
    (fast, cuda), eager = captured(name), Setup(name)
    for setup in (fast, eager):
        setup.engine.update_offline(0, GRAPH_UPDATES + 3)
    for step in range(3):
        torch.testing.assert_close(*(setup.engine.act(obs_of(setup, step), step) for setup in (fast, eager)))
    for setup in (fast, eager):
        setup.train(offline=0)
    offline, acting = cuda.graphs[:2], cuda.graphs[2]
    assert streams_of(offline).isdisjoint(streams_of([acting])) and len(streams_of(offline)) == 1
    assert all(graph.is_reset for graph in (*offline, acting))
    for step in range(3, 6):
        torch.testing.assert_close(*(setup.engine.act(obs_of(setup, step), step) for setup in (fast, eager)))
    assert fast.engine.mode == "graph" and not fast.engine.warnings
    assert cuda.living[-1].replays >= 3 and cuda.current is cuda.default
    assert_equal(fast, eager)
    assert fast.metrics.take(2) == eager.metrics.take(2)


def test_graphs_of_updates_share_memory_and_a_stream_that_acting_does_not() -> None:
    setup, cuda = captured()
    setup.engine.update_offline(0)
    setup.engine.act(obs_of(setup, 0), 0)
    *updates, acting = cuda.living
    assert len(updates) == 2 and updates[0].memory == updates[1].memory != acting.memory
    assert streams_of(updates).isdisjoint(streams_of([acting]))


def test_every_graph_is_captured_anew_where_the_ring_grows_and_no_dead_one_is_replayed() -> None:
    (fast, cuda), eager = captured(), Setup("fql")
    for setup in (fast, eager):
        setup.replay.open_ring(capacity=1, online_steps=400)
    for number in range(40):  # an episode ends at every step: there is no room for their last observations
        for setup in (fast, eager):
            setup.collect(3)
            setup.engine.update_online(number)
        assert torch.equal(fast.engine.act(obs_of(fast, 0), number)[0], eager.engine.act(obs_of(eager, 0), number)[0])
    assert fast.replay.version > 1  # it has grown
    assert len(cuda.living) == 3 and len(cuda.graphs) == 3 * fast.replay.version
    assert_equal(fast, eager)


def test_graphs_of_turns_hold_whole_periods_and_equal_eager_updates() -> None:
    cuda = CudaDouble()
    fast, eager = DelayedSetup(mode="graph", cuda=cuda, first_online=1), DelayedSetup(first_online=1)
    for setup in (fast, eager):
        for number in (1, 2):
            setup.engine.update_online(number)
        setup.engine.update_online(3, NOISE_BLOCK + 20)
    assert [len(cuda.graphs), fast.engine.mode] == [4, "graph"]  # one for each turn, and one of two periods
    assert cuda.graphs[-1].replays > 5
    assert_equal(fast, eager)
    assert fast.metrics.take(2) == eager.metrics.take(2)


class Forgetful(CudaDouble):
    """Graphs of several updates leave the last ones out."""

    def CUDAGraph(self) -> GraphDouble:
        return ForgetfulGraph(self)


class ForgetfulGraph(GraphDouble):
    def replay(self) -> None:
        longest = max(len(graph.calls) for graph in self.cuda.living)
        if len(self.calls) == longest > 2 * len(self.cuda.graphs[0].calls):
            del self.calls[longest // 2 :]
        super().replay()


@pytest.mark.parametrize("number", [0, NOISE_BLOCK - 3])  # also where the block of noise has no room for several
def test_a_graph_of_several_updates_is_checked_before_it_is_used(number: int) -> None:
    setup, eager = DelayedSetup(mode="graph", compiler=failing, cuda=Forgetful()), DelayedSetup()
    for each in (setup, eager):
        each.engine.update_offline(number, 16)
    assert "NOT graph" in setup.engine.warnings[0] and "counts" in setup.engine.warnings[0]
    assert_equal(setup, eager)


def test_rounding_of_several_updates_is_no_mismatch_but_a_number_that_is_not_finite_is() -> None:
    before = {"w": torch.zeros(2), "metric loss": torch.zeros(2, dtype=torch.float64), "steps": torch.zeros(2).long()}
    eager = {name: tensor + 1 for name, tensor in before.items()}
    rounded = eager | {"w": eager["w"] + 0.2, "metric loss": eager["metric loss"] + 5e-3}
    with pytest.raises(MismatchError, match="metrics 5e-03"):
        check_agreement(before, eager, rounded)
    check_agreement(before, eager, rounded, TOLERANCE_OF_SEVERAL)
    for wrong in ({"w": torch.tensor([1.0, torch.nan])}, {"steps": eager["steps"] + 1}, {"w": eager["w"] + 1}):
        with pytest.raises(MismatchError):
            check_agreement(before, eager, eager | wrong, TOLERANCE_OF_SEVERAL)
    dead = eager | {"w": torch.tensor([1.0, torch.nan])}  # a seed that diverges eagerly does so fast
    check_agreement(before, dead, dead)


# --- captures that fail


class Waiting(Delayed):
    """Waits for the device where it is told to."""

    acts = updates = False

    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        chunk = super().act(obs, noise, mode)
        return chunk * chunk.mean().sign().item() ** 2 if self.acts else chunk

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        if self.updates and batch.obs.mean().item() > 1e9:
            raise AssertionError
        return super().update_offline(batch, noise)


class WaitingSetup(DelayedSetup):
    def make_agent(self, name: str, noise: SeedStreams) -> Agent:
        return Waiting(DelayedConfig(), OBS_DIM, ACTION_DIM, noise)


def test_a_failed_capture_names_its_cause_and_leaves_the_stream_and_later_captures_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cuda = CudaDouble()
    setup, eager = WaitingSetup(mode="graph", compiler="eager", cuda=cuda), DelayedSetup()
    assert isinstance(setup.agent, Waiting)
    setup.agent.updates = True
    setup.engine.update_offline(0)
    said = capsys.readouterr().err
    place = f"tests/test_capture.py:{line_of('batch.obs.mean().item()')}"
    cause = f"RuntimeError: CUDA error: operation not permitted when stream is capturing ({place})"
    assert f"offline updates are NOT graph, they run compiled and take longer: {cause}; then RuntimeError" in said
    assert "previous error during capture" in said and said.count("Traceback") >= 2  # of both, whole
    assert cuda.current is cuda.default and not cuda.living
    eager.engine.update_offline(0)
    assert_equal(setup, eager)


def test_a_failed_capture_of_acting_leaves_the_graphs_of_updates_alive() -> None:
    cuda = CudaDouble()
    setup, eager = WaitingSetup(mode="graph", cuda=cuda), DelayedSetup()
    assert isinstance(setup.agent, Waiting)
    setup.agent.acts = True
    for each in (setup, eager):
        each.engine.update_online(0, 4)
        each.engine.act(obs_of(each, 0), 0)
        each.engine.update_online(4, 4)
    assert [warning.split(",")[0] for warning in setup.engine.warnings] == ["training actions are NOT graph"]
    assert setup.engine.mode == "graph" and len(cuda.living) == 4
    assert_equal(setup, eager)


def test_all_warnings_are_kept() -> None:
    cuda = CudaDouble()
    setup = WaitingSetup(mode="graph", compiler=failing, cuda=cuda)
    assert isinstance(setup.agent, Waiting)
    setup.agent.acts = setup.agent.updates = True
    setup.engine.act(obs_of(setup, 0), 0)
    setup.engine.update_offline(0)
    assert setup.engine.mode == "eager"
    kinds = ["training actions are NOT graph", "offline updates are NOT graph", "offline updates are NOT compiled"]
    assert [warning.split(",")[0] for warning in setup.engine.warnings] == kinds
    assert setup.engine.engines == {"acting": "eager", "offline": "eager"}


def failing(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no compiler")


def line_of(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


# --- the rule, in every file


def test_every_capture_says_on_which_stream() -> None:
    for path in ROOT.glob("*/**/*.py"):
        if ".venv" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "graph":
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert "stream" in {keyword.arg for keyword in node.keywords}, where
