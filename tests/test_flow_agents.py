"""Formulas of agents with a plain flow of whose samples the critics pick the best: qc, bfn, ifql."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from agents import AGENTS
from datasets.batch import Batch
from tests.seeded_noise import RecordedNoise
from tests.test_agents import ACTION_DIM, BATCH_SIZE, OBS_DIM, batch_of, build


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
    scramble(agent.critic)
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
        scramble(agent.critic)
    assert torch.equal(*actions)


def test_qc_chooses_the_next_chunk_by_the_critic_and_values_it_by_the_target_critics() -> None:
    agent, batch = build("qc", [0], num_candidates=4), plain_batch(5)
    set_velocity(agent.behaviour_velocity, 0.0)
    scramble(agent.target_critic)
    x_0 = torch.randn(BATCH_SIZE * 4, 10)
    candidates = x_0.clamp(-1, 1).reshape(BATCH_SIZE, 4, 5, ACTION_DIM)
    by_critic, by_target = (
        torch.stack(
            [network(batch.next_obs, candidates[None, :, i]).mean(1)[0].detach() for i in range(4)], 1
        )  # (B, 4) of the mean over two critics
        for network in (agent.critic, agent.target_critic)
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
    scramble(agent.target_critic)
    rows = torch.arange(BATCH_SIZE)
    chunk = torch.where((rows < 4)[:, None, None], 0.8, -0.3).expand(BATCH_SIZE, 5, ACTION_DIM)[None]
    batch = plain_batch(5, obs=torch.ones(1, BATCH_SIZE, OBS_DIM), action_chunk=chunk)
    members = agent.target_critic(batch.obs, chunk).detach()[0]  # (N, B)
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
    set_constant(agent.critic.mlp, 0.0)
    set_constant(agent.value.mlp, 3.0)
    loss, _ = agent.critic_loss(batch, RecordedNoise({}))  # draws nothing
    assert float(loss.detach()) == pytest.approx((0.9 * 3) ** 2)


@pytest.mark.parametrize("name", ["ifql"])
def test_windows_that_leave_their_episode_do_not_train_the_value(name: str) -> None:
    agent, batch = build(name, [0]), plain_batch(5)
    valid = torch.ones_like(batch.valid)
    valid[:, ::2, -1] = 0
    chunks = batch.action_chunk.clone()
    chunks[:, ::2] = 0.123
    losses = [
        agent.value_loss(replace(batch, valid=valid, action_chunk=chunk))[0] for chunk in (batch.action_chunk, chunks)
    ]
    assert torch.equal(*losses) and float(losses[0].detach()) > 0
