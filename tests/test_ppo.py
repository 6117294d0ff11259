"""PPO over the chain from noise to action: its ratio, its clipping, and the densities of the two policies' chains."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agents import AGENTS
from agents.blocks.base import Adam
from agents.blocks.ppo import (
    RolloutStatistics,
    clipped_loss,
    estimate_advantages,
    follow_clone,
    normalised,
    pack_chain,
    unpack_chain,
)
from agents.dppo import DPPO, DPPOConfig
from agents.reinflow import ReinFlow, ReinFlowConfig
from datasets.batch import Decisions, Trajectories
from tests.seeded_noise import RecordedNoise, SeededNoise
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
    discount, count, mean, variance = 0.9, 1e-4, 0.0, 1.0
    statistics = RolloutStatistics(1, torch.device("cpu"))
    for number in (1.0, 3.0):
        reward = number * torch.tensor([[1.0, 10.0], [0.0, 20.0], [2.0, 0.0], [4.0, 40.0]])
        begins = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        continues = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
        bootstrap = torch.tensor([[discount**2, discount], [0.0, discount**2], [discount, 0.0], [discount, discount]])
        filler = torch.zeros(1, 4, 2, 1)
        scaled = statistics.scaled(
            Trajectories(begins[None], filler, filler, reward[None], bootstrap[None], filler, continues[None]),
            max_reward=1.5,
        )
        first = number * np.array([1.0, 2.0 + 1.0 * discount**2, 4.0 + (2.0 + discount**2) * discount])
        second = number * np.array([10.0, 20.0, 40.0 + 20.0 * discount**2])  # its first episode ended at once
        sums = np.array([*first, *second])
        whole, distance = count + len(sums), sums.mean() - mean
        squares = variance * count + sums.var() * len(sums) + distance**2 * count * len(sums) / whole
        count, mean, variance = whole, mean + distance * len(sums) / whole, squares / (whole - 1)
        expected = (reward / math.sqrt(variance)).clamp(-1.5, 1.5)
        assert float(expected.max()) == 1.5 and torch.allclose(scaled.chunk_return[0], expected, rtol=1e-5)
    assert statistics.rollouts.tolist() == [2]


@pytest.mark.parametrize("at_time_limits", ["stop", "released"])
def test_advantages_at_time_limits_stop_or_run_on_into_the_next_episode(at_time_limits: Any) -> None:
    """Two environments, six decisions each; in the first one episode terminates, one is cut, one goes on."""
    discount, gae_lambda, generator = 0.9, 0.8, torch.Generator().manual_seed(0)
    reward, obs, own_next = (torch.randn(6, 2, generator=generator) for _ in range(3))
    terminated, truncated = torch.zeros(6, 2), torch.zeros(6, 2)
    terminated[1, 0] = truncated[3, 0] = truncated[2, 1] = truncated[5, 1] = 1.0
    ends = (terminated + truncated).clamp(max=1)
    later_obs = torch.cat([obs[1:], own_next[-1:]])
    next_obs = torch.where(ends > 0, own_next, later_obs)
    continues = 1 - ends
    continues[-1] = 0.0
    fields = (torch.ones(6, 2), obs[..., None], obs[..., :0, None], reward, discount * (1 - terminated))
    trajectories = Trajectories(*(x.unsqueeze(0) for x in (*fields, next_obs[..., None], continues)))

    expected, later = torch.zeros(6, 2), torch.zeros(2)
    for t in reversed(range(6)):
        after = later_obs[t] if at_time_limits == "released" else next_obs[t]
        error = reward[t] + discount * (1 - terminated[t]) * 2 * after - 2 * obs[t]  # V(s) = 2 s
        goes_on = 1 - terminated[t] if at_time_limits == "released" else 1 - ends[t]
        expected[t] = later = error + discount * gae_lambda * goes_on * later
    found, target = estimate_advantages(trajectories, lambda s: 2 * s.squeeze(-1), gae_lambda, at_time_limits)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(target[0], expected + 2 * obs)


def test_a_sum_that_runs_on_looks_for_the_next_decision_of_its_environment() -> None:
    """Decisions of two steps: between them nothing begins, and what those rows hold counts nowhere."""
    begins = torch.tensor([1.0, 0.0, 1.0, 0.0])
    obs, filler = torch.tensor([1.0, 99.0, 2.0, 99.0]), torch.zeros(1, 4, 1, 1)
    values = {"begins": begins, "chunk_return": torch.ones(4), "bootstrap": begins * 0.5, "continues": torch.zeros(4)}
    fields = {name: value.reshape(1, 4, 1) for name, value in values.items()}
    trajectories = Trajectories(obs=obs.reshape(1, 4, 1, 1), record=filler, next_obs=filler + 7, **fields)
    found, _ = estimate_advantages(trajectories, lambda s: s.squeeze(-1), 1.0, "released")
    last = 1 + 0.5 * 7 - 2  # at the rollout's end its own last observation
    assert found[0, [0, 2], 0].tolist() == pytest.approx([1 + 0.5 * 2 - 1 + 0.5 * last, last])


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
        agent.velocity.mlp.out.bias.zero_()
        agent.velocity.mlp.out.weight.zero_()  # every step's mean is the point before it
    points = torch.tensor([0.3, 0.4, 0.35]).reshape(1, 1, 3, 1)
    normal = [-0.5 * (d / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)
              for d, std in ((0.3, 1.0), (0.1, 0.1), (-0.05, 0.1))]  # fmt: skip
    entropies = [0.5 * math.log(2 * math.pi * math.e) + math.log(std) for std in (1.0, 0.1, 0.1)]
    for count_start, first in ((True, 0), (False, 1)):
        agent.config = replace(config, count_start=count_start)
        log_prob, entropy = agent.log_prob(torch.zeros(1, 1, 1), points)
        assert log_prob.item() == pytest.approx(np.mean(normal[first:]), rel=1e-5)
        assert entropy.item() == pytest.approx(np.mean(entropies[first:]), rel=1e-5)


def test_the_noise_of_reinflow_lies_between_its_bounds_in_log_space_and_does_not_move_the_time_embedding() -> None:
    agent = build("reinflow", [0, 1], min_std=0.02, max_std=0.5)
    obs = torch.randn(2, 3, 5)
    agent.step_std(obs, 0.25).sum().backward()
    assert all(p.grad is None for p in agent.velocity.parameters())
    assert all(p.grad is not None for p in agent.noise_std.parameters())
    with torch.no_grad():
        for raw, std in ((-50.0, 0.02), (0.0, 0.1), (50.0, 0.5)):
            agent.noise_std.out.weight.zero_()
            agent.noise_std.out.bias.fill_(raw)
            torch.testing.assert_close(agent.step_std(obs, 0.25), torch.full((2, 3, agent.chunk_dim), std))


def test_reinflow_asks_the_velocity_at_the_times_of_its_steps_or_at_those_of_the_release() -> None:
    for rollout_times, expected in (("steps", (0, 0.25, 0.5, 0.75)), ("released", (0, 1 / 3, 2 / 3, 1))):
        agent, asked = build("reinflow", [0], rollout_times=rollout_times), []
        agent.velocity.step.register_forward_pre_hook(lambda _, inputs, asked=asked: asked.append(float(inputs[0])))
        _, record = agent.collect(torch.zeros(1, 1, 5), SeededNoise([0]))
        assert sorted(set(asked[:8])) == pytest.approx(expected)  # velocity and deviation of each step
        assert sorted(set(asked[8:])) == pytest.approx((0, 0.25, 0.5, 0.75))  # of the densities
        assert record.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_noise_of_steps_is_cut_at_three_deviations_and_the_start_is_not(name: str) -> None:
    agent = build(name, [0])
    steps = agent.config.denoising_steps - 1 if name == "dppo" else agent.config.flow_steps
    last = {"act_last_noise": (1, agent.chunk_dim)} if name == "dppo" else {}
    shapes = {"act_noise": (1, agent.chunk_dim), "act_step_noise": (steps, 1, agent.chunk_dim), **last}

    def records(start: float, size: float) -> torch.Tensor:
        sizes = {"act_noise": start}
        noise = {draw: torch.full(shape, sizes.get(draw, size)) for draw, shape in shapes.items()}
        return agent.collect(torch.zeros(1, 1, 5), RecordedNoise(noise))[1]

    assert torch.equal(records(0.5, 3.0), records(0.5, 40.0)) and not torch.equal(records(0.5, 3.0), records(0.5, 2.0))
    if name == "reinflow":
        start = records(40.0, 0.0)[0, 0, : agent.chunk_dim]
        assert torch.equal(start, torch.full_like(start, 40.0))


def test_coordinates_of_dppo_far_from_their_mean_count_as_its_least_density() -> None:
    agent = build("dppo", [0])
    points = torch.full((1, 2, agent.config.fine_tuned_steps + 1, agent.chunk_dim), 0.3)
    points[:, :, 1:, 0] = 1e3  # one coordinate of each step
    log_prob = agent.log_prob(torch.zeros(1, 2, 5), points)
    near = agent.log_prob(torch.zeros(1, 2, 5), torch.full_like(points, 0.3))
    points[:, :, 1:, 0] = 1e4
    assert torch.equal(log_prob[:, :, :1], agent.log_prob(torch.zeros(1, 2, 5), points)[:, :, :1])
    assert (log_prob[:, :, 0] < near[:, :, 0]).all()
    points[..., 1:, :] = 1e4
    outside = agent.log_prob(torch.zeros(1, 2, 5), points)
    assert torch.equal(outside, torch.full_like(outside, -5.0))
    assert all(not g.any() for g in torch.autograd.grad(outside.sum(), list(agent.denoiser.parameters())))


def test_a_density_of_reinflow_beyond_its_bounds_moves_nothing() -> None:
    agent = build("reinflow", [0], entropy_coef=0.0)
    batch = online_batch(agent, [0])
    points = batch.record[..., :-1]
    for bound, moves in ((1.0, True), (-30.0, False)):
        agent.config = replace(agent.config, min_log_prob=-40.0, max_log_prob=bound)
        loss, metrics = agent.policy_loss(batch)
        gradients = torch.autograd.grad(loss.sum(), list(agent.velocity.parameters()))
        assert any(g.any() for g in gradients) == moves and metrics["kl_divergence"].abs().max() < 1e-6
    assert points.isfinite().all()


def test_what_is_fine_tuned_is_an_average_of_the_clone_that_forgets_its_beginning() -> None:
    clone, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    optimizer, seen = Adam(clone.parameters(), 0.1), []
    for _ in range(5):
        optimizer.step([torch.ones_like(clone.weight)])
        seen.append(float(clone.weight.detach()))
        follow_clone(average, clone, optimizer, rate=0.3)
        weights = 0.7 ** np.arange(len(seen))[::-1]
        assert float(average.weight.detach()) == pytest.approx(np.average(seen, weights=weights), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_average_of_the_clone_acts_and_is_fine_tuned(name: str) -> None:
    agent = build(name, [0], ema_rate=0.2)
    clone, tuned = ("cloning_denoiser", "denoiser") if name == "dppo" else ("cloning_velocity", "velocity")
    for _ in range(3):
        agent.update_offline(batch_of([0], 5), SeededNoise([0]))
    cloned, averaged = parameters_of(getattr(agent, clone)), parameters_of(getattr(agent, tuned))
    assert all(not torch.equal(value, averaged[key]) for key, value in cloned.items())
    before = agent.act(torch.zeros(1, 1, 5), SeededNoise([0]), "evaluate")
    with torch.no_grad():
        for parameter in getattr(agent, clone).parameters():
            parameter.fill_(9.0)
    assert torch.equal(agent.act(torch.zeros(1, 1, 5), SeededNoise([0]), "evaluate"), before)
    agent.update_online(online_batch(agent, [0]), SeededNoise([0]))
    assert all((value == 9.0).all() for value in parameters_of(getattr(agent, clone)).values())


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


@pytest.mark.parametrize("name", NAMES)
def test_cloning_counts_no_step_of_the_next_episode(name: str) -> None:
    batch = batch_of([0], 5)
    assert 0 < float(batch.valid.mean()) < 1
    other = torch.where(batch.valid.unsqueeze(-1) > 0, torch.full_like(batch.action_chunk, 0.5), torch.zeros(1))
    losses = []
    for valid in (batch.valid, torch.ones_like(batch.valid), torch.zeros_like(batch.valid)):
        agent = build(name, [0])
        losses.append(
            float(
                agent.update_offline(replace(batch, action_chunk=other, valid=valid), SeededNoise([0]))["policy_loss"]
            )
        )
    assert losses[1] > losses[0] > losses[2] == 0
