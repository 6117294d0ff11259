"""Behaviour cloning by a flow (arXiv 2210.02747) or a diffusion (arXiv 2006.11239): what offline methods set out from.

The policy is matched to the chunks of the batch and to nothing else; online it goes on cloning the replay, of which it
never reads the rewards. The flow is that of QC-FQL, the diffusion that of DAC in the QAM release, which drops windows
that run into the next episode; here their valid steps count in both.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, gradient_step
from agents.blocks.config import check_config
from agents.blocks.denoisers import FourierStep, MLPDenoiser
from agents.blocks.diffusion import ScheduleName, ddpm_sample, denoising_loss, draw_noise, make_schedule
from agents.blocks.flow import integrate, matching_loss
from agents.blocks.velocities import PlainVelocity
from datasets.batch import Batch


@dataclass(frozen=True)
class BCConfig:
    """Settings of behaviour cloning."""

    policy: Literal["flow", "diffusion"]
    chunk_length: int = 5  # H, environment steps per action chunk
    flow_steps: int = 10  # flow: K, Euler steps from noise to action
    denoising_steps: int = 10  # diffusion: T
    noise_schedule: ScheduleName = "vp"  # diffusion
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)

    def __post_init__(self) -> None:
        check_config(self)


class BC(Agent):
    """Behaviour cloning over action chunks, without a critic."""

    config: BCConfig
    policy_modules = ("network",)

    def __init__(self, config: BCConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        dims = (obs_dim, self.chunk_dim, config.policy_hidden_dims)
        if config.policy == "flow":
            self.network = PlainVelocity(*dims, noise)
        else:
            self.schedule = make_schedule(config.noise_schedule, config.denoising_steps, noise.device)
            self.network = MLPDenoiser(*dims, FourierStep(config.policy_hidden_dims, noise), noise)
        self.policy_optimizer = Adam(self.network.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        shape = (obs.shape[1], self.chunk_dim)
        if self.config.policy == "flow":
            chunk = integrate(self.network(obs), noise.normal("act_noise", *shape), self.config.flow_steps)
        else:
            x_T, step_noise = draw_noise("act", shape, noise, self.schedule)
            chunk = ddpm_sample(self.network(obs), x_T, step_noise, self.schedule, clip="clean")
        return chunk.clamp(-1, 1).unflatten(-1, (self.chunk_length, -1))  # the same in both modes

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of the policy."""
        loss = self.policy_loss(batch, noise)
        gradient_step((self.policy_optimizer, loss))
        return {"policy_loss": loss.detach()}

    def policy_loss(self, batch: Batch, noise: Noise) -> Tensor:
        """Matching or denoising loss (S,) of the batch's chunks; steps of the next episode count 0."""
        data = (batch.action_chunk, batch.valid, noise)
        if self.config.policy == "flow":
            return matching_loss(self.network(batch.obs), *data)
        return denoising_loss(self.network(batch.obs), *data, self.schedule)
