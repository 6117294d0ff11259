"""DAC, Diffusion Actor-Critic (Fang et al., arXiv 2405.20555), in the form of the QAM release (arXiv 2601.14234).

A diffusion policy is fitted to the data while the critic's gradient at the noised action pushes the predicted noise
the other way. That release clips the joint gradient norm and drops windows that run into the next episode by a power
where this product is meant, which differs in the logged loss only.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, gradient_step
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig, action_gradient
from agents.blocks.denoisers import FourierStep, MLPDenoiser
from agents.blocks.diffusion import ScheduleName, add_noise, ddpm_sample, draw_noise, make_schedule, masked_mean
from datasets.batch import Batch, WindowMask


@dataclass(frozen=True)
class DACConfig:
    """Settings of DAC over action chunks."""

    chunk_length: int = 5  # H, environment steps per action chunk
    bc_coef: float = 3.0  # weight of the denoising loss against the critic's guidance
    denoising_steps: int = 10  # T
    noise_schedule: ScheduleName = "vp"
    window_mask: WindowMask = "window"  # what counts of a window that runs into the next episode, in both losses
    max_gradient_norm: float = 1.0  # of critic and policy together
    critic: CriticConfig = CriticConfig(num_critics=10, q_aggregation="pessimistic")
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # of the noise predictor, and of its features of t

    def __post_init__(self) -> None:
        check_config(self)


class DAC(Agent):
    """A diffusion policy guided by the critic's gradient at noised actions."""

    config: DACConfig
    policy_modules = ("denoiser",)

    def __init__(self, config: DACConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.schedule = make_schedule(config.noise_schedule, config.denoising_steps, noise.device)
        step = FourierStep(config.policy_hidden_dims, noise)
        self.denoiser = MLPDenoiser(obs_dim, self.chunk_dim, config.policy_hidden_dims, step, noise)
        self.critic = Critic(config.critic, obs_dim, self.chunk_dim, config.learning_rate, noise)
        self.policy_optimizer = Adam(self.denoiser.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.policy(obs, noise, "act")  # the same in both modes

    def policy(self, obs: Tensor, noise: Noise, draw: str) -> Tensor:
        """An action chunk (S, B, H, A) at obs (S, B, O), from numbers drawn under names that begin with `draw`."""
        x_T, step_noise = draw_noise(draw, (obs.shape[1], self.chunk_dim), noise, self.schedule)
        x_0 = ddpm_sample(self.denoiser(obs), x_T, step_noise, self.schedule, clip="clean")
        return x_0.clamp(-1, 1).unflatten(-1, (self.chunk_length, -1))

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of critic and policy."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        self.critic.follow()
        gradient_step(
            (self.critic.optimizer, critic_loss),
            (self.policy_optimizer, policy_loss),
            max_norm=self.config.max_gradient_norm,
        )
        return critic_metrics | policy_metrics

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the target critics' value of the policy's next chunk."""
        with torch.no_grad():
            next_value = self.critic.target_value(batch.next_obs, self.policy(batch.next_obs, noise, "next"))
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return self.critic.loss(batch, target)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Denoising of the batch's chunks, and guidance: predicted noise along the targets' gradient costs; (S,)."""
        valid = batch.counted(self.config.window_mask)
        noised = add_noise(batch.action_chunk, noise, self.schedule)
        predicted = self.denoiser(batch.obs)(noised.t, noised.x)  # (S, B, D)
        denoising = masked_mean((noised.eps - predicted).square(), valid)
        gradient = action_gradient(self.critic.target, batch.obs, noised.x)
        q_loss = masked_mean(noised.noise_std * gradient * predicted, valid)
        loss = self.config.bc_coef * denoising + q_loss
        metrics = {"policy_loss": loss, "denoising_loss": denoising, "q_loss": q_loss}
        return loss, {name: value.detach() for name, value in metrics.items()}
