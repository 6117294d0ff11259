"""Gaussian policies squashed by tanh: a mean and a standard deviation for each coordinate, given the observation."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from agents.blocks.base import Noise
from agents.blocks.flow import tanh_log_det
from agents.blocks.kernels import by_seed
from agents.blocks.networks import MLP, Activation, Dims

MAX_LOG_STD = 2.0
Density = Literal["exact", "released"]  # released: as SAC Flow's own SAC, CrossQ and Flow-T have it, see each agent


class TanhGaussian(nn.Module):
    """a = tanh(mean(x) + std(x) * eps) of input x (S, B, in), coordinates independent.

    log std is cut to [min_log_std, 2]; `out_scale` multiplies the initial weights of both heads.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Dims,
        out_dim: int,
        noise: Noise,
        activation: Activation = "gelu",
        out_scale: float = 1.0,
        min_log_std: float = -20.0,
    ) -> None:
        super().__init__()
        self.min_log_std = min_log_std
        self.mlp = MLP(in_dim, hidden_dims, 2 * out_dim, noise, activation=activation, out_scale=out_scale, heads=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean before the tanh, and log standard deviation, both (S, B, out)."""
        mean, log_std = self.mlp(x).chunk(2, -1)
        return mean, log_std.clamp(self.min_log_std, MAX_LOG_STD)

    def sample(
        self, x: Tensor, eps: Tensor, density: Density = "exact", scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """tanh(u) (S, B, out) from standard normal eps of that shape, and the log density (S, B) of scale * tanh(u)."""
        mean, log_std = self(x)
        return squashed(mean, log_std, eps, density, scale)

    def log_prob(self, x: Tensor, action: Tensor) -> Tensor:
        """Log density (S, B) of actions (S, B, out), cut to what the tanh reaches in float32."""
        mean, log_std = self(x)
        u = by_seed(torch.atanh, action.clamp(-1 + 1e-5, 1 - 1e-5))
        return gaussian_log_prob((u - mean) / log_std.exp(), log_std) - tanh_log_det(u, "exact")


def gaussian_log_prob(eps: Tensor, log_std: Tensor) -> Tensor:
    """Log density (...,) of mean + exp(log_std) * eps, summed over the last dimension."""
    return (-0.5 * eps.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def squashed(
    mean: Tensor, log_std: Tensor, eps: Tensor, density: Density, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """tanh(u) (S, B, D) of u = mean + exp(log_std) * eps, and the log density (S, B) of scale * tanh(u).

    "released" leaves out -log std, so that the deviation feels no pressure of the entropy, and adds 1e-6 to the
    derivatives of the tanh.
    """
    u = mean + log_std.exp() * eps
    log_prob = gaussian_log_prob(eps, log_std if density == "exact" else torch.zeros_like(log_std))
    return u.tanh(), log_prob - tanh_log_det(u, density, scale)
