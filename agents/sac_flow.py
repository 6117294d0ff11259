"""SAC Flow (Zhang et al., arXiv 2509.25756), offline-to-online: SAC whose policy is a flow with noise at every step.

Q's gradient runs back through all K flow steps; Flow-G and Flow-T are velocity fields through which it stays small.
Defaults follow the released code where it departs from the paper: the temperature rule (its sign is inverted: alpha
decays to 0), step noise without drift correction, post-norm. One does not: the released Flow-G draws its step noise
once and reuses it for ever, here every draw is fresh.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, Phase, gradient_step
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig
from agents.blocks.flow import (
    NoiseScheme,
    TanhLogDet,
    integrate,
    matching_loss,
    noisy_rollout,
    noisy_step,
    path_entropy,
    path_log_prob,
    rollout_gradient_norms,
    step_std,
)
from agents.blocks.kernels import by_seed
from agents.blocks.temperature import Temperature, check_learnt_coef
from agents.blocks.velocities import DecodedVelocity, GatedVelocity, PlainVelocity
from datasets.batch import Batch


@dataclass(frozen=True)
class SACFlowConfig:
    """Settings of SAC Flow; a noise_std is per flow step, or sigma of the SDE where noise_scheme is "paper_sde"."""

    velocity_field: Literal["gated", "decoded", "plain"]  # SAC Flow-G, SAC Flow-T, neither
    chunk_length: int = 5  # H, environment steps per action chunk
    flow_steps: int = 4  # K, Euler steps from noise to action
    bc_coef: float = 100.0  # beta, weight of the squared distance to the batch's action chunk, offline
    bc_coef_online: float = 100.0  # beta, online
    bc_target: Literal["batch", "flow"] = "batch"  # flow: where a cloned flow leads from the same noise, as in FQL
    behaviour_flow_steps: int = 10  # Euler steps of that flow
    mask_bc_by_valid: bool = False  # leave steps of the next episode out of that distance
    fm_space: Literal["raw", "pretanh"] = "raw"  # match actions, or what the tanh maps to them
    noise_scheme: NoiseScheme = "additive"
    policy_noise_std: float = 0.05  # sigma in the policy loss
    target_noise_std: float = 0.02  # sigma in the critic's target
    collect_noise_std: float = 0.02  # sigma while collecting
    evaluate_noise_std: float = 0.02  # sigma in evaluation
    temperature: Literal["released", "off", "fixed", "auto"] = "released"  # rule that moves the entropy coefficient
    entropy_coef: float = 0.2  # alpha, initial value
    target_entropy: float = 0.0  # nats per coordinate of the action chunk
    entropy_reference: Literal["path", "centred"] = "path"  # centred: without the constant that the step noise adds
    tanh_log_det: TanhLogDet = "released"  # the term of the squashing in the log density
    critic_updates_per_offline_step: Literal[1, 2] = 2  # 1: the matching step leaves the critic alone
    critic: CriticConfig = CriticConfig(num_critics=2, q_aggregation="mean")
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # gated: the candidate; plain
    gate_dim: int = 256  # gated: hidden width of the gate
    decoder_dim: int = 128  # decoded: width
    decoder_layers: int = 2  # decoded
    norm: Literal["post", "pre"] = "post"  # decoded: as released, as in the paper

    def __post_init__(self) -> None:
        check_config(self, target_entropy=(-math.inf, math.inf))
        if self.temperature in ("released", "auto"):
            check_learnt_coef(self)
        if self.decoder_dim % 4:
            raise ValueError(f"SACFlowConfig.decoder_dim = {self.decoder_dim}: must be a multiple of 4")
        for name in ("policy_noise_std", "target_noise_std"):
            std = getattr(self, name)
            if std == 0 and self.temperature != "off":
                raise ValueError(f"SACFlowConfig.{name} = {std!r}: must be above 0 unless temperature = 'off'")


class NoisyPath(NamedTuple):
    """A noisy rollout: what was drawn for it, and its end."""

    noise_std: float  # as in the config
    x_0: Tensor  # (S, B, D)
    step_noise: Tensor  # (S, K, B, D)
    x_1: Tensor  # (S, B, D), the action chunk before the tanh


class SACFlow(Agent):
    """Soft actor-critic with a noisy flow policy over action chunks."""

    config: SACFlowConfig
    policy_modules = ("velocity_field",)
    online_only = ("bc_coef_online", "collect_noise_std")

    def __init__(self, config: SACFlowConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        dims = (obs_dim, self.chunk_dim)
        if config.velocity_field == "gated":
            self.velocity_field = GatedVelocity(*dims, config.policy_hidden_dims, config.gate_dim, noise)
        elif config.velocity_field == "decoded":
            self.velocity_field = DecodedVelocity(*dims, config.decoder_dim, config.decoder_layers, config.norm, noise)
        else:
            self.velocity_field = PlainVelocity(*dims, config.policy_hidden_dims, noise)
        self.critic = Critic(config.critic, *dims, config.learning_rate, noise)
        self.temperature = Temperature(
            0.0 if config.temperature == "off" else config.entropy_coef,
            config.target_entropy * self.chunk_dim,
            config.learning_rate,
            noise,
            learnt=config.temperature in ("released", "auto"),
        )
        if config.bc_target == "flow":
            self.behaviour_velocity = PlainVelocity(*dims, config.policy_hidden_dims, noise)
            self.behaviour_optimizer = Adam(self.behaviour_velocity.parameters(), config.learning_rate)
        self.policy_optimizer = Adam(self.velocity_field.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        noise_std = self.config.collect_noise_std if mode == "collect" else self.config.evaluate_noise_std
        return self.action_chunk(self.rollout(obs, noise, "act", noise_std))

    def rollout(self, obs: Tensor, noise: Noise, draw: str, noise_std: float) -> NoisyPath:
        """The policy's path at obs (S, B, O), from numbers drawn under names that begin with `draw`."""
        x_0 = noise.normal(f"{draw}_noise", obs.shape[1], self.chunk_dim)
        step_noise = noise.normal(f"{draw}_step_noise", self.config.flow_steps, *x_0.shape[1:])
        x_1 = noisy_rollout(self.velocity_field(obs), x_0, step_noise, noise_std, self.config.noise_scheme)
        return NoisyPath(noise_std, x_0, step_noise, x_1)

    def action_chunk(self, path: NoisyPath) -> Tensor:
        """tanh(x_1), (S, B, H, A)."""
        return path.x_1.tanh().unflatten(-1, (self.chunk_length, -1))

    def path_log_prob(self, path: NoisyPath) -> Tensor:
        """Log density (S, B) of the path, 0 where there is no entropy term."""
        config = self.config
        if config.temperature == "off":
            return torch.zeros_like(path.x_1[..., 0])
        std = step_std(path.noise_std, config.flow_steps, config.noise_scheme)
        log_prob = path_log_prob(path.x_0, path.step_noise, std, path.x_1, config.tanh_log_det)
        if config.entropy_reference == "centred":
            log_prob = log_prob + path_entropy(self.chunk_dim, config.flow_steps, std)
        return log_prob

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        """A matching step and a policy step on the same batch: two optimiser steps, as released."""
        return self.matching_step(batch, noise) | self.policy_step(batch, noise, self.config.bc_coef)

    def update_online(self, batch: Batch, noise: Noise) -> Metrics:
        return self.policy_step(batch, noise, self.config.bc_coef_online)

    def matching_step(self, batch: Batch, noise: Noise) -> Metrics:
        """Flow matching of the policy's own field, and a critic step unless left out."""
        loss, metrics = self.matching_loss(batch, noise)
        steps = [(self.policy_optimizer, loss)]
        if self.config.critic_updates_per_offline_step == 2:
            critic_loss, critic_metrics = self.critic_loss(batch, noise)
            metrics = critic_metrics | metrics
            self.critic.follow()
            steps.append((self.critic.optimizer, critic_loss))
        if self.config.temperature == "released":
            # The released code steps the temperature here too, with entropy 0: momentum goes on moving it.
            steps.append((self.temperature.optimizer, self.temperature_loss(torch.zeros_like(self.temperature.coef))))
        gradient_step(*steps)
        return metrics

    def policy_step(self, batch: Batch, noise: Noise, bc_coef: float) -> Metrics:
        """One step of critic, policy and temperature."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        policy_loss, policy_metrics = self.policy_loss(batch, noise, bc_coef)
        steps = [(self.critic.optimizer, critic_loss), (self.policy_optimizer, policy_loss)]
        if self.config.bc_target == "flow":
            cloning_loss = matching_loss(self.behaviour_velocity(batch.obs), batch.action_chunk, batch.valid, noise)
            steps.append((self.behaviour_optimizer, cloning_loss))
        if self.temperature.learnt:
            steps.append((self.temperature.optimizer, self.temperature_loss(policy_metrics["entropy"])))
        policy_metrics["entropy_coef"] = self.temperature.coef
        self.critic.follow()
        gradient_step(*steps)
        return critic_metrics | policy_metrics

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the soft target value of the policy's next chunk."""
        with torch.no_grad():
            path = self.rollout(batch.next_obs, noise, "next", self.config.target_noise_std)
            next_value = self.critic.target_value(batch.next_obs, self.action_chunk(path))
            next_value = next_value - self.temperature.coef.unsqueeze(-1) * self.path_log_prob(path)
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return self.critic.loss(batch, target)

    def matching_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Matching (S,) of the policy's field to the batch's chunks although its actions are tanh(x_K), as released."""
        target = batch.action_chunk
        if self.config.fm_space == "pretanh":
            target = by_seed(torch.atanh, target.clamp(-0.98, 0.98))
        loss = matching_loss(self.velocity_field(batch.obs), target, batch.valid, noise)
        return loss, {"matching_loss": loss.detach()}

    def policy_loss(self, batch: Batch, noise: Noise, bc_coef: float) -> tuple[Tensor, Metrics]:
        """`loss_of_path` (S,) of a noisy rollout, through which its gradient runs back."""
        return self.loss_of_path(self.rollout(batch.obs, noise, "policy", self.config.policy_noise_std), batch, bc_coef)

    def loss_of_path(self, path: NoisyPath, batch: Batch, bc_coef: float) -> tuple[Tensor, Metrics]:
        """-Q and entropy of a path, and the squared distance of its end to what the policy is held to, (S,)."""
        action_chunk, log_prob = self.action_chunk(path), self.path_log_prob(path)
        squared_distance = (action_chunk - self.bc_target(path, batch)).square()
        if self.config.mask_bc_by_valid:
            squared_distance = squared_distance * batch.valid.unsqueeze(-1)
        distance = squared_distance.mean((1, 2, 3))

        q = self.critic(batch.obs, action_chunk, constant=True).mean(1)  # (S, B)
        q_loss = (self.temperature.coef.unsqueeze(-1) * log_prob - q).mean(1)

        loss = bc_coef * distance + q_loss
        metrics = {"policy_loss": loss, "q_loss": q_loss, "entropy": -log_prob.mean(1)}
        metrics["bc_loss" if self.config.bc_target == "batch" else "distill_loss"] = distance
        return loss, {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def bc_target(self, path: NoisyPath, batch: Batch) -> Tensor:
        """The batch's chunk (S, B, H, A), or the end of the cloned flow from the start of the path."""
        if self.config.bc_target == "batch":
            return batch.action_chunk
        x_1 = integrate(self.behaviour_velocity(batch.obs), path.x_0, self.config.behaviour_flow_steps)
        return x_1.clamp(-1, 1).view_as(batch.action_chunk)

    def gradient_norms(self, batch: Batch, noise: Noise, phase: Phase) -> Metrics:
        config = self.config
        bc_coef = config.bc_coef if phase == "offline" else config.bc_coef_online
        with torch.no_grad():
            path = self.rollout(batch.obs, noise, "policy", config.policy_noise_std)

        def step(k: int, x: Tensor) -> Tensor:
            velocity = self.velocity_field(batch.obs)
            return noisy_step(velocity, x, k, path.step_noise, path.noise_std, config.noise_scheme)

        def loss(x_1: Tensor) -> Tensor:
            return self.loss_of_path(path._replace(x_1=x_1), batch, bc_coef)[0]

        return rollout_gradient_norms(step, path.x_0, config.flow_steps, loss, self.velocity_field.parameters())

    def temperature_loss(self, entropy: Tensor) -> Tensor:
        """Loss (S,) of alpha. The released rule has the entropy's sign inverted: alpha decays while entropy < 0."""
        return self.temperature.loss(entropy if self.config.temperature == "auto" else -entropy)
