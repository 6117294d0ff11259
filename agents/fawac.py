"""FAWAC, flow advantage-weighted actor-critic, a baseline of the QAM release (arXiv 2601.14234).

A flow is matched to the data with weights that grow exponentially with the advantage Q(s, a) - V(s). V is fitted to Q
of the data's actions, Q to the policy's next chunk. Follows the QAM release.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, gradient_step
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig, Value
from agents.blocks.flow import integrate, matching_loss
from agents.blocks.velocities import PlainVelocity
from datasets.batch import Batch, WindowMask

MAX_WEIGHT = 100.0  # of a sample in the matching loss, as released


@dataclass(frozen=True)
class FAWACConfig:
    """Settings of FAWAC."""

    chunk_length: int = 5  # H, environment steps per action chunk
    inverse_temperature: float = 0.8  # factor of the advantage in the exponent; 0 clones the data
    flow_steps: int = 10  # K, Euler steps of the flow
    window_mask: WindowMask = "window"  # what counts of a window that runs into the next episode, for the flow
    critic: CriticConfig = CriticConfig(num_critics=10, q_aggregation="pessimistic")
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)

    def __post_init__(self) -> None:
        check_config(self)


class FAWAC(Agent):
    """Advantage-weighted flow matching over action chunks."""

    config: FAWACConfig
    policy_modules = ("policy_velocity",)

    def __init__(self, config: FAWACConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.policy_velocity = PlainVelocity(obs_dim, self.chunk_dim, config.policy_hidden_dims, noise)
        self.critic = Critic(config.critic, obs_dim, self.chunk_dim, config.learning_rate, noise)
        self.value = Value.of(config.critic, obs_dim, noise)
        self.value_optimizer = Adam(self.value.parameters(), config.learning_rate)
        self.policy_optimizer = Adam(self.policy_velocity.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.policy(obs, noise.normal("act_noise", obs.shape[1], self.chunk_dim))  # the same in both modes

    def policy(self, obs: Tensor, x_0: Tensor) -> Tensor:
        """Action chunk (S, B, H, A): the flow's endpoint from noise x_0 (S, B, D), clipped."""
        x_1 = integrate(self.policy_velocity(obs), x_0, self.config.flow_steps).clamp(-1, 1)
        return x_1.unflatten(-1, (self.chunk_length, -1))

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of critic, state value and policy."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        value_loss, value_metrics = self.value_loss(batch)
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        self.critic.follow()
        gradient_step(
            (self.critic.optimizer, critic_loss),
            (self.value_optimizer, value_loss),
            (self.policy_optimizer, policy_loss),
        )
        return critic_metrics | value_metrics | policy_metrics

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the target critics' value of the policy's next chunk."""
        with torch.no_grad():
            x_0 = noise.normal("next_noise", batch.obs.shape[1], self.chunk_dim)
            next_value = self.critic.target_value(batch.next_obs, self.policy(batch.next_obs, x_0))
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return self.critic.loss(batch, target)

    def value_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Squared error (S,) of V(s) to each target critic's value of the data's chunk."""
        with torch.no_grad():
            q = self.critic.target(batch.obs, batch.action_chunk)  # (S, N, B)
        value = self.value(batch.obs)
        weight = batch.valid[:, None, :, -1]
        loss = (weight * (value.unsqueeze(1) - q).square()).mean((1, 2))
        return loss, {"value_loss": loss.detach(), "value_mean": value.detach().mean(1)}

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Matching (S,) of the flow to the data, each chunk weighted by its advantage."""
        weight = self.advantage_weight(batch)
        velocity, valid = self.policy_velocity(batch.obs), batch.counted(self.config.window_mask)
        loss = matching_loss(velocity, batch.action_chunk, valid, noise, weight=weight)
        return loss, {"policy_loss": loss.detach(), "weight_mean": weight.mean(1)}

    @torch.no_grad()
    def advantage_weight(self, batch: Batch) -> Tensor:
        """exp(inverse_temperature * (mean Q(s, a) - V(s))) of the data's chunks, cut at MAX_WEIGHT, (S, B)."""
        advantage = self.critic(batch.obs, batch.action_chunk).mean(1) - self.value(batch.obs)
        return (self.config.inverse_temperature * advantage).exp().clamp(max=MAX_WEIGHT)
