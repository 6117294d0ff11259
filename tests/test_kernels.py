"""Products of layers: the form of a GPU against that of a CPU, rows that are multiplied once for many."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from agents.blocks import kernels, networks
from agents.blocks.base import polyak_update
from agents.blocks.critic import QEnsemble
from agents.blocks.denoisers import FourierStep, MLPDenoiser, ResidualDenoiser, SinusoidalStep
from agents.blocks.networks import MLP
from agents.blocks.velocities import PlainVelocity
from tests.seeded_noise import SeededNoise
from tests.test_agents import NAMES, OBS_DIM, batch_of, build, online_batch

SEEDS = [0, 1]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "at_once", lambda x: True)


def outcome(name: str, phase: str) -> dict[str, Tensor]:
    """Chunks of a new agent, and metrics and Adam's means, which are linear in gradients, after its first update."""
    agent = build(name, SEEDS)
    obs = SeededNoise(SEEDS).normal("obs", 5, OBS_DIM)
    chunks = {mode: agent.act(obs, SeededNoise(SEEDS), mode) for mode in ("collect", "evaluate")}
    noise = SeededNoise(SEEDS)
    if phase == "offline":
        metrics = agent.update_offline(batch_of(SEEDS, agent.chunk_length), noise)
    else:
        metrics = agent.update_online(online_batch(agent, SEEDS), noise)
    means = {key: value for key, value in agent.state_tensors().items() if "/exp_avg" in key}
    return chunks | metrics | means


@pytest.mark.parametrize("phase", ["offline", "online"])
@pytest.mark.parametrize("name", NAMES)
def test_all_members_at_once_give_the_numbers_of_each_alone(
    name: str, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = outcome(name, phase)
    monkeypatch.setattr(kernels, "at_once", lambda x: True)
    for key, value in outcome(name, phase).items():
        torch.testing.assert_close(value, alone[key], rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_compiler_may_add_biases_in_what_follows_a_product() -> None:
    # torch.baddbmm copies them into the result first: a launch more for each layer.
    mlp = MLP(3, (7, 7), 2, SeededNoise(SEEDS))
    called = [str(node.target) for node in make_fx(mlp)(torch.randn(2, 5, 3)).graph.nodes]
    assert called.count("aten.bmm.default") == 3 and called.count("aten.baddbmm.default") == 0


@pytest.mark.parametrize("rate", [0.0, 0.005, 1.0])
def test_a_target_follows_by_a_tensor_in_three_launches_whatever_its_number_of_parameters(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = MLP(3, (7, 7), 2, SeededNoise([0]))

    def followed(rate: float | Tensor) -> MLP:
        target = MLP(3, (7, 7), 2, SeededNoise([1]))
        polyak_update(target, online, rate)
        return target

    expected = followed(rate)
    monkeypatch.setattr(kernels, "at_once", lambda x: True)
    with torch.profiler.profile() as profile:
        found = followed(torch.tensor(rate))
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7 if 0 < rate < 1 else 0)
    foreach = [event.count for event in profile.key_averages() if event.key.startswith("aten::_foreach")]
    assert foreach == [1, 1, 1]


# --- rows that are multiplied once


def repeated(parts: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """`affine_of` as it is defined: every row is there as often as it counts."""
    rows = max(part.shape[-2] for part in parts)
    x = torch.cat([part.repeat_interleave(rows // part.shape[-2], -2) for part in parts], -1)
    return kernels.affine(x, weight, bias)


@pytest.mark.parametrize("phase", ["offline", "online"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_multiplied_once_give_the_numbers_of_rows_repeated(
    name: str, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "MANY", 2)
    once = outcome(name, phase)
    monkeypatch.setattr(networks, "affine_of", repeated)
    for key, value in outcome(name, phase).items():
        torch.testing.assert_close(value, once[key], rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


OBS, CHUNK, HIDDEN, ROWS, CANDIDATES = 7, 3, 16, networks.MANY, 4
ONE_T, T_OF_EACH = (1, 1), (ROWS * CANDIDATES, 1)
DIMS = (OBS, CHUNK, (HIDDEN, HIDDEN))
Call = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
TAKE_CANDIDATES: dict[str, tuple[Callable[[SeededNoise], nn.Module], Call]] = {
    "critic": (lambda noise: QEnsemble(*DIMS, 2, noise), lambda critic, obs, t, x: critic(obs, x)),
    "velocity": (lambda noise: PlainVelocity(*DIMS, noise), lambda field, obs, t, x: field(obs)(t, x)),
    "denoiser": (
        lambda noise: MLPDenoiser(*DIMS, FourierStep((HIDDEN,), noise), noise),
        lambda predictor, obs, t, x: predictor(obs)(t, x),
    ),
    "residual denoiser": (
        lambda noise: ResidualDenoiser(*DIMS, SinusoidalStep(HIDDEN, noise), noise),
        lambda predictor, obs, t, x: predictor(obs)(t, x),
    ),
}


@pytest.mark.parametrize("time", [ONE_T, T_OF_EACH])
@pytest.mark.parametrize("name", TAKE_CANDIDATES)
def test_candidates_with_their_observations_equal_observations_repeated_for_them(
    name: str, time: tuple[int, int]
) -> None:
    make, call = TAKE_CANDIDATES[name]
    network, noise = make(SeededNoise(SEEDS)), SeededNoise(SEEDS)
    t, x = noise.uniform("t", *time), noise.normal("x", ROWS * CANDIDATES, CHUNK).requires_grad_()
    obs = noise.normal("obs", ROWS, OBS).requires_grad_()
    found = call(network, obs, t, x)
    expected = call(network, obs.repeat_interleave(CANDIDATES, 1), t, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(found)
    inputs = [obs, x, *network.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=5e-5)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("name", TAKE_CANDIDATES)
def test_an_observation_is_multiplied_once_for_all_of_its_candidates(name: str) -> None:
    make, call = TAKE_CANDIDATES[name]
    network = make(SeededNoise([0]))

    def operations(rows: int, time: tuple[int, int]) -> int:
        with FlopCounterMode(display=False) as counter:
            call(network, torch.zeros(1, rows, OBS), torch.ones(1, *time), torch.zeros(1, ROWS * CANDIDATES, CHUNK))
        return counter.get_total_flops()

    members = 2 if name == "critic" else 1
    saved = 2 * members * OBS * HIDDEN * ROWS * (CANDIDATES - 1)
    assert operations(ROWS * CANDIDATES, ONE_T) - operations(ROWS, ONE_T) == saved
    if "denoiser" in name:  # nor are the features of a step that is the same for the whole batch
        assert operations(ROWS, T_OF_EACH) - operations(ROWS, ONE_T) >= 2 * HIDDEN**2 * (ROWS * CANDIDATES - 1)


def test_candidates_that_no_observation_has_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"sizes .* don't multiply up"):
        PlainVelocity(*DIMS, SeededNoise([0]))(torch.zeros(1, 4, OBS))(torch.ones(1, 1, 1), torch.zeros(1, 6, CHUNK))
