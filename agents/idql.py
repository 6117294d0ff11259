"""IDQL, Implicit Diffusion Q-Learning (Hansen-Estruch et al., arXiv 2304.10573), over action chunks.

Critics are trained by implicit Q-learning, without the policy; a diffusion policy is fitted to the data, and the best
of N of its samples is executed.

Follows the official code: policy, V and Q step in turn, each by what stepped before it; online the policy stays as it
is, and batches are half data, half replay (made elsewhere). Deviations: no decay of the policy's learning rate over the
budget, no dropout in its network and no weight decay (AdamW's 1e-4), the same batch for policy and critics; the critics
are those shared by our agents (critic_norm="none" and critic_activation="relu" are the official ones).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, frozen_copy, gradient_step, polyak_update
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig, Value, best_candidate, expectile_loss
from agents.blocks.denoisers import FourierStep, ResidualDenoiser
from agents.blocks.diffusion import ScheduleName, ddpm_sample, denoising_loss, draw_noise, make_schedule
from datasets.batch import Batch


@dataclass(frozen=True)
class IDQLConfig:
    """Settings of IDQL over action chunks."""

    chunk_length: int = 5  # H, environment steps per action chunk
    expectile: float = 0.9  # kappa, of the target critics' Q over the data's actions, that V is fitted to
    num_candidates: int = 64  # samples of which `act` takes the best
    denoising_steps: int = 5  # T
    noise_schedule: ScheduleName = "vp"
    ema_rate: float = 0.001  # of the averaged policy, which acts
    online_policy: Literal["fixed", "trained"] = "fixed"  # whether the policy goes on cloning, the replay as well
    critic: CriticConfig = CriticConfig(num_critics=2, q_aggregation="min")
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (256, 256, 256)  # widths of the noise predictor's residual blocks

    def __post_init__(self) -> None:
        check_config(self, expectile=(0, 1), ema_rate=(0, 1))
        if len(set(self.policy_hidden_dims)) > 1:
            raise ValueError(f"IDQLConfig.policy_hidden_dims = {self.policy_hidden_dims!r}: must be equal numbers")


class IDQL(Agent):
    """The best of many samples of a diffusion policy, by critics that implicit Q-learning trains."""

    config: IDQLConfig
    policy_modules = ("target_denoiser", "critic.target")
    online_only = ("online_policy",)

    def __init__(self, config: IDQLConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.schedule = make_schedule(config.noise_schedule, config.denoising_steps, noise.device)
        step = FourierStep((128, 128), noise, first=0)
        self.denoiser = ResidualDenoiser(obs_dim, self.chunk_dim, config.policy_hidden_dims, step, noise)
        self.target_denoiser = frozen_copy(self.denoiser)
        self.critic = Critic(config.critic, obs_dim, self.chunk_dim, config.learning_rate, noise)
        self.value = Value.of(config.critic, obs_dim, noise)
        self.value_optimizer = Adam(self.value.parameters(), config.learning_rate)
        self.policy_optimizer = Adam(self.denoiser.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        """The sample with the highest Q; the same in both modes."""
        num_candidates = self.config.num_candidates
        candidates = self.policy(obs, noise, "act", num_candidates)
        return best_candidate(candidates, self.critic.target_value(obs, candidates), num_candidates)

    def policy(self, obs: Tensor, noise: Noise, draw: str, num_candidates: int = 1) -> Tensor:
        """n samples of the averaged policy at each obs (S, B, O), (S, B * n, H, A), drawn under `draw`'s names."""
        x_T, step_noise = draw_noise(draw, (obs.shape[1] * num_candidates, self.chunk_dim), noise, self.schedule)
        x_0 = ddpm_sample(self.target_denoiser(obs), x_T, step_noise, self.schedule, clip="sample")
        return x_0.unflatten(-1, (self.chunk_length, -1))

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of policy, V and Q."""
        policy_loss = denoising_loss(self.denoiser(batch.obs), batch.action_chunk, batch.valid, noise, self.schedule)
        gradient_step((self.policy_optimizer, policy_loss))
        polyak_update(self.target_denoiser, self.denoiser, self.config.ema_rate)
        return self.update_values(batch, noise) | {"policy_loss": policy_loss.detach()}

    def update_online(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of V and Q, and of the policy if it goes on."""
        if self.config.online_policy == "trained":
            return self.update_offline(batch, noise)
        return self.update_values(batch, noise)

    def update_values(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of V, one of Q by the new V, and then of the target critics."""
        value_loss = self.value_loss(batch)
        gradient_step((self.value_optimizer, value_loss))
        critic_loss, metrics = self.critic_loss(batch, noise)
        gradient_step((self.critic.optimizer, critic_loss))
        self.critic.follow()
        return metrics | {"value_loss": value_loss.detach()}

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus V of the next observation."""
        with torch.no_grad():
            target = batch.chunk_return + batch.bootstrap * self.value(batch.next_obs)  # (S, B)
        return self.critic.loss(batch, target)

    def value_loss(self, batch: Batch) -> Tensor:
        """Distance (S,) of V to an expectile of the target critics' Q of the batch's chunks."""
        with torch.no_grad():
            q = self.critic.target_value(batch.obs, batch.action_chunk)  # (S, B)
        return expectile_loss(self.value(batch.obs), q, self.config.expectile, batch.valid[..., -1])
