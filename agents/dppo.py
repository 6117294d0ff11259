"""DPPO (Ren et al., arXiv 2409.00588): PPO over the denoising steps of a diffusion policy, learnt offline by cloning.

Online, the last `fine_tuned_steps` of the chain are Gaussian policies of their own, all with the advantage of the chunk
that the chain ends in; the steps before them stay those of the cloned policy, an average over its training. Left out
of the official code: learning rate schedules, and the early stop at a divergence of 1, which its clip range of .01
keeps away from. Minibatches hold every step of their decisions instead of random steps.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Metrics, Noise, frozen_copy, gradient_step, polyak_update
from agents.blocks.config import check_config
from agents.blocks.denoisers import MLPDenoiser, SinusoidalStep
from agents.blocks.diffusion import ScheduleName, denoising_loss, draw_noise, make_schedule, posterior
from agents.blocks.networks import Activation
from agents.blocks.ppo import (
    PPOAgent,
    PPOConfig,
    clipped_loss,
    follow_clone,
    normalised,
    pack_chain,
    unpack_chain,
)
from datasets.batch import Batch, Decisions


@dataclass(frozen=True)
class DPPOConfig(PPOConfig):
    """Settings of DPPO; those of its state-based Robomimic runs where no comment says otherwise."""

    denoising_steps: int = 20  # T
    fine_tuned_steps: int = 10  # of them the last ones, which PPO trains
    schedule: ScheduleName = "cosine"
    min_std: float = 0.1  # least standard deviation of a step while collecting, and in likelihoods
    denoising_discount: float = 0.99  # of the advantage, per step away from the action
    clip_range: float = 0.01  # of the ratio of densities, at the last denoising step
    first_clip_range: float = 0.001  # at the first fine-tuned one
    clip_range_rate: float = 3.0  # of the exponential growth between the two
    min_log_prob: float = -5.0  # each coordinate's log density is cut to these before their mean is taken
    max_log_prob: float = 2.0
    cloning_learning_rate: float = 1e-4  # offline; official with a schedule
    cloning_weight_decay: float = 1e-6
    learning_rate: float = 1e-4  # of the policy online
    value_learning_rate: float = 1e-3
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512)  # official 1024 on Square
    policy_activation: Activation = "relu"

    def __post_init__(self) -> None:
        everything = (-math.inf, math.inf)
        check_config(
            self,
            gae_lambda=(0, 1),
            denoising_discount=(0, 1),
            ema_rate=(1e-6, 1),
            min_std=(1e-6, math.inf),
            min_log_prob=everything,
            max_log_prob=(self.min_log_prob, math.inf),
        )
        self.check_widths(policy_hidden_dims=self.policy_hidden_dims, value_hidden_dims=self.value_hidden_dims)
        if self.fine_tuned_steps > self.denoising_steps:
            raise ValueError(
                f"DPPOConfig.fine_tuned_steps = {self.fine_tuned_steps}: must be at most denoising_steps, "
                f"{self.denoising_steps}"
            )


class DPPO(PPOAgent):
    """A diffusion policy whose last denoising steps PPO trains."""

    config: DPPOConfig
    policy_modules = ("denoiser", "target_denoiser")
    online_only = (
        *("num_envs", "rollout_decisions", "batch_decisions", "epochs", "gae_lambda", "gae_at_time_limits"),
        *("max_reward", "denoising_discount", "clip_range", "first_clip_range", "clip_range_rate", "min_std"),
        *("min_log_prob", "max_log_prob", "value_coef", "first_policy_rollout", "learning_rate"),
        "value_learning_rate",
    )

    def __init__(self, config: DPPOConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.cloning_denoiser = MLPDenoiser(
            obs_dim,
            self.chunk_dim,
            config.policy_hidden_dims,
            SinusoidalStep(16, noise, init="torch", first=0),
            noise,
            activation=config.policy_activation,
            init="torch",
            residual=config.residual,
        )
        self.target_denoiser = frozen_copy(self.cloning_denoiser)  # its average: follows offline, stays online
        self.denoiser = frozen_copy(self.cloning_denoiser).requires_grad_()  # the average, and what PPO makes of it
        self.schedule = make_schedule(config.schedule, config.denoising_steps, noise.device)
        self.cloning_optimizer = Adam(
            self.cloning_denoiser.parameters(), config.cloning_learning_rate, config.cloning_weight_decay
        )
        self.policy_optimizer = Adam(self.denoiser.parameters(), config.learning_rate)
        self.value_optimizer = Adam(self.value.parameters(), config.value_learning_rate)
        # Of the fine-tuned steps t = T' ... 1: the step itself, its clip range and the weight of the advantage.
        count = config.fine_tuned_steps
        self._t = torch.arange(count, 0, -1, device=noise.device, dtype=torch.float32)
        near = (count - self._t) / max(1, count - 1)  # 0 at the first of them, 1 at the last
        growth = torch.expm1(config.clip_range_rate * near) / math.expm1(config.clip_range_rate)
        self._clip = config.first_clip_range + (config.clip_range - config.first_clip_range) * growth
        self._weight = config.denoising_discount ** (self._t - 1)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.chain(obs, noise, self.config.min_std if mode == "collect" else 0.0)[0]

    @torch.no_grad()
    def collect(self, obs: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """The record of a decision: the points of the fine-tuned part of its chain, and their log densities."""
        action_chunk, points = self.chain(obs, noise, self.config.min_std)
        return action_chunk, pack_chain(points, self.log_prob(obs, points))

    def chain(self, obs: Tensor, noise: Noise, min_std: float) -> tuple[Tensor, Tensor]:
        """Action chunks (S, B, H, A) and the points (S, B, T' + 1, D) of the fine-tuned steps, for obs (S, B, O)."""
        x, step_noise = draw_noise("act", (obs.shape[1], self.chunk_dim), noise, self.schedule)
        last_noise = noise.normal("act_last_noise", obs.shape[1], self.chunk_dim)
        limit = self.config.max_step_noise
        step_noise = torch.cat([step_noise, last_noise.unsqueeze(1)], 1).clamp(-limit, limit)
        cloned, tuned = self.target_denoiser(obs), self.denoiser(obs)
        points = []
        for k, t in enumerate(range(self.config.denoising_steps, 0, -1)):
            is_tuned = t <= self.config.fine_tuned_steps
            if is_tuned:
                points.append(x)
            predict = tuned if is_tuned else cloned
            mean, std = posterior(predict, x, t, self.schedule, clip="clean", step_std="posterior")
            x = mean + max(std, min_std) * step_noise[:, k]
        return x.clamp(-1, 1).unflatten(-1, (self.chunk_length, -1)), torch.stack([*points, x], 2)

    def log_prob(self, obs: Tensor, points: Tensor) -> Tensor:
        """Log density (S, B, T') of each fine-tuned step of a chain: a mean over coordinates, each cut to bounds."""
        count = self.config.fine_tuned_steps
        x, after = points[:, :, :-1].flatten(1, 2), points[:, :, 1:].flatten(1, 2)  # (S, B * T', D)
        t = self._t.repeat(obs.shape[1])[None, :, None].expand(len(obs), -1, -1)
        predict = self.denoiser(obs.repeat_interleave(count, 1))
        mean, std = posterior(predict, x, t, self.schedule, clip="clean", step_std="posterior")
        std = std.clamp(min=self.config.min_std)
        log_prob = -0.5 * ((after - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
        log_prob = log_prob.clamp(self.config.min_log_prob, self.config.max_log_prob)
        return log_prob.mean(-1).unflatten(1, (-1, count))

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        """One denoising step on the data; what acts, and is fine-tuned online, is the average of the steps so far."""
        predict = self.cloning_denoiser(batch.obs)
        loss = denoising_loss(predict, batch.action_chunk, batch.valid, noise, self.schedule)
        gradient_step((self.cloning_optimizer, loss))
        follow_clone(self.target_denoiser, self.cloning_denoiser, self.cloning_optimizer, self.config.ema_rate)
        polyak_update(self.denoiser, self.target_denoiser, 1.0)
        return {"policy_loss": loss.detach()}

    def policy_loss(self, batch: Decisions) -> tuple[Tensor, Metrics]:
        """The clipped objective (S,) over all fine-tuned steps of all decisions."""
        points, old_log_prob = unpack_chain(batch.record, self.chunk_dim, self.config.fine_tuned_steps)
        log_prob = self.log_prob(batch.obs, points)
        batch_size = batch.obs.shape[1]
        # A step of a chain is a sample of its own.
        advantage = normalised(batch.advantage.repeat_interleave(len(self._t), 1)) * self._weight.repeat(batch_size)
        clip = self._clip.repeat(batch_size)
        loss, metrics = clipped_loss((log_prob - old_log_prob).flatten(1), advantage, clip)
        return loss, {"policy_loss": loss.detach(), **metrics}
