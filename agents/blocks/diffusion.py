"""Diffusion between action and noise: schedules, denoising loss, samplers.

Steps t count from 0 (action) to T (almost noise): x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, where
alpha_bar_t is the product of alpha_1 ... alpha_t, and beta_t = 1 - alpha_t (DDPM, arXiv 2006.11239). This is the other
way round than flow time. A chunk is flattened as in `agents.blocks.flow`. A predictor is a function eps(t, x), the
noise in x, at fixed observation.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from agents.blocks.base import Noise
from agents.blocks.denoisers import Predictor

ScheduleName = Literal["vp", "cosine", "linear"]
Clip = Literal["clean", "sample", "none"]  # to [-1, 1]: the estimate of x_0 in each step, or what the step returns
StepStd = Literal["beta", "posterior"]  # of a sampler's noise: sqrt(beta_t), or that of x_{t-1} given x_t and x_0


class Level(NamedTuple):
    """What a schedule says about step t: floats, or tensors (S, B, 1) for a step of each sample."""

    signal: Any  # sqrt(alpha_bar_t)
    noise_std: Any  # sqrt(1 - alpha_bar_t)
    clean_weight: Any  # the mean of x_{t-1} given x_t and x_0 is clean_weight x_0 + noisy_weight x_t
    noisy_weight: Any
    beta_std: Any  # sqrt(beta_t)
    posterior_std: Any  # standard deviation of x_{t-1} given x_t and x_0; 0 at t = 1

    def std(self, step_std: StepStd) -> Any:
        """Standard deviation of a sampler's noise."""
        return self.beta_std if step_std == "beta" else self.posterior_std

    def clean(self, eps: Tensor, x: Tensor) -> Tensor:
        """The estimate of x_0 from x_t and the noise in it."""
        return (x - self.noise_std * eps) / self.signal


@dataclass(frozen=True, eq=False)
class Schedule:
    """A noise schedule of T steps. Tuples are indexed by t = 0 ... T; entry 0 is that of no noise."""

    betas: tuple[float, ...]
    alphas: tuple[float, ...]
    alpha_bars: tuple[float, ...]
    levels: tuple[Level, ...]
    table: Tensor  # (T + 1, 6), the levels on the device of training; no buffer, it has no seed dimension

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.betas) - 1

    def at(self, t: int | Tensor) -> Level:
        """The level of a step, or of each sample's step t (S, B, 1), whole numbers."""
        if isinstance(t, int):
            return self.levels[t]
        return Level(*self.table[t.squeeze(-1).long()].unsqueeze(-2).unbind(-1))


def make_schedule(name: ScheduleName, num_steps: int, device: torch.device) -> Schedule:
    """The schedule of T = `num_steps` steps, its table on `device`.

    vp: beta grows linearly in continuous time from .1 to 10 (arXiv 2011.13456, as in Diffusion-QL and IDQL).
    cosine: alpha_bar is a squared cosine with offset .008, betas at most .999 (arXiv 2102.09672).
    linear: betas from 1e-4 to 2e-2 whatever T (DDPM, whose T is 1000).
    """
    steps = range(1, num_steps + 1)
    if name == "vp":
        low, high = 0.1, 10.0
        betas = [-math.expm1(-low / num_steps - 0.5 * (high - low) * (2 * t - 1) / num_steps**2) for t in steps]
    elif name == "cosine":
        cosines = [math.cos((t / num_steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, *steps)]
        betas = [min(max(1 - after / before, 0.0), 0.999) for before, after in itertools.pairwise(cosines)]
    else:
        betas = [1e-4 + (2e-2 - 1e-4) * (t - 1) / max(num_steps - 1, 1) for t in steps]
    alphas = (1.0, *(1 - beta for beta in betas))
    alpha_bars = tuple(itertools.accumulate(alphas, lambda product, alpha: product * alpha))
    levels = [Level(1.0, 0.0, 1.0, 0.0, 0.0, 0.0)]
    for t in steps:
        beta, bar, previous = betas[t - 1], alpha_bars[t], alpha_bars[t - 1]
        levels.append(
            Level(
                signal=math.sqrt(bar),
                noise_std=math.sqrt(1 - bar),
                clean_weight=math.sqrt(previous) * beta / (1 - bar),
                noisy_weight=math.sqrt(alphas[t]) * (1 - previous) / (1 - bar),
                beta_std=math.sqrt(beta),
                posterior_std=math.sqrt(beta * (1 - previous) / (1 - bar)),
            )
        )
    return Schedule((0.0, *betas), alphas, alpha_bars, tuple(levels), torch.tensor(levels, device=device))


# --- training


class Noised(NamedTuple):
    """Chunks at random steps of a schedule."""

    x: Tensor  # (S, B, D) x_t
    t: Tensor  # (S, B, 1) in 1 ... T, as floats
    eps: Tensor  # (S, B, D) the noise in x
    noise_std: Tensor  # (S, B, 1) sqrt(1 - alpha_bar_t), the share of eps in x


def add_noise(target: Tensor, noise: Noise, schedule: Schedule) -> Noised:
    """The chunks `target` (S, B, H, A), each with noise of a step that is uniform over 1 ... T."""
    x_0 = target.flatten(2)
    eps = noise.normal("denoising_noise", *x_0.shape[1:])
    uniform = noise.uniform("denoising_t", x_0.shape[1], 1)
    t = (uniform * schedule.num_steps).floor().clamp(max=schedule.num_steps - 1) + 1  # a product may round up
    level = schedule.at(t)
    return Noised(level.signal * x_0 + level.noise_std * eps, t, eps, level.noise_std)


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Mean (S,) of x (S, B, D) over B and D; steps that are not `valid` (S, B, H) count 0."""
    return (valid.unsqueeze(-1) * x.unflatten(-1, (valid.shape[-1], -1))).mean((1, 2, 3))


def denoising_loss(predict: Predictor, target: Tensor, valid: Tensor, noise: Noise, schedule: Schedule) -> Tensor:
    """Squared error (S,) of the predicted noise in the chunks `target` (S, B, H, A) at random steps."""
    noised = add_noise(target, noise, schedule)
    return masked_mean((noised.eps - predict(noised.t, noised.x)).square(), valid)


# --- sampling


def posterior(
    predict: Predictor,
    x: Tensor,
    t: int | Tensor,
    schedule: Schedule,
    clip: Clip = "none",
    step_std: StepStd = "beta",
) -> tuple[Tensor, Any]:
    """Mean (S, B, D) and standard deviation (float, or (S, B, 1)) of x_{t-1} given x_t = x (S, B, D).

    t is one step, or that of each sample (S, B, 1). Of the clips only "clean" has an effect here.
    """
    level = schedule.at(t)
    clean = level.clean(predict(step_of(x, t), x), x)
    if clip == "clean":
        clean = clean.clamp(-1, 1)
    return level.clean_weight * clean + level.noisy_weight * x, level.std(step_std)


def ddpm_sample(
    predict: Predictor, x_T: Tensor, step_noise: Tensor, schedule: Schedule, clip: Clip, step_std: StepStd = "beta"
) -> Tensor:
    """x_0 (S, B, D) by T steps from x_T (S, B, D) with noise from step_noise (S, T - 1, B, D), none at the last one."""
    x = x_T
    for k in range(schedule.num_steps):
        x = ddpm_step(predict, x, k, step_noise, schedule, clip, step_std)
    return x


def ddpm_step(
    predict: Predictor,
    x: Tensor,
    k: int,
    step_noise: Tensor,
    schedule: Schedule,
    clip: Clip,
    step_std: StepStd = "beta",
) -> Tensor:
    """x_{T - k - 1} (S, B, D), after step k = 0 ... T - 1 of `ddpm_sample` from x_{T - k} (S, B, D)."""
    t = schedule.num_steps - k
    x, std = posterior(predict, x, t, schedule, clip, step_std)
    if t > 1:
        x = x + std * step_noise[:, k]
    return x.clamp(-1, 1) if clip == "sample" else x


def draw_noise(name: str, shape: tuple[int, int], noise: Noise, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """x_T (S, *shape) and step noise (S, T - 1, *shape) of a sampler, under names that begin with `name`."""
    x_T = noise.normal(f"{name}_noise", *shape)
    if schedule.num_steps == 1:
        return x_T, x_T[:, None, :0]
    return x_T, noise.normal(f"{name}_step_noise", schedule.num_steps - 1, *shape)


def step_of(x: Tensor, t: int | Tensor) -> Tensor:
    """A step in the shape that a predictor takes, (S, 1, 1) or (S, B, 1)."""
    return torch.full((x.shape[0], 1, 1), t, dtype=x.dtype, device=x.device) if isinstance(t, int) else t
