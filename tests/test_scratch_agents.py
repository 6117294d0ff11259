"""Agents that train from scratch against closed forms: densities, times, bounds, projections, sizes, and turns."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from agents import AGENTS
from agents.blocks.config import with_settings
from agents.blocks.critic import expectile_loss, project
from agents.blocks.diffusion import Schedule
from agents.blocks.flow import noisy_step, step_std, tanh_log_det
from agents.blocks.gaussian import squashed
from agents.blocks.renorm_velocities import time_features
from agents.dime import PRIOR_STD, cosine_schedule
from agents.ppo import PPO
from agents.scratch_flow import ScratchFlow
from tests.seeded_noise import RecordedNoise, SeededNoise
from tests.test_agents import (
    CRITIC_TURN,
    JOINT,
    SCRATCH_FLOWS,
    assert_equal_states,
    batch_of,
    build,
    changed,
    decisions_of,
    parameters_of,
    train,
)
from tests.test_flow_agents import set_constant

# --- densities: one coordinate, v = 0, K = 4, x_0 = .3, noise .1, -.2, .5, 0, deviation .05

START, STEP_NOISE = torch.tensor([[0.3]]), torch.tensor([0.1, -0.2, 0.5, 0.0]).reshape(4, 1, 1)


def still_flow(name: str, density: str) -> ScratchFlow:
    """An agent whose velocity is 0 and whose noise has a deviation of .05."""
    config = with_settings(AGENTS[name][1], policy_hidden_dims=(4, 4), gate_dim=4, decoder_dim=4, density=density)
    agent: Any = AGENTS[name][0](config, 2, 1, SeededNoise([0]))

    def field(obs: Tensor, statistics: str) -> Any:
        return lambda k, x: (torch.zeros_like(x), torch.full_like(x, math.log(0.05)))

    agent.velocity_field.forward = field
    return agent


@pytest.mark.parametrize(
    ("name", "density", "end", "log_prob"),
    [
        ("sac_flow_g_scratch", "released", 0.32, 7.2939339816),
        ("naive_flow_scratch", "released", 0.32, 7.2939339816),
        ("sac_flow_t_scratch", "released", 0.305, -4.6980762399),
        ("sac_flow_t_scratch", "exact", 0.305, -4.6980752 + 17.5281065387),
    ],
)
def test_densities_of_paths_are_those_of_the_specification(
    name: str, density: str, end: float, log_prob: float
) -> None:
    agent = still_flow(name, density)
    noise = RecordedNoise({"act_noise": START, "act_step_noise": STEP_NOISE})
    action_chunk, found = agent.sample(torch.zeros(1, 1, 2), noise, "act", "running")
    assert float(action_chunk) == pytest.approx(math.tanh(end), rel=1e-6)
    assert float(found) == pytest.approx(log_prob, rel=1e-6)


def test_the_paper_s_equation_is_that_of_agents_whose_noise_is_fixed() -> None:
    config = with_settings(AGENTS["sac_flow_g_scratch"][1], policy_hidden_dims=(4, 4), gate_dim=4)
    agent: Any = ScratchFlow(with_settings(config, noise_scale="paper_sde"), 2, 3, SeededNoise([0]))
    x, step_noise = torch.randn(1, 5, 3), torch.randn(1, 4, 5, 3)

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return t + x.sin()

    def noisy_velocity(k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        return velocity(torch.full((1, 1, 1), k / 4), x), torch.full_like(x, math.log(0.3))

    for k in range(4):
        found, log_std = agent.step(noisy_velocity, k, x, step_noise)
        torch.testing.assert_close(found, noisy_step(velocity, x, k, step_noise, 0.3, "paper_sde"))
        assert float(log_std.exp().mean()) == pytest.approx(step_std(0.3, 4, "paper_sde"))


@pytest.mark.parametrize(
    ("density", "scale", "log_prob"),
    [("released", 1.0, -0.9000153007), ("released", 0.4, 0.0162736989), ("exact", 1.0, 0.0999846993 + 1.2e-6)],
)
def test_densities_of_gaussians_are_those_of_the_specification(density: Any, scale: float, log_prob: float) -> None:
    mean, log_std, eps = (torch.full((1, 1, 1), value) for value in (0.2, -1.0, 0.5))
    action, found = squashed(mean, log_std, eps, density, torch.tensor([scale]))
    assert float(action) == pytest.approx(0.3661239917, rel=1e-6)
    assert float(found) == pytest.approx(log_prob, abs=3e-7)


@pytest.mark.parametrize("action_dim", [8, 17])
def test_the_released_entropy_of_flow_t_before_the_tanh_is_a_constant(action_dim: int) -> None:
    """(K + 1) d (log 2 pi e) / 2, whatever the policy; its variance is (K + 1) d / 2."""
    config = with_settings(AGENTS["sac_flow_t_scratch"][1], decoder_dim=8, density="released")
    agent: Any = ScratchFlow(config, 3, action_dim, SeededNoise([0]))
    obs = torch.randn(1, 4000, 3)
    with torch.no_grad():
        action_chunk, log_prob = agent.sample(obs, SeededNoise([0]), "act", "running")
    of_tanh = (1 - action_chunk[:, :, 0].square() + 1e-6).log().sum(-1)
    entropy = -(log_prob + of_tanh)
    expected, variance = 5 * action_dim * 1.4189385332, 5 * action_dim / 2
    assert float(entropy.mean()) == pytest.approx(expected, abs=5 * math.sqrt(variance / 4000))
    assert float(entropy.var()) == pytest.approx(variance, rel=0.15)


@pytest.mark.parametrize("name", ["sac", "crossq", *SCRATCH_FLOWS, "dime", "flowrl"])
def test_a_scale_of_actions_shifts_the_entropy_by_its_log(name: str) -> None:
    """The density is that of the action in the environment's units; where actions stay the same, critics see them."""
    entropies, agents = [], [build(name, [0], action_scale=scale) for scale in (1.0, 0.4)]
    for agent in agents:
        metrics = agent.policy_loss(batch_of([0], 1), SeededNoise([0]), *([torch.zeros(1, 16)] * (name == "flowrl")))[1]
        entropies.append(float(metrics.get("entropy", 0.0)))
    shift = 0.0 if name in ("dime", "flowrl") else 2 * math.log(0.4)  # of two coordinates
    assert entropies[1] - entropies[0] == pytest.approx(shift, abs=1e-5)
    batch = batch_of([0], 1)
    q, scaled = (agent.critic(batch.obs, batch.action_chunk) for agent in agents)
    assert torch.equal(q, scaled) == (name == "sac")  # whose critics have no units
    if name != "sac":
        torch.testing.assert_close(scaled, agents[0].critic(batch.obs, 0.4 * batch.action_chunk))


@pytest.mark.parametrize("name", ["sac_flow_g_scratch", "dime"])  # whose tanh is not saturated here
def test_norms_of_gradients_have_entropy_and_q_with_the_signs_of_the_loss(name: str) -> None:
    """A Q that is alpha times the entropy's own term, turned round, leaves no gradient."""
    agent, batch, norms = build(name, [0]), batch_of([0], 1), []
    for share in (1.0, 0.0):

        def q(obs: Tensor, action_chunk: Tensor, constant: bool = False, share: float = share) -> Tensor:
            log_det = tanh_log_det(action_chunk.flatten(2).atanh(), "exact")
            return -share * agent.temperature.coef.unsqueeze(-1) * log_det

        if name == "dime":
            agent.critic.forward = lambda *args, q=q, **options: q(*args, **options).unsqueeze(1)
        else:
            agent.value = q
        norms.append(float(agent.gradient_norms(batch, SeededNoise([0]), "online")["gradient_norm_x_0"]))
    assert norms[0] < 1e-2 * norms[1]


# --- time


def test_features_of_time_are_sines_then_cosines() -> None:
    at_0, at_half = (time_features(torch.tensor([t])) for t in (0.0, 0.5))
    assert torch.equal(at_0, torch.cat([torch.zeros(16), torch.ones(16)]))
    assert float(at_half[0]) == pytest.approx(0.4794255386)
    assert float(at_half[15]) == pytest.approx(5e-5, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "time_input", "sees_time"),
    [
        ("sac_flow_t_scratch", "released", False),
        ("naive_flow_scratch", "released", False),
        ("sac_flow_t_scratch", "bypass", True),
        ("naive_flow_scratch", "bypass", True),
        ("sac_flow_g_scratch", "released", True),
        ("flow_mlp_scratch", "released", True),
    ],
)
def test_in_training_batch_renorm_removes_time_where_it_goes_through_it(
    name: str, time_input: str, sees_time: bool
) -> None:
    """Flow time is the same for all rows of a batch. By the running statistics it comes back."""
    agent = build(name, [0], time_input=time_input)
    train(agent, [0])
    obs, x = batch_of([0], 1).obs, torch.randn(1, 16, 2)
    if name == "sac_flow_t_scratch":  # whose norms of x differ by step
        for norm in agent.velocity_field.x_norms[1:]:
            norm.load_state_dict(agent.velocity_field.x_norms[0].state_dict())
    for statistics, expected in (("batch", sees_time), ("running", True)):
        first, last = (agent.velocity_field(obs, statistics)(k, x)[0] for k in (0, 3))
        assert bool((first - last).abs().max() > 1e-4) == expected, statistics


# --- DIME's bound and its critics


def still_dime(num_steps: int, eta: float) -> Any:
    """An agent without drift whose steps are all of the same size."""
    config = with_settings(AGENTS["dime"][1], denoising_steps=num_steps, policy_hidden_dims=(4,))
    agent: Any = AGENTS["dime"][0](config, 2, 1, SeededNoise([0]))
    agent.diffusion.forward = lambda obs, k, x: torch.zeros_like(x)
    agent.diffusion.eta = lambda k: torch.full((1, 1, 1), eta)
    return agent


@pytest.mark.parametrize(
    ("num_steps", "eta", "cost", "least"),
    [
        (16, 0.1, -2.3368419863, -2.3368523548),
        (16, 0.4, -2.3493019747, -2.3495598466),
        (160, 0.01, -2.3353896450, -2.3353897477),
    ],
)
def test_the_costs_of_a_diffusion_at_rest_bound_its_entropy(
    num_steps: int, eta: float, cost: float, least: float
) -> None:
    """Before the tanh: their mean is never below minus the entropy of x_N, a normal number of known variance."""
    agent, rows = still_dime(num_steps, eta), 20_000
    obs = torch.zeros(1, rows, 2)
    x, step_noise = agent.draw(obs, SeededNoise([0]), "act")
    path = agent.rollout(obs, SeededNoise([0]), "act")
    variance = PRIOR_STD**2
    for k in range(num_steps):
        x = agent.step(obs, k, x, step_noise)
        variance = variance * (1 - eta / PRIOR_STD**2) ** 2 + 2 * eta
    assert torch.equal(path.action_chunk[:, :, 0], x.tanh())
    assert float(x.var()) == pytest.approx(variance, rel=0.05)
    assert -0.5 * math.log(2 * math.pi * math.e * variance) == pytest.approx(least, abs=1e-9)
    total = path.run_cost + path.terminal_cost + tanh_log_det(x, "exact")
    # What x_N is and what it came from are a pair of Gaussians: against this control the mean is almost exact.
    total = total + 0.5 * (x.square().squeeze(-1) / variance - 1)
    assert float(total.mean()) == pytest.approx(cost, abs=0.002)
    assert float(total.mean()) > least - 0.002


def test_one_step_of_the_diffusion_has_the_costs_of_the_specification() -> None:
    agent = still_dime(1, 0.1)
    draws = {"act_noise": torch.tensor([[1 / PRIOR_STD]]), "act_step_noise": torch.tensor([[[0.5]]])}
    path = agent.rollout(torch.zeros(1, 1, 2), RecordedNoise(draws), "act")
    assert float(path.action_chunk) == pytest.approx(math.tanh(1.2076067977), rel=1e-6)
    of_tanh = math.log(1 - math.tanh(1.2076067977) ** 2)
    assert float(path.run_cost) == pytest.approx(-0.0363718132 - of_tanh, abs=1e-6)
    assert float(path.terminal_cost) == pytest.approx(
        -0.5 * 0.16 - math.log(2.5) - 0.5 * math.log(2 * math.pi), abs=1e-6
    )


def test_the_schedule_of_step_sizes_is_a_cosine() -> None:
    schedule = cosine_schedule(16)
    expected = {0: 0.9998447464, 1: 0.9879907900, 8: 0.4942730759, 15: 0.0104464918}
    assert {k: schedule[k] for k in expected} == pytest.approx(expected, rel=1e-8)
    assert sum(schedule) == pytest.approx(8.4436952681)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.25, (0, 0.75, 0.25)), (-3.0, (1, 0, 0)), (1.0, (0, 0, 1)), (0.0, (0, 1, 0))]
)
def test_a_projection_splits_a_value_between_its_neighbours(value: float, expected: tuple[float, ...]) -> None:
    found = project(torch.ones(1, 1, 1), torch.tensor([[[value]]]), torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(found, torch.tensor([[expected]]).float())


def test_a_projection_loses_no_mass() -> None:
    atoms = torch.linspace(-200, 200, 101)
    probability = torch.randn(2, 7, 101).softmax(-1)
    values = -3 + 0.97 * atoms + 50 * torch.randn(2, 7, 1)
    assert project(probability, values, atoms).sum(-1) == pytest.approx(torch.ones(2, 7), abs=1e-5)


# --- QSM


def test_the_score_is_matched_in_no_step_of_the_next_episode() -> None:
    agent, batch = build("qsm_scratch", [0], chunk_length=5, inverse_temperature=0.0), batch_of([0], 5)
    set_constant(agent.denoiser.mlp, 0.3)
    loss, _ = agent.policy_loss(batch, SeededNoise([0]))
    assert batch.valid.min() == 0
    torch.testing.assert_close(loss.detach(), 0.3**2 * batch.valid.mean((1, 2)))


# --- FlowRL


def test_matching_is_weighted_by_how_much_better_the_replay_is() -> None:
    agent, batch = build("flowrl", [0]), batch_of([0], 1)
    with torch.no_grad():
        q = agent.critic(batch.obs, agent.policy(batch.obs, SeededNoise([0]), "policy_noise")).amin(1)
    for better, weight in ((0.0, 0.1), (3.0, 0.1)):  # the same for all rows
        metrics = agent.policy_loss(batch, SeededNoise([0]), q + better)[1]
        assert float(metrics["weight_mean"]) == pytest.approx(weight, rel=1e-4)
        expected = metrics["q_loss"] + weight * metrics["matching_loss"]
        torch.testing.assert_close(metrics["policy_loss"], expected, rtol=1e-4, atol=1e-5)
    one_row = q.clone()
    one_row[:, 0] += 100.0
    metrics = agent.policy_loss(batch, SeededNoise([0]), one_row)[1]
    assert float(metrics["weight_mean"]) == pytest.approx((1 + 15 * 1e-3) / 16, rel=1e-4)  # its bounds


def test_a_value_above_its_target_costs_a_ninth_of_one_below_it() -> None:
    loss = expectile_loss(
        torch.tensor([[0.0], [2.0]]), torch.ones(2, 1), AGENTS["flowrl"][1].expectile, torch.ones(2, 1)
    )
    assert loss.tolist() == pytest.approx([0.9, 0.1])


def test_flowrl_counts_no_step_of_the_next_episode() -> None:
    """In the matching single steps; in the replay's value, whose chunks have one return, whole chunks."""
    agent, batch = build("flowrl", [0], chunk_length=5), batch_of([0], 5)
    set_constant(agent.velocity, 0.3)
    others = torch.where(batch.valid.unsqueeze(-1) > 0, batch.action_chunk, -batch.action_chunk)
    assert not torch.equal(others, batch.action_chunk)
    found = [
        agent.matching_loss(replace(batch, action_chunk=a), SeededNoise([0])) for a in (batch.action_chunk, others)
    ]
    torch.testing.assert_close(*found)
    set_constant(agent.replay_value, 0.0)
    set_constant(agent.replay_critic.target["mlp"], 2.0)
    expected = agent.config.expectile * 2.0**2 * batch.valid[..., -1].mean(1)
    torch.testing.assert_close(agent.value_loss(batch).detach(), expected)


def test_weights_of_each_sample_are_an_option() -> None:
    batch = batch_of([0], 1)
    losses = []
    for weights in ("released", "per_sample"):
        agent = build("flowrl", [0], matching_weights=weights)
        losses.append(float(agent.policy_loss(batch, SeededNoise([0]), batch.chunk_return * 5)[0].detach()))
    assert abs(losses[0] - losses[1]) > 1e-5


def test_targets_of_flowrl_are_almost_the_new_critics() -> None:
    agent = build("flowrl", [0])
    before = parameters_of(agent.critic.target)
    train(agent, [0], offline=0, online=1)
    after, online = parameters_of(agent.critic.target), parameters_of(agent.critic.online)
    for name, value in after.items():
        torch.testing.assert_close(value, 0.05 * before[name] + 0.95 * online[name])


# --- QSM


def test_the_schedule_of_qsm_is_that_of_the_release() -> None:
    agent_class, config = AGENTS["qsm_scratch"]
    schedule = agent_class(config, 3, 2, SeededNoise([0])).schedule
    assert isinstance(schedule, Schedule)
    betas = (0.1958745583, 0.4588181934, 0.6357810204, 0.7548781879, 0.8350313792)
    assert schedule.betas[1:] == pytest.approx(betas, rel=1e-9)
    assert schedule.alpha_bars[-1] == pytest.approx(0.0064093334, rel=1e-7)


# --- sizes, observations x actions: Hopper, Walker2d and HalfCheetah, Ant-v4, Ant-v5, Humanoid-v4

SIZES = ((11, 3), (17, 6), (27, 8), (105, 8), (376, 17))
SAC_FLOW_SAC = {"policy_hidden_dims": (256, 512, 256)}
COUNTS: list[tuple[str, str, dict[str, Any], tuple[int, ...]]] = [
    ("sac_flow_g_scratch", "critic.online", {}, (2140218, 2158686, 2183310, 2343366, 2917926)),
    ("sac_flow_g_scratch", "velocity_field", {}, (325765, 342688, 363198, 483162, 923045)),
    ("sac_flow_t_scratch", "velocity_field", {}, (310804, 311998, 313094, 316994, 333226)),
    ("naive_flow_scratch", "velocity_field", {}, (273956, 281660, 289880, 329972, 483126)),
    ("sac", "policy", SAC_FLOW_SAC, (267526, 270604, 274192, 294160, 368162)),
    ("sac", "critic.online", {}, (1592322, 1601538, 1613826, 1693698, 1980418)),
    ("crossq", "policy", SAC_FLOW_SAC, (269596, 272686, 276294, 296418, 370962)),
    ("dime", "diffusion", {}, (399107, 402182, 405768, 425736, 499729)),
    ("dime", "critic.online", {}, (2345218, 2363686, 2388310, 2548366, 3122926)),
    ("flowrl", "velocity", {}, (274435, 280582, 287752, 327688, 475665)),
    ("flowrl", "critic.online", {}, (1600514, 1609730, 1622018, 1701890, 1988610)),
    ("flowrl", "replay_value", {}, (798721, 801793, 806913, 846849, 985601)),
    ("qsm_scratch", "denoiser", {}, (362275, 368422, 375592, 415528, 563505)),
    ("qsm_scratch", "critic.online", {}, (541698, 550914, 563202, 643074, 929794)),
]


@pytest.mark.parametrize(("name", "module", "changes", "expected"), COUNTS, ids=lambda value: str(value)[:18])
def test_networks_have_as_many_parameters_as_those_of_the_releases(
    name: str, module: str, changes: dict[str, Any], expected: tuple[int, ...]
) -> None:
    agent_class, config = AGENTS[name]
    for (obs_dim, action_dim), count in zip(SIZES, expected, strict=True):
        agent = agent_class(with_settings(config, **changes), obs_dim, action_dim, SeededNoise([0]))
        found = sum(parameter.numel() for parameter in agent.get_submodule(module).parameters())
        # DIME's step size and friction stand beside its network there.
        assert found - (1 + action_dim if module == "diffusion" else 0) == count


# --- turns


@pytest.mark.parametrize("name", [*JOINT, "flowrl"])
def test_policies_and_temperatures_stay_but_at_one_turn_of_a_period(name: str) -> None:
    agent, batch = build(name, [0]), batch_of([0], 1)
    module = agent.get_submodule(agent.policy_modules[0])
    moves = []
    for turn in range(agent.period):
        policy, critic = parameters_of(module), parameters_of(agent.critic.online)
        coef = agent.temperature.coef if hasattr(agent, "temperature") else None
        metrics = agent.update_turn(batch, SeededNoise([0]), turn)
        assert changed(agent.critic.online, critic)
        assert ("policy_loss" in metrics) == changed(module, policy)
        assert coef is None or ("entropy_coef" in metrics) == (not torch.equal(coef, agent.temperature.coef))
        moves.append(changed(module, policy))
    assert sum(moves) == 1 and not moves[CRITIC_TURN[name]]


@pytest.mark.parametrize("name", [*JOINT, "flowrl"])
def test_an_update_of_both_phases_moves_everything(name: str) -> None:
    whole, turn = build(name, [0]), build(name, [0])
    whole.update(batch_of([0], 1), SeededNoise([0]))
    turn.update_turn(batch_of([0], 1), SeededNoise([0]), 0 if name == "flowrl" else turn.period - 1)
    assert_equal_states(whole.state_of_seed(0), turn.state_of_seed(0))


@pytest.mark.parametrize("name", ["crossq", "dime", *SCRATCH_FLOWS])
def test_acting_moves_no_statistics_and_does_not_see_who_else_acts(name: str) -> None:
    agent = build(name, [0])
    train(agent, [0])
    before, obs = agent.state_of_seed(0), torch.randn(1, 16, 5)
    draws = {mode: agent.act(obs, SeededNoise([1]), mode) for mode in ("collect", "evaluate")}
    assert_equal_states(agent.state_of_seed(0), before)
    other = torch.cat([obs[:, :8], 10 + obs[:, 8:]], 1)
    for mode, actions in draws.items():
        torch.testing.assert_close(agent.act(other, SeededNoise([1]), mode)[:, :8], actions[:, :8])


@pytest.mark.parametrize("name", ["crossq", *SCRATCH_FLOWS])
def test_both_sides_of_a_joint_critic_share_their_statistics(name: str) -> None:
    """Q of the batch's chunks changes with the next observations, and one step moves the statistics to both."""
    batch = batch_of([0], 1)
    other = replace(batch, next_obs=batch.next_obs + 3)
    agents = [build(name, [0]) for _ in range(2)]
    q = [a.critic_loss(b, SeededNoise([0]))[1]["q_mean"] for a, b in zip(agents, (batch, other), strict=True)]
    assert not torch.equal(*q)
    both = torch.cat([batch.obs, batch.next_obs], 1).mean(1)
    torch.testing.assert_close(agents[0].critic.online.mlp.norms[0].mean[0, 0, :5], 0.01 * both[0])


@pytest.mark.parametrize("name", ["crossq", "sac_flow_g_scratch"])
def test_critics_without_batch_renorm_have_targets_that_follow(name: str) -> None:
    agent = build(name, [0], batch_renorm=False, target_update_rate=0.25)
    before = parameters_of(agent.critic.target)
    train(agent, [0], offline=0, online=1)
    online, after = parameters_of(agent.critic.online), parameters_of(agent.critic.target)
    for key, value in after.items():
        torch.testing.assert_close(value, 0.75 * before[key] + 0.25 * online[key])


# --- PPO


def test_advantages_of_ppo_are_normalised_over_the_rollout() -> None:
    agent = build("ppo", [0, 1])
    assert isinstance(agent, PPO)
    noise = SeededNoise([0, 1])
    decisions = decisions_of(agent, noise, noise.normal("obs", 32, 5), lambda chunk: 40 * chunk.sum((2, 3)))
    torch.testing.assert_close(decisions.advantage.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(decisions.advantage.var(1, correction=0), torch.ones(2))
    assert decisions.value_target.abs().max() > 5


def test_each_network_of_ppo_is_clipped_alone(gradients: dict[Tensor, Tensor]) -> None:
    agent = build("ppo", [0], max_gradient_norm=0.01)
    train(agent, [0], offline=0, online=1)
    for optimizer in (agent.policy_optimizer, agent.value_optimizer):
        norm = math.sqrt(sum(float(gradients[p].square().sum()) for p in optimizer.parameters))
        assert norm == pytest.approx(0.01, rel=1e-3)
