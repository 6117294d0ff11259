"""Behaviour cloning by flow matching (arXiv 2210.02747): the policy that the offline methods set out from.

A velocity field is matched to the chunks of the batch and nothing else; online it goes on cloning the replay, whose
rewards it never reads.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.base import Adam, Agent, Metrics, Noise, check_config, gradient_step
from agents.flow import integrate, matching_loss
from agents.velocities import PlainVelocity
from datasets.batch import Batch


@dataclass(frozen=True)
class BCConfig:
    """Settings of behaviour cloning: those of the flow in QC-FQL."""

    chunk_length: int = 5  # H, environment steps per action chunk
    flow_steps: int = 10  # K, Euler steps from noise to action
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)

    def __post_init__(self) -> None:
        check_config(self)


class BC(Agent):
    """Behaviour cloning over action chunks, without a critic."""

    config: BCConfig
    policy_modules = ("velocity_field",)

    def __init__(self, config: BCConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.velocity_field = PlainVelocity(obs_dim, self.chunk_dim, config.policy_hidden_dims, noise)
        self.policy_optimizer = Adam(self.velocity_field.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        x_0 = noise.normal("act_noise", obs.shape[1], self.chunk_dim)
        chunk = integrate(self.velocity_field(obs), x_0, self.config.flow_steps)
        return chunk.clamp(-1, 1).unflatten(-1, (self.chunk_length, -1))  # the same in both modes

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        return self.update_online(batch, noise)

    def update_online(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of the policy; the same in both phases."""
        loss = self.policy_loss(batch, noise)
        gradient_step((self.policy_optimizer, loss))
        return {"policy_loss": loss.detach()}

    def policy_loss(self, batch: Batch, noise: Noise) -> Tensor:
        """Flow-matching loss (S,) towards the batch's chunks; steps of the next episode count 0."""
        return matching_loss(self.velocity_field(batch.obs), batch.action_chunk, batch.valid, noise)
