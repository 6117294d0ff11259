"""Products of layers: forms of a GPU, of small networks and of large ones, rows that are multiplied once for many."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
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


# --- small networks on a CPU


ROUNDED_ALIKE = [
    (rows, dims, norm)
    for rows in (16, 128, 256)
    for dims in ((33, 96, 96, 1), (28, 64, 64, 5), (14, 128, 33), (5, 256, 25), (42, 16, 16, 10))
    for norm in ("none", "after")
]


def gradients(mlp: MLP, x: Tensor) -> list[Tensor]:
    """Of a fixed function of the output: x's and the parameters', each with a first dimension of seeds."""
    x = x.clone().requires_grad_()
    y = mlp(x)
    loss = (y * torch.arange(y[0].numel()).view_as(y[0]).cos()).sum()
    return [y.detach(), *torch.autograd.grad(loss, [x, *mlp.parameters()])]


@pytest.mark.parametrize("members", [(), (2,)])
@pytest.mark.parametrize(("rows", "dims", "norm"), ROUNDED_ALIKE)
def test_a_small_network_is_computed_at_once_and_rounded_as_if_it_were_alone(
    rows: int, dims: tuple[int, ...], norm: networks.Norm, members: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(seeds: Sequence[int]) -> MLP:
        return MLP(dims[0], dims[1:-1], dims[-1], SeededNoise(seeds), members, norm)

    called: list[torch.Size] = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: (called.append(a.shape), bmm(a, b))[1])
    seeds = list(range(7))
    x = SeededNoise(seeds).normal("x", *members, rows, dims[0])
    pack = gradients(built(seeds), x)
    assert {shape[0] for shape in called} == {len(seeds) * math.prod(members)}
    for seed in seeds:
        for ours, alone in zip(pack, gradients(built([seed]), x[seed : seed + 1]), strict=True):
            assert torch.equal(ours[seed], alone[0])
    monkeypatch.setattr(kernels, "SMALL", 0)
    monkeypatch.setattr(kernels, "FEW", 0)
    called.clear()
    for ours, one_by_one in zip(pack, gradients(built(seeds), x), strict=True):
        torch.testing.assert_close(ours, one_by_one, rtol=1e-5, atol=1e-4)
    assert not called


@pytest.mark.parametrize(
    ("rows", "weight", "threads"),
    [
        (128, (513, 512), 1),
        (8, (96, 96), 1),
        (130, (96, 96), 1),
        (128, (96, 96), 2),
        (128, (33, 5), 1),
        (128, (1, 16), 1),
    ],
)
def test_what_is_not_small_or_might_be_rounded_otherwise_is_computed_member_by_member(
    rows: int, weight: tuple[int, int], threads: int
) -> None:
    x, parameter = torch.randn(2, rows, weight[0]), torch.randn(2, *weight)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert not kernels.are_small(x, parameter)
        assert kernels.are_small(torch.randn(2, 128, 96), torch.randn(2, 96, 96)) == (threads == 1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("function", [kernels.gelu, F.silu, F.mish, F.softplus, torch.sigmoid, torch.sin, torch.atanh])
@pytest.mark.parametrize("shape", [(128, 96), (16, 4), (128, 5), (64, 1), (32, 14)])
def test_a_function_of_small_batches_is_computed_at_once_and_rounded_as_if_each_were_alone(
    function: Callable[[Tensor], Tensor], shape: tuple[int, int]
) -> None:
    x = SeededNoise(range(7)).uniform("x", *shape).mul(0.99).requires_grad_()
    calls: list[int] = []
    y = kernels.by_seed(lambda of: (calls.append(len(of)), function(of))[1], x)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert calls == [7]
    for seed in range(7):
        alone = x[seed : seed + 1].detach().clone().requires_grad_()
        of_one = kernels.by_seed(function, alone)
        assert torch.equal(of_one[0], y[seed])
        assert torch.equal(torch.autograd.grad(of_one.square().sum(), alone)[0][0], grad[seed])


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
