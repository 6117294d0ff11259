"""QSM from scratch, as its authors release it (Psenka et al., arXiv 2312.11752).

The predicted noise of a diffusion policy, which is minus its score, is matched to minus the gradient of the critics in
training, at noised actions of the replay. `agents.qsm` is another algorithm in its details: it matches the data as
well. Left out: the cosine decay of the policy's rate over 2M updates.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, gradient_step
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig, action_gradient
from agents.blocks.denoisers import FourierStep, MLPDenoiser
from agents.blocks.diffusion import add_noise, ddpm_sample, draw_noise, make_schedule, masked_mean
from datasets.batch import Batch


@dataclass(frozen=True)
class QSMScratchConfig:
    """Settings of QSM from scratch."""

    chunk_length: int = 1  # H, environment steps per action chunk
    inverse_temperature: float = 50.0  # M_q, of the critics' gradient that the score is matched to
    denoising_steps: int = 5  # T
    exploration_std: float = 0.1  # of what is added to actions while collecting and in the critics' target
    critic: CriticConfig = CriticConfig(
        num_critics=2,
        q_aggregation="min",
        critic_hidden_dims=(512, 512),
        critic_norm="none",
        critic_activation="relu",
    )
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512)  # of the noise predictor
    step_hidden_dims: tuple[int, ...] = (128, 128)  # of its features of t, which begin with so many
    step_frequencies: int = 32

    def __post_init__(self) -> None:
        check_config(self)


class QSMScratch(Agent):
    """A diffusion policy whose score follows the critics' gradient alone."""

    config: QSMScratchConfig
    policy_modules = ("denoiser",)

    def __init__(self, config: QSMScratchConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.schedule = make_schedule("vp", config.denoising_steps, noise.device)
        step = FourierStep(config.step_hidden_dims, noise, config.step_frequencies, first=0)
        self.denoiser = MLPDenoiser(obs_dim, self.chunk_dim, config.policy_hidden_dims, step, noise)
        self.critic = Critic(config.critic, obs_dim, self.chunk_dim, config.learning_rate, noise)
        self.policy_optimizer = Adam(self.denoiser.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.policy(obs, noise, "act", explores=mode == "collect")

    def policy(self, obs: Tensor, noise: Noise, draw: str, explores: bool) -> Tensor:
        """An action chunk (S, B, H, A) at obs (S, B, O), from numbers drawn under names that begin with `draw`."""
        x_T, step_noise = draw_noise(draw, (obs.shape[1], self.chunk_dim), noise, self.schedule)
        x_0 = ddpm_sample(self.denoiser(obs), x_T, step_noise, self.schedule, clip="sample")
        if explores:
            added = noise.normal(f"{draw}_exploration_noise", *x_0.shape[1:])
            x_0 = (x_0 + self.config.exploration_std * added).clamp(-1, 1)
        return x_0.unflatten(-1, (self.chunk_length, -1))

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of the critics, of their targets to the new ones, and of the policy by the new ones."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        gradient_step((self.critic.optimizer, critic_loss))
        self.critic.follow()
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        gradient_step((self.policy_optimizer, policy_loss))
        return critic_metrics | policy_metrics

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the target critics' value of the policy's next chunk."""
        with torch.no_grad():
            next_action_chunk = self.policy(batch.next_obs, noise, "next", explores=True)
            next_value = self.critic.target_value(batch.next_obs, next_action_chunk)
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return self.critic.loss(batch, target)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) of the noise predicted in noised chunks to minus the critics' mean gradient there."""
        noised = add_noise(batch.action_chunk, noise, self.schedule)
        predicted = self.denoiser(batch.obs)(noised.t, noised.x)  # (S, B, D)
        gradient = action_gradient(self.critic.online, batch.obs, noised.x)
        error = -self.config.inverse_temperature * gradient - predicted
        loss = masked_mean(error.square(), batch.valid)
        return loss, {"policy_loss": loss.detach()}
