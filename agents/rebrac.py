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

from agents.blocks.base import Adam, Agent, Metrics, Noise, frozen_copy, gradient_step, polyak_update
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig
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
    # Q is aggregated in the policy loss as in the target.
    critic: CriticConfig = CriticConfig(num_critics=10, q_aggregation="pessimistic")
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)

    def __post_init__(self) -> None:
        check_config(self)


class ReBRAC(Agent):
    """TD3 with a squared-distance penalty, over action chunks."""

    config: ReBRACConfig
    policy_modules = ("policy",)

    def __init__(self, config: ReBRACConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.policy = MLP(obs_dim, config.policy_hidden_dims, self.chunk_dim, noise, out_scale=POLICY_OUT_SCALE)
        self.target_policy = frozen_copy(self.policy)
        self.critic = Critic(config.critic, obs_dim, self.chunk_dim, config.learning_rate, noise)
        self.policy_optimizer = Adam(self.policy.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.noisy(self.policy(obs).tanh(), noise, "act_noise")  # the same in both modes

    def noisy(self, chunk: Tensor, noise: Noise, draw: str) -> Tensor:
        """Chunks (S, B, H, A) in the box: flat ones (S, B, D) plus clipped noise."""
        clip = self.config.noise_clip
        added = (self.config.policy_noise * noise.normal(draw, *chunk.shape[1:])).clamp(-clip, clip)
        return (chunk + added).clamp(-1, 1).unflatten(-1, (self.chunk_length, -1))

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of critic and policy, and of their targets if it is their turn."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        rate = self.target_rate()
        polyak_update(self.critic.target, self.critic.online, rate)
        polyak_update(self.target_policy, self.policy, rate)
        gradient_step((self.critic.optimizer, critic_loss), (self.policy_optimizer, policy_loss))
        return critic_metrics | policy_metrics

    def target_rate(self) -> Tensor:
        """tau in every `target_update_interval`-th update and 0 in the others, a scalar."""
        update = self.critic.optimizer.steps + 1  # the number of this update, from 1
        return self.config.critic.target_update_rate * (update % self.config.target_update_interval == 0)

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the target networks' value of the noisy next chunk."""
        with torch.no_grad():
            next_action_chunk = self.noisy(self.target_policy(batch.next_obs).tanh(), noise, "next_noise")
            next_value = self.critic.target_value(batch.next_obs, next_action_chunk)
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return self.critic.loss(batch, target)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """-Q over its mean magnitude, aggregated as in the target, and the distance to the batch's chunk; (S,)."""
        action_chunk = self.policy(batch.obs).tanh().view_as(batch.action_chunk)
        squared_distance = (action_chunk - batch.action_chunk).square().sum((2, 3))  # (S, B)
        # A chunk that runs into the next episode is no chunk of the data: weight 0.
        bc_loss = (batch.valid[..., -1] * squared_distance).mean(1)

        q = self.critic.aggregate(self.critic(batch.obs, action_chunk, constant=True))  # (S, B)
        q_loss = -q.mean(1) / q.detach().abs().mean(1).clamp(min=SMALLEST_SCALE)

        loss = q_loss + self.config.bc_coef * bc_loss
        metrics = {"policy_loss": loss, "bc_loss": bc_loss, "q_loss": q_loss}
        return loss, {name: value.detach() for name, value in metrics.items()}
