"""Batch renormalisation against numbers of the official layer, and what its statistics must and must not do."""

import pytest
import torch
from torch import Tensor

from agents.blocks.batch_renorm import WARM_UP, BatchRenorm, RenormMLP, Statistics
from agents.blocks.kernels import all_by_member, by_member
from tests.seeded_noise import SeededNoise

COLD, WARM = WARM_UP - 1, WARM_UP


def layer(dim: int = 1, calls: int = 0, mean: float = 0.0, variance: float = 1.0, seeds: int = 1) -> BatchRenorm:
    norm = BatchRenorm(dim, SeededNoise(range(seeds)))
    norm.calls.fill_(calls)
    norm.mean.fill_(mean)
    norm.variance.fill_(variance)
    return norm


def column(*values: float) -> Tensor:
    return torch.tensor(values).reshape(1, -1, 1)


# Batch; running mean and variance; calls so far; output; both after the call.
OFFICIAL = [
    ((1.0, 3.0), 0.0, 1.0, COLD, (-0.9995003747, 0.9995003747), 0.02, 1.0),
    ((1.0, 3.0), 0.0, 1.0, WARM, (0.9985016233, 2.9975023727), 0.02, 1.0),
    ((1.0, 3.0), 0.5, 4.0, WARM, (0.2496876172, 1.2499373360), 0.515, 3.97),
    ((10.0, 30.0), 0.0, 1.0, WARM, (1.9999100061, 7.9996400243), 0.2, 1.99),  # r and d at their bounds
]


@pytest.mark.parametrize(("x", "mean", "variance", "calls", "y", "mean_after", "variance_after"), OFFICIAL)
def test_outputs_and_statistics_are_those_of_the_official_layer(
    x: tuple[float, ...],
    mean: float,
    variance: float,
    calls: int,
    y: tuple[float, ...],
    mean_after: float,
    variance_after: float,
) -> None:
    norm = layer(calls=calls, mean=mean, variance=variance)
    torch.testing.assert_close(norm(column(*x), "train"), column(*y), rtol=2e-6, atol=2e-7)
    assert (float(norm.mean), float(norm.variance)) == pytest.approx((mean_after, variance_after), rel=1e-6)
    assert int(norm.calls) == calls + 1


def test_running_statistics_normalise_alone_and_do_not_move() -> None:
    norm = layer(mean=2.0, variance=4.0)
    y = norm(column(6.0), "running")
    assert float(y.detach()) == pytest.approx(4 / (4 + 1e-3) ** 0.5, rel=1e-6)
    assert (float(norm.mean), float(norm.variance), int(norm.calls)) == (2.0, 4.0, 0)


def test_batch_statistics_normalise_without_moving_the_running_ones() -> None:
    moved, left = layer(), layer()
    assert torch.equal(moved(column(1.0, 3.0), "train"), left(column(1.0, 3.0), "batch"))
    assert (float(left.mean), float(left.variance), int(left.calls)) == (0.0, 1.0, 0)


def test_the_running_mean_is_half_way_after_69_calls() -> None:
    norm = layer()
    for count in range(1, 101):
        norm(column(1.0, 3.0), "train")
        assert float(norm.mean) == pytest.approx(2 * (1 - 0.99**count), rel=1e-4)
        assert (float(norm.mean) > 1) == (count >= 69)


@pytest.mark.parametrize("calls", [COLD, WARM])
def test_the_gradient_flows_through_the_batch_and_not_through_what_compares_it(calls: int) -> None:
    """Per feature the gradients of a batch sum to 0; warm they are the cold ones times r, up to EPS."""
    torch.manual_seed(0)
    x = torch.randn(1, 32, 3).requires_grad_()
    cotangent = torch.randn(1, 32, 3)
    cold, norm = layer(3, COLD), layer(3, calls, mean=0.3, variance=2.0)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([[0.5, 1.0, -2.0]]))
        cold.weight.copy_(norm.weight)
    y = norm(x, "batch")
    to_x, to_weight, to_bias = torch.autograd.grad((y * cotangent).sum(), [x, norm.weight, norm.bias])
    torch.testing.assert_close(to_x.sum(1), torch.zeros(1, 3), rtol=0, atol=1e-4)
    torch.testing.assert_close(to_bias, cotangent.sum(1))
    torch.testing.assert_close(to_weight, (cotangent * (y - norm.bias) / norm.weight).sum(1))
    (expected,) = torch.autograd.grad((cold(x, "batch") * cotangent).sum(), x)
    std = (x.var(1, correction=0) + 1e-3).sqrt()
    r = 1.0 if calls == COLD else std / 2.001**0.5
    torch.testing.assert_close(to_x, expected * r, rtol=0, atol=2e-3)


def test_a_feature_that_never_varies_has_finite_outputs_and_gradients() -> None:
    for calls in (COLD, WARM):
        norm = layer(2, calls)
        x = torch.zeros(1, 8, 2).requires_grad_()
        y = norm(x, "train")
        (gradient,) = torch.autograd.grad(y.square().sum() + y.sum(), x)
        assert y.isfinite().all() and gradient.isfinite().all()


def network(seeds: list[int], members: tuple[int, ...] = (2,)) -> RenormMLP:
    return RenormMLP(5, (16, 7), 3, SeededNoise(seeds), members)


@pytest.mark.parametrize("statistics", ["running", "batch", "train"])
def test_a_network_of_a_pack_is_bit_by_bit_that_of_the_seed_alone(statistics: Statistics) -> None:
    pack, x = network([3, 4, 5]), torch.randn(3, 2, 32, 5)
    for calls in (COLD, WARM):
        for name, tensor in pack.named_buffers():
            if name.endswith("calls"):
                tensor.fill_(calls)
        before = {name: tensor.clone() for name, tensor in pack.state_dict().items()}
        y = pack(x, statistics)
        for slot in range(3):
            alone = network([slot])
            alone.load_state_dict({name: tensor[slot : slot + 1] for name, tensor in before.items()})
            assert torch.equal(alone(x[slot : slot + 1], statistics)[0], y[slot])
            for name, tensor in alone.state_dict().items():
                assert torch.equal(tensor[0], pack.state_dict()[name][slot]), name


def test_a_network_is_its_layers_one_after_the_other() -> None:
    whole, x = network([0]), torch.randn(1, 2, 32, 5)
    for statistics in ("running", "batch"):
        y = whole.norms[0](x, statistics)
        for linear, norm in zip(whole.hidden, whole.norms[1:], strict=True):
            y = norm(torch.relu(linear(y)), statistics)
        assert torch.equal(whole(x, statistics), whole.out(y))


def test_a_constant_network_passes_a_gradient_to_its_input_alone() -> None:
    whole, x = network([0]), torch.randn(1, 2, 32, 5).requires_grad_()
    for statistics in ("running", "batch"):
        loss = whole(x, statistics, constant=True).sum()
        inputs = [x, *whole.parameters()]
        of_x, *others = torch.autograd.grad(loss, inputs, allow_unused=True)
        assert of_x.any() and all(gradient is None for gradient in others)


def test_one_row_changes_what_another_becomes_only_through_the_batch() -> None:
    whole, x = network([0]), torch.randn(1, 2, 32, 5)
    other = x.clone()
    other[:, :, -1] += 3
    for statistics, same in (("running", True), ("batch", False)):
        first, second = (whole(rows, statistics)[:, :, 0] for rows in (x, other))
        assert torch.equal(first, second) == same


@pytest.mark.parametrize("calls", [COLD, WARM])
def test_a_compiled_call_moves_the_same_statistics(calls: int) -> None:
    eager, x = layer(3, calls, mean=0.3, variance=2.0, seeds=2), torch.randn(2, 16, 3)
    compiled = layer(3, calls, mean=0.3, variance=2.0, seeds=2)
    run = torch.compile(lambda rows: compiled(rows, "train"), fullgraph=True, backend="aot_eager_decomp_partition")
    for _ in range(2):  # from cold to warm without another compilation
        torch.testing.assert_close(run(x), eager(x, "train"))
    for name, tensor in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], tensor)


def test_several_results_of_a_function_are_stacked_as_one_is() -> None:
    x, weight = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 5)
    product, total = all_by_member(lambda x, w: (x * w, (x * w).sum(-2)), x, weight)
    assert torch.equal(product, by_member(lambda x, w: x * w, x, weight)) and product.shape == x.shape
    torch.testing.assert_close(total, product.sum(-2))
