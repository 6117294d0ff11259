"""Flows against closed forms: Gaussian data, hand-computed densities, integrals that must be one."""

import math

import pytest
import torch
from torch import Tensor, nn

from agents.blocks.flow import (
    NoiseScheme,
    integrate,
    matching_loss,
    noisy_rollout,
    path_entropy,
    path_log_prob,
    step_std,
    tanh_log_det,
)
from tests.seeded_noise import RecordedNoise, SeededNoise


def gaussian_velocity(mean: float, variance: float):
    """The optimal field between N(0, 1) and N(mean, variance)."""

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return mean + (t * variance - (1 - t)) / (t**2 * variance + (1 - t) ** 2) * (x - t * mean)

    return velocity


def moments(mean: float, variance: float, sigma: float, flow_steps: int, scheme: NoiseScheme) -> tuple[float, float]:
    """Exact mean and variance of x_1: a rollout of a linear field is linear in (x_0, noise), so try unit vectors."""
    rows = flow_steps + 2
    unit = torch.eye(rows, dtype=torch.float64)
    x_0 = unit[:, :1].unsqueeze(0)  # row 0: x_0 = 1
    step_noise = unit[:, 1:-1].T.reshape(1, flow_steps, rows, 1)  # row i: noise of step i is 1; last row: all zero
    x_1 = noisy_rollout(gaussian_velocity(mean, variance), x_0, step_noise, sigma, scheme).flatten()
    return float(x_1[-1]), float((x_1[:-1] - x_1[-1]).square().sum())


@pytest.mark.parametrize("flow_steps", [1, 3, 10])
def test_euler_steps_end_exactly_at_a_single_data_point(flow_steps: int) -> None:
    x_0, y = torch.randn(1, 8, 3, dtype=torch.float64), 0.7
    x_1 = integrate(lambda t, x: (y - x) / (1 - t), x_0, flow_steps)
    torch.testing.assert_close(x_1, torch.full_like(x_1, y), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("variance", "expected"), [(0.25, 0.11597), (1.0, 0.51840), (0.04, 0.00919)])
def test_four_euler_steps_shrink_gaussian_data_as_computed(variance: float, expected: float) -> None:
    x_0 = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    start, end = integrate(gaussian_velocity(0.5, variance), x_0, 4).flatten().tolist()
    assert start == pytest.approx(0.5, abs=1e-12)  # the mean is exact
    assert (end - start) ** 2 == pytest.approx(expected, abs=6e-6)


@pytest.mark.parametrize(("flow_steps", "expected"), [(10, 0.18557), (100, 0.24270), (1000, 0.24926)])
def test_euler_variance_tends_to_that_of_the_data(flow_steps: int, expected: float) -> None:
    assert moments(0.5, 0.25, 0.0, flow_steps, "additive")[1] == pytest.approx(expected, abs=6e-6)


# data mean, data variance, sigma, K: variances with the paper's SDE, noise sigma * sqrt(1 / K), noise sigma
VARIANCES = [
    (0.5, 0.25, 0.1, 4, 0.11817, 0.12216, 0.14073),
    (0.5, 0.25, 0.1, 10, 0.18668, 0.19260, 0.25581),
    (0.5, 0.25, 0.1, 100, 0.24283, 0.25046, 1.01850),
    (0.5, 0.25, 0.5, 4, 0.16470, 0.27070, 0.73491),
    (0.5, 0.25, 0.5, 100, 0.24539, 0.43665, 19.638),
    (0.5, 0.25, 1.0, 4, 0.27709, 0.73491, 2.59172),
    (0.5, 0.25, 1.0, 1000, 0.24997, 1.03368, 784.67),
    (0.0, 1.0, 0.1, 4, 0.52175, 0.53040, 0.56642),
    (0.0, 1.0, 0.1, 100, 0.97482, 0.99013, 2.52550),
    (-0.3, 0.04, 0.1, 4, 0.01111, 0.01213, 0.02096),
]


@pytest.mark.parametrize(("mean", "variance", "sigma", "flow_steps", "sde", "scaled", "additive"), VARIANCES)
def test_noise_schemes_have_the_computed_moments(
    mean: float, variance: float, sigma: float, flow_steps: int, sde: float, scaled: float, additive: float
) -> None:
    paper = moments(mean, variance, sigma, flow_steps, "paper_sde")
    without_drift = moments(mean, variance, sigma / math.sqrt(flow_steps), flow_steps, "additive")
    released = moments(mean, variance, sigma, flow_steps, "additive")
    for (found_mean, found), expected in ((paper, sde), (without_drift, scaled), (released, additive)):
        assert found_mean == pytest.approx(mean, abs=1e-9)
        assert found == pytest.approx(expected, rel=3e-5, abs=6e-6)


def test_only_the_paper_sde_keeps_the_marginal_as_steps_grow() -> None:
    errors = [abs(moments(0.5, 0.25, 0.5, k, "paper_sde")[1] - 0.25) for k in (10, 100, 1000)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert moments(0.5, 0.25, 0.5, 1000, "additive")[1] > 100


def test_matching_loss_of_a_zero_field_is_the_mean_square_of_data_plus_one() -> None:
    target = torch.full((2, 20_000, 2, 1), 0.5)
    loss = matching_loss(lambda t, x: torch.zeros_like(x), target, torch.ones(2, 20_000, 2), SeededNoise([0, 1]))
    assert loss.shape == (2,)
    torch.testing.assert_close(loss, torch.full((2,), 1.25), rtol=0.03, atol=0)


def test_matching_loss_is_zero_at_the_field_of_a_single_point() -> None:
    target = torch.full((1, 64, 2, 3), 0.3)
    noise = RecordedNoise({"matching_noise": torch.randn(64, 6), "matching_t": torch.rand(64, 1) * 0.9})
    loss = matching_loss(lambda t, x: (0.3 - x) / (1 - t), target, torch.ones(1, 64, 2), noise)
    assert float(loss) < 1e-10


def test_matching_loss_counts_invalid_steps_as_zero_but_keeps_them_in_the_mean() -> None:
    draws = {"matching_noise": torch.randn(8, 2), "matching_t": torch.rand(8, 1)}
    target = torch.randn(1, 8, 2, 1)
    first_only = torch.tensor([1.0, 0.0]).expand(1, 8, 2)
    loss = matching_loss(lambda t, x: torch.zeros_like(x), target, first_only, RecordedNoise(draws))
    error = target.flatten(2)[..., 0] - draws["matching_noise"][:, 0]
    torch.testing.assert_close(loss, error.square().sum(-1) / 16)


# sigma, x_4, tanh(x_4), log density before and after the tanh term, for D = 1, v = 0, x_0 = .3, noise (.1, -.2, .5, 0)
DENSITIES = [
    (0.05, 0.32, 0.3095069212, 7.1932364282, 7.2939350875),
    (0.02, 0.308, 0.2986165305, 10.8583993557, 10.9518003746),
    (0.1, 0.34, 0.3274773948, 4.4206477060, 4.5340868148),
]


@pytest.mark.parametrize(("std", "x_1", "action", "before_tanh", "log_prob"), DENSITIES)
def test_path_log_prob_equals_the_hand_computed_one(
    std: float, x_1: float, action: float, before_tanh: float, log_prob: float
) -> None:
    x_0 = torch.tensor([[[0.3]]], dtype=torch.float64)
    step_noise = torch.tensor([0.1, -0.2, 0.5, 0.0], dtype=torch.float64).reshape(1, 4, 1, 1)
    found = noisy_rollout(lambda t, x: torch.zeros_like(x), x_0, step_noise, std, "additive")
    assert float(found) == pytest.approx(x_1, abs=1e-12)
    assert float(found.tanh()) == pytest.approx(action, abs=1e-10)
    exact = path_log_prob(x_0, step_noise, std, found, "exact")
    assert float(exact) == pytest.approx(log_prob, abs=1e-9)
    assert float(exact + tanh_log_det(found, "exact")) == pytest.approx(before_tanh, abs=1e-9)
    released = path_log_prob(x_0, step_noise, std, found, "released")
    assert float(released) == pytest.approx(log_prob, abs=2e-6)
    assert float(released) != float(exact)


def test_paper_sde_log_prob_takes_the_scaled_step() -> None:
    assert step_std(0.1, 4, "paper_sde") == pytest.approx(0.05)
    assert step_std(0.1, 4, "additive") == 0.1


def test_path_density_integrates_to_one_and_has_the_computed_variance() -> None:
    # v = -x, K = 2, sigma = .3: integrate over (x_0, x_1, x_2) on a grid.
    x_0 = torch.linspace(-6, 6, 81, dtype=torch.float64)
    x_1 = torch.linspace(-4.5, 4.5, 121, dtype=torch.float64)
    x_2 = torch.linspace(-3, 3, 121, dtype=torch.float64)
    volume = float((x_0[1] - x_0[0]) * (x_1[1] - x_1[0]) * (x_2[1] - x_2[0]))
    x_0, x_1, x_2 = (x.reshape(1, -1, 1) for x in torch.meshgrid(x_0, x_1, x_2, indexing="ij"))
    step_noise = torch.stack([x_1 - x_0 / 2, x_2 - x_1 / 2], 1) / 0.3
    log_prob = path_log_prob(x_0, step_noise, 0.3, x_2, "exact")
    # Density of tanh(x_2): da = (1 - a^2) dx.
    mass = log_prob.exp() * (1 - x_2.squeeze(-1).tanh().square()) * volume
    assert float(mass.sum()) == pytest.approx(1, abs=1e-6)
    assert float((mass * x_2.squeeze(-1).square()).sum()) == pytest.approx(0.175, abs=1e-6)


ENTROPIES = [
    (5, -42.77, -24.44, -10.58),
    (17, -145.41, -83.10, -35.97),
    (25, -213.83, -122.21, -52.89),
    (35, -299.37, -171.09, -74.05),
]


@pytest.mark.parametrize(("chunk_dim", "small", "middle", "large"), ENTROPIES)
def test_path_entropy_equals_the_tabulated_constants(chunk_dim: int, small: float, middle: float, large: float) -> None:
    for std, expected in ((0.02, small), (0.05, middle), (0.1, large)):
        assert path_entropy(chunk_dim, 4, std) == pytest.approx(expected, abs=0.006)


def test_path_entropy_is_the_mean_of_minus_the_log_density_before_the_tanh() -> None:
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randn(1, 40_000, 5, generator=generator)
    step_noise = torch.randn(1, 4, 40_000, 5, generator=generator)
    x_1 = noisy_rollout(lambda t, x: torch.zeros_like(x), x_0, step_noise, 0.05, "additive")
    log_prob = path_log_prob(x_0, step_noise, 0.05, x_1, "exact") + tanh_log_det(x_1, "exact")
    assert float(-log_prob.mean()) == pytest.approx(path_entropy(5, 4, 0.05), abs=0.06)
    assert float(log_prob.var()) == pytest.approx(5 * 5 / 2, rel=0.03)


def test_gradient_of_the_path_density_is_that_of_the_tanh_term() -> None:
    # The density with its Gaussian terms written out and differentiated, against ours, where they are constants.
    torch.manual_seed(0)
    network = nn.Linear(3, 3).double()
    x_0, step_noise = torch.randn(1, 16, 3).double(), torch.randn(1, 4, 16, 3).double()
    x, log_prob = x_0, torch.distributions.Normal(0.0, 1.0).log_prob(x_0).sum(-1)
    for epsilon in step_noise.unbind(1):
        mean = x + network(x) / 4
        x = mean + 0.05 * epsilon
        log_prob = log_prob + torch.distributions.Normal(mean, 0.05).log_prob(x).sum(-1)
    log_prob = log_prob - (1 - x.tanh().square()).log().sum(-1)
    x_1 = noisy_rollout(lambda t, x: network(x), x_0, step_noise, 0.05, "additive")
    ours = path_log_prob(x_0, step_noise, 0.05, x_1, "exact")
    torch.testing.assert_close(ours, log_prob, rtol=1e-9, atol=1e-9)
    for found, expected in zip(
        torch.autograd.grad(ours.sum(), list(network.parameters())),
        torch.autograd.grad(log_prob.sum(), list(network.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_exact_tanh_term_is_finite_and_right_where_the_tanh_saturates() -> None:
    u = torch.tensor([[-300.0], [-20.0], [0.0], [20.0], [300.0]])
    expected = torch.tensor([math.log(4) - 600, math.log(4) - 40, 0.0, math.log(4) - 40, math.log(4) - 600])
    torch.testing.assert_close(tanh_log_det(u, "exact"), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(tanh_log_det(u, "released")[0], torch.tensor(math.log(1e-6)))


def test_exact_tanh_term_has_the_computed_mean_over_a_standard_normal() -> None:
    u = torch.linspace(-10, 10, 20_001, dtype=torch.float64).unsqueeze(-1)
    weight = torch.exp(-0.5 * u.square()).squeeze(-1)
    mean = (tanh_log_det(u, "exact") * weight).sum() / weight.sum()
    assert float(mean) == pytest.approx(-0.7491344150, abs=1e-9)
