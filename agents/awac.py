"""AWAC (Nair et al., arXiv 2006.09359): a Gaussian policy by regression, weighted by the advantage over itself.

The policy is fitted to the actions of data and replay by maximum likelihood, with weights that grow exponentially with
A = Q(s, a) - V(s). V is no network: V(s) is Q of one sample of the policy, as in the official script for locomotion
(that for hands takes the mean). Departs from that code in the weights, exp(A / lambda) cut at 100 as in the other
weighted agents here, there a softmax over the batch times its size; in the policy, a Gaussian squashed by tanh with a
standard deviation for each observation, there unsquashed with one for all, between exp(-6) and 1; and in having no
weight decay.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, gradient_step
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig
from agents.blocks.gaussian import TanhGaussian
from datasets.batch import Batch

MAX_WEIGHT = 100.0


@dataclass(frozen=True)
class AWACConfig:
    """Settings of AWAC."""

    chunk_length: int = 1  # H, environment steps per action chunk
    inverse_temperature: float = 1.0  # 1 / lambda, of the advantage; official scripts: hands 2, locomotion 0.5
    # Q is aggregated in the advantage as in the target.
    critic: CriticConfig = CriticConfig(num_critics=2, q_aggregation="min")
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)

    def __post_init__(self) -> None:
        check_config(self)


class AWAC(Agent):
    """Advantage-weighted actor-critic over action chunks."""

    config: AWACConfig
    policy_modules = ("policy",)

    def __init__(self, config: AWACConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.policy = TanhGaussian(obs_dim, config.policy_hidden_dims, self.chunk_dim, noise)
        self.critic = Critic(config.critic, obs_dim, self.chunk_dim, config.learning_rate, noise)
        self.policy_optimizer = Adam(self.policy.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        if mode == "evaluate":
            return self.policy(obs)[0].tanh().unflatten(-1, (self.chunk_length, -1))
        return self.sample(obs, noise, "act_noise")

    def sample(self, obs: Tensor, noise: Noise, draw: str) -> Tensor:
        """An action chunk (S, B, H, A) of the policy at each obs (S, B, O)."""
        chunk, _ = self.policy.sample(obs, noise.normal(draw, obs.shape[1], self.chunk_dim))
        return chunk.unflatten(-1, (self.chunk_length, -1))

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of critic and policy."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        self.critic.follow()
        gradient_step((self.critic.optimizer, critic_loss), (self.policy_optimizer, policy_loss))
        return critic_metrics | policy_metrics

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the target critics' value of the policy's next chunk."""
        with torch.no_grad():
            next_value = self.critic.target_value(batch.next_obs, self.sample(batch.next_obs, noise, "next_noise"))
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return self.critic.loss(batch, target)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """-log density (S,) of the batch's chunks, weighted by `weights`."""
        weight = self.weights(batch, noise)  # (S, B)
        log_prob = self.policy.log_prob(batch.obs, batch.action_chunk.flatten(2))
        # A chunk that runs into the next episode is no chunk of the data: weight 0.
        loss = -(batch.valid[..., -1] * weight * log_prob).mean(1)
        return loss, {"policy_loss": loss.detach(), "weight_mean": weight.mean(1)}

    @torch.no_grad()
    def weights(self, batch: Batch, noise: Noise) -> Tensor:
        """exp((Q - V) / lambda) (S, B) of the batch's chunks, at most 100, with Q of the critics, not of their targets.

        Constants: no gradient reaches the policy through its sample in V.
        """
        q = self.critic.aggregate(self.critic(batch.obs, batch.action_chunk))
        value = self.critic.aggregate(self.critic(batch.obs, self.sample(batch.obs, noise, "policy_noise")))
        return (self.config.inverse_temperature * (q - value)).exp().clamp(max=MAX_WEIGHT)
