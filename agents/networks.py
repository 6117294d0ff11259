"""Networks of S seeds at once: parameters are (S, ...), or (S, N, ...) for an ensemble of N members.

Initial values are drawn from the noise source under the name "init", so a seed's network does not depend on its pack.
Conventions of the official JAX code: GELU is the tanh approximation, LayerNorm has eps 1e-6, biases start at 0.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.base import Noise

Init = Literal["glorot", "lecun", "zeros"]
Dims = tuple[int, ...]  # widths of hidden layers
Members = tuple[int, ...]  # (N,) for an ensemble, () for a single network
GELU_LINEAR = 2 * math.sqrt(2 / math.pi)  # gelu(x) = x sigmoid(GELU_LINEAR x + GELU_CUBIC x^3)
GELU_CUBIC = 0.044715 * GELU_LINEAR
HAS_ONEDNN = torch.backends.mkldnn.is_available()
Velocity = Callable[[Tensor, Tensor], Tensor]  # v(t, x): t (S, B or 1, 1), x (S, B, D) -> (S, B, D)


def by_member(function: Callable[..., Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
    """`function(x, *parameters)` of every seed and member: x (S, *members, B, in) -> (S, *members, B, out).

    On a GPU it is called once, with one leading dimension for all members. On a CPU it is called for each member alone:
    that is faster than batched products, and the rounding of a seed's numbers does not depend on its pack.
    """
    leading = x.shape[:-2]
    flat = [tensor.flatten(0, len(leading) - 1) for tensor in (x, *parameters)]
    if x.is_cuda:
        return function(*flat).unflatten(0, leading)
    members = [function(*member) for member in zip(*flat, strict=True)]
    y = torch.stack(members) if len(members) > 1 else members[0].unsqueeze(0)
    return y.unflatten(0, leading)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x @ weight + bias, of one member or with a leading dimension of members."""
    if x.dim() == 3:
        return torch.baddbmm(bias.unsqueeze(1), x, weight)
    return _CPUAffine.apply(x, weight, bias) if torch.is_grad_enabled() else _product(x, weight, bias)


class _CPUAffine(torch.autograd.Function):
    """x (B, in) @ weight (in, out) + bias (out,) in float32, by oneDNN where that is the faster library.

    torch.addmm calls MKL, which keeps to AVX2 on AMD processors: oneDNN needs 0.45 of its time there at 512 x 512 and
    batch 256 (on Intel they are equal). Both compute in float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if needs_x else None,
            _product(x.t(), grad) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (m, k) @ b (k, n) [+ bias (n,)]."""
    # A product with few rows or columns (one observation, the last layer of a critic) is faster in MKL everywhere.
    if HAS_ONEDNN and min(a.shape[0], b.shape[1]) >= 16:
        return torch.ops.o2o_bench.onednn_product(a, b, bias)
    return a @ b if bias is None else torch.addmm(bias, a, b)


# An operator of its own, because torch.compile takes oneDNN's linear layer only with constant weights.
_operators = torch.library.Library("o2o_bench", "DEF")
_operators.define("onednn_product(Tensor a, Tensor b, Tensor? bias) -> Tensor")


@torch.library.impl(_operators, "onednn_product", "CPU")
def _onednn_product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")


@torch.library.register_fake("o2o_bench::onednn_product", lib=_operators)
def _onednn_product_shape(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def gelu(x: Tensor) -> Tensor:
    """GELU with the tanh approximation."""
    if x.is_cuda:
        return F.gelu(x, approximate="tanh")
    return _CPUGELU.apply(x) if torch.is_grad_enabled() else x * _gelu_gate(x)


class _CPUGELU(torch.autograd.Function):
    """x * sigmoid(2 u), which equals x * (1 + tanh(u)) / 2 and takes half the time of torch's operator on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = _gelu_gate(x)
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        slope = x.square().mul_(3 * GELU_CUBIC).add_(GELU_LINEAR).mul_(x)
        return slope.mul_(torch.addcmul(gate, gate, gate, value=-1)).add_(gate).mul_(grads[0])


def _gelu_gate(x: Tensor) -> Tensor:
    return x.square().mul_(GELU_CUBIC).add_(GELU_LINEAR).mul_(x).sigmoid_()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalised last dimension, scaled and shifted, of one member or with a leading dimension of members."""
    if x.dim() == 2:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps=1e-6)
    return torch.addcmul(bias.unsqueeze(1), F.layer_norm(x, x.shape[-1:], eps=1e-6), weight.unsqueeze(1))


class Linear(nn.Module):
    """x (S, *members, B, in) -> (S, *members, B, out), an affine map of its own for each seed and member.

    Glorot: uniform with variance 2 / (in + out). LeCun: normal with variance 1 / in, cut at two standard deviations.
    """

    def __init__(
        self, in_dim: int, out_dim: int, noise: Noise, init: Init = "glorot", members: Members = (), bias: float = 0.0
    ) -> None:
        super().__init__()
        shape = (*members, in_dim, out_dim)
        if init == "glorot":
            weight = (2 * noise.uniform("init", *shape) - 1) * math.sqrt(6 / (in_dim + out_dim))
        elif init == "lecun":
            # Inverse distribution function of the cut normal; .8796 is the standard deviation before rescaling.
            probability = 0.5 + math.erf(math.sqrt(2)) * (noise.uniform("init", *shape) - 0.5)
            weight = torch.special.ndtri(probability) / (0.87962566103423978 * math.sqrt(in_dim))
        else:
            weight = torch.zeros(noise.num_seeds, *shape, device=noise.device)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.full((noise.num_seeds, *members, out_dim), bias, device=noise.device))

    def forward(self, x: Tensor) -> Tensor:
        return by_member(affine, x, self.weight, self.bias)


class LayerNorm(nn.Module):
    """Normalisation over the last dimension of x (S, *members, B, dim); scale and shift of each seed and member."""

    def __init__(self, dim: int, noise: Noise, members: Members = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(noise.num_seeds, *members, dim, device=noise.device))
        self.bias = nn.Parameter(torch.zeros(noise.num_seeds, *members, dim, device=noise.device))

    def forward(self, x: Tensor) -> Tensor:
        return by_member(layer_norm, x, self.weight, self.bias)


class GELU(nn.Module):
    """`gelu` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)


class MLP(nn.Module):
    """Linear, GELU and, if asked for, LayerNorm for each hidden layer; a linear output layer."""

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Dims,
        out_dim: int,
        noise: Noise,
        members: Members = (),
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        dims = [in_dim, *hidden_dims]
        self.hidden = nn.ModuleList(Linear(i, o, noise, members=members) for i, o in itertools.pairwise(dims))
        self.norms = nn.ModuleList(LayerNorm(dim, noise, members) for dim in hidden_dims if layer_norm)
        self.out = Linear(dims[-1], out_dim, noise, members=members)

    def forward(self, x: Tensor, constant: bool = False) -> Tensor:
        """`constant`: no gradient reaches the parameters, only x."""
        layers = [*self.hidden, *self.norms, self.out]
        parameters = [p.detach() if constant else p for layer in layers for p in (layer.weight, layer.bias)]
        return by_member(self._of_member, x, *parameters)

    def _of_member(self, x: Tensor, *parameters: Tensor) -> Tensor:
        pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
        hidden, norms, out = pairs[: len(self.hidden)], pairs[len(self.hidden) : -1], pairs[-1]
        for i, pair in enumerate(hidden):
            x = gelu(affine(x, *pair))
            if norms:
                x = layer_norm(x, *norms[i])
        return affine(x, *out)


class Critic(nn.Module):
    """Ensemble Q(s, a) -> (S, N, B) of obs (S, B, O) and action chunk (S, B, H, A).

    `constant`: no gradient reaches the parameters (a policy's loss moves only the action).
    """

    def __init__(self, obs_dim: int, chunk_dim: int, hidden_dims: Dims, num_critics: int, noise: Noise) -> None:
        super().__init__()
        self.num_critics = num_critics
        self.mlp = MLP(obs_dim + chunk_dim, hidden_dims, 1, noise, members=(num_critics,), layer_norm=True)

    def forward(self, obs: Tensor, action_chunk: Tensor, constant: bool = False) -> Tensor:
        x = torch.cat([obs, action_chunk.flatten(2)], -1)
        return self.mlp(x.unsqueeze(1).expand(-1, self.num_critics, -1, -1), constant).squeeze(-1)


class PlainVelocity(nn.Module):
    """v = MLP([s, x, t]), the field without reparameterisation.

    Like every field it is called with obs (S, B, O) and returns v(t, x), so that a rollout computes what depends on the
    observation alone once and not at every flow step.
    """

    def __init__(self, obs_dim: int, chunk_dim: int, hidden_dims: Dims, noise: Noise) -> None:
        super().__init__()
        self.mlp = MLP(obs_dim + chunk_dim + 1, hidden_dims, chunk_dim, noise)

    def forward(self, obs: Tensor) -> Velocity:
        return lambda t, x: self.mlp(_concat(obs, x, t))


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
            nn.SiLU(),
            Linear(gate_dim, chunk_dim, noise, init="zeros", bias=5.0),
            nn.Sigmoid(),
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
        self.embed_obs = nn.Sequential(lecun(obs_dim, dim // 2), nn.SiLU(), lecun(dim // 2, dim))
        self.embed_time = nn.Sequential(
            lecun(1, dim // 4), nn.SiLU(), lecun(dim // 4, dim // 2), nn.SiLU(), lecun(dim // 2, dim)
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
        self.self_attention = _OneTokenAttention(dim, noise)
        self.cross_attention = _OneTokenAttention(dim, noise)
        self.feed_forward = nn.Sequential(
            Linear(dim, 4 * dim, noise, init="lecun"), GELU(), Linear(4 * dim, dim, noise, init="lecun")
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


class _OneTokenAttention(nn.Module):
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
