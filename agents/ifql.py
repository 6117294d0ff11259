"""IFQL (Park et al., arXiv 2502.02538): implicit Q-learning whose policy is the best of N samples of a flow.

V(s) is a high expectile of Q over the data's actions, Q backs V up, the flow only clones, the critics choose. Defaults
are those of the QAM release (arXiv 2601.14234): chunks, ten critics, a loss of V that counts every window.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, gradient_step
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig, Value, best_candidate, expectile_loss
from agents.blocks.flow import integrate, matching_loss
from agents.blocks.velocities import PlainVelocity
from datasets.batch import Batch, WindowMask


@dataclass(frozen=True)
class IFQLConfig:
    """Settings of IFQL."""

    chunk_length: int = 5  # H, environment steps per action chunk
    expectile: float = 0.9  # kappa, of Q over the data's actions; .5 is their mean
    num_candidates: int = 32  # samples of the flow among which the critics choose
    flow_steps: int = 10  # K, Euler steps of the flow
    window_mask: WindowMask = "window"  # what counts of a window that runs into the next episode, for the flow
    # "window" leaves windows that run into the next episode out of V's loss, whose Q there means nothing.
    value_mask: Literal["none", "window"] = "none"
    critic: CriticConfig = CriticConfig(num_critics=10, q_aggregation="pessimistic")
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)

    def __post_init__(self) -> None:
        check_config(self, expectile=(0, 1))


class IFQL(Agent):
    """Implicit Q-learning with a behaviour flow and rejection sampling."""

    config: IFQLConfig
    policy_modules = ("behaviour_velocity", "critic.online")

    def __init__(self, config: IFQLConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.behaviour_velocity = PlainVelocity(obs_dim, self.chunk_dim, config.policy_hidden_dims, noise)
        self.critic = Critic(config.critic, obs_dim, self.chunk_dim, config.learning_rate, noise)
        self.value = Value.of(config.critic, obs_dim, noise)
        self.value_optimizer = Adam(self.value.parameters(), config.learning_rate)
        self.policy_optimizer = Adam(self.behaviour_velocity.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        """Of `num_candidates` samples of the flow, that with the highest minimum over the critics; in both modes."""
        num_candidates = self.config.num_candidates
        x_0 = noise.normal("act_noise", obs.shape[1] * num_candidates, self.chunk_dim)  # (S, B * n, D)
        x_1 = integrate(self.behaviour_velocity(obs), x_0, self.config.flow_steps).clamp(-1, 1)
        candidates = x_1.unflatten(-1, (self.chunk_length, -1))
        # The minimum whatever `q_aggregation` is, as in both official codes.
        return best_candidate(candidates, self.critic(obs, candidates).amin(1), num_candidates)

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of critic, state value and flow."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        value_loss, value_metrics = self.value_loss(batch)
        valid = batch.counted(self.config.window_mask)
        policy_loss = matching_loss(self.behaviour_velocity(batch.obs), batch.action_chunk, valid, noise)
        self.critic.follow()
        gradient_step(
            (self.critic.optimizer, critic_loss),
            (self.value_optimizer, value_loss),
            (self.policy_optimizer, policy_loss),
        )
        return critic_metrics | value_metrics | {"policy_loss": policy_loss.detach()}

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the next state's value; only the data's actions count."""
        with torch.no_grad():
            target = batch.chunk_return + batch.bootstrap * self.value(batch.next_obs)  # (S, B)
        return self.critic.loss(batch, target)

    def value_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Expectile regression (S,) of V(s) on the target critics' value of the data's chunk."""
        with torch.no_grad():
            q = self.critic.target_value(batch.obs, batch.action_chunk)  # (S, B)
        value = self.value(batch.obs)
        whole = batch.valid[..., -1]
        weight = torch.ones_like(whole) if self.config.value_mask == "none" else whole
        loss = expectile_loss(value, q, self.config.expectile, weight)
        return loss, {"value_loss": loss.detach(), "value_mean": value.detach().mean(1)}
