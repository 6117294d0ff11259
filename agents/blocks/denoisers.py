"""Noise predictors eps(s, x, t) of diffusion policies, and what they make of the step t."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from agents.blocks.base import Noise
from agents.blocks.kernels import by_member, by_seed, mish
from agents.blocks.networks import MLP, Activation, Dims, Init, LayerNorm, Linear

# eps(t, x): t (S, B or 1, 1), a whole number as float, x (S, B, D) -> (S, B, D)
Predictor = Callable[[Tensor, Tensor], Tensor]


class FourierStep(nn.Module):
    """MLP of cos(2 pi w t) and sin(2 pi w t) with learnt frequencies w, which begin as N(0, .2^2).

    `dims`: widths of the MLP's layers; the last one, its output, has no activation.
    `first`: the number under which it sees the step t = 1.
    """

    def __init__(self, dims: Dims, noise: Noise, num_frequencies: int = 32, first: int = 1) -> None:
        super().__init__()
        self.out_dim, self.first = dims[-1], first
        self.frequencies = nn.Parameter(0.2 * noise.normal("init", 1, num_frequencies))
        self.mlp = MLP(2 * num_frequencies, dims[:-1], dims[-1], noise, activation="mish")

    def forward(self, t: Tensor) -> Tensor:
        angle = 2 * math.pi * by_member(torch.mul, t + (self.first - 1), self.frequencies)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1))


class SinusoidalStep(nn.Module):
    """MLP (one hidden layer of twice the width) of sines and cosines with fixed frequencies from 1 to 1e-4.

    `first`: the number under which it sees the step t = 1.
    """

    def __init__(self, dim: int, noise: Noise, init: Init = "glorot", first: int = 1) -> None:
        super().__init__()
        self.out_dim, self.first = dim, first
        self.mlp = MLP(dim, (2 * dim,), dim, noise, activation="mish", init=init)

    def forward(self, t: Tensor) -> Tensor:
        half = self.out_dim // 2
        exponents = torch.arange(half, dtype=t.dtype, device=t.device) / (half - 1)
        angle = (t + (self.first - 1)) * (-math.log(10_000) * exponents).exp()
        return self.mlp(torch.cat([angle.sin(), angle.cos()], -1))


class MLPDenoiser(nn.Module):
    """eps = MLP([x, s, features of t]).

    Like every predictor it is called with obs (S, B, O) and returns eps(t, x); x may be (S, B * n, D), n candidates for
    each observation. The velocity of a flow has the same form, and serves as one with flow time for t.
    """

    def __init__(
        self,
        obs_dim: int,
        chunk_dim: int,
        hidden_dims: Dims,
        step: FourierStep | SinusoidalStep,
        noise: Noise,
        init: Init = "glorot",
        activation: Activation = "mish",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.step = step
        in_dim = chunk_dim + obs_dim + step.out_dim
        self.mlp = MLP(in_dim, hidden_dims, chunk_dim, noise, activation=activation, init=init, residual=residual)

    def forward(self, obs: Tensor) -> Predictor:
        return lambda t, x: self.mlp((x, obs, self.step(t)))


class ResidualDenoiser(nn.Module):
    """IDQL's predictor (arXiv 2304.10573): residual blocks of LayerNorm and an MLP four times as wide, with Mish.

    `dims`: the width of each block, all the same.
    """

    def __init__(
        self, obs_dim: int, chunk_dim: int, dims: Dims, step: FourierStep | SinusoidalStep, noise: Noise
    ) -> None:
        super().__init__()
        self.step = step
        lecun = functools.partial(Linear, noise=noise, init="lecun")
        self.embed = Linear(chunk_dim + obs_dim + step.out_dim, dims[0], noise)
        self.norms = nn.ModuleList(LayerNorm(dim, noise) for dim in dims)
        self.wide = nn.ModuleList(lecun(dim, 4 * dim) for dim in dims)
        self.narrow = nn.ModuleList(lecun(4 * dim, dim) for dim in dims)
        self.out = Linear(dims[-1], chunk_dim, noise)

    def forward(self, obs: Tensor) -> Predictor:
        def predict(t: Tensor, x: Tensor) -> Tensor:
            y = self.embed((x, obs, self.step(t)))
            for norm, wide, narrow in zip(self.norms, self.wide, self.narrow, strict=True):
                y = y + narrow(by_seed(mish, wide(norm(y))))
            return self.out(by_seed(mish, y))

        return predict
