"""Values of actions and of states: ensembles, what is made of their members, their losses, choice among candidates.

What agents with a critic share, so that a comparison can hold the critic fixed: `num_critics`, `q_aggregation` and
`pessimism` are fields of each agent's config.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from agents.blocks.base import Metrics, Noise
from agents.blocks.networks import MLP, Activation, Dims
from datasets.batch import Batch

QAggregation = Literal["mean", "min", "pessimistic"]  # over an ensemble; pessimistic: mean - pessimism * std


class Critic(nn.Module):
    """Ensemble Q(s, a) -> (S, N, B) of obs (S, B, O) and action chunk (S, B, H, A).

    `constant`: no gradient reaches the parameters (a policy's loss moves only the action).
    """

    def __init__(
        self,
        obs_dim: int,
        chunk_dim: int,
        hidden_dims: Dims,
        num_critics: int,
        noise: Noise,
        layer_norm: bool = True,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.num_critics = num_critics
        self.mlp = MLP(
            obs_dim + chunk_dim,
            hidden_dims,
            1,
            noise,
            members=(num_critics,),
            layer_norm=layer_norm,
            activation=activation,
        )

    def forward(self, obs: Tensor, action_chunk: Tensor, constant: bool = False) -> Tensor:
        x = torch.cat([obs, action_chunk.flatten(2)], -1)
        return self.mlp(x.unsqueeze(1).expand(-1, self.num_critics, -1, -1), constant).squeeze(-1)


class Value(nn.Module):
    """V(s) -> (S, B) of obs (S, B, O)."""

    def __init__(
        self, obs_dim: int, hidden_dims: Dims, noise: Noise, layer_norm: bool = True, activation: Activation = "gelu"
    ) -> None:
        super().__init__()
        self.mlp = MLP(obs_dim, hidden_dims, 1, noise, layer_norm=layer_norm, activation=activation)

    def forward(self, obs: Tensor) -> Tensor:
        return self.mlp(obs).squeeze(-1)


def aggregate_q(q: Tensor, how: QAggregation, pessimism: float) -> Tensor:
    """One value (S, B) of those of an ensemble (S, N, B); the standard deviation divides by N."""
    if how == "min":
        return q.amin(1)
    if how == "mean":
        return q.mean(1)
    # Cut above 0, where the gradient of a standard deviation is not finite.
    return q.mean(1) - pessimism * q.var(1, correction=0).clamp(min=1e-12).sqrt()


def td_loss(q: Tensor, target: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
    """Squared error (S,) of every critic's q (S, N, B) to the target (S, B), a constant."""
    # A window that runs into the next episode has no meaningful target: weight 0.
    weight = batch.valid[:, None, :, -1]
    loss = (weight * (q - target.unsqueeze(1)).square()).mean((1, 2))
    q = q.detach()
    metrics = {"q_mean": q.mean((1, 2)), "q_min": q.amin((1, 2)), "q_max": q.amax((1, 2))}
    return loss, {"critic_loss": loss.detach(), **metrics}


def expectile_loss(value: Tensor, q: Tensor, expectile: float, weight: Tensor) -> Tensor:
    """Loss (S,) whose minimiser over `value` (S, B) is the expectile of q (S, B), a constant; 0.5 is the mean.

    `weight` (S, B) counts a sample, or not.
    """
    error = q - value
    side = torch.where(error >= 0, expectile, 1 - expectile)
    return (weight * side * error.square()).mean(1)


def action_gradient(critic: Critic, obs: Tensor, action: Tensor) -> Tensor:
    """Gradient of the members' mean Q(s, a) with respect to each sample's action, of the action's shape; a constant."""
    action = action.detach().requires_grad_()
    q = critic(obs, action, constant=True).mean(1)  # (S, B)
    return torch.autograd.grad(q.sum(), action)[0]


def repeat_obs(obs: Tensor, num_candidates: int) -> Tensor:
    """obs (S, B, O) with each row n times in sequence, (S, B * n, O)."""
    return obs.repeat_interleave(num_candidates, 1)


def choose(candidates: Tensor, index: Tensor) -> Tensor:
    """The chunk (S, B, H, A) with number index (S, B) of each row's n candidates (S, B * n, H, A)."""
    grouped = candidates.unflatten(1, (index.shape[1], -1))  # (S, B, n, H, A)
    index = index[..., None, None, None].expand(-1, -1, 1, *candidates.shape[2:])
    return grouped.gather(2, index).squeeze(2)


def best_candidate(candidates: Tensor, score: Tensor, num_candidates: int) -> Tensor:
    """The chunk (S, B, H, A) with the highest score (S, B * n) of each row's n candidates (S, B * n, H, A)."""
    return choose(candidates, score.unflatten(1, (-1, num_candidates)).argmax(-1))
