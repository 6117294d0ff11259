"""Online updates that differ in turn: which comes when, however they are executed, asked for, packed or resumed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, gradient_step
from agents.blocks.networks import MLP
from agents.blocks.streams import SeedStreams
from bench.training.engine import NOISE_BLOCK, Engine
from datasets.batch import Batch
from tests.test_engine import ACTION_DIM, OBS_DIM, TRACED, Setup, assert_close


@dataclass(frozen=True)
class DelayedConfig:
    chunk_length: int = 2
    learning_rate: float = 1e-2


class Delayed(Agent):
    """Values actions at every online update, moves its policy at every third, and counts what it does."""

    config: DelayedConfig
    policy_modules = ("policy",)
    period = 3

    def __init__(self, config: DelayedConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.value = MLP(obs_dim + self.chunk_dim, (8,), 1, noise)
        self.policy = MLP(obs_dim, (8,), self.chunk_dim, noise)
        self.value_optimizer = Adam(self.value.parameters(), config.learning_rate)
        self.policy_optimizer = Adam(self.policy.parameters(), config.learning_rate)
        self.register_buffer("count", torch.zeros(self.num_seeds, dtype=torch.int64, device=noise.device))
        self.count: Tensor

    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.policy(obs).detach().tanh().unflatten(-1, (self.chunk_length, -1))

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        return self._evaluate(batch, noise)

    def update_turn(self, batch: Batch, noise: Noise, turn: int) -> Metrics:
        metrics = self._evaluate(batch, noise)
        if turn < self.period - 1:
            return metrics
        loss = -self.value(torch.cat([batch.obs, self.policy(batch.obs).tanh()], -1)).mean((1, 2))
        gradient_step((self.policy_optimizer, loss))
        return metrics | {"policy_loss": loss.detach()}

    def _evaluate(self, batch: Batch, noise: Noise) -> Metrics:
        self.count += 1
        inputs = torch.cat([batch.obs, batch.action_chunk.flatten(2)], -1)
        error = self.value(inputs).squeeze(-1) - batch.chunk_return - noise.normal("value", inputs.shape[1])
        loss = error.square().mean(1)
        gradient_step((self.value_optimizer, loss))
        return {"value_loss": loss.detach()}


class DelayedSetup(Setup):
    """An engine with an agent whose online updates come in three turns."""

    def __init__(self, **options: Any) -> None:
        super().__init__("delayed", **options)
        self.collect(40)

    def make_agent(self, name: str, noise: SeedStreams) -> Agent:
        return Delayed(DelayedConfig(), OBS_DIM, ACTION_DIM, noise)


def policy_of(setup: Setup) -> list[Tensor]:
    return [value for name, value in setup.outcome().items() if name.startswith("policy.") and "/" not in name]


def assert_equal(found: Setup, expected: Setup) -> None:
    for name, value in found.outcome().items():
        assert torch.equal(value, expected.outcome()[name]), name


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("offline", [0, 4])
def test_turns_are_counted_from_the_first_online_update(mode: Any, offline: int) -> None:
    setup = DelayedSetup(mode=mode, compiler=TRACED, first_online=offline)
    if offline:
        setup.engine.update_offline(0, offline)
    moved = []
    for number in range(offline, offline + 7):
        before = policy_of(setup)
        setup.engine.update_online(number)
        moved.append(any(not torch.equal(*pair) for pair in zip(before, policy_of(setup), strict=True)))
    assert moved == [False, False, True, False, False, True, False]
    assert setup.engine.mode == mode
    assert setup.outcome()["count"].tolist() == [offline + 7] * 2


def test_compiled_turns_equal_eager_ones() -> None:
    compiled, eager = DelayedSetup(mode="compiled", compiler=TRACED), DelayedSetup()
    for setup in (compiled, eager):
        setup.engine.update_online(0, 8)
    assert compiled.engine.mode == "compiled"
    assert_close(compiled, eager)


def test_a_metric_of_one_turn_is_averaged_over_the_updates_that_gave_it() -> None:
    whole, single = DelayedSetup(), DelayedSetup()
    whole.engine.update_online(0, 7)
    rows = []
    for number in range(7):
        single.engine.update_online(number)
        rows.append(single.metrics.take(2)[1])
    assert ["policy_loss" in row for row in rows] == [False, False, True, False, False, True, False]
    means = whole.metrics.take(2)[1]
    assert means["policy_loss"] == pytest.approx((rows[2]["policy_loss"] + rows[5]["policy_loss"]) / 2)
    assert means["value_loss"] == pytest.approx(sum(row["value_loss"] for row in rows) / 7)


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_a_run_resumed_within_a_period_goes_on_with_the_next_turn(mode: Any) -> None:
    whole, first, resumed = (DelayedSetup(mode=mode, compiler=TRACED, first_online=2) for _ in range(3))
    whole.engine.update_online(2, 9)
    first.engine.update_online(2, 4)
    resumed.agent.load_seed_states([first.agent.state_of_seed(index) for index in range(2)])
    resumed.engine.update_online(6, 5)
    assert_equal(resumed, whole)


@pytest.mark.parametrize("placement", ["host", "device"])
def test_turns_do_not_depend_on_how_many_updates_are_asked_for(placement: str) -> None:
    several, single = DelayedSetup(placement=placement), DelayedSetup()
    count = NOISE_BLOCK + 5
    several.engine.update_online(0, count)
    for number in range(count):
        single.engine.update_online(number)
    assert_equal(several, single)
    assert several.metrics.take(2) == single.metrics.take(2)


def test_a_seed_in_turns_does_not_depend_on_its_pack() -> None:
    pack, alone = DelayedSetup(seeds=(0, 1)), DelayedSetup(seeds=(1,))
    pack.engine.update_online(0, 7)
    alone.engine.update_online(0, 7)
    theirs = alone.agent.state_of_seed(0)
    for name, value in pack.agent.state_of_seed(1).items():
        assert torch.equal(value, theirs[name]), name


def moving(chosen: Callable[[Tensor], bool], by: float) -> Callable:
    """A compiler whose code moves the chosen tensors by so much more wherever it changes them."""

    def compiler(graph: Any, inputs: list[Tensor]) -> Callable:
        def run(*tensors: Tensor) -> Any:
            before = [tensor.detach().clone() for tensor in tensors]
            result = graph(*tensors)
            with torch.no_grad():
                for old, tensor in zip(before, tensors, strict=True):
                    if chosen(tensor) and not torch.equal(old, tensor):
                        tensor.add_(by)
            return result

        return run

    return compiler


def is_policy_bias(tensor: Tensor) -> bool:
    """Of the last layer, which is not in `value`."""
    return isinstance(tensor, torch.nn.Parameter) and tensor.shape == (2, 2 * ACTION_DIM)


def is_count(tensor: Tensor) -> bool:
    return tensor.dtype == torch.int64 and tensor.shape == (2,)


@pytest.mark.parametrize(
    ("chosen", "by"),
    [
        (is_policy_bias, 1.0),  # in the last turn alone
        (is_policy_bias, 1e-2),  # little beside counts that move by 1
        (is_count, 1),
    ],
)
def test_an_error_of_any_turn_and_of_any_size_is_found_before_the_first_update(
    chosen: Callable[[Tensor], bool], by: float, capsys: pytest.CaptureFixture[str]
) -> None:
    setup, eager = DelayedSetup(mode="compiled", compiler=moving(chosen, by)), DelayedSetup()
    for each in (setup, eager):
        each.engine.update_online(0, 4)
    assert "online updates are NOT compiled" in capsys.readouterr().err
    assert_equal(setup, eager)


def test_each_turn_is_compared_from_where_the_eager_one_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rounding makes of one update is not carried into the next, where it would grow."""
    begun: list[tuple[int, int]] = []  # state that updates start from, and number of the first
    after = Engine._after

    def noted(self: Engine, before: Any, phase: Any, ways: Any, number: int, count: int) -> Any:
        begun.append((id(before), number))
        assert count == 1
        return after(self, before, phase, ways, number, count)

    monkeypatch.setattr(Engine, "_after", noted)
    setup = DelayedSetup(mode="compiled", compiler="eager")
    setup.engine.update_online(7)
    period = len(begun) // 2
    assert setup.engine.mode == "compiled" and period > 1
    assert begun[:period] == begun[period:] and len({*begun}) == period
