"""Batch renormalisation (Ioffe, arXiv 1702.03275) as in CrossQ (arXiv 1902.05605): statistics that are state.

Fixed bounds of r and d from the 100,000th call on, plain batch normalisation before it; biased variances throughout.
"""

import itertools
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.blocks.base import Noise
from agents.blocks.kernels import affine, all_by_member, by_member
from agents.blocks.networks import Dims, Linear, Members

EPS, MOMENTUM = 1e-3, 0.99
R_MAX, D_MAX = 3.0, 5.0
WARM_UP = 100_000  # calls

# running: those of acting and of targets. batch: of the batch. train: of the batch, which moves the running ones.
Statistics = Literal["running", "batch", "train"]


class BatchRenorm(nn.Module):
    """Normalisation of each feature of x (S, *members, B, dim) over its batch; scale and shift of each seed and member.

    `calls` counts those that trained. A call of a rollout sees what the calls before it have made of the statistics.
    """

    mean: Tensor
    variance: Tensor
    calls: Tensor

    def __init__(self, dim: int, noise: Noise, members: Members = ()) -> None:
        super().__init__()
        shape = (noise.num_seeds, *members, dim)
        self.weight = nn.Parameter(torch.ones(shape, device=noise.device))
        self.bias = nn.Parameter(torch.zeros(shape, device=noise.device))
        self.register_buffer("mean", torch.zeros(shape, device=noise.device))
        self.register_buffer("variance", torch.ones(shape, device=noise.device))
        self.register_buffer("calls", torch.zeros(shape[:-1], dtype=torch.int64, device=noise.device))

    def forward(self, x: Tensor, statistics: Statistics) -> Tensor:
        if statistics == "running":
            return by_member(normalise, x, *self.tensors())
        y, *found = all_by_member(renormalise, x, *self.tensors())
        if statistics == "train":
            self.follow(*found)
        return y

    def tensors(self, constant: bool = False) -> tuple[Tensor, ...]:
        """What `normalise` and `renormalise` take beside x; `constant`: no gradient reaches the parameters."""
        weight, bias = (p.detach() if constant else p for p in (self.weight, self.bias))
        return weight, bias, self.mean, self.variance, self.calls

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor) -> None:
        """One step of the running statistics towards those of a batch, (S, *members, dim)."""
        self.mean.mul_(MOMENTUM).add_(mean, alpha=1 - MOMENTUM)
        self.variance.mul_(MOMENTUM).add_(variance, alpha=1 - MOMENTUM)
        self.calls += 1


def normalise(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, calls: Tensor) -> Tensor:
    """x (B, dim) by the running statistics, of one member or with a leading dimension of members."""
    return _scaled(x, weight, bias, mean, variance)


def renormalise(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, calls: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, dim) by its own statistics, renormalised once warm; and those, as constants: mean and variance (dim,).

    Of one member or with a leading dimension of members. A gradient flows through the batch's statistics, none through
    r and d, which compare them with the running ones.
    """
    batch_mean = x.mean(-2)
    # Not the mean of (x - mean)^2: where means are large the two round differently, and this is the official one.
    batch_variance = (x.square().mean(-2) - batch_mean.square()).clamp(min=0)
    with torch.no_grad():
        found = batch_mean.detach(), batch_variance.detach()
        running_std = (variance + EPS).sqrt()
        is_warm = (calls >= WARM_UP).unsqueeze(-1)
        r = ((found[1] + EPS).sqrt() / running_std).clamp(1 / R_MAX, R_MAX)
        d = ((found[0] - mean) / running_std).clamp(-D_MAX, D_MAX)
        r, d = torch.where(is_warm, r, 1.0), torch.where(is_warm, d, 0.0)
    # Without EPS under the root, as released. Its slope at 0 is not finite, and d may be 0: no gradient there.
    std = batch_variance.clamp(min=1e-30).sqrt()
    return _scaled(x, weight, bias, batch_mean - d * std / r, batch_variance / r.square()), *found


def _scaled(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    scale = (variance + EPS).rsqrt() * weight
    return torch.addcmul(bias.unsqueeze(-2), x - mean.unsqueeze(-2), scale.unsqueeze(-2))


class RenormMLP(nn.Module):
    """x (S, *members, B, in) -> (S, *members, B, out), with BatchRenorm of x and of every hidden layer's ReLU."""

    def __init__(
        self, in_dim: int, hidden_dims: Dims, out_dim: int, noise: Noise, members: Members = (), heads: int = 1
    ) -> None:
        super().__init__()
        dims = [in_dim, *hidden_dims]
        self.norms = nn.ModuleList(BatchRenorm(dim, noise, members) for dim in dims)
        self.hidden = nn.ModuleList(Linear(i, o, noise, "lecun", members) for i, o in itertools.pairwise(dims))
        self.out = Linear(dims[-1], out_dim, noise, "lecun", members, heads=heads)

    def forward(self, x: Tensor, statistics: Statistics, constant: bool = False) -> Tensor:
        """`constant`: no gradient reaches the parameters, only x."""
        layers = [*self.hidden, self.out]
        linear = [p.detach() if constant else p for layer in layers for p in (layer.weight, layer.bias)]
        own_norms = cast("list[BatchRenorm]", list(self.norms))
        norms = [tensor for norm in own_norms for tensor in norm.tensors(constant)]
        if statistics == "running":
            return all_by_member(self._by_running, x, *linear, *norms)[0]
        y, *found = all_by_member(self._by_batch, x, *linear, *norms)
        if statistics == "train":
            for i, norm in enumerate(own_norms):
                norm.follow(found[2 * i], found[2 * i + 1])
        return y

    def _by_running(self, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        *hidden, out, norms = self._unpacked(tensors)
        x = normalise(x, *norms[0])
        for linear, norm in zip(hidden, norms[1:], strict=True):
            x = normalise(F.relu(affine(x, *linear)), *norm)
        return (affine(x, *out),)

    def _by_batch(self, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        *hidden, out, norms = self._unpacked(tensors)
        x, *found = renormalise(x, *norms[0])
        for linear, norm in zip(hidden, norms[1:], strict=True):
            x, *of_layer = renormalise(F.relu(affine(x, *linear)), *norm)
            found += of_layer
        return affine(x, *out), *found

    def _unpacked(self, tensors: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """Weight and bias of each linear layer, and a list of what each norm holds."""
        count = 2 * (len(self.hidden) + 1)
        linear, norms = tensors[:count], tensors[count:]
        size = len(norms) // len(self.norms)
        of_norms = [norms[start : start + size] for start in range(0, len(norms), size)]
        return *zip(linear[::2], linear[1::2], strict=True), of_norms
