"""Naive SAC Flow, the ablation in the released code of arXiv 2509.25756: Q's gradient through K = 10 plain flow steps.

A behaviour flow is matched to the data; the policy, a deterministic flow of its own squashed by tanh, is pulled
towards it offline and towards the batch's actions always. No entropy, no step noise. Follows the official code.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, Phase, gradient_step
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig
from agents.blocks.flow import euler_step, integrate, matching_loss, rollout_gradient_norms
from agents.blocks.velocities import PlainVelocity
from datasets.batch import Batch


@dataclass(frozen=True)
class NaiveSACFlowConfig:
    """Settings of naive SAC Flow."""

    chunk_length: int = 5  # H, environment steps per action chunk
    flow_steps: int = 10  # K, Euler steps of the policy and of the behaviour flow
    bc_coef: float = 100.0  # beta, weight of the squared distance to the flow's and to the batch's chunk, offline
    bc_coef_online: float = 100.0  # beta, online (batch's chunk only)
    critic_updates_per_offline_step: Literal[1, 2] = 2  # 1: the matching step leaves the critic alone
    critic: CriticConfig = CriticConfig(num_critics=2, q_aggregation="mean")
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # of both fields

    def __post_init__(self) -> None:
        check_config(self)


class NaiveSACFlow(Agent):
    """Deterministic flow policy trained by back-propagation through its Euler steps."""

    config: NaiveSACFlowConfig
    policy_modules = ("policy_velocity",)
    online_only = ("bc_coef_online",)

    def __init__(self, config: NaiveSACFlowConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.behaviour_velocity = PlainVelocity(obs_dim, self.chunk_dim, config.policy_hidden_dims, noise)
        self.policy_velocity = PlainVelocity(obs_dim, self.chunk_dim, config.policy_hidden_dims, noise)
        self.critic = Critic(config.critic, obs_dim, self.chunk_dim, config.learning_rate, noise)
        policy_parameters = [*self.behaviour_velocity.parameters(), *self.policy_velocity.parameters()]
        self.policy_optimizer = Adam(policy_parameters, config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.policy(obs, noise.normal("act_noise", obs.shape[1], self.chunk_dim))  # the same in both modes

    def policy(self, obs: Tensor, x_0: Tensor) -> Tensor:
        """Action chunk (S, B, H, A) = tanh of the policy flow's endpoint from noise x_0 (S, B, D)."""
        return self.squashed(integrate(self.policy_velocity(obs), x_0, self.config.flow_steps))

    def squashed(self, x_1: Tensor) -> Tensor:
        """tanh(x_1) as an action chunk (S, B, H, A)."""
        return x_1.tanh().unflatten(-1, (self.chunk_length, -1))

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        """A step towards the behaviour flow and one towards the batch, on the same batch: two optimiser steps."""
        return self.matching_step(batch, noise) | self.policy_step(batch, noise, self.config.bc_coef)

    def update_online(self, batch: Batch, noise: Noise) -> Metrics:
        return self.policy_step(batch, noise, self.config.bc_coef_online)

    def matching_step(self, batch: Batch, noise: Noise) -> Metrics:
        """Behaviour flow matched to the data, policy pulled towards it and Q, and a critic step unless left out."""
        policy_loss, metrics = self.matching_loss(batch, noise)
        steps = [(self.policy_optimizer, policy_loss)]
        if self.config.critic_updates_per_offline_step == 2:
            critic_loss, critic_metrics = self.critic_loss(batch, noise)
            metrics = critic_metrics | metrics
            self.critic.follow()
            steps.append((self.critic.optimizer, critic_loss))
        gradient_step(*steps)
        return metrics

    def policy_step(self, batch: Batch, noise: Noise, bc_coef: float) -> Metrics:
        """One step of critic and policy; the behaviour flow is left to Adam's momentum, as released."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        policy_loss, policy_metrics = self.policy_loss(batch, noise, bc_coef)
        self.critic.follow()
        gradient_step((self.critic.optimizer, critic_loss), (self.policy_optimizer, policy_loss))
        return critic_metrics | policy_metrics

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the target critics' value of the policy's next chunk."""
        with torch.no_grad():
            x_0 = noise.normal("next_noise", batch.obs.shape[1], self.chunk_dim)
            next_value = self.critic.target_value(batch.next_obs, self.policy(batch.next_obs, x_0))
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return self.critic.loss(batch, target)

    def matching_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Matching of the behaviour flow, distance of the policy to its endpoint from the same noise, and -Q; (S,)."""
        behaviour_velocity = self.behaviour_velocity(batch.obs)
        flow_loss = matching_loss(behaviour_velocity, batch.action_chunk, batch.valid, noise)
        x_0 = noise.normal("policy_noise", batch.obs.shape[1], self.chunk_dim)
        with torch.no_grad():
            flow_action = integrate(behaviour_velocity, x_0, self.config.flow_steps).clamp(-1, 1)
        action_chunk = self.policy(batch.obs, x_0)
        distill_loss = (action_chunk - flow_action.view_as(action_chunk)).square().mean((1, 2, 3))
        q_loss = -self.critic(batch.obs, action_chunk, constant=True).mean((1, 2))
        loss = flow_loss + self.config.bc_coef * distill_loss + q_loss
        return loss, {"matching_loss": flow_loss.detach(), "distill_loss": distill_loss.detach()}

    def policy_loss(self, batch: Batch, noise: Noise, bc_coef: float) -> tuple[Tensor, Metrics]:
        """`action_loss` (S,) of the policy, through whose flow steps its gradient runs back."""
        x_0 = noise.normal("policy_noise", batch.obs.shape[1], self.chunk_dim)
        return self.action_loss(self.policy(batch.obs, x_0), batch, bc_coef)

    def action_loss(self, action_chunk: Tensor, batch: Batch, bc_coef: float) -> tuple[Tensor, Metrics]:
        """-Q of an action chunk and its squared distance to the batch's, (S,)."""
        bc_loss = (action_chunk - batch.action_chunk).square().mean((1, 2, 3))
        q_loss = -self.critic(batch.obs, action_chunk, constant=True).mean((1, 2))
        loss = bc_coef * bc_loss + q_loss
        metrics = {"policy_loss": loss, "bc_loss": bc_loss, "q_loss": q_loss}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def gradient_norms(self, batch: Batch, noise: Noise, phase: Phase) -> Metrics:
        """Of the step towards the batch, which both phases take."""
        config = self.config
        bc_coef = config.bc_coef if phase == "offline" else config.bc_coef_online
        x_0 = noise.normal("policy_noise", batch.obs.shape[1], self.chunk_dim)

        def step(k: int, x: Tensor) -> Tensor:
            return euler_step(self.policy_velocity(batch.obs), x, k, config.flow_steps)

        def loss(x_1: Tensor) -> Tensor:
            return self.action_loss(self.squashed(x_1), batch, bc_coef)[0]

        return rollout_gradient_norms(step, x_0, config.flow_steps, loss, self.policy_velocity.parameters())
