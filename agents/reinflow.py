"""ReinFlow (Zhang et al., arXiv 2505.22094): PPO over a flow policy made stochastic by learnt noise at every step.

Offline the flow is matched to the data; online each of its K Euler steps adds noise whose bounded deviation a second
network gives, and PPO trains both on the density of the whole chain. Left out of the official code: learning rate
schedules, the decay of the noise's upper bound, the early stop at a divergence of .01.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Metrics, Noise, gradient_step
from agents.blocks.config import check_config
from agents.blocks.critic import Value
from agents.blocks.flow import euler_step, matching_loss, t_like
from agents.blocks.kernels import by_seed
from agents.blocks.ppo import PPOAgent, clipped_loss, normalised, pack_chain, unpack_chain
from agents.blocks.velocities import PlainVelocity
from datasets.batch import Batch, Decisions


@dataclass(frozen=True)
class ReinFlowConfig:
    """Settings of ReinFlow; the paper of SAC Flow, which compares with it, does not state those of its runs."""

    chunk_length: int = 5  # H, environment steps per action chunk; official 4 or 8
    flow_steps: int = 4  # K, Euler steps from noise to action
    min_std: float = 0.08  # bounds of each step's standard deviation
    max_std: float = 0.14
    max_start: float = 3.0  # the base noise is cut to this
    num_envs: int = 10  # E, environments of each seed; official 50, each a process here
    rollout_steps: int = 15_000  # environment steps of each seed between updates
    epochs: int = 10  # how often each decision is used
    gae_lambda: float = 0.95
    clip_range: float = 0.01  # of the ratio of densities
    entropy_coef: float = 0.01
    value_coef: float = 0.5
    first_policy_rollout: int = 3  # those before it train the value alone
    matching_learning_rate: float = 3e-4  # offline
    learning_rate: float = 4.5e-5  # of flow and noise online
    value_learning_rate: float = 6.5e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # of the velocity; official 3 layers of 1024, ReLU
    noise_hidden_dims: tuple[int, ...] = (256, 256)
    value_hidden_dims: tuple[int, ...] = (256, 256, 256)

    def __post_init__(self) -> None:
        check_config(self, gae_lambda=(0, 1), min_std=(1e-6, math.inf))
        if self.max_std < self.min_std:
            raise ValueError(f"ReinFlowConfig.max_std = {self.max_std}: must be at least min_std, {self.min_std}")


class ReinFlow(PPOAgent):
    """A flow with learnt noise, trained by PPO."""

    config: ReinFlowConfig
    policy_modules = ("velocity", "noise_std")
    online_only = (
        *("min_std", "max_std", "num_envs", "rollout_steps", "epochs", "gae_lambda", "clip_range", "entropy_coef"),
        *("value_coef", "first_policy_rollout", "learning_rate", "value_learning_rate"),
    )

    def __init__(self, config: ReinFlowConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.velocity = PlainVelocity(obs_dim, self.chunk_dim, config.policy_hidden_dims, noise)
        self.noise_std = PlainVelocity(obs_dim, self.chunk_dim, config.noise_hidden_dims, noise)
        self.value = Value(obs_dim, config.value_hidden_dims, noise, norm="none", activation="mish")
        self.matching_optimizer = Adam(self.velocity.parameters(), config.matching_learning_rate)
        policy_parameters = [*self.velocity.parameters(), *self.noise_std.parameters()]
        self.policy_optimizer = Adam(policy_parameters, config.learning_rate)
        self.value_optimizer = Adam(self.value.parameters(), config.value_learning_rate)

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
        config = self.config
        x = noise.normal("act_noise", obs.shape[1], self.chunk_dim).clamp(-config.max_start, config.max_start)
        step_noise = noise.normal("act_step_noise", config.flow_steps, *x.shape[1:])
        velocity, points = self.velocity(obs), [x]
        for k in range(config.flow_steps):
            mean = euler_step(velocity, x, k, config.flow_steps).clamp(-1, 1)
            x = mean + self.step_std(obs, x, k) * step_noise[:, k] if stochastic else mean
            points.append(x)
        return x.clamp(-1, 1).unflatten(-1, (self.chunk_length, -1)), torch.stack(points, 2)

    def step_std(self, obs: Tensor, x: Tensor, k: int) -> Tensor:
        """Standard deviation (S, B, D) of the noise in step k from x (S, B, D), within its bounds."""
        config = self.config
        raw = self.noise_std(obs)(t_like(x, k / config.flow_steps), x)
        return config.min_std + (config.max_std - config.min_std) * by_seed(torch.sigmoid, raw)

    def log_prob(self, obs: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Log density of a chain given its start, and its entropy, both (S, B), means over steps and coordinates.

        The start's own density is left out: it is the same for the old and the new policy.
        """
        velocity, log_probs, log_stds = self.velocity(obs), [], []
        for k in range(self.config.flow_steps):
            x, after = points[:, :, k], points[:, :, k + 1]
            mean = euler_step(velocity, x, k, self.config.flow_steps).clamp(-1, 1)
            std = self.step_std(obs, x, k)
            log_probs.append(-0.5 * ((after - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi))
            log_stds.append(std.log() + 0.5 * math.log(2 * math.pi * math.e))
        return torch.stack(log_probs).mean((0, -1)), torch.stack(log_stds).mean((0, -1))

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of flow matching; the network of the noise waits for the online phase."""
        loss = matching_loss(self.velocity(batch.obs), batch.action_chunk, batch.valid, noise)
        gradient_step((self.matching_optimizer, loss))
        return {"policy_loss": loss.detach()}

    def policy_loss(self, batch: Decisions) -> tuple[Tensor, Metrics]:
        """The clipped objective (S,) of the chains' densities, and their entropy."""
        points, old_log_prob = unpack_chain(batch.record, self.chunk_dim, 1)
        log_prob, entropy = self.log_prob(batch.obs, points)
        loss, metrics = clipped_loss(
            log_prob - old_log_prob.squeeze(-1), normalised(batch.advantage), self.config.clip_range
        )
        loss = loss - self.config.entropy_coef * entropy.mean(1)
        return loss, {"policy_loss": loss.detach(), "entropy": entropy.mean(1).detach(), **metrics}
