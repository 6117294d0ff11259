"""Flows between noise and action: matching loss, Euler steps, noisy rollout and its path log density.

Flow time t runs from 0 (noise, x_0 ~ N(0, I)) to 1 (action); K Euler steps visit t = 0, 1/K, ..., (K - 1)/K. A chunk of
H actions is flattened, time-major, to D = H * A coordinates. A velocity is a function v(t, x) at fixed observation.
"""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.blocks.base import Metrics, Noise
from agents.blocks.kernels import by_seed
from agents.blocks.velocities import Velocity

NoiseScheme = Literal["additive", "paper_sde"]
TanhLogDet = Literal["released", "exact"]


def matching_loss(
    velocity: Velocity, target: Tensor, valid: Tensor, noise: Noise, weight: Tensor | None = None
) -> Tensor:
    """Flow-matching loss (S,) towards the chunks `target` (S, B, H, A); steps that are not `valid` (S, B, H) count 0.

    Regresses v on x_1 - x_0 along x_t = (1 - t) x_0 + t x_1 (arXiv 2210.02747); the mean is over all steps.
    `weight` (S, B) multiplies the loss of each chunk.
    """
    if weight is not None:
        valid = valid * weight.unsqueeze(-1)
    x_1 = target.flatten(2)
    x_0 = noise.normal("matching_noise", *x_1.shape[1:])
    t = noise.uniform("matching_t", x_1.shape[1], 1)
    error = velocity(t, (1 - t) * x_0 + t * x_1) - (x_1 - x_0)
    return (valid.unsqueeze(-1) * error.unflatten(-1, target.shape[2:]).square()).mean((1, 2, 3))


def integrate(velocity: Velocity, x_0: Tensor, flow_steps: int) -> Tensor:
    """x_1 (S, B, D) of the ODE dx = v dt, by `flow_steps` Euler steps from x_0 (S, B, D)."""
    x = x_0
    for k in range(flow_steps):
        x = euler_step(velocity, x, k, flow_steps)
    return x


def euler_step(velocity: Velocity, x: Tensor, k: int, flow_steps: int) -> Tensor:
    """The point (S, B, D) after step k = 0 ... K - 1 from x (S, B, D)."""
    return x + velocity(t_like(x, k / flow_steps), x) / flow_steps


def noisy_rollout(velocity: Velocity, x_0: Tensor, step_noise: Tensor, noise_std: float, scheme: NoiseScheme) -> Tensor:
    """x_1 (S, B, D) of K Euler steps from x_0 (S, B, D), each with Gaussian noise from step_noise (S, K, B, D).

    "additive", the released code: x += v / K + noise_std * eps.
    "paper_sde", the paper: x += b / K + noise_std * sqrt(1 / K) * eps, where the drift b = v + noise_std^2 / 2 * score
    keeps the marginals of the flow, as far as v is that of a matched flow and K is large.
    """
    x = x_0
    for k in range(step_noise.shape[1]):
        x = noisy_step(velocity, x, k, step_noise, noise_std, scheme)
    return x


def noisy_step(
    velocity: Velocity, x: Tensor, k: int, step_noise: Tensor, noise_std: float, scheme: NoiseScheme
) -> Tensor:
    """The point (S, B, D) after step k = 0 ... K - 1 of `noisy_rollout` from x (S, B, D)."""
    flow_steps = step_noise.shape[1]
    t = k / flow_steps
    drift = velocity(t_like(x, t), x)
    if scheme == "paper_sde":
        drift = paper_drift(drift, x, t, noise_std**2)
    return x + drift / flow_steps + step_std(noise_std, flow_steps, scheme) * step_noise[:, k]


def paper_drift(velocity: Tensor, x: Tensor, t: float, variance: float | Tensor) -> Tensor:
    """The drift that keeps the flow's marginals under noise; the score of that at t is (t v - x) / (1 - t)."""
    return velocity + 0.5 * variance * (t * velocity - x) / (1 - t)


def rollout_gradient_norms(
    step: Callable[[int, Tensor], Tensor],
    x_0: Tensor,
    flow_steps: int,
    loss: Callable[[Tensor], Tensor],
    parameters: Iterable[nn.Parameter],
) -> Metrics:
    """Norms (S,) of a policy loss's gradient on its way back through x_{k+1} = step(k, x_k), from x_K to x_0.

    gradient_norm_x_<k>, k = 0 ... K: the Euclidean norm, over D, of dl/dx_k with all later steps, where l is the loss
    of one sample; mean over the batch. The loss counts as a function of x_K alone, so norm k is norm k + 1 after the
    Jacobian of step k, and norm 0 over norm K is the growth over the whole rollout. No norm scales with 1 / B.
    gradient_norm_parameters_<k>, k = 0 ... K - 1: the norm, over all parameters, of what their use in step k alone
    adds to the gradient of the loss. The K vectors sum to the gradient that an optimiser gets.

    Figures 2 and 6a of arXiv 2509.25756 show gradient norms over k = K - 1 ... 0; the released training code does not
    compute them, so which of the two they are, and how they are averaged, is open.

    Args:
        x_0: (S, B, D).
        loss: (S,) of x_K (S, B, D), a mean over B.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    path = [x_0.detach()]
    with torch.no_grad():
        for k in range(flow_steps):
            path.append(step(k, path[-1]))
    x = path[-1].requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    of_points, of_parameters = [_mean_norm(gradient)], []
    for k in reversed(range(flow_steps)):
        x = path[k].requires_grad_()
        gradient, *of_step = torch.autograd.grad(step(k, x), [x, *parameters], gradient, materialize_grads=True)
        of_points.append(_mean_norm(gradient))
        of_parameters.append(torch.cat([part.flatten(1) for part in of_step], 1).norm(dim=1))
    norms = {f"gradient_norm_x_{k}": norm for k, norm in enumerate(reversed(of_points))}
    return norms | {f"gradient_norm_parameters_{k}": norm for k, norm in enumerate(reversed(of_parameters))}


def _mean_norm(gradient: Tensor) -> Tensor:
    """Mean over the batch of the norm of each sample's own gradient, (S,), from that of the mean loss (S, B, D)."""
    return (gradient * gradient.shape[1]).norm(dim=-1).mean(1)


def path_log_prob(x_0: Tensor, step_noise: Tensor, std: float, x_1: Tensor, log_det: TanhLogDet) -> Tensor:
    """Log density (S, B) of the noise path that led to tanh(x_1), with per-step standard deviation `std` (`step_std`).

    log N(x_0; 0, I) + sum_i log N(x_{i+1}; mean_i, std^2) - log |det d tanh(x_1)|. It is not the log density of the
    action. A step's term is that of its noise, a constant: only the tanh term carries a gradient.
    """
    num_draws = x_0.shape[-1] * (1 + step_noise.shape[1])
    constant = 0.5 * num_draws * math.log(2 * math.pi) + step_noise.shape[1] * x_0.shape[-1] * math.log(std)
    squares = x_0.square().sum(-1) + step_noise.square().sum((1, 3))
    return -0.5 * squares - constant - tanh_log_det(x_1, log_det)


def path_entropy(chunk_dim: int, flow_steps: int, std: float) -> float:
    """Mean of -log density of a noise path before the tanh: a constant, in nats."""
    per_draw = 0.5 * math.log(2 * math.pi * math.e)
    return chunk_dim * (per_draw + flow_steps * (per_draw + math.log(std)))


def step_std(noise_std: float, flow_steps: int, scheme: NoiseScheme) -> float:
    """Standard deviation of the noise that one step adds."""
    return noise_std if scheme == "additive" else noise_std / math.sqrt(flow_steps)


def tanh_log_det(u: Tensor, form: TanhLogDet, scale: Tensor | None = None) -> Tensor:
    """log |det d scale * tanh(u) / du| (...,) of u (..., D), with the scale (D,) of each coordinate, or none.

    "exact" is stable for every finite u; "released" adds 1e-6 to each derivative, so that none counts below log(1e-6).
    """
    if form == "exact":
        log_det = 2 * (math.log(2) - u - by_seed(F.softplus, -2 * u)).sum(-1)
        return log_det if scale is None else log_det + scale.log().sum()
    slope = 1 - u.tanh().square()
    return ((slope if scale is None else scale * slope) + 1e-6).log().sum(-1)


def t_like(x: Tensor, t: float) -> Tensor:
    """t of one Euler step in the shape that a velocity takes, (S, 1, 1)."""
    return torch.full((x.shape[0], 1, 1), t, dtype=x.dtype, device=x.device)
