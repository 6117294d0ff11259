"""Diffusion-QL (Wang et al., arXiv 2208.06193) over action chunks.

A diffusion policy is fitted to the data and maximises Q of its samples, the gradient running back through all steps.

Follows the official code: the policy learns from the critic's new parameters, and both clip their gradients alone.
Deviations: the critic is the one shared by our agents (critic_norm="none" and critic_activation="mish" are the
official one's, but for its initial values, those of PyTorch), and the networks have this benchmark's widths. The backup
of the maximum over 10 next actions, for some tasks, and the decay of the learning rate, which needs a budget, are left
out. The clip at norm 1 is the class's default; its runs on D4RL have clips from 1 to 10 by task.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, Phase, frozen_copy, gradient_step, polyak_update
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig, choose
from agents.blocks.denoisers import MLPDenoiser, Predictor, SinusoidalStep
from agents.blocks.diffusion import ScheduleName, ddpm_sample, ddpm_step, denoising_loss, draw_noise, make_schedule
from agents.blocks.flow import rollout_gradient_norms
from datasets.batch import Batch


@dataclass(frozen=True)
class DiffusionQLConfig:
    """Settings of Diffusion-QL over action chunks."""

    chunk_length: int = 5  # H, environment steps per action chunk
    q_coef: float = 1.0  # eta, weight of the normalised Q against the denoising loss
    denoising_steps: int = 5  # T
    noise_schedule: ScheduleName = "vp"
    step_dim: int = 16  # features of the diffusion step t
    num_candidates: int = 50  # samples of which `act` takes one with probability softmax(Q)
    ema_rate: float = 0.005  # of the averaged policy, which makes the actions of the critic's target
    ema_interval: int = 5  # updates from one step of the averaged policy to the next
    first_ema_update: int = 1001  # number of the update, from 1, before which it does not move
    max_gradient_norm: float = 1.0  # of critic and of policy, each alone
    critic: CriticConfig = CriticConfig(num_critics=2, q_aggregation="min")
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)

    def __post_init__(self) -> None:
        check_config(self, ema_rate=(0, 1))
        if self.step_dim < 4 or self.step_dim % 2:
            raise ValueError(f"DiffusionQLConfig.step_dim = {self.step_dim!r}: must be even and at least 4")


class DiffusionQL(Agent):
    """A diffusion policy trained by the critic's gradient through its sampler."""

    config: DiffusionQLConfig
    policy_modules = ("denoiser", "critic.target")

    def __init__(self, config: DiffusionQLConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.schedule = make_schedule(config.noise_schedule, config.denoising_steps, noise.device)
        step = SinusoidalStep(config.step_dim, noise, "torch", first=0)
        self.denoiser = MLPDenoiser(obs_dim, self.chunk_dim, config.policy_hidden_dims, step, noise, "torch")
        self.target_denoiser = frozen_copy(self.denoiser)
        self.critic = Critic(config.critic, obs_dim, self.chunk_dim, config.learning_rate, noise)
        self.policy_optimizer = Adam(self.denoiser.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        """One of `num_candidates` samples of the policy itself, not its average; the same in both modes."""
        candidates, q = self.candidates(obs, noise)
        uniform = noise.uniform("act_choice", *q.shape[1:])
        # The highest of Q plus Gumbel noise is a draw from softmax(Q).
        gumbel = -(-uniform.clamp(1e-12).log()).log()
        return choose(candidates, (q + gumbel).argmax(-1))

    def candidates(self, obs: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """`num_candidates` samples at each obs (S, B, O), (S, B * n, H, A), and their Q, (S, B, n)."""
        num_candidates = self.config.num_candidates
        candidates = self.sample(self.denoiser(obs), obs, noise, "act", num_candidates)
        return candidates, self.critic.target_value(obs, candidates).unflatten(1, (-1, num_candidates))

    def sample(self, predict: Predictor, obs: Tensor, noise: Noise, draw: str, num_candidates: int = 1) -> Tensor:
        """n action chunks at each obs (S, B, O), (S, B * n, H, A), drawn under names that begin with `draw`."""
        x_T, step_noise = draw_noise(draw, (obs.shape[1] * num_candidates, self.chunk_dim), noise, self.schedule)
        x_0 = ddpm_sample(predict, x_T, step_noise, self.schedule, clip="clean", step_std="posterior")
        return x_0.clamp(-1, 1).unflatten(-1, (self.chunk_length, -1))

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of the critic, one of the policy by the new critic, and then of what follows the two."""
        max_norm = self.config.max_gradient_norm
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        # The official loss is the sum over critics, not their mean, which matters to the clip.
        gradient_step((self.critic.optimizer, self.config.critic.num_critics * critic_loss), max_norm=max_norm)
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        gradient_step((self.policy_optimizer, policy_loss), max_norm=max_norm)
        polyak_update(self.target_denoiser, self.denoiser, self.ema_rate())
        self.critic.follow()
        return critic_metrics | policy_metrics

    def ema_rate(self) -> Tensor:
        """The rate of the averaged policy after a step of the policy: 0 where it is not its turn; a scalar."""
        update = self.policy_optimizer.steps  # the number of this update, from 1
        moves = ((update - 1) % self.config.ema_interval == 0) & (update >= self.config.first_ema_update)
        return self.config.ema_rate * moves

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the targets' value of the averaged policy's next chunk."""
        with torch.no_grad():
            next_action_chunk = self.sample(self.target_denoiser(batch.next_obs), batch.next_obs, noise, "next")
            next_value = self.critic.target_value(batch.next_obs, next_action_chunk)
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return self.critic.loss(batch, target)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Denoising of the batch's chunks, and -Q of samples, (S,)."""
        predict = self.denoiser(batch.obs)
        denoising = denoising_loss(predict, batch.action_chunk, batch.valid, noise, self.schedule)

        q_loss = self.q_loss(batch.obs, self.sample(predict, batch.obs, noise, "policy"), noise)
        loss = denoising + self.config.q_coef * q_loss
        metrics = {"policy_loss": loss, "denoising_loss": denoising, "q_loss": q_loss}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def q_loss(self, obs: Tensor, action_chunk: Tensor, noise: Noise) -> Tensor:
        """-Q (S,) of a critic drawn at random for each seed, over the mean magnitude of the next critic's Q."""
        q = self.critic(obs, action_chunk, constant=True)  # (S, N, B)
        scale = q.detach().abs().mean(2).roll(-1, 1)  # (S, N), of critic i + 1
        choice = (noise.uniform("q_choice", 1) * self.config.critic.num_critics).long()  # (S, 1)
        return (-q.mean(2) / scale).gather(1, choice).squeeze(1)

    def gradient_norms(self, batch: Batch, noise: Noise, phase: Phase) -> Metrics:
        """Of the Q loss; the denoising loss runs back through no sampler."""
        x_T, step_noise = draw_noise("policy", (batch.obs.shape[1], self.chunk_dim), noise, self.schedule)

        def step(k: int, x: Tensor) -> Tensor:
            return ddpm_step(self.denoiser(batch.obs), x, k, step_noise, self.schedule, "clean", "posterior")

        def loss(x_0: Tensor) -> Tensor:
            action_chunk = x_0.clamp(-1, 1).unflatten(-1, (self.chunk_length, -1))
            return self.config.q_coef * self.q_loss(batch.obs, action_chunk, noise)

        return rollout_gradient_norms(step, x_T, self.schedule.num_steps, loss, self.denoiser.parameters())
