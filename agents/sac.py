"""SAC (Haarnoja et al., arXiv 1812.05905) and, with settings of its own, RLPD (Ball et al., arXiv 2302.02948).

A tanh-Gaussian policy maximises Q and its entropy; a learnt coefficient holds the entropy at a target. RLPD is SAC with
ten normalised critics and no entropy in their target; its batches, half dataset and half replay, are made elsewhere.
As in the Q-chunking release, RLPD's target is the mean of all critics and its evaluation samples; in its paper they are
the minimum of a random pair, and the mean. SAC's defaults are the paper's; the options below reach SAC as OGBench, FQL
and SAC Flow (arXiv 2509.25756) release it. The last one leaves -log std out of the log density, and its policy sees the
critics after their step.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.blocks.base import Adam, Agent, Metrics, Noise, gradient_step
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig
from agents.blocks.gaussian import MAX_LOG_STD, Density, TanhGaussian
from agents.blocks.networks import Activation
from agents.blocks.temperature import Temperature, check_learnt_coef
from datasets.batch import Batch


@dataclass(frozen=True)
class SACConfig:
    """Settings of SAC, and of RLPD with chunks of one action or of several (RLPD-AC)."""

    chunk_length: int = 1  # H, environment steps per action chunk
    entropy_coef: float = 0.2  # alpha, initial value
    target_entropy: float = -1.0  # nats per coordinate of the action chunk
    entropy_in_target: bool = True  # alpha times the next chunk's entropy is part of the critic's target
    evaluation: Literal["mean", "sample"] = "mean"  # tanh of the mean, or a sample as while collecting
    policy_q_aggregation: Literal["as_target", "mean"] = "as_target"  # of Q in the policy loss
    bc_coef: float = 0.0  # weight of -log density of the batch's chunk; 0.01 is QC-RLPD
    bc_mask: Literal["window", "none"] = "window"  # window: chunks that run into the next episode are not cloned
    policy_activation: Activation = "relu"
    policy_out_scale: float = 1.0  # of the initial weights of its last layer; 0.1 in OGBench's and FQL's releases
    min_log_std: float = -20.0  # to which the log standard deviation is cut; -5 in OGBench's and FQL's releases
    density: Density = "exact"  # of an action, in the entropy
    action_scale: float = 1.0  # of an action of 1 in the environment's units, in which the entropy is measured
    update_order: Literal["together", "in_turn"] = "together"  # in_turn: critics, policy by the new ones, their targets
    critic: CriticConfig = CriticConfig(
        num_critics=2, q_aggregation="min", critic_norm="none", critic_activation="relu"
    )
    learning_rate: float = 3e-4
    critic_learning_rate: float = 0.0  # of critics and temperature; 0: that of the policy
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)

    def __post_init__(self) -> None:
        check_config(
            self,
            target_entropy=(-math.inf, math.inf),
            min_log_std=(-math.inf, MAX_LOG_STD),
            action_scale=(1e-6, math.inf),
        )
        check_learnt_coef(self)


class SAC(Agent):
    """Soft actor-critic over action chunks."""

    config: SACConfig
    policy_modules = ("policy",)

    def __init__(self, config: SACConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        kind = (config.policy_activation, config.policy_out_scale, config.min_log_std)
        self.policy = TanhGaussian(obs_dim, config.policy_hidden_dims, self.chunk_dim, noise, *kind)
        critic_rate = config.critic_learning_rate or config.learning_rate
        self.critic = Critic(config.critic, obs_dim, self.chunk_dim, critic_rate, noise)
        target_entropy = config.target_entropy * self.chunk_dim
        self.temperature = Temperature(config.entropy_coef, target_entropy, critic_rate, noise)
        self.policy_optimizer = Adam(self.policy.parameters(), config.learning_rate)
        self.action_scale = torch.full((self.chunk_dim,), config.action_scale, device=noise.device)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        if mode == "evaluate" and self.config.evaluation == "mean":
            return self.policy(obs)[0].tanh().unflatten(-1, (self.chunk_length, -1))
        return self.sample(obs, noise, "act_noise")[0]

    def sample(self, obs: Tensor, noise: Noise, draw: str) -> tuple[Tensor, Tensor]:
        """An action chunk (S, B, H, A) at each obs (S, B, O), and its log density (S, B)."""
        eps = noise.normal(draw, obs.shape[1], self.chunk_dim)
        chunk, log_prob = self.policy.sample(obs, eps, self.config.density, self.action_scale)
        return chunk.unflatten(-1, (self.chunk_length, -1)), log_prob

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of critic, policy and temperature."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        if in_turn := self.config.update_order == "in_turn":
            # As released, each critic has a loss of its own.
            gradient_step((self.critic.optimizer, self.config.critic.num_critics * critic_loss))
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        policy_metrics["entropy_coef"] = self.temperature.coef
        policy_steps = (
            (self.policy_optimizer, policy_loss),
            (self.temperature.optimizer, self.temperature.loss(policy_metrics["entropy"])),
        )
        if in_turn:
            gradient_step(*policy_steps)
            self.critic.follow()
        else:
            self.critic.follow()
            gradient_step((self.critic.optimizer, critic_loss), *policy_steps)
        return critic_metrics | policy_metrics

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the value, soft or not, of the policy's next chunk."""
        with torch.no_grad():
            next_action_chunk, log_prob = self.sample(batch.next_obs, noise, "next_noise")
            next_value = self.critic.target_value(batch.next_obs, next_action_chunk)
            if self.config.entropy_in_target:
                next_value = next_value - self.temperature.coef.unsqueeze(-1) * log_prob
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return self.critic.loss(batch, target)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """alpha log pi - Q, aggregated as configured, and cloning of the batch where it has a weight; (S,)."""
        action_chunk, log_prob = self.sample(batch.obs, noise, "policy_noise")
        q = self.critic(batch.obs, action_chunk, constant=True)  # (S, N, B)
        mean = self.config.policy_q_aggregation == "mean"
        q_loss = -(q.mean(1) if mean else self.critic.aggregate(q)).mean(1)
        entropy = -log_prob.mean(1)
        loss = q_loss - self.temperature.coef * entropy
        metrics = {"q_loss": q_loss, "entropy": entropy}
        if self.config.bc_coef > 0:
            data_log_prob = self.policy.log_prob(batch.obs, batch.action_chunk.flatten(2))
            if self.config.bc_mask == "window":  # a chunk that runs into the next episode is no chunk of the data
                data_log_prob = batch.valid[..., -1] * data_log_prob
            metrics["nll_loss"] = -data_log_prob.mean(1)
            loss = loss + self.config.bc_coef * metrics["nll_loss"]
        metrics["policy_loss"] = loss
        return loss, {name: value.detach() for name, value in metrics.items()}
