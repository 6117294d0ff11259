"""IQL (Kostrikov et al., arXiv 2110.06169): Q and V from the data's own actions, a policy by weighted regression.

V(s) is an expectile of Q over the actions of the data; the policy clones those actions, weighted by the exponential of
their advantages. Follows the code of the FQL release: a Gaussian with standard deviation 1 around an unsquashed mean,
which acts by the clipped mean in evaluation and by a clipped sample while collecting.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, gradient_step
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig, Value, expectile_loss
from agents.blocks.gaussian import gaussian_log_prob
from agents.blocks.networks import MLP
from datasets.batch import Batch

MAX_WEIGHT = 100.0


@dataclass(frozen=True)
class IQLConfig:
    """Settings of IQL."""

    chunk_length: int = 1  # H, environment steps per action chunk
    expectile: float = 0.9  # kappa, of Q over the data's actions; 0.5 is their mean
    inverse_temperature: float = 10.0  # beta, of the advantage in the weights
    policy_out_scale: float = 0.1  # of the initial weights of the policy's last layer
    collect_noise_std: float = 1.0  # of each coordinate while collecting; 1 is the policy's own
    # The Q of the targets is aggregated for V, that of the critics in training in the advantage.
    critic: CriticConfig = CriticConfig(num_critics=2, q_aggregation="min")
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)

    def __post_init__(self) -> None:
        check_config(self, expectile=(0, 1))


class IQL(Agent):
    """Implicit Q-learning over action chunks."""

    config: IQLConfig
    policy_modules = ("policy",)

    def __init__(self, config: IQLConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        scale = config.policy_out_scale
        # The mean of the Gaussian.
        self.policy = MLP(obs_dim, config.policy_hidden_dims, self.chunk_dim, noise, out_scale=scale)
        self.value = Value.of(config.critic, obs_dim, noise)
        self.critic = Critic(config.critic, obs_dim, self.chunk_dim, config.learning_rate, noise)
        self.value_optimizer = Adam(self.value.parameters(), config.learning_rate)
        self.policy_optimizer = Adam(self.policy.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        chunk = self.policy(obs)
        if mode == "collect":
            chunk = chunk + self.config.collect_noise_std * noise.normal("act_noise", *chunk.shape[1:])
        return chunk.clamp(-1, 1).unflatten(-1, (self.chunk_length, -1))

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of critic, V and policy."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        value_loss, value_metrics = self.value_loss(batch)
        policy_loss, policy_metrics = self.policy_loss(batch)
        self.critic.follow()
        gradient_step(
            (self.critic.optimizer, critic_loss),
            (self.value_optimizer, value_loss),
            (self.policy_optimizer, policy_loss),
        )
        return critic_metrics | value_metrics | policy_metrics

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus V of what follows it; the policy plays no part."""
        with torch.no_grad():
            target = batch.chunk_return + batch.bootstrap * self.value(batch.next_obs)  # (S, B)
        return self.critic.loss(batch, target)

    def value_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Distance (S,) of V to the expectile of the target critics' Q."""
        with torch.no_grad():
            q = self.critic.target_value(batch.obs, batch.action_chunk)  # (S, B)
        value = self.value(batch.obs)
        loss = expectile_loss(value, q, self.config.expectile, batch.valid[..., -1])
        return loss, {"value_loss": loss.detach(), "value_mean": value.detach().mean(1)}

    def policy_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """-log density (S,) of the batch's chunks, weighted by `weights`."""
        weight = self.weights(batch)  # (S, B)
        distance = batch.action_chunk.flatten(2) - self.policy(batch.obs)
        log_prob = gaussian_log_prob(distance, torch.zeros_like(distance))
        # A chunk that runs into the next episode is no chunk of the data: weight 0.
        loss = -(batch.valid[..., -1] * weight * log_prob).mean(1)
        return loss, {"policy_loss": loss.detach(), "weight_mean": weight.mean(1)}

    @torch.no_grad()
    def weights(self, batch: Batch) -> Tensor:
        """exp(beta (Q - V)) (S, B) of the batch's chunks, at most 100, with Q of the critics, not of their targets."""
        q = self.critic.aggregate(self.critic(batch.obs, batch.action_chunk))  # (S, B)
        advantage = q - self.value(batch.obs)
        return (self.config.inverse_temperature * advantage).exp().clamp(max=MAX_WEIGHT)
