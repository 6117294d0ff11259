"""Adjoint matching against autograd and Gaussians, and what QAM's variants do with the flow that it trains."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.blocks.adjoint import adjoint_matching_loss, lean_adjoint, memoryless_rollout, memoryless_std
from agents.blocks.config import with_settings
from agents.blocks.flow import integrate
from agents.blocks.velocities import Velocity
from agents.qam import QAM, QAMConfig
from tests.seeded_noise import RecordedNoise, SeededNoise
from tests.test_agents import ACTION_DIM, BATCH_SIZE, OBS_DIM, batch_of, train
from tests.test_flow import gaussian_velocity

MEAN, VARIANCE = 0.5, 0.25


def unit_noise(flow_steps: int) -> Tensor:
    """Noise (1, K, K + 1, 1) of which row 0 is zero and row j has a 1 in draw j - 1.

    Under linear fields row 0 gives means and the others, less row 0, the coefficients of independent normal numbers.
    """
    return torch.cat([torch.zeros(flow_steps, 1), torch.eye(flow_steps)], 1)[None, ..., None].double()


def moments(x: Tensor) -> tuple[float, float]:
    """Mean and variance of what the rows of `unit_noise` have become."""
    rows = x.flatten()
    return float(rows[0]), float((rows[1:] - rows[0]).square().sum())


# --- adjoint.py


def test_the_lean_adjoint_is_the_gradient_through_the_steps_of_its_recursion() -> None:
    flow_steps, target = 6, torch.tensor([0.3, -0.8]).double()
    weight = torch.randn(2, 2, dtype=torch.float64)

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return (x @ weight * (1 + t)).sin()

    path = [torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)]
    for k in range(flow_steps):
        t = torch.full((1, 1, 1), (k + 1) / flow_steps, dtype=torch.float64)
        path.append(path[-1] + (2 * velocity(t, path[-1]) - path[-1] / t) / flow_steps)
    loss = (path[-1] - target).square().sum()
    *expected, last = torch.autograd.grad(loss, path)
    found = lean_adjoint(velocity, [x.detach() for x in path], last)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert not any(adjoint.requires_grad for adjoint in found)


def test_the_lean_adjoint_of_a_linear_base_shrinks_by_known_factors() -> None:
    flow_steps, slope = 4, 0.5
    path = [torch.randn(1, 3, 1, dtype=torch.float64) for _ in range(flow_steps + 1)]
    last = path[-1] - 0.2  # of the reward -(x - .2)^2 / 2
    adjoints = lean_adjoint(lambda t, x: slope * x + t, path, last)
    # The factor 1 + h (2 slope - 1 / (t + h)) of steps 3, 2, 1 and 0 is 1, 11 / 12, 3 / 4 and 1 / 4.
    for adjoint, factor in zip(adjoints[::-1], (1, 11 / 12, 11 / 16, 11 / 64), strict=True):
        torch.testing.assert_close(adjoint, factor * last)


@pytest.mark.parametrize(("flow_steps", "tolerance"), [(10, 0.2), (100, 0.02), (1000, 0.002)])
def test_the_memoryless_sde_keeps_the_marginal_and_forgets_its_start(flow_steps: int, tolerance: float) -> None:
    velocity = gaussian_velocity(MEAN, VARIANCE)
    path = memoryless_rollout(velocity, velocity, unit_noise(flow_steps))
    mean, variance = moments(path[-1])
    assert mean == pytest.approx(MEAN, abs=tolerance)
    assert variance == pytest.approx(VARIANCE, abs=tolerance)
    of_start = float(path[-1][0, 1, 0]) - mean
    assert of_start**2 < tolerance**2  # the part of the variance that comes from x_0


def test_sigma_is_that_of_the_released_code() -> None:
    assert [memoryless_std(k, 2) ** 2 for k in range(2)] == pytest.approx([6.0, 2.0])  # t = 0: 2 * 1.5 / .5
    assert memoryless_std(9, 10) ** 2 == pytest.approx(0.4)


def test_the_last_step_follows_the_base_without_noise() -> None:
    noise = torch.randn(1, 3, 4, 2)
    path = memoryless_rollout(lambda t, x: torch.ones_like(x), lambda t, x: -x, noise)
    torch.testing.assert_close(path[3], path[2] * 2 / 3)
    assert len(path) == 4 and torch.equal(path[0], noise[:, 0])


def test_a_base_without_reward_has_loss_zero_and_a_wrong_field_has_not() -> None:
    base = gaussian_velocity(MEAN, VARIANCE)
    path = memoryless_rollout(base, base, torch.randn(2, 3, 7, 2))
    zeros = [torch.zeros(2, 7, 2)] * 3
    assert torch.equal(adjoint_matching_loss(base, base, path, zeros), torch.zeros(2))
    # One too much in two coordinates of three steps: the sum of 2 * 4 / sigma^2, with sigma^2 = 8, 3, 4 / 3.
    loss = adjoint_matching_loss(lambda t, x: base(t, x) + 1, base, path, zeros)
    torch.testing.assert_close(loss, torch.full((2,), 1 + 8 / 3 + 6))


def test_the_loss_takes_each_step_with_its_own_time_and_adjoint() -> None:
    path = [torch.full((1, 4, 1), float(k)) for k in range(4)]
    adjoints = [torch.full((1, 4, 1), k + 1.0) for k in range(3)]

    def velocity(t: Tensor, x: Tensor) -> Tensor:  # v* = -sigma^2 / 2 a, with t = k / 3 and x = k
        torch.testing.assert_close(3 * t, x)
        return -(4 - x) / (x + 1) * (x + 1)

    loss = adjoint_matching_loss(velocity, lambda t, x: torch.zeros_like(x), path, adjoints)
    torch.testing.assert_close(loss, torch.zeros(1), rtol=0, atol=1e-10)


def shifted(base: Velocity, lines: list[tuple[float, float]], flow_steps: int) -> Velocity:
    """v_base - sigma^2 / 2 (slope x + intercept), a line for each step."""

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        k = round(float(t.flatten()[0]) * flow_steps)
        slope, intercept = lines[k]
        return base(t, x) - memoryless_std(k, flow_steps) ** 2 / 2 * (slope * x + intercept)

    return velocity


def fitted_field(reward_gradient: Callable[[Tensor], Tensor], flow_steps: int, iterations: int) -> Velocity:
    """The field that adjoint matching ends at for a Gaussian base and a gradient linear in x.

    All of a path and its adjoints is jointly Gaussian, so that the regression on x_k is a line, known exactly.
    """
    base = gaussian_velocity(MEAN, VARIANCE)
    field = base
    for _ in range(iterations):
        path = memoryless_rollout(field, base, unit_noise(flow_steps))
        lines = []
        for x, adjoint in zip(path, lean_adjoint(base, path, -reward_gradient(path[-1])), strict=False):
            x, adjoint = x.flatten(), adjoint.flatten()
            of_x, of_adjoint = x[1:] - x[0], adjoint[1:] - adjoint[0]
            slope = float(of_x @ of_adjoint / (of_x @ of_x))
            lines.append((slope, float(adjoint[0]) - slope * float(x[0])))
        field = shifted(base, lines, flow_steps)
    return field


@pytest.mark.parametrize(("flow_steps", "tolerance"), [(10, 0.1), (100, 0.01), (500, 0.002)])
def test_a_linear_reward_moves_the_mean_by_its_slope_times_the_variance(flow_steps: int, tolerance: float) -> None:
    slope = 1.2  # N(m, s^2) exp(slope x) is N(m + slope s^2, s^2)
    field = fitted_field(lambda x: torch.full_like(x, slope), flow_steps, iterations=1)
    ends = integrate(field, torch.tensor([[[0.0], [1.0]]]).double(), flow_steps).flatten()
    assert float(ends[0]) == pytest.approx(MEAN + slope * VARIANCE, abs=tolerance)
    # The width of the base's own Euler steps is kept.
    base_ends = integrate(gaussian_velocity(MEAN, VARIANCE), torch.tensor([[[0.0], [1.0]]]).double(), flow_steps)
    torch.testing.assert_close(ends[1] - ends[0], (base_ends[0, 1] - base_ends[0, 0])[0])


def test_the_field_of_a_linear_reward_is_the_one_of_loss_zero() -> None:
    flow_steps, base = 10, gaussian_velocity(MEAN, VARIANCE)
    fitted = fitted_field(lambda x: torch.ones_like(x), flow_steps, iterations=1)
    path = memoryless_rollout(base, base, torch.randn(1, flow_steps, 8, 1, dtype=torch.float64))
    adjoints = lean_adjoint(base, path, -torch.ones_like(path[-1]))

    def all_steps(t: Tensor, x: Tensor) -> Tensor:
        rows = zip(t.chunk(flow_steps, 1), x.chunk(flow_steps, 1), strict=True)
        return torch.cat([fitted(time[:, :1], point) for time, point in rows], 1)

    loss = adjoint_matching_loss(all_steps, base, path, adjoints)
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-20)


def test_a_quadratic_reward_tilts_mean_and_variance_as_bayes_rule_does() -> None:
    # N(.5, .25) exp(-(x + 1)^2) is normal with precision 4 + 2 and mean (4 * .5 - 2) / 6.
    field = fitted_field(lambda x: -2 * (x + 1), 200, iterations=40)
    base = gaussian_velocity(MEAN, VARIANCE)
    mean, variance = moments(memoryless_rollout(field, base, unit_noise(200))[-1])
    assert mean == pytest.approx(0.0, abs=0.02)
    assert variance == pytest.approx(1 / 6, abs=0.005)


# --- qam.py


def build(variant: str = "plain", seeds: tuple[int, ...] = (0,), **changes: Any) -> QAM:
    settings: dict[str, Any] = {"variant": variant, "flow_steps": 3, "num_critics": 2}
    settings |= {"policy_hidden_dims": (16, 16), "critic_hidden_dims": (16, 16)}
    return QAM(with_settings(QAMConfig(), **(settings | changes)), OBS_DIM, ACTION_DIM, SeededNoise(seeds))


def set_output(network: Any, bias: float) -> None:
    """Makes an MLP return a constant."""
    with torch.no_grad():
        network.out.weight.zero_()
        network.out.bias.fill_(bias)


def test_the_adjoint_loss_moves_the_fine_tuned_flow_alone() -> None:
    agent = build()
    loss = agent.adjoint_loss(batch_of([0], 5).obs, SeededNoise([0])).sum()
    named = {name: p for name, p in agent.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    reached = {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
    assert reached == {name for name in named if name.startswith("policy_velocity.")}


def test_the_base_is_the_polyak_copy_of_the_behaviour_flow() -> None:
    obs, losses = batch_of([0], 5).obs, []
    agent = build()
    for network in (None, agent.behaviour_velocity, agent.target_behaviour_velocity):
        if network is not None:
            set_output(network.mlp, 0.3)
        losses.append(float(agent.adjoint_loss(obs, SeededNoise([0])).detach()))
    assert losses[0] == losses[1] != losses[2]
    agent = build(target_update_rate=0.25)
    train(agent, [0], offline=1, online=0)
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    train(agent, [0], offline=1, online=0)
    for name, target in agent.target_behaviour_velocity.named_parameters():
        old, own = before[f"target_behaviour_velocity.{name}"], before[f"behaviour_velocity.{name}"]
        torch.testing.assert_close(target, 0.75 * old + 0.25 * own)


def test_the_adjoint_starts_at_minus_the_weighted_gradient_of_the_mean_target_critic_inside_the_box() -> None:
    agent, obs = build(inverse_temperature=3.0), torch.randn(1, 4, OBS_DIM)
    with torch.no_grad():
        for parameter in agent.critic.online.parameters():
            parameter.zero_()
    x = torch.rand(1, 4, 10) - 0.5
    x[..., 3], x[..., 7] = 1.5, -1.01
    found, step = agent.terminal_adjoint(obs, x), 1e-2
    assert (found[..., [3, 7]] == 0).all() and (found[..., :3] != 0).all()
    for i in (0, 9):
        shift = step * torch.eye(10)[i]
        q = [agent.critic.target(obs, (x + sign * shift).clamp(-1, 1)).mean(1) for sign in (1, -1)]
        torch.testing.assert_close(found[..., i], -3 * (q[0] - q[1]) / (2 * step), rtol=1e-2, atol=1e-3)


def test_gradients_of_all_networks_are_clipped_together_for_each_seed(gradients: dict[Tensor, Tensor]) -> None:
    norms = {}
    for max_norm in (1e9, 0.5):
        agent, batch = build("edit", (0, 1), max_gradient_norm=max_norm), batch_of([0, 1], 5)
        agent.update_online(batch, SeededNoise([0, 1]))
        own = [gradients[parameter].reshape(2, -1) for parameter in agent.parameters() if parameter.requires_grad]
        norms[max_norm] = torch.cat(own, 1).norm(dim=1)
    assert (norms[1e9] > 1).all()
    torch.testing.assert_close(norms[0.5], torch.full((2,), 0.5))


def test_edits_stay_within_their_scale_and_actions_within_the_box() -> None:
    agent, obs = build("edit", edit_scale=0.2), torch.randn(1, 200, OBS_DIM)
    set_output(agent.edit_policy.mlp, 2.0)  # tanh of 2 + e^2 eps
    x_0, eps = torch.randn(200, 10), torch.randn(200, 10)
    action = agent.act(obs, RecordedNoise({"act_noise": x_0, "act_edit_noise": eps}), "evaluate").flatten(2)
    unedited = agent.flow_action(obs, x_0.unsqueeze(0))
    assert action.abs().max() == 1
    assert (action - unedited).abs().max() == pytest.approx(0.2, abs=1e-3)
    torch.testing.assert_close(action, (unedited + 0.2 * (2 + torch.e**2 * eps).tanh()).clamp(-1, 1))


def test_the_entropy_coefficient_grows_while_edits_have_too_little_entropy() -> None:
    agent = build("edit", entropy_coef=0.5, target_entropy=-0.3)
    assert float(agent.temperature.loss(torch.tensor([-5.0])).detach()) == pytest.approx(0.5 * (-5 + 0.3 * 10))
    set_output(agent.edit_policy.mlp, -5.0)
    train(agent, [0], offline=1, online=0)
    assert float(agent.temperature.log_coef.detach().exp()) > 0.5


def test_the_edit_loss_weighs_its_entropy_and_the_target_does_not() -> None:
    agent, batch = build("edit", entropy_coef=0.5), batch_of([0], 5)
    loss, metrics = agent.edit_loss(batch, SeededNoise([0]))
    torch.testing.assert_close(loss, metrics["q_loss"] - 0.5 * metrics["entropy"])
    before = agent.critic_loss(batch, SeededNoise([0]))[0]
    with torch.no_grad():
        agent.temperature.log_coef.add_(3)
    assert torch.equal(agent.critic_loss(batch, SeededNoise([0]))[0], before)


def test_the_one_step_policy_acts_and_gives_the_next_action_of_the_target() -> None:
    agent, batch, obs = build("one_step"), batch_of([0], 5), torch.randn(1, 3, OBS_DIM)
    set_output(agent.one_step_policy, 0.3)
    assert (agent.act(obs, SeededNoise([0]), "collect") == torch.tensor(0.3)).all()
    before = agent.critic_loss(batch, SeededNoise([0]))[0]
    set_output(agent.policy_velocity.mlp, 0.7)
    assert torch.equal(agent.critic_loss(batch, SeededNoise([0]))[0], before)
    set_output(agent.one_step_policy, -0.3)
    assert not torch.equal(agent.critic_loss(batch, SeededNoise([0]))[0], before)


def test_the_one_step_policy_is_pulled_towards_the_end_of_the_flow_from_the_same_noise() -> None:
    agent, batch = build("one_step", bc_coef=7.0), batch_of([0], 5)
    set_output(agent.policy_velocity.mlp, 0.1)
    set_output(agent.one_step_policy, 1.2)
    noise = RecordedNoise({"policy_noise": torch.full((BATCH_SIZE, 10), 0.4)})
    loss, metrics = agent.one_step_loss(batch, noise)
    torch.testing.assert_close(metrics["distill_loss"], torch.tensor([0.7**2]))  # not of the clipped policy
    torch.testing.assert_close(loss, 7 * metrics["distill_loss"] + metrics["q_loss"])
    q = agent.critic(batch.obs, torch.ones_like(batch.action_chunk)).mean((1, 2))
    torch.testing.assert_close(metrics["q_loss"], -q)


@pytest.mark.parametrize(("variant", "field"), [("edit", "edit_scale"), ("one_step", "bc_coef")])
def test_a_variant_of_weight_zero_is_the_plain_one(variant: str, field: str) -> None:
    changes: dict[str, Any] = {field: 0.0}
    plain, other = build(), build(variant, **changes)
    for agent in (plain, other):
        train(agent, [0], offline=1, online=1)
    assert other.policy_modules == ("policy_velocity",)
    states = [agent.state_of_seed(0) for agent in (plain, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
