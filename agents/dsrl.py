"""DSRL (Wagenmaker et al., arXiv 2506.15799), steering a flow by its noise, as released with QAM (arXiv 2601.14234).

A Gaussian actor chooses the noise z from which a flow matched to the data makes the action, and maximises a critic of
(s, z) that is distilled from the critic of (s, a). As in the QAM release, and other than in the paper, the flow goes on
learning, through a Polyak copy.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, frozen_copy, gradient_step, polyak_update
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig, QEnsemble
from agents.blocks.flow import integrate, matching_loss
from agents.blocks.gaussian import TanhGaussian
from agents.blocks.temperature import Temperature, check_learnt_coef
from agents.blocks.velocities import PlainVelocity
from datasets.batch import Batch, WindowMask


@dataclass(frozen=True)
class DSRLConfig:
    """Settings of DSRL."""

    chunk_length: int = 5  # H, environment steps per action chunk
    noise_scale: float = 1.0  # bound of each coordinate of z
    entropy_coef: float = 1.0  # alpha, initial value
    target_entropy: float = -0.5  # nats per coordinate of z / noise_scale
    flow_steps: int = 10  # K, Euler steps of the flow
    window_mask: WindowMask = "window"  # what counts of a window that runs into the next episode, for the flow
    # As many critics of z as of actions; the flow's copy follows at the rate of the target critics.
    critic: CriticConfig = CriticConfig(num_critics=10, q_aggregation="pessimistic")
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # flow and actor

    def __post_init__(self) -> None:
        check_config(self, target_entropy=(-math.inf, math.inf))
        check_learnt_coef(self)


class DSRL(Agent):
    """Soft actor-critic over the noise of a flow policy."""

    config: DSRLConfig
    policy_modules = ("target_behaviour_velocity", "latent_policy")

    def __init__(self, config: DSRLConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        dims = (obs_dim, self.chunk_dim)
        self.behaviour_velocity = PlainVelocity(*dims, config.policy_hidden_dims, noise)
        self.target_behaviour_velocity = frozen_copy(self.behaviour_velocity)
        self.latent_policy = TanhGaussian(obs_dim, config.policy_hidden_dims, self.chunk_dim, noise)
        self.critic = Critic(config.critic, *dims, config.learning_rate, noise)
        self.latent_critic = QEnsemble.of(config.critic, *dims, noise)
        target_entropy = config.target_entropy * self.chunk_dim
        self.temperature = Temperature(config.entropy_coef, target_entropy, config.learning_rate, noise)
        self.behaviour_optimizer = Adam(self.behaviour_velocity.parameters(), config.learning_rate)
        self.policy_optimizer = Adam(self.latent_policy.parameters(), config.learning_rate)
        self.latent_critic_optimizer = Adam(self.latent_critic.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.action_chunk(obs, self.latent(obs, noise, "act_noise")[0])  # the same in both modes

    def latent(self, obs: Tensor, noise: Noise, draw: str) -> tuple[Tensor, Tensor]:
        """The actor's z (S, B, D) at obs (S, B, O), and the log density (S, B) of z / noise_scale."""
        squashed, log_prob = self.latent_policy.sample(obs, noise.normal(draw, obs.shape[1], self.chunk_dim))
        return self.config.noise_scale * squashed, log_prob

    def action_chunk(self, obs: Tensor, z: Tensor) -> Tensor:
        """F(s, z): the endpoint of the flow's copy from z (S, B, D), clipped, (S, B, H, A)."""
        x_1 = integrate(self.target_behaviour_velocity(obs), z, self.config.flow_steps).clamp(-1, 1)
        return x_1.unflatten(-1, (self.chunk_length, -1))

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of both critics, flow, actor and temperature."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        latent_critic_loss = self.latent_critic_loss(batch, noise)
        valid = batch.counted(self.config.window_mask)
        flow_loss = matching_loss(self.behaviour_velocity(batch.obs), batch.action_chunk, valid, noise)
        policy_loss, metrics = self.policy_loss(batch, noise)
        metrics["entropy_coef"] = self.temperature.coef
        self.critic.follow()
        polyak_update(self.target_behaviour_velocity, self.behaviour_velocity, self.config.critic.target_update_rate)
        gradient_step(
            (self.critic.optimizer, critic_loss),
            (self.latent_critic_optimizer, latent_critic_loss),
            (self.behaviour_optimizer, flow_loss),
            (self.policy_optimizer, policy_loss),
            (self.temperature.optimizer, self.temperature.loss(metrics["entropy"])),
        )
        metrics |= {"matching_loss": flow_loss.detach(), "latent_critic_loss": latent_critic_loss.detach()}
        return critic_metrics | metrics

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the target critics' value of the next chunk; no entropy."""
        with torch.no_grad():
            z, _ = self.latent(batch.next_obs, noise, "next_noise")
            next_value = self.critic.target_value(batch.next_obs, self.action_chunk(batch.next_obs, z))
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return self.critic.loss(batch, target)

    def latent_critic_loss(self, batch: Batch, noise: Noise) -> Tensor:
        """Squared error (S,) of each critic of z to its critic of actions at F(s, z), for z ~ N(0, I)."""
        z = noise.normal("latent_critic_noise", batch.obs.shape[1], self.chunk_dim)
        with torch.no_grad():
            q = self.critic(batch.obs, self.action_chunk(batch.obs, z))  # (S, N, B)
        return (self.latent_critic(batch.obs, z) - q).square().mean((1, 2))

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """-Q of the actor's z by the critics of z, and its entropy, (S,)."""
        z, log_prob = self.latent(batch.obs, noise, "policy_noise")
        q = self.latent_critic(batch.obs, z, constant=True).mean(1)  # (S, B)
        loss = (self.temperature.coef.unsqueeze(-1) * log_prob - q).mean(1)
        return loss, {"policy_loss": loss.detach(), "entropy": -log_prob.detach().mean(1)}
