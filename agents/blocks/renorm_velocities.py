"""Velocity fields of SAC Flow from scratch (Zhang et al., arXiv 2509.25756): BatchRenorm, and noise that is learnt.

A field is called with obs (S, B, O) and which statistics it is to use, and returns a function of the flow step k and
x (S, B, D): the velocity there and the log standard deviation of the step's noise, both (S, B, D). Flow time is k / K.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.blocks.base import Noise
from agents.blocks.batch_renorm import BatchRenorm, Statistics
from agents.blocks.flow import t_like
from agents.blocks.kernels import gelu
from agents.blocks.networks import MLP, Activated, Dims, Linear
from agents.blocks.velocities import OneTokenAttention

NoisyVelocity = Callable[[int, Tensor], tuple[Tensor, Tensor]]
TimeInput = Literal["released", "bypass"]

MIN_LOG_STD, MAX_LOG_STD = -5.0, 2.0  # of a step's noise
FREQUENCIES = 16  # of the sines of flow time, from 1 to 1e-4


def bounded_log_std(raw: Tensor) -> Tensor:
    """A log standard deviation within its bounds, from a network's output of any size."""
    return MIN_LOG_STD + 0.5 * (MAX_LOG_STD - MIN_LOG_STD) * (raw.tanh() + 1)


def time_features(t: Tensor) -> Tensor:
    """Sines, then cosines, of t (…, 1) at fixed frequencies: (…, 32)."""
    exponents = torch.arange(FREQUENCIES, dtype=t.dtype, device=t.device) / (FREQUENCIES - 1)
    angle = t * (-math.log(10_000) * exponents).exp()
    return torch.cat([angle.sin(), angle.cos()], -1)


class RenormGatedVelocity(nn.Module):
    """Flow-G: v = g * (c - x) with gate and candidate of [BatchRenorm([s, x]), features of t]; the noise is one of s.

    `gated`: False is v = c, the same field without the reparameterisation.
    """

    def __init__(
        self, obs_dim: int, chunk_dim: int, width: int, noise_dims: Dims, flow_steps: int, gated: bool, noise: Noise
    ) -> None:
        super().__init__()
        self.flow_steps = flow_steps
        self.norm = BatchRenorm(obs_dim + chunk_dim, noise)
        lecun = functools.partial(Linear, noise=noise, init="lecun")
        self.embed_time = nn.Sequential(lecun(2 * FREQUENCIES, 64), Activated(F.silu), lecun(64, 32))
        in_dim = obs_dim + chunk_dim + 32
        self.candidate = nn.Sequential(lecun(in_dim, width), Activated(F.silu), lecun(width, chunk_dim))
        if gated:
            last = Linear(width, chunk_dim, noise, init="zeros", bias=5.0)
            self.gate = nn.Sequential(lecun(in_dim, width), Activated(F.silu), last, Activated(torch.sigmoid))
        self.gated = gated
        self.noise_std = MLP(obs_dim, noise_dims, chunk_dim, noise, activation="relu", init="lecun")

    def forward(self, obs: Tensor, statistics: Statistics) -> NoisyVelocity:
        log_std = bounded_log_std(self.noise_std(obs))

        def step(k: int, x: Tensor) -> tuple[Tensor, Tensor]:
            time = self.embed_time(time_features(t_like(x, k / self.flow_steps)))
            features = _join(self.norm(torch.cat([obs, x], -1), statistics), time)
            candidate = self.candidate(features)
            return (self.gate(features) * (candidate - x) if self.gated else candidate), log_std

        return step


class NaiveVelocity(nn.Module):
    """[v, log std] = MLP(BatchRenorm([s, x, t])), the paper's flow without reparameterisation, as released.

    In training t is the same for a whole batch and so vanishes in the norm; "bypass" joins it behind the norm.
    """

    def __init__(
        self, obs_dim: int, chunk_dim: int, hidden_dims: Dims, flow_steps: int, time_input: TimeInput, noise: Noise
    ) -> None:
        super().__init__()
        self.flow_steps, self.time_input = flow_steps, time_input
        in_dim = obs_dim + chunk_dim + 1
        self.norm = BatchRenorm(in_dim - (time_input == "bypass"), noise)
        self.mlp = MLP(in_dim, hidden_dims, 2 * chunk_dim, noise, activation="relu", init="lecun", heads=2)

    def forward(self, obs: Tensor, statistics: Statistics) -> NoisyVelocity:
        def step(k: int, x: Tensor) -> tuple[Tensor, Tensor]:
            features, t = torch.cat([obs, x], -1), t_like(x, k / self.flow_steps)
            if self.time_input == "bypass":
                features = _join(self.norm(features, statistics), t)
            else:
                features = self.norm(_join(features, t), statistics)
            velocity, raw = self.mlp(features).chunk(2, -1)
            return velocity, bounded_log_std(raw)

        return step


class RenormDecodedVelocity(nn.Module):
    """Flow-T: a transformer decoder whose one token is (x, t) and whose memory is the state, with BatchRenorm.

    The norm of x is another one at each step. As released the features of t are added to the token, and vanish in the
    norms in training; "bypass" adds them to what each feed-forward block is given.
    """

    def __init__(
        self,
        obs_dim: int,
        chunk_dim: int,
        dim: int,
        num_layers: int,
        flow_steps: int,
        time_input: TimeInput,
        noise: Noise,
    ) -> None:
        super().__init__()
        self.flow_steps, self.time_input = flow_steps, time_input
        lecun = functools.partial(Linear, noise=noise, init="lecun")
        self.obs_norm = BatchRenorm(obs_dim, noise)
        self.x_norms = nn.ModuleList(BatchRenorm(chunk_dim, noise) for _ in range(flow_steps))
        self.embed_obs = nn.Sequential(lecun(obs_dim, dim // 2), Activated(F.silu), lecun(dim // 2, dim))
        self.embed_time = nn.Sequential(
            lecun(1, dim // 4), Activated(F.silu), lecun(dim // 4, dim // 2), Activated(F.silu), lecun(dim // 2, dim)
        )
        self.embed_x = lecun(chunk_dim, dim)
        self.layers = nn.ModuleList(_RenormDecoderLayer(dim, noise) for _ in range(num_layers))
        self.head, self.std_head = lecun(dim, chunk_dim), lecun(dim, chunk_dim)

    def forward(self, obs: Tensor, statistics: Statistics) -> NoisyVelocity:
        memory = self.embed_obs(self.obs_norm(obs, statistics))
        layers = [layer(memory, statistics) for layer in self.layers]

        def step(k: int, x: Tensor) -> tuple[Tensor, Tensor]:
            y, time = self.embed_x(self.x_norms[k](x, statistics)), self.embed_time(t_like(x, k / self.flow_steps))
            if self.time_input == "released":
                y, time = y + time, torch.zeros_like(time)
            for layer in layers:
                y = layer(y, time)
            return self.head(y), bounded_log_std(self.std_head(y))

        return step


class _RenormDecoderLayer(nn.Module):
    """The post-norm layer of `agents.blocks.velocities`, with BatchRenorm in place of LayerNorm."""

    def __init__(self, dim: int, noise: Noise) -> None:
        super().__init__()
        self.self_attention = OneTokenAttention(dim, noise)
        self.cross_attention = OneTokenAttention(dim, noise)
        self.feed_forward = nn.Sequential(
            Linear(dim, 4 * dim, noise, init="lecun"), Activated(gelu), Linear(4 * dim, dim, noise, init="lecun")
        )
        self.self_norm = BatchRenorm(dim, noise)
        self.cross_norm = BatchRenorm(dim, noise)
        self.feed_forward_norm = BatchRenorm(dim, noise)

    def forward(self, memory: Tensor, statistics: Statistics) -> Callable[[Tensor, Tensor], Tensor]:
        attended = self.cross_attention(memory)  # to one memory token: it adds the same to every y

        def apply(y: Tensor, time: Tensor) -> Tensor:
            y = self.self_norm(y + self.self_attention(y), statistics)
            y = self.cross_norm(y + attended, statistics)
            return self.feed_forward_norm(y + self.feed_forward(y + time), statistics)

        return apply


def _join(features: Tensor, of_time: Tensor) -> Tensor:
    return torch.cat([features, of_time.expand(*features.shape[:-1], -1)], -1)
