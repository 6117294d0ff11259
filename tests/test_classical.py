"""Formulas of SAC, RLPD, ReBRAC, IQL, AWAC and cloning against closed forms, autograd and torch.distributions."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from agents import AGENTS
from agents.blocks.base import polyak_update
from agents.blocks.config import settings_of, with_settings
from agents.blocks.flow import matching_loss
from agents.blocks.gaussian import TanhGaussian
from datasets.batch import Batch
from tests.seeded_noise import RecordedNoise, SeededNoise

OBS_DIM, ACTION_DIM, BATCH_SIZE = 3, 2, 6


def build(name: str, **changes: Any) -> Any:
    small = {"policy_hidden_dims": (8,), "num_critics": 2, "critic_hidden_dims": (8,)}
    config = AGENTS[name][1]
    config = with_settings(config, **{k: v for k, v in small.items() if k in settings_of(config)} | changes)
    return AGENTS[name][0](config, OBS_DIM, ACTION_DIM, SeededNoise([0]))


def batch_of(chunk_length: int) -> Batch:
    noise = SeededNoise([1])
    valid = torch.ones(1, BATCH_SIZE, chunk_length)
    valid[:, 0, -1] = 0  # the first window leaves its episode
    return Batch(
        obs=noise.normal("obs", BATCH_SIZE, OBS_DIM),
        action_chunk=noise.uniform("action", BATCH_SIZE, chunk_length, ACTION_DIM) - 0.5,
        chunk_return=-noise.uniform("return", BATCH_SIZE),
        bootstrap=torch.full((1, BATCH_SIZE), 0.9),
        next_obs=noise.normal("next_obs", BATCH_SIZE, OBS_DIM),
        valid=valid,
    )


def set_constant(network: nn.Module, *values: float) -> None:
    """Make an MLP return `values`, one for each critic or output, whatever its input."""
    out = network.get_submodule("out")
    with torch.no_grad():
        out.get_parameter("weight").zero_()
        bias = out.get_parameter("bias")
        bias.copy_(torch.tensor(values).view(bias.shape))


def masked_mean(x: Tensor, batch: Batch) -> Tensor:
    return (batch.valid[..., -1] * x).mean(1)


# --- the tanh-Gaussian policy


def test_the_density_of_a_tanh_gaussian_integrates_to_one() -> None:
    policy = TanhGaussian(1, (4,), 1, SeededNoise([0]))
    set_constant(policy.mlp, 0.4, -0.5)
    actions = torch.linspace(-0.9999, 0.9999, 20_001).view(1, -1, 1)
    density = policy.log_prob(torch.zeros(1, 20_001, 1), actions).detach().exp()
    assert float(torch.trapezoid(density, actions[..., 0])) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_tanh_gaussian_samples_have_the_log_density_of_torch(activation: Any) -> None:
    policy = TanhGaussian(OBS_DIM, (16,), 4, SeededNoise([0, 1]), activation)
    x, eps = torch.randn(2, 50, OBS_DIM), torch.randn(2, 50, 4)
    mean, log_std = policy(x)
    expected = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), [TanhTransform()])
    action, log_prob = policy.sample(x, eps)
    torch.testing.assert_close(action, (mean + log_std.exp() * eps).tanh())
    inside = action.abs().amax(-1) < 0.99  # beyond, atanh loses digits in float32
    assert inside.sum() > 10
    found = {"sample": log_prob, "log_prob": policy.log_prob(x, action)}
    for value in found.values():
        torch.testing.assert_close(value[inside], expected.log_prob(action)[inside], rtol=1e-3, atol=1e-3)


def test_log_densities_of_saturated_actions_are_finite() -> None:
    policy = TanhGaussian(OBS_DIM, (16,), 2, SeededNoise([0]))
    log_prob = policy.log_prob(torch.randn(1, 2, OBS_DIM), torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]]))
    (gradient,) = torch.autograd.grad(log_prob.sum(), policy.mlp.out.weight)
    assert log_prob.isfinite().all() and gradient.isfinite().all()


# --- SAC and RLPD


@pytest.mark.parametrize(
    ("name", "alpha", "target", "activation", "norms", "critics", "aggregation", "in_target", "chunk"),
    [("sac", 0.2, -1.0, "relu", False, 2, "min", True, 1), ("rlpd", 1.0, -0.5, "gelu", True, 10, "mean", False, 1),
     ("rlpd_ac", 1.0, -0.5, "gelu", True, 10, "mean", False, 5)],
)  # fmt: skip
def test_sac_and_rlpd_are_one_algorithm_with_the_published_settings(
    name: str,
    alpha: float,
    target: float,
    activation: str,
    norms: bool,
    critics: int,
    aggregation: str,
    in_target: bool,
    chunk: int,
) -> None:
    agent_class, config = AGENTS[name]
    assert agent_class is AGENTS["sac"][0]
    assert (config.entropy_coef, config.target_entropy, config.critic.num_critics) == (alpha, target, critics)
    assert (config.policy_activation, config.critic.critic_activation, config.chunk_length) == (activation,) * 2 + (
        chunk,
    )
    assert (config.critic.critic_norm != "none") == norms
    assert (config.critic.q_aggregation, config.entropy_in_target, config.bc_coef) == (aggregation, in_target, 0)
    agent = build(name)
    assert len(agent.critic.online.mlp.norms) == norms
    x = torch.tensor([-3.0])
    for network in (agent.critic.online.mlp, agent.policy.mlp):
        assert (float(network.activation(x)) == 0) == (activation == "relu")


@pytest.mark.parametrize(("name", "soft"), [("sac", True), ("rlpd", False), ("rlpd_ac", False)])
def test_the_target_is_soft_for_sac_and_plain_for_rlpd(name: str, soft: bool) -> None:
    agent = build(name, entropy_coef=0.3)
    batch = batch_of(agent.chunk_length)
    set_constant(agent.critic.target.mlp, 2.0, 4.0)
    set_constant(agent.critic.online.mlp, 1.0, 1.0)
    dim = agent.chunk_dim
    set_constant(agent.policy.mlp, *[0.2] * dim, *[-1.0] * dim)
    eps = torch.full((BATCH_SIZE, dim), 0.5)
    found = agent.critic_loss(batch, RecordedNoise({"next_noise": eps}))[0]

    u = 0.2 + 0.5 * math.exp(-1)
    log_prob = -0.125 + 1 - 0.5 * math.log(2 * math.pi) - math.log(1 - math.tanh(u) ** 2)
    value = 2.0 - 0.3 * dim * log_prob if soft else 3.0  # the minimum for SAC, the mean for RLPD
    torch.testing.assert_close(found, masked_mean((1 - batch.chunk_return - 0.9 * value).square(), batch))


@pytest.mark.parametrize(("aggregation", "value"), [("mean", 3.0), ("min", 1.0), ("pessimistic", 2.5)])
def test_the_policy_loss_is_alpha_log_density_minus_the_same_aggregate(aggregation: str, value: float) -> None:
    agent = build("sac", entropy_coef=0.3, q_aggregation=aggregation, pessimism=0.25)
    set_constant(agent.critic.online.mlp, 1.0, 5.0)
    loss, metrics = agent.policy_loss(batch_of(1), SeededNoise([0]))
    log_prob = agent.sample(batch_of(1).obs, SeededNoise([0]), "policy_noise")[1].mean(1)
    torch.testing.assert_close(loss, 0.3 * log_prob - value)
    torch.testing.assert_close(metrics["entropy"], -log_prob.detach())


@pytest.mark.parametrize("name", ["sac", "rlpd"])
def test_the_policy_may_take_the_mean_where_the_target_takes_the_minimum(name: str) -> None:
    agent = build(name, entropy_coef=0.3, q_aggregation="min", policy_q_aggregation="mean")
    set_constant(agent.critic.online.mlp, 1.0, 5.0)
    assert float(agent.policy_loss(batch_of(1), SeededNoise([0]))[1]["q_loss"]) == -3
    set_constant(agent.critic.target.mlp, 1.0, 5.0)
    assert float(agent.critic.target_value(batch_of(1).obs, batch_of(1).action_chunk)[0, 0]) == 1


@pytest.mark.parametrize("least", [-20.0, -5.0])
def test_the_log_deviation_is_cut_at_its_least(least: float) -> None:
    agent = build("sac", min_log_std=least)
    set_constant(agent.policy.mlp, *[0.0] * ACTION_DIM, *[-30.0] * ACTION_DIM)
    assert float(agent.policy(batch_of(1).obs)[1].detach().unique()) == least


@pytest.mark.parametrize("name", ["sac", "rlpd_ac"])
def test_alpha_grows_below_the_target_entropy_and_shrinks_above(name: str) -> None:
    agent = build(name)
    target = AGENTS[name][1].target_entropy * ACTION_DIM * agent.chunk_length
    for entropy, sign in ((target - 2.0, -1), (target, 0), (target + 2.0, 1)):
        loss = agent.temperature.loss(torch.tensor([entropy]))
        (gradient,) = torch.autograd.grad(loss.sum(), agent.temperature.log_coef)
        assert float(gradient) == pytest.approx(2 * sign * AGENTS[name][1].entropy_coef, abs=1e-6)


def test_cloning_in_rlpd_weighs_the_density_of_whole_chunks() -> None:
    plain, cloning = build("rlpd_ac"), build("rlpd_ac", bc_coef=0.01)
    batch = batch_of(5)
    data_log_prob = cloning.policy.log_prob(batch.obs, batch.action_chunk.flatten(2))
    found = [agent.policy_loss(batch, SeededNoise([0]))[0] for agent in (plain, cloning)]
    torch.testing.assert_close(found[1], found[0] - 0.01 * masked_mean(data_log_prob, batch))
    unmasked = build("rlpd_ac", bc_coef=0.01, bc_mask="none").policy_loss(batch, SeededNoise([0]))[0]
    torch.testing.assert_close(unmasked, found[0] - 0.01 * data_log_prob.mean(1))


def test_a_coefficient_without_logarithm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SACConfig.entropy_coef = 0.0: must be above 0"):
        replace(AGENTS["sac"][1], entropy_coef=0.0)


# --- ReBRAC


def test_rebrac_normalises_q_and_sums_the_squared_distance_over_the_chunk() -> None:
    agent = build("rebrac", bc_coef=0.5)
    batch = batch_of(5)
    set_constant(agent.critic.online.mlp, -10.0, -30.0)  # mean - .5 std = -25
    set_constant(agent.policy, *[math.atanh(0.25)] * 10)
    loss, metrics = agent.policy_loss(batch, SeededNoise([0]))
    distance = masked_mean((0.25 - batch.action_chunk).square().sum((2, 3)), batch)
    torch.testing.assert_close(metrics["q_loss"], torch.ones(1))
    torch.testing.assert_close(metrics["bc_loss"], distance)
    torch.testing.assert_close(loss, 1 + 0.5 * distance)


def test_the_normaliser_of_q_is_a_constant() -> None:
    # Were it differentiated, a Q of one sign would have no gradient at all.
    agent, batch = build("rebrac", bc_coef=0.0), batch_of(5)
    with torch.no_grad():
        agent.critic.online.mlp.out.bias.fill_(-100.0)
    action_chunk = agent.policy(batch.obs).tanh().view_as(batch.action_chunk)
    q = agent.critic(batch.obs, action_chunk)
    q = q.mean(1) - 0.5 * q.std(1, correction=0)
    expected = torch.autograd.grad(-q.mean() / q.abs().mean().item(), agent.policy.out.weight)[0]
    found = torch.autograd.grad(agent.policy_loss(batch, SeededNoise([0]))[0].sum(), agent.policy.out.weight)[0]
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected)


def test_a_critic_that_is_zero_everywhere_breaks_no_policy() -> None:
    agent = build("rebrac", q_aggregation="mean")
    set_constant(agent.critic.online.mlp, 0.0, 0.0)
    agent.update_online(batch_of(5), SeededNoise([0]))
    assert all(parameter.isfinite().all() for parameter in agent.parameters())


def test_rebrac_adds_clipped_noise_to_the_target_policy_and_while_acting() -> None:
    agent, batch = build("rebrac", policy_noise=0.2), batch_of(5)
    set_constant(agent.policy, *[0.0] * 10)
    set_constant(agent.target_policy, *[math.atanh(0.7)] * 10)
    eps = torch.tensor([0.0, 1.0, -9.0, 9.0, 2.0]).repeat_interleave(2)
    added = torch.tensor([0.0, 0.2, -0.5, 0.5, 0.4])
    for mode in ("collect", "evaluate"):
        action_chunk = agent.act(batch.obs, RecordedNoise({"act_noise": eps.expand(BATCH_SIZE, 10)}), mode)
        torch.testing.assert_close(action_chunk, added.view(1, 1, 5, 1).expand_as(action_chunk))
    found = agent.critic_loss(batch, RecordedNoise({"next_noise": eps.expand(BATCH_SIZE, 10)}))[0]
    next_chunk = (0.7 + added).clamp(-1, 1).view(1, 1, 5, 1).expand_as(batch.action_chunk)
    next_q = agent.critic.target(batch.next_obs, next_chunk)
    target = batch.chunk_return + 0.9 * (next_q.mean(1) - 0.5 * next_q.std(1, correction=0))
    error = agent.critic(batch.obs, batch.action_chunk) - target.unsqueeze(1)
    torch.testing.assert_close(found, masked_mean(error.square().mean(1), batch))


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_targets_move_at_every_interval_th_update_and_the_policy_at_each(interval: int) -> None:
    agent = build("rebrac", target_update_interval=interval, target_update_rate=0.25)
    with torch.no_grad():
        for network in (agent.critic.online.mlp, agent.policy):  # now a step to them shows from the first update on
            network.out.bias.add_(1)
    for update in range(1, 7):
        before = {key: value.clone() for key, value in agent.state_tensors().items()}
        agent.update_online(batch_of(5), SeededNoise([update]))
        after = agent.state_tensors()
        assert not torch.equal(after["policy.out.bias"], before["policy.out.bias"])
        rate = 0.25 if update % interval == 0 else 0.0
        for key in [key for key in before if key.startswith("target_")]:
            online = before[key.removeprefix("target_")]
            torch.testing.assert_close(after[key], (1 - rate) * before[key] + rate * online)
            if rate == 0:
                assert torch.equal(after[key], before[key])


def test_polyak_update_takes_the_rate_as_a_number_or_as_a_tensor() -> None:
    online = nn.Linear(3, 4)
    targets = [nn.Linear(3, 4) for _ in range(2)]
    targets[1].load_state_dict(targets[0].state_dict())
    polyak_update(targets[0], online, 0.3)
    polyak_update(targets[1], online, torch.tensor(0.3))
    for a, b in zip(targets[0].parameters(), targets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_rebrac_begins_near_the_middle_of_the_box() -> None:
    agent, wide = build("rebrac", policy_noise=0.0), build("iql", policy_out_scale=1.0)
    obs = torch.randn(1, 200, OBS_DIM)
    assert agent.act(obs, SeededNoise([0]), "evaluate").abs().max() < 0.5
    assert float(agent.policy.out.weight.detach().abs().max()) <= 0.1 * math.sqrt(6 / (8 + 10))
    assert float(wide.policy.out.weight.detach().abs().max()) > 0.1 * math.sqrt(6 / (8 + 2))


# --- IQL


def test_the_value_of_iql_is_the_expectile_of_the_lower_target_critic() -> None:
    agent, batch = build("iql", expectile=0.9), batch_of(1)
    set_constant(agent.critic.target.mlp, 1.0, 5.0)
    for value, expected in ((0.0, 0.9), (3.0, 0.1 * 4)):
        set_constant(agent.value.mlp, value)
        loss = agent.value_loss(batch)[0]
        assert float(loss.detach()) == pytest.approx(expected * (BATCH_SIZE - 1) / BATCH_SIZE)  # one window is invalid


def test_the_critic_of_iql_is_fitted_to_the_value_of_the_next_state() -> None:
    agent, batch = build("iql"), batch_of(1)
    set_constant(agent.value.mlp, 2.0)
    set_constant(agent.critic.online.mlp, 1.0, 1.0)
    found = agent.critic_loss(batch, SeededNoise([0]))[0]
    torch.testing.assert_close(found, masked_mean((1 - batch.chunk_return - 0.9 * 2).square(), batch))


@pytest.mark.parametrize(("advantage", "weight"), [(0.0, 1.0), (-0.2, math.exp(-2)), (0.3, math.exp(3)), (0.5, 100.0)])
def test_weights_of_iql_are_exponential_and_end_at_100(advantage: float, weight: float) -> None:
    agent, batch = build("iql", inverse_temperature=10.0), batch_of(1)
    set_constant(agent.critic.online.mlp, 1.0 + advantage, 7.0)  # the lower one counts
    set_constant(agent.value.mlp, 1.0)
    set_constant(agent.policy, 0.3, -0.3)
    torch.testing.assert_close(agent.weights(batch), torch.full((1, BATCH_SIZE), weight), rtol=1e-4, atol=0)
    density = Independent(Normal(torch.tensor([0.3, -0.3]), 1.0), 1).log_prob(batch.action_chunk.flatten(2))
    torch.testing.assert_close(agent.policy_loss(batch)[0], masked_mean(-weight * density, batch), rtol=1e-4, atol=1e-6)


def test_iql_acts_by_its_mean_and_collects_by_samples() -> None:
    agent, obs = build("iql", collect_noise_std=0.5), torch.randn(1, 3, OBS_DIM)
    set_constant(agent.policy, 0.3, -0.3)
    evaluated = agent.act(obs, SeededNoise([0]), "evaluate")
    torch.testing.assert_close(evaluated, torch.tensor([0.3, -0.3]).expand_as(evaluated))
    eps = torch.tensor([[0.4, -0.6], [-1.0, 1.0], [4.0, -4.0]])
    collected = agent.act(obs, RecordedNoise({"act_noise": eps}), "collect")
    torch.testing.assert_close(collected[0].flatten(1), torch.tensor([[0.5, -0.6], [-0.2, 0.2], [1.0, -1.0]]))


# --- AWAC


@pytest.mark.parametrize(("advantage", "weight"), [(0.0, 1.0), (-0.4, math.exp(-4)), (0.4, math.exp(4)), (0.5, 100.0)])
def test_weights_of_awac_are_exponential_in_the_advantage_over_a_sample_and_end_at_100(
    advantage: float, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = build("awac", inverse_temperature=10.0, chunk_length=5)
    set_constant(agent.policy.mlp, *[0.2] * 10, *[-1.0] * 10)
    set_constant(agent.critic.target.mlp, 70.0, 70.0)  # the targets do not count
    sample = math.tanh(0.2 + 0.5 * math.exp(-1))
    batch = batch_of(5)
    batch = replace(batch, action_chunk=torch.full_like(batch.action_chunk, sample + advantage))

    def q(obs: Tensor, action_chunk: Tensor) -> Tensor:
        return torch.stack([action_chunk[..., 0, 0] + 1, action_chunk[..., 0, 0] + 7 * action_chunk[..., 1, 1] + 9], 1)

    monkeypatch.setattr(agent.critic, "forward", q)  # the lower one counts
    loss, metrics = agent.policy_loss(batch, RecordedNoise({"policy_noise": torch.full((BATCH_SIZE, 10), 0.5)}))
    torch.testing.assert_close(metrics["weight_mean"], torch.tensor([weight]), rtol=1e-4, atol=0)
    gaussian = Independent(Normal(torch.full((10,), 0.2), math.exp(-1)), 1)
    log_prob = TransformedDistribution(gaussian, [TanhTransform()]).log_prob(batch.action_chunk.flatten(2))
    torch.testing.assert_close(loss, masked_mean(-weight * log_prob, batch), rtol=1e-4, atol=1e-5)
    # The weight is a constant, although V moves with the policy.
    unweighted = -masked_mean(agent.policy.log_prob(batch.obs, batch.action_chunk.flatten(2)), batch)
    found, expected = (torch.autograd.grad(x.sum(), agent.policy.mlp.out.bias)[0] for x in (loss, unweighted))
    torch.testing.assert_close(found, weight * expected, rtol=1e-4, atol=1e-5)


def test_awac_refuses_weights_that_fall_with_the_advantage() -> None:
    with pytest.raises(ValueError, match=r"^AWACConfig.inverse_temperature = -1.0: must be a finite number in"):
        replace(AGENTS["awac"][1], inverse_temperature=-1.0)


# --- behaviour cloning


def test_the_loss_of_cloning_is_the_matching_loss_and_reads_no_reward() -> None:
    agent, batch = build("bc"), batch_of(5)
    expected = matching_loss(agent.network(batch.obs), batch.action_chunk, batch.valid, SeededNoise([0]))
    other = replace(batch, chunk_return=batch.chunk_return + 7, bootstrap=0 * batch.bootstrap, next_obs=-batch.next_obs)
    for rewards in (batch, other):
        torch.testing.assert_close(agent.update_online(rewards, SeededNoise([0]))["policy_loss"], expected.detach())
        agent = build("bc")


def test_cloning_by_diffusion_regresses_the_noise_in_the_chunk() -> None:
    agent, batch = build("bc_diffusion"), batch_of(5)
    set_constant(agent.network.mlp, *[0.0] * 10)
    draws = {"denoising_noise": torch.full((BATCH_SIZE, 10), 2.0), "denoising_t": torch.zeros(BATCH_SIZE, 1)}
    loss = agent.policy_loss(batch, RecordedNoise(draws))
    torch.testing.assert_close(loss, 4 * batch.valid.mean().view(1))


def test_the_target_of_awac_is_the_return_plus_the_value_of_what_follows() -> None:
    agent = build("awac")
    set_constant(agent.critic.online.mlp, 1.0, 1.0)
    set_constant(agent.critic.target.mlp, 2.0, 2.0)
    batch = batch_of(agent.chunk_length)
    loss, _ = agent.critic_loss(batch, SeededNoise([0]))
    expected = (batch.valid[..., -1] * (1 - batch.chunk_return - 2 * batch.bootstrap).square()).mean()
    torch.testing.assert_close(loss.detach().squeeze(), expected)


@pytest.mark.parametrize("name", ["bc", "bc_diffusion"])
def test_cloning_counts_no_step_of_the_next_episode(name: str) -> None:
    agent = build(name)
    batch = batch_of(agent.chunk_length)
    whole, none = (replace(batch, valid=value * torch.ones_like(batch.valid)) for value in (1, 0))
    assert float(agent.policy_loss(whole, SeededNoise([0])).detach()) > 0
    assert float(agent.policy_loss(none, SeededNoise([0])).detach()) == 0
