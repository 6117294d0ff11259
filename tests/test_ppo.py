"""PPO over the chain from noise to action: its ratio, its clipping, and the densities of the two policies' chains."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from agents import AGENTS
from agents.blocks.ppo import RolloutStatistics, clipped_loss, normalised, pack_chain, unpack_chain
from agents.dppo import DPPO, DPPOConfig
from agents.reinflow import ReinFlow, ReinFlowConfig
from datasets.batch import Decisions, Trajectories
from tests.seeded_noise import SeededNoise
from tests.test_agents import batch_of, build, parameters_of
from tests.test_agents import online_batch as any_online_batch

NAMES = ["dppo", "reinflow"]


def online_batch(agent: Any, seeds: list[int]) -> Decisions:
    batch = any_online_batch(agent, seeds)
    assert isinstance(batch, Decisions)
    return batch


@pytest.mark.parametrize("name", NAMES)
def test_the_ratio_is_one_before_the_first_update(name: str) -> None:
    agent = build(name, [0, 1])
    _, metrics = agent.policy_loss(online_batch(agent, [0, 1]))
    assert metrics["kl_divergence"].abs().max() < 1e-6 and metrics["clip_share"].max() == 0
    batch = online_batch(agent, [0, 1])
    densities = batch.record[..., -agent.config.fine_tuned_steps :] if name == "dppo" else batch.record[..., -1]
    points = batch.record[..., : -agent.config.fine_tuned_steps] if name == "dppo" else batch.record[..., :-1]
    found = agent.log_prob(batch.obs, points.unflatten(-1, (-1, agent.chunk_dim)))
    found = found[0] if name == "reinflow" else found
    torch.testing.assert_close(found, densities, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_updates_move_the_policy_away_from_the_one_that_collected(name: str) -> None:
    agent = build(name, [0])
    batch = online_batch(agent, [0])
    for _ in range(20):
        metrics = agent.update_online(batch, SeededNoise([0]))
    assert float(metrics["kl_divergence"]) > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_first_rollouts_train_the_value_alone(name: str) -> None:
    agent = build(name, [0], first_policy_rollout=3)
    network = agent.denoiser if name == "dppo" else agent.velocity
    for rollout in (1, 2, 3):
        before = {part: parameters_of(module) for part, module in (("policy", network), ("value", agent.value))}
        batch = online_batch(agent, [0])
        for _ in range(3):
            agent.update_online(batch, SeededNoise([0]))
        moved = {
            part: any(not torch.equal(value, before[part][key]) for key, value in parameters_of(module).items())
            for part, module in (("policy", network), ("value", agent.value))
        }
        assert moved == {"policy": rollout == 3, "value": True}


def test_rewards_are_divided_by_the_deviation_of_their_running_sums_so_far() -> None:
    """Two rollouts of 4 steps in 2 environments: decisions of two steps, an episode that ends, one that is cut."""
    discount, sums = 0.9, []
    statistics = RolloutStatistics(1, torch.device("cpu"))
    for number in (1.0, 3.0):
        reward = number * torch.tensor([[1.0, 10.0], [0.0, 20.0], [2.0, 0.0], [4.0, 40.0]])
        begins = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        continues = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
        bootstrap = torch.tensor([[discount**2, discount], [0.0, discount**2], [discount, 0.0], [discount, discount]])
        filler = torch.zeros(1, 4, 2, 1)
        scaled = statistics.scaled(
            Trajectories(begins[None], filler, filler, reward[None], bootstrap[None], filler, continues[None])
        )
        first = number * np.array([1.0, 2.0 + 1.0 * discount**2, 4.0 + (2.0 + discount**2) * discount])
        second = number * np.array([10.0, 20.0, 40.0 + 20.0 * discount**2])  # its first episode ended at once
        sums += [*first, *second]
        assert torch.allclose(scaled.chunk_return[0], reward / float(np.std(sums)), rtol=1e-5)
    assert statistics.rollouts.tolist() == [2]


def test_the_gradient_at_ratio_one_is_that_of_the_policy_gradient() -> None:
    log_ratio = torch.zeros(1, 4, requires_grad=True)
    advantage = torch.tensor([[1.0, -2.0, 3.0, 0.5]])
    loss, _ = clipped_loss(log_ratio, advantage, 0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
    torch.testing.assert_close(gradient, -advantage / 4)


def test_only_steps_in_the_favour_of_the_advantage_are_clipped() -> None:
    log_ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5]]).log().requires_grad_()
    advantage = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    loss, metrics = clipped_loss(log_ratio, advantage, torch.tensor([0.2, 0.2, 0.2, 0.2]))
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
    assert (gradient[0] != 0).tolist() == [False, True, True, False]
    assert float(loss.detach()) == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8) / 4)
    assert float(metrics["clip_share"]) == 1


def test_advantages_are_normalised_within_each_seed() -> None:
    advantage = normalised(torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]))
    torch.testing.assert_close(advantage, torch.tensor([[-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]]))


def test_dppo_clips_and_discounts_less_towards_the_action() -> None:
    config = DPPOConfig(denoising_steps=5, fine_tuned_steps=3, policy_hidden_dims=(4,), value_hidden_dims=(4,))
    agent = DPPO(config, 3, 2, SeededNoise([0]))
    assert agent._t.tolist() == [3, 2, 1]
    assert agent._weight.tolist() == pytest.approx([0.99**2, 0.99, 1.0])
    growth = math.expm1(1.5) / math.expm1(3)
    assert agent._clip.tolist() == pytest.approx([0.001, 0.001 + 0.009 * growth, 0.01])


def test_dppo_keeps_the_steps_that_it_does_not_fine_tune() -> None:
    agent = build("dppo", [0], denoising_steps=4, fine_tuned_steps=2)
    noise = SeededNoise([0])
    agent.update_offline(batch_of([0], 5), noise)
    cloned = {name: value.clone() for name, value in agent.denoiser.named_parameters()}
    for name, value in agent.target_denoiser.named_parameters():
        assert torch.equal(value, cloned[name])
    agent.update_online(online_batch(agent, [0]), noise)
    for name, value in agent.target_denoiser.named_parameters():
        assert torch.equal(value, cloned[name])
    assert any(not torch.equal(value, cloned[name]) for name, value in agent.denoiser.named_parameters())


def test_a_chain_of_reinflow_has_the_density_of_its_gaussian_steps() -> None:
    config = ReinFlowConfig(chunk_length=1, flow_steps=2, policy_hidden_dims=(4,), noise_hidden_dims=(4,),
                            min_std=0.1, max_std=0.1)  # fmt: skip
    agent = ReinFlow(config, 1, 1, SeededNoise([0]))
    with torch.no_grad():
        agent.velocity.mlp.out.weight.zero_()  # every step's mean is the point before it
    points = torch.tensor([0.3, 0.4, 0.35]).reshape(1, 1, 3, 1)
    log_prob, entropy = agent.log_prob(torch.zeros(1, 1, 1), points)
    steps = [-0.5 * (d / 0.1) ** 2 - math.log(0.1) - 0.5 * math.log(2 * math.pi) for d in (0.1, -0.05)]
    assert log_prob.item() == pytest.approx(sum(steps) / 2, rel=1e-5)
    assert entropy.item() == pytest.approx(0.5 * math.log(2 * math.pi * math.e) + math.log(0.1), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_adds_no_noise_of_exploration(name: str) -> None:
    agent = build(name, [0])
    obs = torch.randn(1, 200, 5)
    spread = {
        mode: (agent.act(obs, SeededNoise([0]), mode) - agent.act(obs, SeededNoise([0]), "evaluate")).abs().max()
        for mode in ("collect", "evaluate")
    }
    assert spread["evaluate"] == 0 and spread["collect"] > 0.05


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dppo", {"fine_tuned_steps": 30}, "must be at most denoising_steps"),
        ("dppo", {"min_std": 0.0}, "must be a finite number in"),
        ("reinflow", {"max_std": 0.01}, "must be at least min_std"),
    ],
)
def test_settings_that_contradict_each_other_are_named(name: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        type(AGENTS[name][1])(**changes)


def test_a_record_gives_back_the_chain_that_was_packed() -> None:
    points, log_prob = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 6)
    record = pack_chain(points, log_prob)
    assert record.shape == (2, 3, 5 * 4 + 6)
    for found, expected in zip(unpack_chain(record, 4, 6), (points, log_prob), strict=True):
        assert torch.equal(found, expected)
