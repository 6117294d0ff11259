"""PPO (Schulman et al., arXiv 1707.06347) with a Gaussian policy squashed by tanh, as SAC Flow's comparison has it.

Ten steps on each rollout of 32,768 environment steps, each on all of it: 300 steps in a million. The release's sum of
advantages runs across time limits into the next episode; here it stops there, by default.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from agents.blocks.base import Adam, Metrics, Noise, OnPolicyAgent, gradient_step
from agents.blocks.config import check_config
from agents.blocks.critic import Value
from agents.blocks.gaussian import gaussian_log_prob
from agents.blocks.networks import MLP, Dims
from agents.blocks.ppo import TimeLimits, clipped_loss, estimate_advantages
from datasets.batch import Batch, Decisions, Trajectories


@dataclass(frozen=True)
class PPOGaussianConfig:
    """Settings of PPO, those of SAC Flow's release."""

    chunk_length: int = 1  # H, environment steps per action chunk
    num_envs: int = 16  # E, environments of each seed, each a process
    rollout_decisions: int = 32_768  # chunks of each seed between updates, in all environments
    batch_decisions: int = 32_768  # of each update; as many as a rollout has: each of them once
    epochs: int = 10  # how often each decision is used
    gae_lambda: float = 0.95
    gae_at_time_limits: TimeLimits = "stop"  # released: the sum runs on into the next episode
    clip_range: float = 0.2  # of the ratio of densities
    entropy_coef: float = 0.01  # of the Gaussian before the tanh
    value_coef: float = 0.5  # of half the squared error
    max_gradient_norm: float = 12.0  # of each network alone
    learning_rate: float = 5e-4  # of the policy
    value_learning_rate: float = 5e-4
    policy_hidden_dims: tuple[int, ...] = (128, 128)
    value_hidden_dims: tuple[int, ...] = (128, 128)

    def __post_init__(self) -> None:
        check_config(self, gae_lambda=(0, 1))


class GaussianPolicy(nn.Module):
    """Mean of u (S, B, D) at each obs (S, B, O), and its log standard deviation (S, 1, D), the same for all of them."""

    def __init__(self, obs_dim: int, hidden_dims: Dims, chunk_dim: int, noise: Noise) -> None:
        super().__init__()
        self.mlp = MLP(obs_dim, hidden_dims, chunk_dim, noise, activation="tanh", init="lecun")
        self.log_std = nn.Parameter(torch.zeros(noise.num_seeds, chunk_dim, device=noise.device))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return self.mlp(obs), self.log_std.unsqueeze(1)


class PPO(OnPolicyAgent):
    """A Gaussian policy and a value, trained on the latest rollout."""

    config: PPOGaussianConfig
    policy_modules = ("policy",)

    def __init__(self, config: PPOGaussianConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.policy = GaussianPolicy(obs_dim, config.policy_hidden_dims, self.chunk_dim, noise)
        self.value = Value(obs_dim, config.value_hidden_dims, noise, norm="none", activation="tanh", init="lecun")
        self.policy_optimizer = Adam(self.policy.parameters(), config.learning_rate)
        self.value_optimizer = Adam(self.value.parameters(), config.value_learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.collect(obs, noise)[0]  # the same in both modes, as released

    @torch.no_grad()
    def collect(self, obs: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """The record of a decision: u, whose tanh is the chunk, and its log density.

        The tanh's own term is the same for every policy, and so no part of a ratio of densities.
        """
        eps = noise.normal("act_noise", obs.shape[1], self.chunk_dim)
        mean, log_std = self.policy(obs)
        u = mean + log_std.exp() * eps
        record = torch.cat([u, gaussian_log_prob(eps, log_std.expand_as(eps)).unsqueeze(-1)], -1)
        return u.tanh().unflatten(-1, (self.chunk_length, -1)), record

    @torch.no_grad()
    def estimate(self, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
        """Advantage and value target (S, T, E) of each decision; advantages are normalised over the rollout."""
        config = self.config
        advantage, target = estimate_advantages(trajectories, self.value, config.gae_lambda, config.gae_at_time_limits)
        begins = trajectories.begins
        count = begins.sum((1, 2), keepdim=True)
        mean = (begins * advantage).sum((1, 2), keepdim=True) / count
        variance = (begins * (advantage - mean).square()).sum((1, 2), keepdim=True) / count
        return (advantage - mean) / (variance.sqrt() + 1e-8), target

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        """Nothing: it learns from its own rollouts alone."""
        return {}

    def update_online(self, batch: Decisions, noise: Noise) -> Metrics:
        """One step of policy and value on a minibatch of decisions."""
        policy_loss, metrics = self.policy_loss(batch)
        value_loss = (self.value(batch.obs) - batch.value_target).square().mean(1)
        max_norm = self.config.max_gradient_norm
        gradient_step((self.policy_optimizer, policy_loss), max_norm=max_norm)
        gradient_step((self.value_optimizer, self.config.value_coef * 0.5 * value_loss), max_norm=max_norm)
        return {**metrics, "value_loss": value_loss.detach()}

    def policy_loss(self, batch: Decisions) -> tuple[Tensor, Metrics]:
        """The clipped objective less the entropy's bonus, (S,)."""
        u, old_log_prob = batch.record.tensor_split((-1,), -1)
        mean, log_std = self.policy(batch.obs)
        log_prob = gaussian_log_prob((u - mean) / log_std.exp(), log_std.expand_as(u))
        loss, metrics = clipped_loss(log_prob - old_log_prob.squeeze(-1), batch.advantage, self.config.clip_range)
        entropy = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum((1, 2))
        loss = loss - self.config.entropy_coef * entropy
        return loss, {"policy_loss": loss.detach(), "entropy": entropy.detach(), **metrics}
