"""QC (Li et al., arXiv 2507.07969), best of N chunks, and with chunks of one action its baseline BFN.

The policy is a flow matched to the data, of whose N samples the critic picks the best, for acting and for the target.
No deviations.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, gradient_step
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig, best_candidate
from agents.blocks.flow import integrate, matching_loss
from agents.blocks.velocities import PlainVelocity
from datasets.batch import Batch


@dataclass(frozen=True)
class QCConfig:
    """Settings of QC and BFN (chunk_length 1)."""

    chunk_length: int = 5  # H, environment steps per action chunk; 1 is BFN
    num_candidates: int = 32  # samples of the flow among which the critic chooses; 1 is a clone of the data
    flow_steps: int = 10  # K, Euler steps of the flow
    critic: CriticConfig = CriticConfig(num_critics=2, q_aggregation="mean")
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)

    def __post_init__(self) -> None:
        check_config(self)


class QC(Agent):
    """Q-chunking with a behaviour flow and rejection sampling."""

    config: QCConfig
    policy_modules = ("behaviour_velocity", "critic.online")

    def __init__(self, config: QCConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.behaviour_velocity = PlainVelocity(obs_dim, self.chunk_dim, config.policy_hidden_dims, noise)
        self.critic = Critic(config.critic, obs_dim, self.chunk_dim, config.learning_rate, noise)
        self.policy_optimizer = Adam(self.behaviour_velocity.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.policy(obs, noise, "act_noise")  # the same in both modes

    def policy(self, obs: Tensor, noise: Noise, draw: str) -> Tensor:
        """The chunk (S, B, H, A) with the highest Q, aggregated, of `num_candidates` samples of the flow at obs."""
        num_candidates = self.config.num_candidates
        x_0 = noise.normal(draw, obs.shape[1] * num_candidates, self.chunk_dim)  # (S, B * n, D)
        x_1 = integrate(self.behaviour_velocity(obs), x_0, self.config.flow_steps).clamp(-1, 1)
        candidates = x_1.unflatten(-1, (self.chunk_length, -1))
        q = self.critic.aggregate(self.critic(obs, candidates))  # (S, B * n)
        return best_candidate(candidates, q, num_candidates)

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of critic and flow."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        self.critic.follow()
        gradient_step((self.critic.optimizer, critic_loss), (self.policy_optimizer, policy_loss))
        return critic_metrics | policy_metrics

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the target critics' value of the next chunk.

        The critic in training chooses that chunk and the target critics value it, so that errors of one are not
        maximised over.
        """
        with torch.no_grad():
            next_value = self.critic.target_value(batch.next_obs, self.policy(batch.next_obs, noise, "next_noise"))
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return self.critic.loss(batch, target)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Matching (S,) of the flow to the data; no Q."""
        loss = matching_loss(self.behaviour_velocity(batch.obs), batch.action_chunk, batch.valid, noise)
        return loss, {"policy_loss": loss.detach()}
