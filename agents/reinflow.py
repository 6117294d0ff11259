"""ReinFlow (Zhang et al., arXiv 2505.22094): PPO over a flow policy made stochastic by learnt noise at every step.

Offline the flow is matched to the data; online each Euler step of its average over that training adds noise, whose
bounded deviation a second network gives, and PPO trains both on the density of the whole chain. Left out of the
official code: learning rate schedules, the decay of the noise's upper bound, the early stop at a divergence of .01.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Metrics, Noise, frozen_copy, gradient_step
from agents.blocks.config import check_config
from agents.blocks.denoisers import MLPDenoiser, SinusoidalStep
from agents.blocks.flow import matching_loss, t_like
from agents.blocks.kernels import by_seed
from agents.blocks.networks import MLP, Activation
from agents.blocks.ppo import (
    PPOAgent,
    PPOConfig,
    clipped_loss,
    follow_clone,
    normalised,
    pack_chain,
    unpack_chain,
)
from agents.blocks.velocities import Velocity
from datasets.batch import Batch, Decisions


@dataclass(frozen=True)
class ReinFlowConfig(PPOConfig):
    """Settings of ReinFlow; those of its state-based Robomimic runs (Transport) where no comment says otherwise.

    The paper of SAC Flow, which compares with it, does not state those of its runs.
    """

    rollout_decisions: int = 20_000
    batch_decisions: int = 10_000
    epochs: int = 5
    flow_steps: int = 4  # K, Euler steps from noise to action
    rollout_times: Literal["steps", "released"] = "steps"  # of the velocity while acting: k / K, or k / (K - 1)
    min_std: float = 0.08  # bounds of each step's standard deviation
    max_std: float = 0.14
    count_start: bool = True  # the density of the start is part of a chain's
    min_log_prob: float = -1.0  # a chain's log density is cut to these
    max_log_prob: float = 1.0
    clip_range: float = 0.01  # of the ratio of densities
    entropy_coef: float = 0.01
    matching_learning_rate: float = 3e-4  # offline
    learning_rate: float = 4.5e-5  # of flow and noise online
    value_learning_rate: float = 6.5e-4
    value_weight_decay: float = 1e-5
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512)  # of the velocity; official 1024
    policy_activation: Activation = "relu"
    noise_hidden_dims: tuple[int, ...] = (128, 128)

    def __post_init__(self) -> None:
        check_config(
            self,
            gae_lambda=(0, 1),
            ema_rate=(1e-6, 1),
            min_std=(1e-6, math.inf),
            min_log_prob=(-math.inf, math.inf),
            max_log_prob=(self.min_log_prob, math.inf),
        )
        self.check_widths(policy_hidden_dims=self.policy_hidden_dims, value_hidden_dims=self.value_hidden_dims)
        if self.max_std < self.min_std:
            raise ValueError(f"ReinFlowConfig.max_std = {self.max_std}: must be at least min_std, {self.min_std}")


class ReinFlow(PPOAgent):
    """A flow with learnt noise, trained by PPO."""

    config: ReinFlowConfig
    policy_modules = ("velocity", "noise_std")
    online_only = (
        *("num_envs", "rollout_decisions", "batch_decisions", "epochs", "gae_lambda", "gae_at_time_limits"),
        *("max_reward", "max_step_noise", "min_std", "max_std", "count_start", "min_log_prob", "max_log_prob"),
        *("clip_range", "entropy_coef", "value_coef", "first_policy_rollout", "learning_rate", "value_learning_rate"),
        "value_weight_decay",
    )

    def __init__(self, config: ReinFlowConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        step = SinusoidalStep(16, noise, init="torch")
        self.cloning_velocity = MLPDenoiser(
            obs_dim,
            self.chunk_dim,
            config.policy_hidden_dims,
            step,
            noise,
            activation=config.policy_activation,
            init="torch",
            residual=config.residual,
        )
        # The average of that offline, and what PPO makes of it.
        self.velocity = frozen_copy(self.cloning_velocity).requires_grad_()
        self.noise_std = MLP(
            step.out_dim + obs_dim, config.noise_hidden_dims, self.chunk_dim, noise, activation="tanh", init="torch"
        )
        self.matching_optimizer = Adam(self.cloning_velocity.parameters(), config.matching_learning_rate)
        policy_parameters = [*self.velocity.parameters(), *self.noise_std.parameters()]
        self.policy_optimizer = Adam(policy_parameters, config.learning_rate)
        # Flow times of the K steps: where the velocity was matched to be, and where it is asked while acting.
        steps = config.flow_steps
        self._times = tuple(k / steps for k in range(steps))
        self._rollout_times = self._times
        if config.rollout_times == "released":
            self._rollout_times = tuple(k / max(1, steps - 1) for k in range(steps))
        self.value_optimizer = Adam(self.value.parameters(), config.value_learning_rate, config.value_weight_decay)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.chain(obs, noise, stochastic=mode == "collect")[0]

    @torch.no_grad()
    def collect(self, obs: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """The record of a decision: the points of its chain, and the log density of the chain."""
        action_chunk, points = self.chain(obs, noise, stochastic=True)
        log_prob, _ = self.log_prob(obs, points)
        return action_chunk, pack_chain(points, log_prob.unsqueeze(-1))

    def chain(self, obs: Tensor, noise: Noise, stochastic: bool) -> tuple[Tensor, Tensor]:
        """Action chunks (S, B, H, A) and the points (S, B, K + 1, D) on their way, for obs (S, B, O)."""
        x = noise.normal("act_noise", obs.shape[1], self.chunk_dim)
        velocity, points = self.velocity(obs), [x]
        step_noise, limit = None, self.config.max_step_noise
        if stochastic:
            step_noise = noise.normal("act_step_noise", self.config.flow_steps, *x.shape[1:]).clamp(-limit, limit)
        for k, t in enumerate(self._rollout_times):
            x = self._mean(velocity, x, t)
            if step_noise is not None:
                x = x + self.step_std(obs, t) * step_noise[:, k]
            points.append(x)
        points[-1] = x.clamp(-1, 1)
        return points[-1].unflatten(-1, (self.chunk_length, -1)), torch.stack(points, 2)

    def _mean(self, velocity: Velocity, x: Tensor, t: float) -> Tensor:
        """Mean (S, B, D) of the point after x (S, B, D), which the Euler step at time t leads to."""
        return (x + velocity(t_like(x, t), x) / self.config.flow_steps).clamp(-1, 1)

    def step_std(self, obs: Tensor, t: float) -> Tensor:
        """Standard deviation (S, B, D) of the noise in the step at flow time t, between its bounds in log space."""
        features = self.velocity.step(t_like(obs, t)).detach().expand(*obs.shape[:-1], -1)
        low, high = math.log(self.config.min_std), math.log(self.config.max_std)
        raw = self.noise_std(torch.cat([features, obs], -1))
        return by_seed(lambda seed: (low + (high - low) * (seed.tanh() + 1) / 2).exp(), raw)

    def log_prob(self, obs: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Log density of a chain and its entropy, both (S, B): means over coordinates, the start and the K steps."""
        velocity, log_probs, entropies = self.velocity(obs), [], []
        if self.config.count_start:
            log_probs.append(-0.5 * points[:, :, 0].square() - 0.5 * math.log(2 * math.pi))
            entropies.append(torch.full_like(points[:, :, 0], 0.5 * math.log(2 * math.pi * math.e)))
        for k, t in enumerate(self._times):
            mean, std = self._mean(velocity, points[:, :, k], t), self.step_std(obs, t)
            distance = (points[:, :, k + 1] - mean) / std
            log_probs.append(-0.5 * distance.square() - std.log() - 0.5 * math.log(2 * math.pi))
            entropies.append(std.log() + 0.5 * math.log(2 * math.pi * math.e))
        return torch.stack(log_probs).mean((0, -1)), torch.stack(entropies).mean((0, -1))

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of flow matching; the network of the noise waits for the online phase."""
        loss = matching_loss(self.cloning_velocity(batch.obs), batch.action_chunk, batch.valid, noise)
        gradient_step((self.matching_optimizer, loss))
        follow_clone(self.velocity, self.cloning_velocity, self.matching_optimizer, self.config.ema_rate)
        return {"policy_loss": loss.detach()}

    def policy_loss(self, batch: Decisions) -> tuple[Tensor, Metrics]:
        """The clipped objective (S,) of the chains' densities, each cut to its bounds, and their entropy."""
        config = self.config
        points, old_log_prob = unpack_chain(batch.record, self.chunk_dim, 1)
        log_prob, entropy = self.log_prob(batch.obs, points)
        new, old = (p.clamp(config.min_log_prob, config.max_log_prob) for p in (log_prob, old_log_prob.squeeze(-1)))
        loss, metrics = clipped_loss(new - old, normalised(batch.advantage), config.clip_range)
        loss = loss - config.entropy_coef * entropy.mean(1)
        return loss, {"policy_loss": loss.detach(), "entropy": entropy.mean(1).detach(), **metrics}
