"""Values of actions and of states: the critic block, losses of values, choice among candidates.

What agents with a critic share, so that a comparison can hold the critic fixed. Its settings are the field `critic` of
an agent's config.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from agents.blocks.base import Adam, Metrics, Noise, frozen_copy, polyak_update
from agents.blocks.config import check_config
from agents.blocks.networks import MLP, Activation, Dims, Init, Norm, joined
from datasets.batch import Batch

QAggregation = Literal["mean", "min", "pessimistic"]  # over an ensemble; pessimistic: mean - pessimism * std


@dataclass(frozen=True)
class CriticConfig:
    """Settings of the critics of any agent; the first two are what papers differ in."""

    num_critics: int  # N
    q_aggregation: QAggregation  # one value of the N, in the critic's target and wherever the agent says so
    pessimism: float = 0.5  # rho, standard deviations below the mean; pessimistic aggregation
    target_update_rate: float = 0.005  # tau
    critic_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # of Q, and of V where the agent has one
    critic_norm: Norm = "after"  # LayerNorm of their hidden layers: after the activation, before it, or none
    critic_activation: Activation = "gelu"

    def __post_init__(self) -> None:
        check_config(self, target_update_rate=(0, 1))


class QEnsemble(nn.Module):
    """N networks Q(s, a) -> (S, N, B) of obs (S, B, O) and action chunk (S, B, H, A), or flat (S, B, D).

    Of n candidates for each observation, (S, B * n, H, A), it is (S, N, B * n).
    `constant`: no gradient reaches the parameters (a policy's loss moves only the action).
    """

    def __init__(
        self,
        obs_dim: int,
        chunk_dim: int,
        hidden_dims: Dims,
        num_critics: int,
        noise: Noise,
        norm: Norm = "after",
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.num_critics = num_critics
        members = (num_critics,)
        self.mlp = MLP(obs_dim + chunk_dim, hidden_dims, 1, noise, members=members, norm=norm, activation=activation)

    @classmethod
    def of(cls, config: CriticConfig, obs_dim: int, chunk_dim: int, noise: Noise) -> "QEnsemble":
        kind = (config.critic_norm, config.critic_activation)
        return cls(obs_dim, chunk_dim, config.critic_hidden_dims, config.num_critics, noise, *kind)

    def forward(self, obs: Tensor, action_chunk: Tensor, constant: bool = False) -> Tensor:
        parts = joined((obs, action_chunk.flatten(2)))
        x = [part.unsqueeze(1).expand(-1, self.num_critics, -1, -1) for part in parts]
        return self.mlp(x, constant).squeeze(-1)


class Critic(nn.Module):
    """Critics in training, `online`, their slow copies, `target`, and the optimiser: an agent's `self.critic`.

    Called, it is the critics in training. An update takes `target_value` into the target of `loss`, calls `follow`, and
    hands `optimizer` and loss to `gradient_step`; agents whose official code does so step first and follow then.
    """

    def __init__(self, config: CriticConfig, obs_dim: int, chunk_dim: int, learning_rate: float, noise: Noise) -> None:
        super().__init__()
        self.config = config
        self.online = QEnsemble.of(config, obs_dim, chunk_dim, noise)
        self.target = frozen_copy(self.online)
        self.optimizer = Adam(self.online.parameters(), learning_rate)

    def forward(self, obs: Tensor, action_chunk: Tensor, constant: bool = False) -> Tensor:
        """Q (S, N, B) of the critics in training; `constant` as in `QEnsemble`."""
        return self.online(obs, action_chunk, constant)

    def aggregate(self, q: Tensor) -> Tensor:
        """One value (S, B) of those of N critics (S, N, B), as configured."""
        return aggregate_q(q, self.config.q_aggregation, self.config.pessimism)

    def target_value(self, obs: Tensor, action_chunk: Tensor) -> Tensor:
        """The target critics' value (S, B) of action chunks (S, B, H, A) at obs (S, B, O)."""
        return self.aggregate(self.target(obs, action_chunk))

    def loss(self, batch: Batch, target: Tensor) -> tuple[Tensor, Metrics]:
        """Squared error (S,) of every critic at the batch's chunks to the target (S, B), a constant."""
        return squared_error(self(batch.obs, batch.action_chunk), target, batch)

    def follow(self) -> None:
        """The target critics' Polyak step."""
        polyak_update(self.target, self.online, self.config.target_update_rate)


class Value(nn.Module):
    """V(s) -> (S, B) of obs (S, B, O)."""

    def __init__(
        self,
        obs_dim: int,
        hidden_dims: Dims,
        noise: Noise,
        norm: Norm = "after",
        activation: Activation = "gelu",
        init: Init = "glorot",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = MLP(obs_dim, hidden_dims, 1, noise, norm=norm, activation=activation, init=init, residual=residual)

    @classmethod
    def of(cls, config: CriticConfig, obs_dim: int, noise: Noise) -> "Value":
        """A network of the kind of the critics."""
        return cls(obs_dim, config.critic_hidden_dims, noise, config.critic_norm, config.critic_activation)

    def forward(self, obs: Tensor) -> Tensor:
        return self.mlp(obs).squeeze(-1)


def squared_error(q: Tensor, target: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
    """Loss (S,) of Q (S, N, B) at the batch's chunks against the target (S, B), a constant; and metrics of Q."""
    # A window that runs into the next episode has no meaningful target: weight 0.
    weight = batch.valid[:, None, :, -1]
    loss = (weight * (q - target.unsqueeze(1)).square()).mean((1, 2))
    return loss, {"critic_loss": loss.detach(), **q_metrics(q.detach())}


def q_metrics(q: Tensor) -> Metrics:
    """Mean, least and greatest of Q (S, N, B), a constant."""
    return {"q_mean": q.mean((1, 2)), "q_min": q.amin((1, 2)), "q_max": q.amax((1, 2))}


def aggregate_q(q: Tensor, how: QAggregation, pessimism: float) -> Tensor:
    """One value (S, B) of those of an ensemble (S, N, B); the standard deviation divides by N."""
    if how == "min":
        return q.amin(1)
    if how == "mean":
        return q.mean(1)
    # Cut above 0, where the gradient of a standard deviation is not finite.
    return q.mean(1) - pessimism * q.var(1, correction=0).clamp(min=1e-12).sqrt()


def expectile_loss(value: Tensor, q: Tensor, expectile: float, weight: Tensor) -> Tensor:
    """Loss (S,) whose minimiser over `value` (S, B) is the expectile of q (S, B), a constant; 0.5 is the mean.

    `weight` (S, B) counts a sample, or not.
    """
    error = q - value
    side = torch.where(error >= 0, expectile, 1 - expectile)
    return (weight * side * error.square()).mean(1)


def action_gradient(critic: QEnsemble, obs: Tensor, action: Tensor) -> Tensor:
    """Gradient of the members' mean Q(s, a) with respect to each sample's action, of the action's shape; a constant."""
    action = action.detach().requires_grad_()
    q = critic(obs, action, constant=True).mean(1)  # (S, B)
    return torch.autograd.grad(q.sum(), action)[0]


def choose(candidates: Tensor, index: Tensor) -> Tensor:
    """The chunk (S, B, H, A) with number index (S, B) of each row's n candidates (S, B * n, H, A)."""
    grouped = candidates.unflatten(1, (index.shape[1], -1))  # (S, B, n, H, A)
    index = index[..., None, None, None].expand(-1, -1, 1, *candidates.shape[2:])
    return grouped.gather(2, index).squeeze(2)


def best_candidate(candidates: Tensor, score: Tensor, num_candidates: int) -> Tensor:
    """The chunk (S, B, H, A) with the highest score (S, B * n) of each row's n candidates (S, B * n, H, A)."""
    return choose(candidates, score.unflatten(1, (-1, num_candidates)).argmax(-1))


def project(probability: Tensor, values: Tensor, atoms: Tensor) -> Tensor:
    """The distribution on `atoms` (n,), equally spaced, nearest to one with these probabilities of values (…, n).

    Values beyond the ends count as the ends; each is split between the atoms beside it by its distance to them.
    """
    values = values.clamp(atoms[0], atoms[-1])
    spacing = (atoms[-1] - atoms[0]) / (len(atoms) - 1)
    share = (1 - (values.unsqueeze(-1) - atoms).abs() / spacing).clamp(min=0)  # (…, n, n)
    return (probability.unsqueeze(-1) * share).sum(-2)
