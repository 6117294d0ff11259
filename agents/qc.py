"""QC (Li et al., arXiv 2507.07969), best of N chunks, and with chunks of one action its baseline BFN.

The policy is a flow matched to the data, of whose N samples the critic picks the best, for acting and for the target.
No deviations.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, check_config, frozen_copy, gradient_step, polyak_update
from agents.blocks.critic import Critic, QAggregation, aggregate_q, best_candidate, repeat_obs, td_loss
from agents.blocks.flow import integrate, matching_loss
from agents.blocks.velocities import PlainVelocity
from datasets.batch import Batch


@dataclass(frozen=True)
class QCConfig:
    """Settings of QC and BFN (chunk_length 1)."""

    chunk_length: int = 5  # H, environment steps per action chunk; 1 is BFN
    num_candidates: int = 32  # samples of the flow among which the critic chooses; 1 is a clone of the data
    flow_steps: int = 10  # K, Euler steps of the flow
    q_aggregation: QAggregation = "mean"  # over the target critics
    pessimism: float = 0.5  # rho, standard deviations below the mean; pessimistic aggregation
    num_critics: int = 2  # N
    target_update_rate: float = 0.005  # tau
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    critic_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)

    def __post_init__(self) -> None:
        check_config(self, target_update_rate=(0, 1))


class QC(Agent):
    """Q-chunking with a behaviour flow and rejection sampling."""

    config: QCConfig
    policy_modules = ("behaviour_velocity", "critic")

    def __init__(self, config: QCConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.behaviour_velocity = PlainVelocity(obs_dim, self.chunk_dim, config.policy_hidden_dims, noise)
        self.critic = Critic(obs_dim, self.chunk_dim, config.critic_hidden_dims, config.num_critics, noise)
        self.target_critic = frozen_copy(self.critic)
        self.critic_optimizer = Adam(self.critic.parameters(), config.learning_rate)
        self.policy_optimizer = Adam(self.behaviour_velocity.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.policy(obs, noise, "act_noise")  # the same in both modes

    def policy(self, obs: Tensor, noise: Noise, draw: str) -> Tensor:
        """The chunk (S, B, H, A) with the highest mean Q of `num_candidates` samples of the flow at obs (S, B, O)."""
        num_candidates = self.config.num_candidates
        obs = repeat_obs(obs, num_candidates)  # (S, B * n, O)
        x_0 = noise.normal(draw, obs.shape[1], self.chunk_dim)
        x_1 = integrate(self.behaviour_velocity(obs), x_0, self.config.flow_steps).clamp(-1, 1)
        candidates = x_1.unflatten(-1, (self.chunk_length, -1))
        return best_candidate(candidates, self.critic(obs, candidates).mean(1), num_candidates)

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        return self.update_online(batch, noise)

    def update_online(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of critic and flow; the same in both phases."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        polyak_update(self.target_critic, self.critic, self.config.target_update_rate)
        gradient_step((self.critic_optimizer, critic_loss), (self.policy_optimizer, policy_loss))
        return critic_metrics | policy_metrics

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error to the chunk's return plus the target critics' value of the next chunk.

        The critic in training chooses that chunk and the target critics value it, so that errors of one are not
        maximised over.
        """
        with torch.no_grad():
            next_q = self.target_critic(batch.next_obs, self.policy(batch.next_obs, noise, "next_noise"))  # (S, N, B)
            next_value = aggregate_q(next_q, self.config.q_aggregation, self.config.pessimism)
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return td_loss(self.critic(batch.obs, batch.action_chunk), target, batch)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Matching of the flow to the data; no Q."""
        loss = matching_loss(self.behaviour_velocity(batch.obs), batch.action_chunk, batch.valid, noise)
        return loss, {"policy_loss": loss.detach()}
