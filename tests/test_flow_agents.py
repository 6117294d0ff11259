"""Formulas of flow agents: best of N (qc, bfn, ifql), weighted (fawac), steered (dsrl), trained through Q (fbrac)."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents import AGENTS
from agents.blocks.flow import matching_loss
from agents.fawac import MAX_WEIGHT
from datasets.batch import Batch
from tests.seeded_noise import RecordedNoise, SeededNoise
from tests.test_agents import ACTION_DIM, BATCH_SIZE, OBS_DIM, batch_of, build, train


def set_constant(mlp: Any, *values: float) -> None:
    """Make a network return `values`, one for each member of an ensemble or one for all, whatever its input."""
    with torch.no_grad():
        mlp.out.weight.zero_()
        mlp.out.bias.copy_(torch.tensor(values).unsqueeze(-1))


def set_velocity(field: Any, value: float) -> None:
    """v = value everywhere, so that the flow ends at x_0 + value."""
    set_constant(field.mlp, value)


def plain_batch(chunk_length: int, **changes: Any) -> Batch:
    """Without rewards, all of it valid, bootstrap .9."""
    batch = batch_of([0], chunk_length)
    zero = torch.zeros_like(batch.chunk_return)
    return replace(
        batch, **({"chunk_return": zero, "bootstrap": zero + 0.9, "valid": torch.ones_like(batch.valid)} | changes)
    )


def scramble(module: nn.Module, scale: float = 1.0) -> None:
    """Move every parameter, so that copies of a network differ and networks are not near 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


# --- best of N


@pytest.mark.parametrize(("name", "statistic"), [("qc", "mean"), ("bfn", "mean"), ("ifql", "min")])
@pytest.mark.parametrize("mode", ["collect", "evaluate"])
def test_the_candidate_with_the_highest_value_is_acted(name: str, statistic: str, mode: Any) -> None:
    """The mean of the critics for qc and bfn, the minimum for ifql; each observation among its own candidates."""
    agent = build(name, [0], num_candidates=6)
    set_velocity(agent.behaviour_velocity, 0.25)
    scramble(agent.critic.online)
    obs, x_0 = torch.randn(1, 20, OBS_DIM), torch.randn(20 * 6, agent.chunk_dim)
    candidates = (x_0 + 0.25).clamp(-1, 1).reshape(20, 6, agent.chunk_length, ACTION_DIM)
    best: dict[str, list[int]] = {"mean": [], "min": []}
    for row in range(20):
        q = torch.stack(
            [agent.critic(obs[:, row : row + 1], c[None, None])[0, :, 0] for c in candidates[row]]
        )  # (6, N)
        best["mean"].append(int(q.mean(1).argmax()))
        best["min"].append(int(q.amin(1).argmax()))
    assert best["mean"] != best["min"] and len(set(best[statistic])) > 1
    expected = torch.stack([candidates[row, index] for row, index in enumerate(best[statistic])])
    acted = agent.act(obs, RecordedNoise({"act_noise": x_0}), mode)
    torch.testing.assert_close(acted[0], expected)


def test_one_candidate_is_a_sample_of_the_flow_whatever_the_critic() -> None:
    agent, obs, x_0 = build("qc", [0], num_candidates=1), torch.randn(1, 7, OBS_DIM), torch.randn(7, 10)
    actions = []
    for _ in range(2):
        actions.append(agent.act(obs, RecordedNoise({"act_noise": x_0}), "evaluate"))
        scramble(agent.critic.online)
    assert torch.equal(*actions)


def test_qc_chooses_the_next_chunk_by_the_critic_and_values_it_by_the_target_critics() -> None:
    agent, batch = build("qc", [0], num_candidates=4), plain_batch(5)
    set_velocity(agent.behaviour_velocity, 0.0)
    scramble(agent.critic.target)
    x_0 = torch.randn(BATCH_SIZE * 4, 10)
    candidates = x_0.clamp(-1, 1).reshape(BATCH_SIZE, 4, 5, ACTION_DIM)
    by_critic, by_target = (
        torch.stack(
            [network(batch.next_obs, candidates[None, :, i]).mean(1)[0].detach() for i in range(4)], 1
        )  # (B, 4) of the mean over two critics
        for network in (agent.critic.online, agent.critic.target)
    )
    chosen = by_critic.argmax(1)
    assert not torch.equal(chosen, by_target.argmax(1))
    target = 0.9 * by_target.gather(1, chosen[:, None])[:, 0]
    expected = (agent.critic(batch.obs, batch.action_chunk)[0] - target).square().mean()
    found, _ = agent.critic_loss(batch, RecordedNoise({"next_noise": x_0}))
    torch.testing.assert_close(found[0], expected)


def test_bfn_is_qc_of_single_actions_with_four_candidates() -> None:
    assert AGENTS["bfn"][0] is AGENTS["qc"][0]
    assert AGENTS["bfn"][1] == replace(AGENTS["qc"][1], chunk_length=1, num_candidates=4)


# --- ifql


@pytest.mark.parametrize("expectile", [0.5, 0.9, 0.05])
def test_ifql_value_is_the_expectile_of_q_of_the_data(expectile: float) -> None:
    """Two chunks, the worse one in 12 of 16 rows: m = (k p b + (1 - k)(1 - p) a) / (k p + (1 - k)(1 - p))."""
    agent = build("ifql", [0], expectile=expectile, pessimism=0.25)
    scramble(agent.critic.target)
    rows = torch.arange(BATCH_SIZE)
    chunk = torch.where((rows < 4)[:, None, None], 0.8, -0.3).expand(BATCH_SIZE, 5, ACTION_DIM)[None]
    batch = plain_batch(5, obs=torch.ones(1, BATCH_SIZE, OBS_DIM), action_chunk=chunk)
    members = agent.critic.target(batch.obs, chunk).detach()[0]  # (N, B)
    q = members.mean(0) - 0.25 * members.std(0, correction=0)
    (a, n_a), (b, n_b) = sorted([(float(q[0]), 4), (float(q[-1]), 12)])
    above, below = expectile * n_b, (1 - expectile) * n_a
    closed_form = (above * b + below * a) / (above + below)

    set_constant(agent.value.mlp, closed_form)
    (slope,) = torch.autograd.grad(agent.value_loss(batch)[0], agent.value.mlp.out.bias)
    assert float(slope) == pytest.approx(0, abs=1e-5 * (b - a))
    for shift in (-0.1, 0.1):
        set_constant(agent.value.mlp, closed_form + shift * (b - a))
        (slope,) = torch.autograd.grad(agent.value_loss(batch)[0], agent.value.mlp.out.bias)
        assert float(slope) * shift > 0


def test_ifql_target_is_the_next_state_value_and_no_action() -> None:
    agent, batch = build("ifql", [0]), plain_batch(5)
    set_constant(agent.critic.online.mlp, 0.0)
    set_constant(agent.value.mlp, 3.0)
    loss, _ = agent.critic_loss(batch, RecordedNoise({}))  # draws nothing
    assert float(loss.detach()) == pytest.approx((0.9 * 3) ** 2)


@pytest.mark.parametrize("name", ["ifql", "fawac"])
def test_windows_that_leave_their_episode_do_not_train_the_value(name: str) -> None:
    agent, batch = build(name, [0], **({"value_mask": "window"} if name == "ifql" else {})), plain_batch(5)
    valid = torch.ones_like(batch.valid)
    valid[:, ::2, -1] = 0
    chunks = batch.action_chunk.clone()
    chunks[:, ::2] = 0.123
    losses = [
        agent.value_loss(replace(batch, valid=valid, action_chunk=chunk))[0] for chunk in (batch.action_chunk, chunks)
    ]
    assert torch.equal(*losses) and float(losses[0].detach()) > 0


# --- fawac


@pytest.mark.parametrize(
    ("value", "weight"),
    [(2.0, math.exp(0.5)), (4.0, math.exp(-0.5)), (-6.0, math.exp(4.5)), (-6.5, 100.0), (-1e6, 100.0)],
)
def test_fawac_weight_grows_exponentially_with_the_advantage_up_to_a_hundred(value: float, weight: float) -> None:
    agent, batch = build("fawac", [0], num_critics=2, inverse_temperature=0.5), plain_batch(5)
    set_constant(agent.critic.online.mlp, 1.0, 5.0)  # their mean counts, 3
    set_constant(agent.critic.target.mlp, 70.0, 70.0)
    set_constant(agent.value.mlp, value)
    torch.testing.assert_close(agent.advantage_weight(batch), torch.full((1, BATCH_SIZE), weight))
    assert MAX_WEIGHT == 100
    loss = agent.policy_loss(batch, SeededNoise([0]))[0]
    unweighted = matching_loss(agent.policy_velocity(batch.obs), batch.action_chunk, batch.valid, SeededNoise([0]))
    torch.testing.assert_close(loss, weight * unweighted)


def test_a_weight_multiplies_the_matching_loss_of_its_chunk() -> None:
    agent, batch = build("fawac", [0]), batch_of([0], 5)
    velocity = agent.policy_velocity(batch.obs)

    def loss(weight: Tensor | None) -> Tensor:
        return matching_loss(velocity, batch.action_chunk, batch.valid, SeededNoise([0]), weight).detach()

    of_chunks = torch.cat([loss(torch.eye(BATCH_SIZE)[row : row + 1]) for row in range(BATCH_SIZE)])
    weight = torch.rand(1, BATCH_SIZE)
    torch.testing.assert_close(loss(weight), weight @ of_chunks)
    assert torch.equal(loss(torch.ones(1, BATCH_SIZE)), loss(None))


def test_fawac_value_is_fitted_to_every_target_critic() -> None:
    agent, batch = build("fawac", [0], num_critics=2), plain_batch(5)
    set_constant(agent.critic.target.mlp, 1.0, 5.0)
    set_constant(agent.value.mlp, 2.0)
    loss = agent.value_loss(batch)[0]
    assert float(loss.detach()) == pytest.approx(((2 - 1) ** 2 + (2 - 5) ** 2) / 2)
    (slope,) = torch.autograd.grad(loss, agent.value.mlp.out.bias)
    assert float(slope) == pytest.approx(2 * (2 - 3))  # 0 at their mean


# --- fbrac


def test_fbrac_gradient_is_that_of_q_through_every_flow_step() -> None:
    """Against a central difference of the whole loss, in float64."""
    # Products of 16 rows and columns or more are oneDNN's, which has no float64.
    narrow = {"policy_hidden_dims": (8, 8), "critic_hidden_dims": (8, 8)}
    agent, rows = build("fbrac", [0], bc_coef=0.5, **narrow).double(), 8
    batch = Batch(**{key: value[:, :rows].double() for key, value in vars(plain_batch(5)).items()})
    scramble(agent.policy_velocity, 0.05)
    shapes = {"matching_noise": 10, "matching_t": 1, "policy_noise": 10}
    draws = {name: torch.rand(rows, width, dtype=torch.float64) for name, width in shapes.items()}
    parameters = list(agent.policy_velocity.parameters())
    directions = [torch.randn_like(parameter) for parameter in parameters]

    def loss() -> Tensor:
        return agent.policy_loss(batch, RecordedNoise(draws))[0].sum()

    def moved(step: float) -> float:
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=step)
            value = float(loss())
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.sub_(direction, alpha=step)
        return value

    gradients = torch.autograd.grad(loss(), parameters)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert slope == pytest.approx((moved(1e-6) - moved(-1e-6)) / 2e-6, rel=1e-5)


@pytest.mark.parametrize(("shift", "inside"), [(0.1, True), (5.0, False)])
def test_fbrac_q_has_no_gradient_where_the_box_cuts_the_action(shift: float, inside: bool) -> None:
    """v = b: the flow ends at x_0 + b, so the gradient of -Q by b is -dQ/da there, summed over samples, or 0."""
    agent, batch = build("fbrac", [0]), plain_batch(5)
    scramble(agent.critic.online)
    set_velocity(agent.policy_velocity, shift)
    x_0 = 0.8 * torch.rand(1, BATCH_SIZE, 10) - 0.4
    q_loss = agent.q_loss(agent.endpoint(batch.obs, x_0), batch)
    (found,) = torch.autograd.grad(q_loss, agent.policy_velocity.mlp.out.bias)
    action_chunk = (x_0 + shift).clamp(-1, 1).unflatten(-1, (5, ACTION_DIM)).requires_grad_()
    q = agent.critic(batch.obs, action_chunk).mean(1).mean()
    (expected,) = torch.autograd.grad(-q, action_chunk)
    torch.testing.assert_close(found, expected.sum(1).flatten(1) if inside else torch.zeros(1, 10))
    assert inside == bool(found.abs().max() > 0)


def test_fbrac_divides_q_by_its_coefficient() -> None:
    agent, batch = build("fbrac", [0], num_critics=2, bc_coef=0.25), plain_batch(5)
    set_constant(agent.critic.online.mlp, 1.0, 5.0)
    loss, metrics = agent.policy_loss(batch, SeededNoise([0]))
    torch.testing.assert_close(metrics["q_loss"], torch.tensor([-3.0]))
    torch.testing.assert_close(loss.detach(), metrics["matching_loss"] - 3 / 0.25)


# --- dsrl


def test_each_critic_of_z_is_fitted_to_its_critic_of_the_action_that_the_flow_copy_makes() -> None:
    agent, batch = build("dsrl", [0]), plain_batch(5)
    scramble(agent.critic.online)
    set_velocity(agent.target_behaviour_velocity, 0.3)
    z = torch.randn(BATCH_SIZE, 10)
    action_chunk = (z[None] + 0.3).clamp(-1, 1).unflatten(-1, (5, ACTION_DIM))
    expected = (agent.latent_critic(batch.obs, z[None]) - agent.critic(batch.obs, action_chunk)).square().mean()

    def found() -> Tensor:
        return agent.latent_critic_loss(batch, RecordedNoise({"latent_critic_noise": z}))[0]

    torch.testing.assert_close(found(), expected)
    before = found()
    for other in (agent.critic.target, agent.behaviour_velocity, agent.latent_policy):
        scramble(other)
    assert torch.equal(found(), before)
    trainable = {name: parameter for name, parameter in agent.named_parameters() if parameter.requires_grad}
    slopes = torch.autograd.grad(found(), list(trainable.values()), materialize_grads=True)
    reached = {name for name, slope in zip(trainable, slopes, strict=True) if slope.abs().max() > 0}
    assert reached and all(name.startswith("latent_critic.") for name in reached)


@pytest.mark.parametrize("scale", [0.5, 1.4])
def test_noise_scale_bounds_z_and_leaves_its_log_density_alone(scale: float) -> None:
    agents = [build("dsrl", [0], noise_scale=s) for s in (1.0, scale)]
    obs = 20 * torch.randn(1, 500, OBS_DIM)
    (unit, log_prob), (z, scaled_log_prob) = (agent.latent(obs, SeededNoise([0]), "policy_noise") for agent in agents)
    torch.testing.assert_close(z, scale * unit)
    assert torch.equal(log_prob, scaled_log_prob)
    assert 0.9 * scale < float(z.detach().abs().max()) <= scale


def test_dsrl_acts_by_the_flow_copy_from_the_actor_noise() -> None:
    agent, obs, eps = build("dsrl", [0], noise_scale=1.4), torch.randn(1, 9, OBS_DIM), torch.randn(9, 10)
    set_velocity(agent.target_behaviour_velocity, 0.2)
    mean, log_std = agent.latent_policy(obs)
    expected = (1.4 * (mean + log_std.exp() * eps).tanh() + 0.2).clamp(-1, 1).detach()
    for mode in ("collect", "evaluate"):
        found = agent.act(obs, RecordedNoise({"act_noise": eps}), mode)
        torch.testing.assert_close(found.flatten(2), expected)


def test_the_actor_of_z_maximises_the_critics_of_z_and_its_entropy() -> None:
    agent, batch = build("dsrl", [0], num_critics=2, entropy_coef=0.5), plain_batch(5)
    set_constant(agent.latent_critic.mlp, 1.0, 5.0)
    set_constant(agent.critic.online.mlp, 70.0, 70.0)
    loss, metrics = agent.policy_loss(batch, SeededNoise([0]))
    torch.testing.assert_close(loss.detach(), -0.5 * metrics["entropy"] - 3)


def test_dsrl_has_no_entropy_in_the_critic_target() -> None:
    agent, batch = build("dsrl", [0]), plain_batch(5)
    before = agent.critic_loss(batch, SeededNoise([0]))[0]
    agent.temperature.log_coef.data.fill_(3.0)
    assert torch.equal(agent.critic_loss(batch, SeededNoise([0]))[0], before)


@pytest.mark.parametrize(("target_entropy", "direction"), [(0.69, 1), (-20.0, -1)])
def test_dsrl_temperature_grows_while_the_entropy_is_below_its_target(target_entropy: float, direction: int) -> None:
    # A coordinate in [-1, 1] has an entropy of at most log 2 = .693.
    agent = build("dsrl", [0], target_entropy=target_entropy)
    train(agent, [0], offline=3, online=3)
    assert (float(agent.temperature.coef) - 1) * direction > 1e-3


def test_dsrl_target_entropy_counts_nats_of_each_coordinate() -> None:
    agent = build("dsrl", [0], entropy_coef=0.3)
    loss = float(agent.temperature.loss(torch.tensor([-7.0])).detach())
    assert loss == pytest.approx(0.3 * (-7 + 0.5 * 10))


# --- configs


@pytest.mark.parametrize(("name", "field"), [("fbrac", "bc_coef"), ("dsrl", "entropy_coef")])
def test_a_coefficient_that_cannot_be_zero_is_refused_at_zero(name: str, field: str) -> None:
    with pytest.raises(ValueError, match=rf"Config\.{field} = 0\.0: must be above 0"):
        replace(AGENTS[name][1], **{field: 0.0})
