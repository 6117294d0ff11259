"""FQL (Park et al., arXiv 2502.02538) and, with chunks of H > 1 actions, QC-FQL (Li et al., arXiv 2507.07969).

A flow is matched to the data; a one-step policy maps the same noise to an action, is pulled towards the flow's endpoint
and maximises Q. Follows the official code of both; `critic_updates_per_offline_step` is ours.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, gradient_step
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig
from agents.blocks.flow import integrate, matching_loss
from agents.blocks.networks import MLP
from agents.blocks.velocities import PlainVelocity
from datasets.batch import Batch, WindowMask


@dataclass(frozen=True)
class FQLConfig:
    """Settings of FQL (chunk_length 1) and QC-FQL."""

    chunk_length: int = 5  # H, environment steps per action chunk; 1 is FQL
    bc_coef: float = 100.0  # alpha, weight of the distillation towards the flow
    flow_steps: int = 10  # K, Euler steps of the flow
    window_mask: WindowMask = "steps"  # what counts of a window that runs into the next episode; QAM's FQL: "window"
    normalize_q: bool = False  # divide the policy's Q by its mean magnitude over the batch
    critic: CriticConfig = CriticConfig(num_critics=2, q_aggregation="mean")
    critic_updates_per_offline_step: Literal[1, 2] = 1  # 2 repeats the whole step on the batch, as SAC Flow's code does
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # flow and one-step policy

    def __post_init__(self) -> None:
        check_config(self)


class FQL(Agent):
    """Flow Q-learning over action chunks."""

    config: FQLConfig
    policy_modules = ("one_step_policy",)

    def __init__(self, config: FQLConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.behaviour_velocity = PlainVelocity(obs_dim, self.chunk_dim, config.policy_hidden_dims, noise)
        self.one_step_policy = MLP(obs_dim + self.chunk_dim, config.policy_hidden_dims, self.chunk_dim, noise)
        self.critic = Critic(config.critic, obs_dim, self.chunk_dim, config.learning_rate, noise)
        policy_parameters = [*self.behaviour_velocity.parameters(), *self.one_step_policy.parameters()]
        self.policy_optimizer = Adam(policy_parameters, config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        x_0 = noise.normal("act_noise", obs.shape[1], self.chunk_dim)
        return self.policy(obs, x_0).clamp(-1, 1)  # the same in both modes

    def policy(self, obs: Tensor, x_0: Tensor) -> Tensor:
        """mu(s, x_0), the action chunk (S, B, H, A) of obs (S, B, O) and noise (S, B, D), before it is clipped."""
        return self.one_step_policy(torch.cat([obs, x_0], -1)).unflatten(-1, (self.chunk_length, -1))

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        """`update`, once or twice on the same batch."""
        for _ in range(self.config.critic_updates_per_offline_step - 1):
            self.update(batch, noise)
        return self.update(batch, noise)

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of critic, flow and one-step policy."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        self.critic.follow()
        gradient_step((self.critic.optimizer, critic_loss), (self.policy_optimizer, policy_loss))
        return critic_metrics | policy_metrics

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the target critics' value of the policy's next chunk."""
        with torch.no_grad():
            x_0 = noise.normal("next_noise", batch.obs.shape[1], self.chunk_dim)
            next_action_chunk = self.policy(batch.next_obs, x_0).clamp(-1, 1)
            next_value = self.critic.target_value(batch.next_obs, next_action_chunk)
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return self.critic.loss(batch, target)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Matching of the flow to the data, its distillation into the policy, and -Q of the clipped policy, (S,)."""
        behaviour_velocity = self.behaviour_velocity(batch.obs)
        valid = batch.counted(self.config.window_mask)
        flow_loss = matching_loss(behaviour_velocity, batch.action_chunk, valid, noise)

        x_0 = noise.normal("policy_noise", batch.obs.shape[1], self.chunk_dim)
        with torch.no_grad():
            flow_action = integrate(behaviour_velocity, x_0, self.config.flow_steps).clamp(-1, 1)
        action_chunk = self.policy(batch.obs, x_0)
        distill_loss = (action_chunk - flow_action.view_as(action_chunk)).square().mean((1, 2, 3))

        q = self.critic(batch.obs, action_chunk.clamp(-1, 1), constant=True).mean(1)  # (S, B)
        q_loss = -q.mean(1)
        if self.config.normalize_q:
            q_loss = q_loss / q.detach().abs().mean(1)

        loss = flow_loss + self.config.bc_coef * distill_loss + q_loss
        metrics = {"policy_loss": loss, "matching_loss": flow_loss, "distill_loss": distill_loss, "q_loss": q_loss}
        return loss, {name: value.detach() for name, value in metrics.items()}
