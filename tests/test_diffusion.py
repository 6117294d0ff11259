"""Diffusions against closed forms: Gaussian data, conditional Gaussians, quadratic critics."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.blocks.denoisers import FourierStep, MLPDenoiser, ResidualDenoiser, SinusoidalStep
from agents.blocks.diffusion import (
    Schedule,
    ScheduleName,
    StepStd,
    add_noise,
    ddpm_sample,
    denoising_loss,
    make_schedule,
    posterior,
)
from tests.seeded_noise import RecordedNoise, SeededNoise
from tests.test_agents import OBS_DIM, batch_of, build, changed, parameters_of, train
from tests.test_networks import count, set_constant

CPU = torch.device("cpu")
SCHEDULES: tuple[ScheduleName, ...] = ("vp", "cosine", "linear")


def gaussian_predictor(mean: float, variance: float, schedule: Schedule):
    """The optimal prediction of the noise in N(mean, variance) data."""

    def predict(t: Tensor, x: Tensor) -> Tensor:
        bar = schedule.alpha_bars[int(t)]
        return math.sqrt(1 - bar) * (x - math.sqrt(bar) * mean) / (bar * variance + 1 - bar)

    return predict


def moments(sample: Any, num_noises: int) -> tuple[float, float]:
    """Exact mean and variance of x_0 = sample(x_T, step_noise), linear in its normal numbers: by unit vectors."""
    rows = num_noises + 2
    unit = torch.eye(rows, dtype=torch.float64)
    x_0 = sample(unit[:, :1].unsqueeze(0), unit[:, 1:-1].T.reshape(1, num_noises, rows, 1)).flatten()
    return float(x_0[-1]), float((x_0[:-1] - x_0[-1]).square().sum())


def ddpm_moments(mean: float, variance: float, schedule: Schedule, std: StepStd) -> tuple[float, float]:
    predict = gaussian_predictor(mean, variance, schedule)
    return moments(lambda x, z: ddpm_sample(predict, x, z, schedule, "none", std), schedule.num_steps - 1)


# --- schedules


@pytest.mark.parametrize("num_steps", [1, 5, 10])
def test_vp_steps_telescope_to_the_integral_of_beta(num_steps: int) -> None:
    schedule = make_schedule("vp", num_steps, CPU)
    for t, bar in enumerate(schedule.alpha_bars):
        u = t / num_steps
        assert bar == pytest.approx(math.exp(-0.1 * u - 4.95 * u**2), rel=1e-12)
    assert schedule.alpha_bars[-1] == pytest.approx(0.0064093, abs=1e-7)


def test_cosine_steps_follow_the_cosine_until_the_last_which_is_cut() -> None:
    schedule = make_schedule("cosine", 20, CPU)
    angle = lambda t: (t / 20 + 0.008) / 1.008 * math.pi / 2  # noqa: E731
    for t in range(20):
        assert schedule.alpha_bars[t] == pytest.approx((math.cos(angle(t)) / math.cos(angle(0))) ** 2, rel=1e-12)
    assert schedule.betas[20] == 0.999 == max(schedule.betas)


def test_linear_betas_are_those_of_ddpm() -> None:
    schedule = make_schedule("linear", 1000, CPU)
    assert schedule.betas[1] == pytest.approx(1e-4) and schedule.betas[-1] == pytest.approx(2e-2)
    assert schedule.betas[500] - schedule.betas[499] == pytest.approx(0.0199 / 999)
    assert schedule.alpha_bars[-1] == pytest.approx(4.036e-5, rel=1e-3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_hold_the_gaussian_conditional_of_the_step_before(name: ScheduleName) -> None:
    schedule = make_schedule(name, 7, CPU)
    for t in range(2, 8):
        level, alpha, beta = schedule.at(t), schedule.alphas[t], schedule.betas[t]
        prior = 1 - schedule.alpha_bars[t - 1]  # variance of x_{t-1} given x_0
        variance = 1 / (1 / prior + alpha / beta)
        assert level.posterior_std == pytest.approx(math.sqrt(variance))
        assert level.clean_weight == pytest.approx(variance * math.sqrt(schedule.alpha_bars[t - 1]) / prior)
        assert level.noisy_weight == pytest.approx(variance * math.sqrt(alpha) / beta)
        assert level.signal**2 + level.noise_std**2 == pytest.approx(1)
    first = schedule.at(1)
    assert (first.clean_weight, first.noisy_weight, first.posterior_std) == pytest.approx((1, 0, 0))


@pytest.mark.parametrize("name", SCHEDULES)
def test_steps_of_samples_have_the_levels_of_their_steps(name: ScheduleName) -> None:
    schedule = make_schedule(name, 6, CPU)
    t = torch.tensor([[6.0, 1.0, 3.0], [2.0, 2.0, 5.0]]).unsqueeze(-1)
    found = torch.stack(list(schedule.at(t)), -1)
    assert found.shape == (2, 3, 1, 6)
    for s, b in itertools.product(range(2), range(3)):
        torch.testing.assert_close(found[s, b, 0], torch.tensor(schedule.levels[int(t[s, b])]))
    predict, x = lambda t, x: 0.1 * t * x, torch.randn(2, 3, 4)
    mean, std = posterior(predict, x, t, schedule, "clean")
    for s, b in itertools.product(range(2), range(3)):
        alone = posterior(predict, x[s : s + 1, b : b + 1], int(t[s, b]), schedule, "clean")
        torch.testing.assert_close(mean[s, b], alone[0][0, 0])
        assert float(std[s, b]) == pytest.approx(alone[1])


# --- samplers


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_the_sampler_ends_at_a_single_data_point(name: ScheduleName, num_steps: int) -> None:
    schedule = make_schedule(name, num_steps, CPU)
    assert ddpm_moments(0.7, 0.0, schedule, "beta") == pytest.approx((0.7, 0.0), abs=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 5, 20])
def test_ddpm_with_the_large_noise_keeps_standard_normal_data_but_for_its_last_step(
    name: ScheduleName, num_steps: int
) -> None:
    # Then x_{t-1} given x_t is N(sqrt(alpha_t) x_t, beta_t); the last step leaves its noise out.
    schedule = make_schedule(name, num_steps, CPU)
    mean, variance = ddpm_moments(0.0, 1.0, schedule, "beta")
    assert (mean, variance) == pytest.approx((0, schedule.alphas[1]), abs=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("std", ["beta", "posterior"])
def test_ddpm_moments_follow_the_recursion_of_the_gaussian_case(name: ScheduleName, std: StepStd) -> None:
    schedule, data_mean, data_variance = make_schedule(name, 6, CPU), 0.4, 0.09
    mean, variance = 0.0, 1.0
    for t in range(6, 0, -1):
        bar, before, beta = schedule.alpha_bars[t], schedule.alpha_bars[t - 1], schedule.betas[t]
        # E[x_0 | x_t] = data_mean + gain (x_t - sqrt(bar) data_mean)
        gain = math.sqrt(bar) * data_variance / (bar * data_variance + 1 - bar)
        of_clean, of_noisy = math.sqrt(before) * beta / (1 - bar), math.sqrt(1 - beta) * (1 - before) / (1 - bar)
        slope = of_clean * gain + of_noisy
        mean = slope * mean + of_clean * (1 - gain * math.sqrt(bar)) * data_mean
        added = beta if std == "beta" else beta * (1 - before) / (1 - bar)
        variance = slope**2 * variance + (added if t > 1 else 0)
    assert ddpm_moments(data_mean, data_variance, schedule, std) == pytest.approx((mean, variance))


@pytest.mark.parametrize("name", ["vp", "cosine"])
def test_the_sampler_tends_to_the_data_as_steps_grow(name: ScheduleName) -> None:
    errors = []
    for num_steps in (20, 50, 500):
        schedule = make_schedule(name, num_steps, CPU)
        found = [ddpm_moments(0.5, 0.25, schedule, std) for std in ("beta", "posterior")]
        errors.append([abs(mean - 0.5) + abs(variance - 0.25) for mean, variance in found])
    for few, more, many in zip(*errors, strict=True):
        assert few > more > many
        # vp ends at alpha_bar = .0064: what is left of the mean there, sqrt(.0064) .5, is not in a standard normal.
        assert many < (0.03 if name == "vp" else 0.01)


def test_clips_bound_what_they_say() -> None:
    schedule = make_schedule("vp", 5, CPU)
    x, z = torch.randn(1, 200, 3), torch.randn(1, 4, 200, 3)
    wild = lambda t, x: -9 * x  # noqa: E731
    for clip in ("clean", "sample"):
        assert float(ddpm_sample(wild, x, z, schedule, clip).abs().max()) <= 1 + 1e-6
    assert float(ddpm_sample(wild, x, z, schedule, "none").abs().max()) > 10
    mean, _ = posterior(wild, x, 3, schedule, "clean")
    level = schedule.at(3)
    torch.testing.assert_close(mean - level.noisy_weight * x, level.clean_weight * level.clean(-9 * x, x).clamp(-1, 1))


# --- the denoising loss


def test_random_steps_are_uniform_over_all_steps() -> None:
    noise, schedule = SeededNoise([0]), make_schedule("vp", 10, CPU)
    t = add_noise(torch.zeros(1, 50_000, 1, 1), noise, schedule).t
    counts = torch.bincount(t.long().flatten(), minlength=11)
    assert int(counts[0]) == 0 and len(counts) == 11
    assert ((counts[1:] - 5000).abs() < 5 * math.sqrt(5000)).all()


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 1), (0.0999, 1), (0.1001, 2), (1 - 2**-24, 10)])
def test_ends_of_the_uniform_numbers_are_steps(uniform: float, expected: int) -> None:
    draws = {"denoising_noise": torch.ones(1, 2), "denoising_t": torch.full((1, 1), uniform)}
    schedule = make_schedule("linear", 10, CPU)
    noised = add_noise(torch.full((1, 1, 1, 2), 0.5), RecordedNoise(draws), schedule)
    assert float(noised.t) == expected
    bar = schedule.alpha_bars[expected]
    torch.testing.assert_close(noised.x, torch.full((1, 1, 2), 0.5 * math.sqrt(bar) + math.sqrt(1 - bar)))
    assert float(noised.noise_std) == pytest.approx(math.sqrt(1 - bar))


def test_a_predictor_of_zero_loses_one_and_of_the_noise_nothing_where_valid() -> None:
    schedule, target = make_schedule("vp", 5, CPU), torch.zeros(2, 20_000, 2, 3)
    valid = torch.tensor([1.0, 0.0]).expand(2, 20_000, 2)
    loss = denoising_loss(lambda t, x: 0 * x, target, torch.ones_like(valid), SeededNoise([0, 1]), schedule)
    torch.testing.assert_close(loss, torch.ones(2), rtol=0, atol=0.03)
    loss = denoising_loss(lambda t, x: 0 * x, target, valid, SeededNoise([0, 1]), schedule)
    torch.testing.assert_close(loss, torch.full((2,), 0.5), rtol=0, atol=0.03)
    perfect = lambda t, x: x / schedule.at(t).noise_std  # noqa: E731  # of zeros
    assert float(denoising_loss(perfect, target, valid, SeededNoise([0, 1]), schedule).max()) < 1e-9


# --- predictors


def test_predictors_have_the_parameter_counts_of_their_layers() -> None:
    noise, dims = SeededNoise([0]), (512, 512, 512, 512)
    inner = 3 * (512 * 512 + 512)
    step = 32 + 64 * 512 + 512 + inner
    mlp = (25 + 46 + 512) * 512 + 512 + inner + 512 * 25 + 25
    assert count(MLPDenoiser(46, 25, dims, FourierStep(dims, noise), noise)) == step + mlp
    step = 32 + 64 * 128 + 128 + 128 * 128 + 128
    block = 2 * 256 + 256 * 1024 + 1024 + 1024 * 256 + 256
    ends = (25 + 46 + 128) * 256 + 256 + 256 * 25 + 25
    residual = ResidualDenoiser(46, 25, (256, 256, 256), FourierStep((128, 128), noise), noise)
    assert count(residual) == step + 3 * block + ends
    assert count(SinusoidalStep(16, noise)) == 16 * 32 + 32 + 32 * 16 + 16


def test_frequencies_begin_as_stated() -> None:
    step = FourierStep((8, 8), SeededNoise([0]), 10_000)
    assert float(step.frequencies.detach().std()) == pytest.approx(0.2, rel=0.03)


@pytest.mark.parametrize("kind", ["fourier", "sinusoidal", "residual"])
def test_a_predictor_sees_observation_action_and_step(kind: str) -> None:
    noise = SeededNoise([0, 1])
    step = SinusoidalStep(8, noise) if kind == "sinusoidal" else FourierStep((8, 8), noise)
    network = (ResidualDenoiser if kind == "residual" else MLPDenoiser)(3, 4, (8, 8), step, noise)
    obs, x, t = torch.randn(2, 5, 3), torch.randn(2, 5, 4), torch.full((2, 1, 1), 2.0)
    found = network(obs)(t, x)
    assert found.shape == (2, 5, 4)
    torch.testing.assert_close(network(obs)(t.expand(2, 5, 1), x), found)
    for other in (network(obs + 1)(t, x), network(obs)(t + 1, x), network(obs)(t, x + 1)):
        assert not torch.allclose(other, found)


def test_a_residual_predictor_without_blocks_is_two_layers() -> None:
    noise = SeededNoise([0])
    network = ResidualDenoiser(3, 4, (8, 8), FourierStep((8, 8), noise), noise)
    for narrow in network.narrow:
        set_constant(narrow, 0.0)
    set_constant(network.embed, 0.5)
    with torch.no_grad():
        network.out.weight.fill_(1.0)
    found = network(torch.randn(1, 5, 3))(torch.ones(1, 1, 1), torch.randn(1, 5, 4))
    mish = 0.5 * math.tanh(math.log(1 + math.exp(0.5)))
    torch.testing.assert_close(found, torch.full((1, 5, 4), 8 * mish))


# --- agents


class QuadraticCritic(nn.Module):
    """Two critics -|a - centre|^2 / 2, or scale times the sum of the actions."""

    def __init__(self, *centres: float, scale: float | None = None) -> None:
        super().__init__()
        self.centres, self.scale = centres, scale

    def forward(self, obs: Tensor, action: Tensor, constant: bool = False) -> Tensor:
        action = action.flatten(2)
        if self.scale is not None:
            return torch.stack([self.scale * action.sum(-1)] * 2, 1)
        return torch.stack([-0.5 * (action - centre).square().sum(-1) for centre in self.centres], 1)


def make_constant(denoiser: Any, value: float) -> None:
    set_constant(denoiser.get_submodule("mlp.out" if hasattr(denoiser, "mlp") else "out"), value)


@pytest.mark.parametrize("name", ["dac", "qsm"])
def test_score_losses_have_the_gradient_of_their_formula_on_a_quadratic_critic(name: str) -> None:
    changes = {"inverse_temperature": 1.7} if name == "qsm" else {}
    agent, batch = build(name, [0], bc_coef=0.6, **changes), batch_of([0], 5)
    agent.critic.target = QuadraticCritic(0.2, 1.0)
    make_constant(agent.denoiser, 0.3)
    bias = agent.denoiser.mlp.out.bias
    (found,) = torch.autograd.grad(agent.policy_loss(batch, SeededNoise([0]))[0].sum(), bias)
    noised = add_noise(batch.action_chunk, SeededNoise([0]), agent.schedule)
    q_gradient = 0.6 - noised.x  # the mean centre is .6
    valid = batch.counted("window").repeat_interleave(2, -1)
    expected = 2 * 0.6 * valid * (0.3 - noised.eps)
    of_critic = noised.noise_std * q_gradient if name == "dac" else 2 * (0.3 + 1.7 * q_gradient)
    expected = expected + valid * of_critic
    torch.testing.assert_close(found.flatten(), (expected.mean(1) / 10).flatten())


@pytest.mark.parametrize("name", ["dac", "qsm", "diffusion_ql"])
def test_gradients_are_clipped_together_or_each_alone(name: str, gradients: dict[Tensor, Tensor]) -> None:
    agent = build(name, [0], max_gradient_norm=1e-3)
    train(agent, [0], offline=1, online=0)
    squares = [
        sum(float(gradients[p].square().sum()) for p in module.parameters())
        for module in (agent.critic.online, agent.denoiser)
    ]
    if name == "diffusion_ql":
        assert squares == pytest.approx([1e-6, 1e-6], rel=1e-3)
    else:
        assert sum(squares) == pytest.approx(1e-6, rel=1e-3) and min(squares) > 0


@pytest.mark.parametrize("sampler", ["released", "ddpm"])
def test_qsm_steps_to_the_clean_estimate_or_to_the_mean_of_the_step_before(sampler: str) -> None:
    agent = build("qsm", [0], sampler=sampler, denoising_steps=3)
    make_constant(agent.denoiser, 0.005)
    x = start = 0.01
    step_noise = [0.1, -0.1]
    schedule = agent.schedule
    for k, t in enumerate((3, 2, 1)):
        bar, before, beta = schedule.alpha_bars[t], schedule.alpha_bars[t - 1], schedule.betas[t]
        clean = (x - math.sqrt(1 - bar) * 0.005) / math.sqrt(bar)
        mean = math.sqrt(before) * beta / (1 - bar) * clean + math.sqrt(1 - beta) * (1 - before) / (1 - bar) * x
        x = clean if sampler == "released" else mean
        x = x + (math.sqrt(beta) * step_noise[k] if t > 1 else 0)
        assert abs(x) < 1
    draws = {"act_noise": torch.full((1, 10), start)}
    draws["act_step_noise"] = torch.tensor(step_noise).reshape(2, 1, 1).expand(2, 1, 10)
    found = agent.act(torch.randn(1, 1, OBS_DIM), RecordedNoise(draws), "evaluate")
    torch.testing.assert_close(found, torch.full((1, 1, 5, 2), x))


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, -2 / 8), (0.49, -2 / 8), (0.51, 8 / 2)])
def test_diffusion_ql_divides_one_critic_by_the_magnitude_of_the_other(uniform: float, expected: float) -> None:
    agent, batch = build("diffusion_ql", [0]), batch_of([0], 5)
    with torch.no_grad():
        agent.critic.online.mlp.out.weight.zero_()
        agent.critic.online.mlp.out.bias.copy_(torch.tensor([[[2.0], [-8.0]]]))
    noise = RecordedNoise({"q_choice": torch.tensor([uniform])})
    assert float(agent.q_loss(batch.obs, batch.action_chunk, noise)) == pytest.approx(expected)


def test_diffusion_ql_takes_targets_from_its_average_and_actions_from_itself() -> None:
    agent, batch = build("diffusion_ql", [0]), batch_of([0], 5)

    def outcome() -> tuple[float, Tensor]:
        loss = agent.critic_loss(batch, SeededNoise([0]))[0].detach()
        return float(loss), agent.act(batch.obs, SeededNoise([0]), "collect")

    loss, action_chunk = outcome()
    make_constant(agent.denoiser, 0.2)
    assert outcome()[0] == loss and not torch.equal(outcome()[1], action_chunk)
    loss, action_chunk = outcome()
    make_constant(agent.target_denoiser, 0.2)
    assert outcome()[0] != loss and torch.equal(outcome()[1], action_chunk)


@pytest.mark.parametrize("name", ["diffusion_ql", "idql"])
def test_the_averaged_policy_follows_the_policy_of_after_the_step(name: str) -> None:
    agent = build(name, [0], ema_rate=0.25, learning_rate=0.1)  # so that a step shows
    average = parameters_of(agent.target_denoiser)
    train(agent, [0], offline=1, online=0)
    for key, value in parameters_of(agent.target_denoiser).items():
        torch.testing.assert_close(value, 0.75 * average[key] + 0.25 * agent.denoiser.get_parameter(key).detach())


def test_the_average_of_diffusion_ql_moves_at_every_interval_th_update_from_the_first_on() -> None:
    agent, moved = build("diffusion_ql", [0], ema_rate=0.25, ema_interval=3, first_ema_update=4), []
    for update in range(1, 11):
        before = parameters_of(agent.target_denoiser)
        train(agent, [0], offline=update % 2, online=1 - update % 2)
        if changed(agent.target_denoiser, before):
            moved.append(update)
    assert moved == [4, 7, 10]


def test_diffusion_ql_steps_its_policy_by_the_new_critic_and_clips_the_sum_of_the_critics(
    gradients: dict[Tensor, Tensor],
) -> None:
    agent, batch = build("diffusion_ql", [0]), batch_of([0], 5)
    of_critic = torch.autograd.grad(
        agent.critic_loss(batch, SeededNoise([0]))[0].sum(), agent.critic.online.mlp.out.bias
    )
    ahead = build("diffusion_ql", [0])
    ahead.update(batch, SeededNoise([0]))
    policy = build("diffusion_ql", [0])
    policy.critic.online.load_state_dict(ahead.critic.online.state_dict())
    of_policy = torch.autograd.grad(policy.policy_loss(batch, SeededNoise([0]))[0].sum(), policy.denoiser.mlp.out.bias)
    agent.update(batch, SeededNoise([0]))
    torch.testing.assert_close(gradients[agent.critic.online.mlp.out.bias], 2 * of_critic[0])
    torch.testing.assert_close(gradients[agent.denoiser.mlp.out.bias], of_policy[0])


@pytest.mark.parametrize("online_policy", ["fixed", "trained"])
def test_the_policy_of_idql_stays_online_or_goes_on(online_policy: str) -> None:
    agent = build("idql", [0], online_policy=online_policy)
    for phase, moves in (("offline", True), ("online", online_policy == "trained")):
        before = parameters_of(agent.denoiser), parameters_of(agent.target_denoiser)
        train(agent, [0], **{"offline": 0, "online": 0, phase: 1})
        assert changed(agent.denoiser, before[0]) == changed(agent.target_denoiser, before[1]) == moves


def test_diffusion_ql_acts_by_the_softmax_of_q() -> None:
    agent, rows = build("diffusion_ql", [0], num_candidates=5, denoising_steps=1, chunk_length=1), 4000
    make_constant(agent.denoiser, 0.0)
    agent.critic.target = QuadraticCritic(scale=0.25)  # Q of the candidates below: .5 and four times -.5
    draws = {
        "act_noise": torch.tensor([[1.0, 1.0], *[[-1.0, -1.0]] * 4]).repeat(rows, 1),
        "act_choice": SeededNoise([0]).uniform("choice", rows, 5)[0],
    }
    found = agent.act(torch.zeros(1, rows, OBS_DIM), RecordedNoise(draws), "evaluate")
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    share = float((found[..., 0] > 0).float().mean())
    assert share == pytest.approx(1 / (1 + 4 * math.exp(-1)), abs=0.03)  # .5 with the noise of a minimum


@pytest.mark.parametrize("name", ["diffusion_ql", "idql"])
def test_cloning_counts_valid_steps_alone(name: str) -> None:
    agent, batch = build(name, [0]), batch_of([0], 5)
    make_constant(agent.denoiser, 0.3)
    valid = torch.zeros_like(batch.valid)
    valid[:, :, :2] = 1
    noised = add_noise(batch.action_chunk, SeededNoise([0]), agent.schedule)
    expected = (noised.eps - 0.3).square().unflatten(-1, (5, -1))[:, :, :2].sum((1, 2, 3)) / noised.eps[0].numel()
    metrics = agent.update_offline(replace(batch, valid=valid), SeededNoise([0]))
    torch.testing.assert_close(metrics["denoising_loss" if name == "diffusion_ql" else "policy_loss"], expected)


def test_idql_takes_the_candidate_with_the_highest_q() -> None:
    agent = build("idql", [0], num_candidates=4, denoising_steps=1, chunk_length=1)
    make_constant(agent.target_denoiser, 0.0)
    signal = agent.schedule.at(1).signal
    agent.critic.target = QuadraticCritic(0.3, 0.3)
    candidates = torch.tensor(
        [[0.9, 0.9], [-0.3, 0.3], [0.25, 0.4], [0.0, 0.0], [0.1, 0.1], [1, -1], [-1, 1], [-1, -1]]
    )
    draws = {"act_noise": candidates * signal}
    found = agent.act(torch.zeros(1, 2, OBS_DIM), RecordedNoise(draws), "evaluate")
    torch.testing.assert_close(found, torch.tensor([[[[0.25, 0.4]], [[0.1, 0.1]]]]))


def test_idql_fits_q_to_the_next_value_and_the_value_to_the_aggregated_target_q() -> None:
    for aggregation, q in (("min", 1.0), ("mean", 3.0), ("pessimistic", 2.0)):
        agent, batch = build("idql", [0], expectile=0.8, q_aggregation=aggregation), batch_of([0], 5)
        for linear, value in ((agent.value.mlp.out, 2.5), (agent.critic.online.mlp.out, 4.0)):
            set_constant(linear, value)
        with torch.no_grad():
            agent.critic.target.mlp.out.weight.zero_()
            agent.critic.target.mlp.out.bias.copy_(torch.tensor([[[1.0], [5.0]]]))
        weight = batch.valid[..., -1]
        error = 4 - (batch.chunk_return + 2.5 * batch.bootstrap)
        critic_loss = agent.critic_loss(batch, SeededNoise([0]))[0]
        torch.testing.assert_close(critic_loss, (weight * error.square()).mean(1))
        side = 0.8 if q > 2.5 else 0.2
        torch.testing.assert_close(agent.value_loss(batch), (weight * side * (q - 2.5) ** 2).mean(1))
