"""ReBRAC (Tarasov et al., arXiv 2305.09836): TD3 with a deterministic policy pulled towards the actions of the data.

The policy maximises Q over its mean magnitude, minus the squared distance to the batch's chunk. Follows the version in
the QAM release (arXiv 2601.14234): the policy moves at every update, the two target networks at every second one, and
actions have the target's noise in evaluation, too. Left out: the paper's penalty in the critic's target, which needs
the data's next action and has weight 0 in that release.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, check_config, frozen_copy, gradient_step, polyak_update
from agents.blocks.critic import Critic, QAggregation, aggregate_q, td_loss
from agents.blocks.networks import MLP
from datasets.batch import Batch

# The official initialiser scales the variance of the policy's output weights by 0.01.
POLICY_OUT_SCALE = 0.1
SMALLEST_SCALE = 1e-6  # of Q in the policy loss: critics may start at 0 for a whole batch


@dataclass(frozen=True)
class ReBRACConfig:
    """Settings of ReBRAC; the noise is that of the QAM release on cube-triple and -quadruple, cube-double has none."""

    chunk_length: int = 5  # H, environment steps per action chunk
    bc_coef: float = 0.01  # beta_1, weight of the squared distance to the batch's chunk, summed over its coordinates
    policy_noise: float = 0.2  # standard deviation, in the target, while collecting and in evaluation
    noise_clip: float = 0.5  # largest magnitude of that noise
    target_update_interval: int = 2  # updates from one step of the target networks to the next
    q_aggregation: QAggregation = "pessimistic"  # over the target critics, and over the critics in the policy loss
    pessimism: float = 0.5  # rho, standard deviations below the mean; pessimistic aggregation
    num_critics: int = 10  # N
    target_update_rate: float = 0.005  # tau
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    critic_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)

    def __post_init__(self) -> None:
        check_config(self, target_update_rate=(0, 1))


class ReBRAC(Agent):
    """TD3 with a squared-distance penalty, over action chunks."""

    config: ReBRACConfig
    policy_modules = ("policy",)

    def __init__(self, config: ReBRACConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.policy = MLP(obs_dim, config.policy_hidden_dims, self.chunk_dim, noise, out_scale=POLICY_OUT_SCALE)
        self.target_policy = frozen_copy(self.policy)
        self.critic = Critic(obs_dim, self.chunk_dim, config.critic_hidden_dims, config.num_critics, noise)
        self.target_critic = frozen_copy(self.critic)
        self.critic_optimizer = Adam(self.critic.parameters(), config.learning_rate)
        self.policy_optimizer = Adam(self.policy.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.noisy(self.policy(obs).tanh(), noise, "act_noise")  # the same in both modes

    def noisy(self, chunk: Tensor, noise: Noise, draw: str) -> Tensor:
        """Chunks (S, B, H, A) in the box: flat ones (S, B, D) plus clipped noise."""
        clip = self.config.noise_clip
        added = (self.config.policy_noise * noise.normal(draw, *chunk.shape[1:])).clamp(-clip, clip)
        return (chunk + added).clamp(-1, 1).unflatten(-1, (self.chunk_length, -1))

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        return self.update_online(batch, noise)

    def update_online(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of critic and policy, and of their targets if it is their turn; the same in both phases."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        rate = self.target_rate()
        polyak_update(self.target_critic, self.critic, rate)
        polyak_update(self.target_policy, self.policy, rate)
        gradient_step((self.critic_optimizer, critic_loss), (self.policy_optimizer, policy_loss))
        return critic_metrics | policy_metrics

    def target_rate(self) -> Tensor:
        """tau in every `target_update_interval`-th update and 0 in the others, a scalar."""
        update = self.critic_optimizer.steps + 1  # the number of this update, from 1
        return self.config.target_update_rate * (update % self.config.target_update_interval == 0)

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error to the chunk's return plus the target networks' value of the next chunk, which has noise."""
        with torch.no_grad():
            next_action_chunk = self.noisy(self.target_policy(batch.next_obs).tanh(), noise, "next_noise")
            next_q = self.target_critic(batch.next_obs, next_action_chunk)  # (S, N, B)
            next_value = aggregate_q(next_q, self.config.q_aggregation, self.config.pessimism)
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return td_loss(self.critic(batch.obs, batch.action_chunk), target, batch)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """-Q over its mean magnitude, with Q aggregated as in the target, and the distance to the batch's chunk."""
        action_chunk = self.policy(batch.obs).tanh().view_as(batch.action_chunk)
        squared_distance = (action_chunk - batch.action_chunk).square().sum((2, 3))  # (S, B)
        # A chunk that runs into the next episode is no chunk of the data: weight 0.
        bc_loss = (batch.valid[..., -1] * squared_distance).mean(1)

        q = self.critic(batch.obs, action_chunk, constant=True)  # (S, N, B)
        q = aggregate_q(q, self.config.q_aggregation, self.config.pessimism)
        q_loss = -q.mean(1) / q.detach().abs().mean(1).clamp(min=SMALLEST_SCALE)

        loss = q_loss + self.config.bc_coef * bc_loss
        metrics = {"policy_loss": loss, "bc_loss": bc_loss, "q_loss": q_loss}
        return loss, {name: value.detach() for name, value in metrics.items()}
