"""CrossQ's critics (Bhatt et al., arXiv 1902.05605): BatchRenorm in place of target networks.

One pass over the batch's chunks and the policy's next ones gives both sides of the critic's loss, so that its
statistics are those of the two together. In evaluation, and for the policy's loss, the running statistics serve.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.blocks.base import Adam, Metrics, Noise, frozen_copy, polyak_update
from agents.blocks.batch_renorm import RenormMLP, Statistics
from agents.blocks.config import check_config
from agents.blocks.critic import QAggregation, aggregate_q, squared_error
from agents.blocks.networks import MLP, Dims
from datasets.batch import Batch


@dataclass(frozen=True)
class JointCriticConfig:
    """Settings of CrossQ's critics."""

    num_critics: int = 2  # N
    q_aggregation: QAggregation = "min"  # one value of the N, in the critics' target and the policy's loss
    pessimism: float = 0.5  # rho, standard deviations below the mean; pessimistic aggregation
    batch_renorm: bool = True  # False: target networks instead, as in SAC
    target_update_rate: float = 0.005  # tau of those
    critic_hidden_dims: tuple[int, ...] = (1024, 1024)
    critic_learning_rate: float = 1e-3
    critic_adam_b1: float = 0.5  # Adam's first beta

    def __post_init__(self) -> None:
        check_config(self, target_update_rate=(0, 1), critic_adam_b1=(0, 0.9999))


class RenormCritics(nn.Module):
    """N networks of obs (S, B, O) and action chunk (S, B, H, A) -> (S, N, B, out), with BatchRenorm.

    `action_scale` (D,): of an action of 1 in the environment's units, in which the networks see it.
    """

    def __init__(
        self, obs_dim: int, hidden_dims: Dims, num_critics: int, action_scale: Tensor, noise: Noise, out_dim: int = 1
    ) -> None:
        super().__init__()
        self.action_scale = action_scale
        self.num_critics = num_critics
        self.mlp = RenormMLP(obs_dim + len(action_scale), hidden_dims, out_dim, noise, (num_critics,))

    def forward(
        self, obs: Tensor, action_chunk: Tensor, statistics: Statistics = "running", constant: bool = False
    ) -> Tensor:
        """`constant`: no gradient reaches the parameters."""
        x = torch.cat([obs, action_chunk.flatten(2) * self.action_scale], -1)
        return self.mlp(x.unsqueeze(1).expand(-1, self.num_critics, -1, -1), statistics, constant)

    def joint(self, batch: Batch, next_action_chunk: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (S, N, B, out) at the batch's chunks and the next ones (S, B, H, A), by the statistics of both."""
        obs = torch.cat([batch.obs, batch.next_obs], 1)
        outputs = self(obs, torch.cat([batch.action_chunk, next_action_chunk], 1), "train")
        first, second = outputs.chunk(2, 2)
        return first, second


class _PlainCritics(nn.Module):
    """The same networks without BatchRenorm."""

    def __init__(self, obs_dim: int, hidden_dims: Dims, num_critics: int, action_scale: Tensor, noise: Noise) -> None:
        super().__init__()
        self.action_scale = action_scale
        self.num_critics = num_critics
        in_dim, members = obs_dim + len(action_scale), (num_critics,)
        self.mlp = MLP(in_dim, hidden_dims, 1, noise, members, activation="relu", init="lecun")

    def forward(self, obs: Tensor, action_chunk: Tensor, constant: bool = False) -> Tensor:
        x = torch.cat([obs, action_chunk.flatten(2) * self.action_scale], -1)
        return self.mlp(x.unsqueeze(1).expand(-1, self.num_critics, -1, -1), constant)


class JointCritic(nn.Module):
    """CrossQ's critics and their optimiser: an agent's `self.critic`. Called, it is Q by the running statistics."""

    def __init__(self, config: JointCriticConfig, obs_dim: int, action_scale: Tensor, noise: Noise) -> None:
        super().__init__()
        self.config = config
        sizes = (obs_dim, config.critic_hidden_dims, config.num_critics, action_scale, noise)
        self.online = RenormCritics(*sizes) if config.batch_renorm else _PlainCritics(*sizes)
        if isinstance(self.online, _PlainCritics):
            self.target = frozen_copy(self.online)
        self.optimizer = Adam(self.online.parameters(), config.critic_learning_rate, b1=config.critic_adam_b1)

    def forward(self, obs: Tensor, action_chunk: Tensor, constant: bool = False) -> Tensor:
        """Q (S, N, B) of action chunks (S, B, H, A) at obs (S, B, O)."""
        return self.online(obs, action_chunk, constant=constant).squeeze(-1)

    def aggregate(self, q: Tensor) -> Tensor:
        """One value (S, B) of those of N critics (S, N, B), as configured."""
        return aggregate_q(q, self.config.q_aggregation, self.config.pessimism)

    def loss(self, batch: Batch, next_action_chunk: Tensor, next_bonus: Tensor) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus Q of the policy's next chunk (S, B, H, A) and a bonus (S, B).

        Both are constants. The running statistics move.
        """
        if isinstance(self.online, RenormCritics):
            q, next_q = self.online.joint(batch, next_action_chunk)
        else:
            q = self.online(batch.obs, batch.action_chunk)
            next_q = self.target(batch.next_obs, next_action_chunk)
        next_value = self.aggregate(next_q.detach().squeeze(-1)) + next_bonus
        return squared_error(q.squeeze(-1), batch.chunk_return + batch.bootstrap * next_value, batch)

    def follow(self) -> None:
        """The Polyak step of the target networks, where there are any."""
        if isinstance(self.online, _PlainCritics):
            polyak_update(self.target, self.online, self.config.target_update_rate)
