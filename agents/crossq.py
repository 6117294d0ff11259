"""CrossQ (Bhatt et al., arXiv 1902.05605): SAC without target networks, whose networks have BatchRenorm.

A tanh-Gaussian policy maximises Q and its entropy, at every third update. Defaults are CrossQ's own settings; the
options reach CrossQ as SAC Flow (arXiv 2509.25756) releases it, whose log density lacks -log std.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, gradient_step
from agents.blocks.batch_renorm import RenormMLP, Statistics
from agents.blocks.config import check_config
from agents.blocks.gaussian import MAX_LOG_STD, Density, squashed
from agents.blocks.joint_critic import JointCritic, JointCriticConfig
from agents.blocks.temperature import Temperature, check_learnt_coef
from datasets.batch import Batch

MIN_LOG_STD = -20.0


@dataclass(frozen=True)
class CrossQConfig:
    """Settings of CrossQ; in brackets those of SAC Flow's release."""

    chunk_length: int = 1  # H, environment steps per action chunk
    entropy_coef: float = 1.0  # alpha, initial value [.2]
    target_entropy: float = -1.0  # nats per coordinate of the action chunk
    density: Density = "exact"  # of an action, in the entropy [released]
    action_scale: float = 1.0  # of an action of 1 in the environment's units: of critics' inputs, and of the entropy
    evaluation: Literal["mean", "sample"] = "mean"  # tanh of the mean, or a sample as while collecting [sample]
    policy_delay: int = 3  # critic steps for each step of policy and temperature
    critic: JointCriticConfig = JointCriticConfig(critic_hidden_dims=(2048, 2048))  # [1024, 1024]
    learning_rate: float = 1e-3  # of the policy [3e-4]
    adam_b1: float = 0.5  # Adam's first beta, of the policy
    temperature_learning_rate: float = 1e-3
    temperature_adam_b1: float = 0.9  # [.5]
    policy_hidden_dims: tuple[int, ...] = (256, 256)  # [256, 512, 256]

    def __post_init__(self) -> None:
        check_config(
            self,
            target_entropy=(-math.inf, math.inf),
            action_scale=(1e-6, math.inf),
            adam_b1=(0, 0.9999),
            temperature_adam_b1=(0, 0.9999),
        )
        check_learnt_coef(self)


class CrossQ(Agent):
    """Soft actor-critic with batch statistics in place of target networks."""

    config: CrossQConfig
    policy_modules = ("policy",)

    def __init__(self, config: CrossQConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.period = config.policy_delay
        self.action_scale = torch.full((self.chunk_dim,), config.action_scale, device=noise.device)
        self.policy = RenormMLP(obs_dim, config.policy_hidden_dims, 2 * self.chunk_dim, noise, heads=2)
        self.critic = JointCritic(config.critic, obs_dim, self.action_scale, noise)
        self.temperature = Temperature(
            config.entropy_coef,
            config.target_entropy * self.chunk_dim,
            config.temperature_learning_rate,
            noise,
            b1=config.temperature_adam_b1,
        )
        self.policy_optimizer = Adam(self.policy.parameters(), config.learning_rate, b1=config.adam_b1)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        if mode == "evaluate" and self.config.evaluation == "mean":
            return self.distribution(obs, "running")[0].tanh().unflatten(-1, (self.chunk_length, -1))
        return self.sample(obs, noise, "act_noise", "running")[0]

    def distribution(self, obs: Tensor, statistics: Statistics) -> tuple[Tensor, Tensor]:
        """Mean before the tanh, and log standard deviation, both (S, B, D), at obs (S, B, O)."""
        mean, log_std = self.policy(obs, statistics).chunk(2, -1)
        return mean, log_std.clamp(MIN_LOG_STD, MAX_LOG_STD)

    def sample(self, obs: Tensor, noise: Noise, draw: str, statistics: Statistics) -> tuple[Tensor, Tensor]:
        """An action chunk (S, B, H, A) at each obs (S, B, O), and its log density (S, B)."""
        eps = noise.normal(draw, obs.shape[1], self.chunk_dim)
        chunk, log_prob = squashed(*self.distribution(obs, statistics), eps, self.config.density, self.action_scale)
        return chunk.unflatten(-1, (self.chunk_length, -1)), log_prob

    def update_turn(self, batch: Batch, noise: Noise, turn: int) -> Metrics:
        """A step of the critic, and at the last turn one of policy and temperature, which see the new critic."""
        critic_loss, metrics = self.critic_loss(batch, noise)
        gradient_step((self.critic.optimizer, critic_loss))
        self.critic.follow()
        if turn < self.period - 1:
            return metrics
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        policy_metrics["entropy_coef"] = self.temperature.coef
        gradient_step(
            (self.policy_optimizer, policy_loss),
            (self.temperature.optimizer, self.temperature.loss(policy_metrics["entropy"])),
        )
        return metrics | policy_metrics

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of critic, policy and temperature."""
        return self.update_turn(batch, noise, self.period - 1)

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the soft value of the policy's next chunk."""
        with torch.no_grad():
            next_action_chunk, log_prob = self.sample(batch.next_obs, noise, "next_noise", "running")
            next_bonus = -self.temperature.coef.unsqueeze(-1) * log_prob
        return self.critic.loss(batch, next_action_chunk, next_bonus)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """alpha log pi - Q, aggregated as in the critic's target; (S,)."""
        action_chunk, log_prob = self.sample(batch.obs, noise, "policy_noise", "train")
        q = self.critic(batch.obs, action_chunk, constant=True)  # (S, N, B)
        q_loss = -self.critic.aggregate(q).mean(1)
        entropy = -log_prob.mean(1)
        loss = q_loss - self.temperature.coef * entropy
        metrics = {"policy_loss": loss, "q_loss": q_loss, "entropy": entropy}
        return loss, {name: value.detach() for name, value in metrics.items()}
