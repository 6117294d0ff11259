"""FBRAC, behaviour-regularised actor-critic with a flow (Park et al., arXiv 2502.02538, as released with QAM).

One flow is matched to the data and maximises Q of its own samples, whose gradient runs back through all K Euler steps.
Defaults are those of the QAM release (arXiv 2601.14234).
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
from datasets.batch import Batch, WindowMask


@dataclass(frozen=True)
class FBRACConfig:
    """Settings of FBRAC."""

    chunk_length: int = 5  # H, environment steps per action chunk
    bc_coef: float = 0.1  # alpha: the matching loss has weight 1 and -Q has weight 1 / alpha
    flow_steps: int = 10  # K, Euler steps of the flow
    window_mask: WindowMask = "window"  # what counts of a window that runs into the next episode, for the flow
    critic: CriticConfig = CriticConfig(num_critics=10, q_aggregation="pessimistic")
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)

    def __post_init__(self) -> None:
        check_config(self)
        if self.bc_coef == 0:
            raise ValueError(f"FBRACConfig.bc_coef = {self.bc_coef!r}: must be above 0, -Q is divided by it")


class FBRAC(Agent):
    """Flow policy trained by matching and by back-propagation through its Euler steps."""

    config: FBRACConfig
    policy_modules = ("policy_velocity",)

    def __init__(self, config: FBRACConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.policy_velocity = PlainVelocity(obs_dim, self.chunk_dim, config.policy_hidden_dims, noise)
        self.critic = Critic(config.critic, obs_dim, self.chunk_dim, config.learning_rate, noise)
        self.policy_optimizer = Adam(self.policy_velocity.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        x_0 = noise.normal("act_noise", obs.shape[1], self.chunk_dim)
        return self.clipped(self.endpoint(obs, x_0))  # the same in both modes

    def endpoint(self, obs: Tensor, x_0: Tensor) -> Tensor:
        """x_1 (S, B, D) of the flow at obs (S, B, O) from noise x_0 (S, B, D)."""
        return integrate(self.policy_velocity(obs), x_0, self.config.flow_steps)

    def clipped(self, x_1: Tensor) -> Tensor:
        """x_1 in the box, as an action chunk (S, B, H, A)."""
        return x_1.clamp(-1, 1).unflatten(-1, (self.chunk_length, -1))

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
            x_0 = noise.normal("next_noise", batch.obs.shape[1], self.chunk_dim)
            next_action_chunk = self.clipped(self.endpoint(batch.next_obs, x_0))
            next_value = self.critic.target_value(batch.next_obs, next_action_chunk)
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return self.critic.loss(batch, target)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Matching of the flow to the data, and -Q of its clipped endpoint, (S,)."""
        valid = batch.counted(self.config.window_mask)
        flow_loss = matching_loss(self.policy_velocity(batch.obs), batch.action_chunk, valid, noise)
        x_0 = noise.normal("policy_noise", batch.obs.shape[1], self.chunk_dim)
        q_loss = self.q_loss(self.endpoint(batch.obs, x_0), batch)
        loss = flow_loss + q_loss / self.config.bc_coef
        metrics = {"policy_loss": loss, "matching_loss": flow_loss, "q_loss": q_loss}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def q_loss(self, x_1: Tensor, batch: Batch) -> Tensor:
        """-Q (S,) of the clipped x_1 (S, B, D), the mean over the critics."""
        return -self.critic(batch.obs, self.clipped(x_1), constant=True).mean((1, 2))

    def gradient_norms(self, batch: Batch, noise: Noise, phase: Phase) -> Metrics:
        """Of -Q with its weight: the matching loss runs back through no rollout."""
        config = self.config
        x_0 = noise.normal("policy_noise", batch.obs.shape[1], self.chunk_dim)

        def step(k: int, x: Tensor) -> Tensor:
            return euler_step(self.policy_velocity(batch.obs), x, k, config.flow_steps)

        def loss(x_1: Tensor) -> Tensor:
            return self.q_loss(x_1, batch) / config.bc_coef

        return rollout_gradient_norms(step, x_0, config.flow_steps, loss, self.policy_velocity.parameters())
