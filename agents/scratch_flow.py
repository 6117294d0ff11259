"""SAC Flow from scratch (Zhang et al., arXiv 2509.25756): SAC with CrossQ's critics, whose policy is a noisy flow.

The noise of every flow step is learnt; Q's gradient runs back through all of them, at every third update. Networks,
order and rates are the released code's. Its Flow-T leaves -log std out of the log density: here the density is exact
unless asked otherwise.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, Phase, gradient_step
from agents.blocks.batch_renorm import Statistics
from agents.blocks.config import check_config
from agents.blocks.flow import paper_drift, rollout_gradient_norms, tanh_log_det
from agents.blocks.gaussian import Density, gaussian_log_prob
from agents.blocks.joint_critic import JointCritic, JointCriticConfig
from agents.blocks.renorm_velocities import (
    NaiveVelocity,
    NoisyVelocity,
    RenormDecodedVelocity,
    RenormGatedVelocity,
    TimeInput,
)
from agents.blocks.temperature import Temperature, check_learnt_coef
from datasets.batch import Batch


@dataclass(frozen=True)
class ScratchFlowConfig:
    """Settings of SAC Flow from scratch, as released where no comment says otherwise."""

    velocity_field: Literal["gated", "decoded", "naive", "plain"]  # SAC Flow-G, -T, its naive flow, Flow-G's candidate
    chunk_length: int = 1  # H, environment steps per action chunk
    flow_steps: int = 4  # K, Euler steps from noise to action
    # step: x += v / K + std eps. velocity, Flow-T's: x += (v + std eps) / K. paper_sde: with the paper's drift, and
    # std sqrt(1 / K) eps, as in `agents.blocks.flow`.
    noise_scale: Literal["step", "velocity", "paper_sde"] = "step"
    time_input: TimeInput = "released"  # decoded, naive: where BatchRenorm removes it in training; bypass: behind it
    density: Density = "exact"  # of the path; released: without -log std of Flow-T's steps
    entropy_coef: float = 0.2  # alpha, initial value
    target_entropy: float = 0.0  # nats per coordinate of the action chunk
    action_scale: float = 1.0  # of an action of 1 in the environment's units: of critics' inputs, and of the entropy
    policy_delay: int = 3  # critic steps for each step of policy and temperature
    critic: JointCriticConfig = JointCriticConfig()
    learning_rate: float = 3e-4  # of the policy
    adam_b1: float = 0.5  # Adam's first beta, of the policy
    temperature_learning_rate: float = 1e-3
    temperature_adam_b1: float = 0.5
    policy_hidden_dims: tuple[int, ...] = (512, 512)  # naive: of the field; gated, plain: of its noise
    gate_dim: int = 512  # gated, plain: hidden width of gate and candidate
    decoder_dim: int = 96  # decoded: width
    decoder_layers: int = 2  # decoded

    def __post_init__(self) -> None:
        check_config(
            self,
            target_entropy=(-math.inf, math.inf),
            action_scale=(1e-6, math.inf),
            adam_b1=(0, 0.9999),
            temperature_adam_b1=(0, 0.9999),
        )
        check_learnt_coef(self)
        if self.decoder_dim % 4:
            raise ValueError(f"ScratchFlowConfig.decoder_dim = {self.decoder_dim}: must be a multiple of 4")


class ScratchFlow(Agent):
    """Soft actor-critic with a noisy flow policy, from scratch."""

    config: ScratchFlowConfig
    policy_modules = ("velocity_field",)

    def __init__(self, config: ScratchFlowConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.period = config.policy_delay
        self.action_scale = torch.full((self.chunk_dim,), config.action_scale, device=noise.device)
        dims, steps, time_input = (obs_dim, self.chunk_dim), config.flow_steps, config.time_input
        if config.velocity_field == "naive":
            self.velocity_field = NaiveVelocity(*dims, config.policy_hidden_dims, steps, time_input, noise)
        elif config.velocity_field == "decoded":
            layers = (config.decoder_dim, config.decoder_layers)
            self.velocity_field = RenormDecodedVelocity(*dims, *layers, steps, time_input, noise)
        else:
            widths, gated = (config.gate_dim, config.policy_hidden_dims), config.velocity_field == "gated"
            self.velocity_field = RenormGatedVelocity(*dims, *widths, steps, gated, noise)
        self.critic = JointCritic(config.critic, obs_dim, self.action_scale, noise)
        self.temperature = Temperature(
            config.entropy_coef,
            config.target_entropy * self.chunk_dim,
            config.temperature_learning_rate,
            noise,
            b1=config.temperature_adam_b1,
        )
        self.policy_optimizer = Adam(self.velocity_field.parameters(), config.learning_rate, b1=config.adam_b1)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.sample(obs, noise, "act", "running")[0]  # the same in both modes

    def sample(self, obs: Tensor, noise: Noise, draw: str, statistics: Statistics) -> tuple[Tensor, Tensor]:
        """A chunk (S, B, H, A) at each obs (S, B, O), and the log density (S, B) of the noise path that led to it.

        From numbers drawn under names that begin with `draw`.
        """
        x_0, step_noise = self.draw(obs, noise, draw)
        velocity, x = self.velocity_field(obs, statistics), x_0
        log_prob = gaussian_log_prob(x_0, torch.zeros_like(x_0))
        for k in range(self.config.flow_steps):
            x, log_std = self.step(velocity, k, x, step_noise)
            counts = self.config.density == "exact" or self.config.velocity_field != "decoded"
            log_prob = log_prob + gaussian_log_prob(step_noise[:, k], log_std if counts else torch.zeros_like(log_std))
        log_prob = log_prob - tanh_log_det(x, self.config.density, self.action_scale)
        return x.tanh().unflatten(-1, (self.chunk_length, -1)), log_prob

    def draw(self, obs: Tensor, noise: Noise, name: str) -> tuple[Tensor, Tensor]:
        """x_0 (S, B, D) and step noise (S, K, B, D) for obs (S, B, O)."""
        x_0 = noise.normal(f"{name}_noise", obs.shape[1], self.chunk_dim)
        return x_0, noise.normal(f"{name}_step_noise", self.config.flow_steps, *x_0.shape[1:])

    def step(self, velocity: NoisyVelocity, k: int, x: Tensor, step_noise: Tensor) -> tuple[Tensor, Tensor]:
        """The point (S, B, D) after step k = 0 ... K - 1 from x, and the log deviation of the noise added to it."""
        drift, log_std = velocity(k, x)
        count = self.config.flow_steps
        if self.config.noise_scale == "velocity":
            log_std = log_std - math.log(count)
        elif self.config.noise_scale == "paper_sde":
            drift = paper_drift(drift, x, k / count, (2 * log_std).exp())
            log_std = log_std - 0.5 * math.log(count)
        return x + drift / count + log_std.exp() * step_noise[:, k], log_std

    def update_turn(self, batch: Batch, noise: Noise, turn: int) -> Metrics:
        """A step of the critic, and at the last turn one of policy and temperature, which see the new critic."""
        critic_loss, metrics = self.critic_loss(batch, noise)
        gradient_step((self.critic.optimizer, critic_loss))
        self.critic.follow()
        if turn < self.period - 1:
            return metrics
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        policy_metrics["entropy_coef"] = self.temperature.coef
        gradient_step(
            (self.policy_optimizer, policy_loss),
            (self.temperature.optimizer, self.temperature.loss(policy_metrics["entropy"])),
        )
        return metrics | policy_metrics

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of critic, policy and temperature."""
        return self.update_turn(batch, noise, self.period - 1)

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the soft value of the policy's next chunk."""
        with torch.no_grad():
            next_action_chunk, log_prob = self.sample(batch.next_obs, noise, "next", "running")
            next_bonus = -self.temperature.coef.unsqueeze(-1) * log_prob
        return self.critic.loss(batch, next_action_chunk, next_bonus)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """alpha log pi - Q (S,) of a rollout through which its gradient runs back."""
        action_chunk, log_prob = self.sample(batch.obs, noise, "policy", "train")
        q_loss = -self.value(batch.obs, action_chunk).mean(1)
        entropy = -log_prob.mean(1)
        loss = q_loss - self.temperature.coef * entropy
        metrics = {"policy_loss": loss, "q_loss": q_loss, "entropy": entropy}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def value(self, obs: Tensor, action_chunk: Tensor) -> Tensor:
        """Q (S, B), aggregated as in the critic's target, without gradient to the critic's parameters."""
        return self.critic.aggregate(self.critic(obs, action_chunk, constant=True))

    def gradient_norms(self, batch: Batch, noise: Noise, phase: Phase) -> Metrics:
        """As the base class says; what the noise's deviations add to the loss on the way is no part of them."""
        x_0, step_noise = self.draw(batch.obs, noise, "policy")

        def step(k: int, x: Tensor) -> Tensor:
            return self.step(self.velocity_field(batch.obs, "batch"), k, x, step_noise)[0]

        def loss(x_1: Tensor) -> Tensor:
            action_chunk = x_1.tanh().unflatten(-1, (self.chunk_length, -1))
            log_prob = -tanh_log_det(x_1, self.config.density, self.action_scale)
            coef = self.temperature.coef.unsqueeze(-1)
            return (coef * log_prob - self.value(batch.obs, action_chunk)).mean(1)

        return rollout_gradient_norms(step, x_0, self.config.flow_steps, loss, self.velocity_field.parameters())
