"""Velocity fields v(s, x, t) of flow policies: plain, gated (SAC Flow-G) and decoded (SAC Flow-T)."""

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.blocks.base import Noise
from agents.blocks.kernels import gelu
from agents.blocks.networks import MLP, Activated, Dims, LayerNorm, Linear

Velocity = Callable[[Tensor, Tensor], Tensor]  # v(t, x): t (S, B or 1, 1), x (S, B, D) -> (S, B, D)


class PlainVelocity(nn.Module):
    """v = MLP([s, x, t]), the field without reparameterisation.

    Like every field it is called with obs (S, B, O) and returns v(t, x), so that a rollout computes what depends on the
    observation alone once and not at every flow step. Here x may be (S, B * n, D), n candidates for each observation.
    """

    def __init__(self, obs_dim: int, chunk_dim: int, hidden_dims: Dims, noise: Noise) -> None:
        super().__init__()
        self.mlp = MLP(obs_dim + chunk_dim + 1, hidden_dims, chunk_dim, noise)

    def forward(self, obs: Tensor) -> Velocity:
        return lambda t, x: self.mlp((obs, x, t.expand(*x.shape[:-1], 1)))


class GatedVelocity(nn.Module):
    """SAC Flow-G (arXiv 2509.25756): v = g * (c - x), a GRU-like step from x towards a candidate c(s, x, t).

    The gate g(s, x, t) starts at sigmoid(5) = .9933 for every input.
    """

    def __init__(self, obs_dim: int, chunk_dim: int, hidden_dims: Dims, gate_dim: int, noise: Noise) -> None:
        super().__init__()
        in_dim = obs_dim + chunk_dim + 1
        self.candidate = MLP(in_dim, hidden_dims, chunk_dim, noise)
        self.gate = nn.Sequential(
            Linear(in_dim, gate_dim, noise, init="lecun"),
            Activated(F.silu),
            Linear(gate_dim, chunk_dim, noise, init="zeros", bias=5.0),
            Activated(torch.sigmoid),
        )

    def forward(self, obs: Tensor) -> Velocity:
        def velocity(t: Tensor, x: Tensor) -> Tensor:
            features = _concat(obs, x, t)
            return self.gate(features) * (self.candidate(features) - x)

        return velocity


class DecodedVelocity(nn.Module):
    """SAC Flow-T (arXiv 2509.25756): a transformer decoder whose one token is (x, t) and whose memory is the state.

    `norm`: "post" as in the released code; "pre" as in the paper, a LayerNorm before each block (for cross-attention:
    of the state embedding) and before the head.
    """

    def __init__(
        self, obs_dim: int, chunk_dim: int, dim: int, num_layers: int, norm: Literal["post", "pre"], noise: Noise
    ) -> None:
        super().__init__()
        lecun = functools.partial(Linear, noise=noise, init="lecun")
        self.embed_obs = nn.Sequential(lecun(obs_dim, dim // 2), Activated(F.silu), lecun(dim // 2, dim))
        self.embed_time = nn.Sequential(
            lecun(1, dim // 4), Activated(F.silu), lecun(dim // 4, dim // 2), Activated(F.silu), lecun(dim // 2, dim)
        )
        self.embed_x = lecun(chunk_dim, dim)
        self.layers = nn.ModuleList(_DecoderLayer(dim, norm, noise) for _ in range(num_layers))
        self.final_norm = LayerNorm(dim, noise) if norm == "pre" else nn.Identity()
        self.head = lecun(dim, chunk_dim)

    def forward(self, obs: Tensor) -> Velocity:
        memory = self.embed_obs(obs)
        layers = [layer(memory) for layer in self.layers]

        def velocity(t: Tensor, x: Tensor) -> Tensor:
            y = self.embed_x(x) + self.embed_time(t)
            for layer in layers:
                y = layer(y)
            return self.head(self.final_norm(y))

        return velocity


class _DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward block: called with the memory, returns the map of the token."""

    def __init__(self, dim: int, norm: Literal["post", "pre"], noise: Noise) -> None:
        super().__init__()
        self.norm = norm
        self.self_attention = OneTokenAttention(dim, noise)
        self.cross_attention = OneTokenAttention(dim, noise)
        self.feed_forward = nn.Sequential(
            Linear(dim, 4 * dim, noise, init="lecun"), Activated(gelu), Linear(4 * dim, dim, noise, init="lecun")
        )
        self.self_norm = LayerNorm(dim, noise)
        self.cross_norm = LayerNorm(dim, noise)
        self.feed_forward_norm = LayerNorm(dim, noise)

    def forward(self, memory: Tensor) -> Callable[[Tensor], Tensor]:
        # Attention to one memory token adds the same to every y.
        attended = self.cross_attention(memory if self.norm == "post" else self.cross_norm(memory))

        def post_norm(y: Tensor) -> Tensor:
            y = self.self_norm(y + self.self_attention(y))
            y = self.cross_norm(y + attended)
            return self.feed_forward_norm(y + self.feed_forward(y))

        def pre_norm(y: Tensor) -> Tensor:
            y = y + self.self_attention(self.self_norm(y)) + attended
            return y + self.feed_forward(self.feed_forward_norm(y))

        return post_norm if self.norm == "post" else pre_norm


class OneTokenAttention(nn.Module):
    """Attention to a single token. Its softmax has one entry, so every weight is 1 whatever the number of heads.

    What remains is out(value(x)). Query and key of the paper's network get no gradient, ever; they are kept, frozen, so
    that parameter counts and the official checkpoints match.
    """

    def __init__(self, dim: int, noise: Noise) -> None:
        super().__init__()
        self.query = Linear(dim, dim, noise, init="lecun").requires_grad_(False)
        self.key = Linear(dim, dim, noise, init="lecun").requires_grad_(False)
        self.value = Linear(dim, dim, noise, init="lecun")
        self.out = Linear(dim, dim, noise, init="lecun")

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.value(x))


def _concat(obs: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([obs, x, t.expand(*x.shape[:-1], 1)], -1)
