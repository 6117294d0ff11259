"""Networks of S seeds at once: parameters are (S, ...), or (S, N, ...) for an ensemble of N members.

An input is one tensor (S, *members, B, in), or several side by side of which some may have fewer rows: a row of theirs
stands for B / rows rows that follow each other (`agents.blocks.kernels.affine_of`). So n candidates (S, B * n, D) are
taken with their observations (S, B, O).

Initial values are drawn from the noise source under the name "init", so a seed's network does not depend on its pack.
Conventions of the official JAX code: GELU is the tanh approximation, LayerNorm has eps 1e-6, biases start at 0 unless
`init` says otherwise. How they are computed is in `agents.blocks.kernels`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.blocks.base import Noise
from agents.blocks.kernels import affine, affine_of, by_member, by_seed, gelu, layer_norm, mish

Init = Literal["glorot", "lecun", "torch", "zeros"]
Activation = Literal["gelu", "relu", "mish", "tanh"]
Norm = Literal["none", "before", "after"]  # LayerNorm of hidden layers, where it stands to the activation
Dims = tuple[int, ...]  # widths of hidden layers
Members = tuple[int, ...]  # (N,) for an ensemble, () for a single network
Input = Tensor | Sequence[Tensor]
MANY = 256  # rows from which on a product of its own costs less than repeated rows


def joined(x: Input) -> list[Tensor]:
    """The tensors of an input, neighbours with equally many rows as one; all as one where there are few rows."""
    parts = [x] if isinstance(x, Tensor) else x
    if (rows := max(part.shape[-2] for part in parts)) < MANY:
        parts = [_repeated(part, rows) for part in parts]
    groups = [list(group) for _, group in itertools.groupby(parts, key=lambda part: part.shape[-2])]
    return [torch.cat(group, -1) if len(group) > 1 else group[0] for group in groups]


def _repeated(x: Tensor, rows: int) -> Tensor:
    """x (..., B, in) with each row as often as makes so many rows."""
    return x if x.shape[-2] == rows else x.unsqueeze(-2).expand(*x.shape[:-1], rows // x.shape[-2], -1).flatten(-3, -2)


class Linear(nn.Module):
    """Input (S, *members, B, in) -> (S, *members, B, out), an affine map of its own for each seed and member.

    Glorot: uniform with variance 2 / (in + out), where out is that of one of the `heads`. LeCun: normal with variance
    1 / in, cut at two standard deviations. Torch: weights and biases uniform within 1 / sqrt(in), PyTorch's default.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        noise: Noise,
        init: Init = "glorot",
        members: Members = (),
        bias: float = 0.0,
        heads: int = 1,
    ) -> None:
        super().__init__()
        shape = (*members, in_dim, out_dim)
        if init == "glorot":
            weight = (2 * noise.uniform("init", *shape) - 1) * math.sqrt(6 / (in_dim + out_dim // heads))
        elif init == "lecun":
            # Inverse distribution function of the cut normal; .8796 is the standard deviation before rescaling.
            probability = 0.5 + math.erf(math.sqrt(2)) * (noise.uniform("init", *shape) - 0.5)
            weight = torch.special.ndtri(probability) / (0.87962566103423978 * math.sqrt(in_dim))
        elif init == "torch":
            weight = (2 * noise.uniform("init", *shape) - 1) / math.sqrt(in_dim)
        else:
            weight = torch.zeros(noise.num_seeds, *shape, device=noise.device)
        self.weight = nn.Parameter(weight)
        if init == "torch":
            start = (2 * noise.uniform("init", *members, out_dim) - 1) / math.sqrt(in_dim)
        else:
            start = torch.full((noise.num_seeds, *members, out_dim), bias, device=noise.device)
        self.bias = nn.Parameter(start)

    def forward(self, x: Input) -> Tensor:
        return by_member(_affine, *joined(x), self.weight, self.bias)


class LayerNorm(nn.Module):
    """Normalisation over the last dimension of x (S, *members, B, dim); scale and shift of each seed and member."""

    def __init__(self, dim: int, noise: Noise, members: Members = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(noise.num_seeds, *members, dim, device=noise.device))
        self.bias = nn.Parameter(torch.zeros(noise.num_seeds, *members, dim, device=noise.device))

    def forward(self, x: Tensor) -> Tensor:
        return by_member(layer_norm, x, self.weight, self.bias)


class Activated(nn.Module):
    """A function of each element as a layer: x (S, ...) -> (S, ...)."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return by_seed(self.function, x)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "relu": F.relu,
    "mish": mish,
    "tanh": torch.tanh,
}


class MLP(nn.Module):
    """Linear, activation and, if asked for, LayerNorm before or after it for each hidden layer; a linear output layer.

    `out_scale` multiplies the initial weights of the output layer, which may be several `heads` side by side.
    `residual`, as in DPPO's code: the first layer has no activation, each two that follow have theirs before them and
    are added to what they are given; an odd number of equal widths, without LayerNorm.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Dims,
        out_dim: int,
        noise: Noise,
        members: Members = (),
        norm: Norm = "none",
        activation: Activation = "gelu",
        init: Init = "glorot",
        out_scale: float = 1.0,
        heads: int = 1,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.activation, self.residual = ACTIVATIONS[activation], residual
        self.norm = norm
        dims = [in_dim, *hidden_dims]
        self.hidden = nn.ModuleList(Linear(i, o, noise, init, members) for i, o in itertools.pairwise(dims))
        self.norms = nn.ModuleList(LayerNorm(dim, noise, members) for dim in hidden_dims if norm != "none")
        self.out = Linear(dims[-1], out_dim, noise, init, members, heads=heads)
        with torch.no_grad():
            self.out.weight.mul_(out_scale)

    def forward(self, x: Input, constant: bool = False) -> Tensor:
        """`constant`: no gradient reaches the parameters, only x."""
        layers = [*self.hidden, *self.norms, self.out]
        parameters = [p.detach() if constant else p for layer in layers for p in (layer.weight, layer.bias)]
        return by_member(self._of_member, *joined(x), *parameters)

    def _of_member(self, *tensors: Tensor) -> Tensor:
        """Of the parts of an input, and of weight and bias of each layer."""
        count = 2 * (len(self.hidden) + len(self.norms) + 1)
        parts, parameters = tensors[:-count], tensors[-count:]
        pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
        norms = pairs[len(self.hidden) : -1]
        first, *layers = [*pairs[: len(self.hidden)], pairs[-1]]
        x = affine_of(parts, *first)
        if self.residual:
            for one, other in zip(layers[:-1:2], layers[1::2], strict=True):
                x = x + affine(self.activation(affine(self.activation(x), *one)), *other)
            return affine(x, *layers[-1])
        for i, layer in enumerate(layers):
            if self.norm == "before":
                x = layer_norm(x, *norms[i])
            x = self.activation(x)
            if self.norm == "after":
                x = layer_norm(x, *norms[i])
            x = affine(x, *layer)
        return x


def _affine(*tensors: Tensor) -> Tensor:
    *parts, weight, bias = tensors
    return affine_of(parts, weight, bias)
