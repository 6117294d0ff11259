"""QAM (Q-learning with Adjoint Matching, arXiv 2601.14234) with its variants QAM-E and QAM-F.

A behaviour flow is matched to the data, and a second flow learns by adjoint matching (arXiv 2409.08861) to end at
behaviour(a) exp(inverse_temperature Q(s, a)). QAM-E adds a bounded edit to its actions, QAM-F distils it into a
one-step policy; edit and one-step policy maximise Q directly. Follows the official code.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from agents.blocks.adjoint import adjoint_matching_loss, lean_adjoint, memoryless_rollout
from agents.blocks.base import Adam, Agent, Metrics, Noise, frozen_copy, gradient_step, polyak_update
from agents.blocks.config import check_config
from agents.blocks.critic import Critic, CriticConfig, action_gradient
from agents.blocks.flow import integrate, matching_loss
from agents.blocks.gaussian import TanhGaussian
from agents.blocks.networks import MLP
from agents.blocks.temperature import Temperature, check_learnt_coef
from agents.blocks.velocities import PlainVelocity
from datasets.batch import Batch, WindowMask


@dataclass(frozen=True)
class QAMConfig:
    """Settings of QAM. An edit_scale or bc_coef of 0, as published for some tasks, makes its variant the plain one."""

    variant: Literal["plain", "edit", "one_step"] = "plain"  # QAM, QAM-E, QAM-F
    chunk_length: int = 5  # H, environment steps per action chunk
    inverse_temperature: float = 1.0  # weight of Q against the log density of the behaviour
    edit_scale: float = 0.1  # edit: largest change of a coordinate
    entropy_coef: float = 1.0  # edit: alpha, initial value
    target_entropy: float = -0.5  # edit: nats per coordinate of the edit before it is scaled
    bc_coef: float = 300.0  # one_step: alpha, weight of the distillation towards the flow
    flow_steps: int = 10  # K, Euler steps from noise to action
    window_mask: WindowMask = "window"  # what counts of a window that runs into the next episode, for the flow
    max_gradient_norm: float = 1.0  # of all networks together
    # The behaviour flow's target network follows at the rate of the target critics.
    critic: CriticConfig = CriticConfig(num_critics=10, q_aggregation="pessimistic")
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # both flows, edit and one-step policy

    def __post_init__(self) -> None:
        check_config(self, target_entropy=(-math.inf, math.inf))
        if self.variant == "edit" and self.edit_scale > 0:
            check_learnt_coef(self)


class QAM(Agent):
    """Q-learning with adjoint matching over action chunks."""

    config: QAMConfig

    def __init__(self, config: QAMConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        dims, hidden_dims = (obs_dim, self.chunk_dim), config.policy_hidden_dims
        self.behaviour_velocity = PlainVelocity(*dims, hidden_dims, noise)
        self.target_behaviour_velocity = frozen_copy(self.behaviour_velocity)
        self.policy_velocity = PlainVelocity(*dims, hidden_dims, noise)
        self.critic = Critic(config.critic, *dims, config.learning_rate, noise)
        policies: list[nn.Module] = [self.behaviour_velocity, self.policy_velocity]
        # Without a weight of Q the behaviour itself is the policy, as released.
        self.acts_by = "policy_velocity" if config.inverse_temperature > 0 else "behaviour_velocity"
        self.policy_modules = (self.acts_by,)
        self.edits = config.variant == "edit" and config.edit_scale > 0
        self.one_step = config.variant == "one_step" and config.bc_coef > 0
        if self.edits:
            self.edit_policy = TanhGaussian(sum(dims), hidden_dims, self.chunk_dim, noise)
            policies.append(self.edit_policy)
            self.policy_modules = (self.acts_by, "edit_policy")
            target_entropy = config.target_entropy * self.chunk_dim
            self.temperature = Temperature(config.entropy_coef, target_entropy, config.learning_rate, noise)
        if self.one_step:
            self.one_step_policy = MLP(sum(dims), hidden_dims, self.chunk_dim, noise)
            policies.append(self.one_step_policy)
            self.policy_modules = ("one_step_policy",)
        self.policy_optimizer = Adam(nn.ModuleList(policies).parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.policy(obs, noise, "act")  # the same in both modes

    @torch.no_grad()
    def policy(self, obs: Tensor, noise: Noise, draw: str) -> Tensor:
        """The variant's action chunk (S, B, H, A) at obs (S, B, O), drawn under names that begin with `draw`."""
        x_0 = noise.normal(f"{draw}_noise", obs.shape[1], self.chunk_dim)
        if self.one_step:
            x_1 = self.distilled(obs, x_0).clamp(-1, 1)
        elif self.edits:
            x_1 = self.edited(obs, self.flow_action(obs, x_0), noise, draw)[0]
        else:
            x_1 = self.flow_action(obs, x_0)
        return x_1.unflatten(-1, (self.chunk_length, -1))

    @torch.no_grad()
    def flow_action(self, obs: Tensor, x_0: Tensor) -> Tensor:
        """Where the acting flow ends, in the box (S, B, D), from noise x_0 (S, B, D); a constant for every loss."""
        velocity = self.get_submodule(self.acts_by)(obs)
        return integrate(velocity, x_0, self.config.flow_steps).clamp(-1, 1)

    def distilled(self, obs: Tensor, x_0: Tensor) -> Tensor:
        """mu(s, x_0), (S, B, D), before it is clipped."""
        return self.one_step_policy(torch.cat([obs, x_0], -1))

    def edited(self, obs: Tensor, flow_action: Tensor, noise: Noise, draw: str) -> tuple[Tensor, Tensor]:
        """The edited action (S, B, D), and the log density (S, B) of its edit before that is scaled."""
        eps = noise.normal(f"{draw}_edit_noise", *flow_action.shape[1:])
        edit, log_prob = self.edit_policy.sample(torch.cat([obs, flow_action], -1), eps)
        return (flow_action + self.config.edit_scale * edit).clamp(-1, 1), log_prob

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of every network."""
        critic_loss, critic_metrics = self.critic_loss(batch, noise)
        policy_loss, policy_metrics = self.policy_loss(batch, noise)
        steps = [(self.critic.optimizer, critic_loss), (self.policy_optimizer, policy_loss)]
        if self.edits:
            steps.append((self.temperature.optimizer, self.temperature.loss(policy_metrics["entropy"])))
        self.critic.follow()
        polyak_update(self.target_behaviour_velocity, self.behaviour_velocity, self.config.critic.target_update_rate)
        gradient_step(*steps, max_norm=self.config.max_gradient_norm)
        return critic_metrics | policy_metrics

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the target critics' value of the policy's next chunk."""
        with torch.no_grad():
            next_value = self.critic.target_value(batch.next_obs, self.policy(batch.next_obs, noise, "next"))
            target = batch.chunk_return + batch.bootstrap * next_value  # (S, B)
        return self.critic.loss(batch, target)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Matching of the behaviour flow to the data, adjoint matching of the other, and the variant's terms; (S,)."""
        valid = batch.counted(self.config.window_mask)
        losses = {
            "matching_loss": matching_loss(self.behaviour_velocity(batch.obs), batch.action_chunk, valid, noise),
            "adjoint_loss": self.adjoint_loss(batch.obs, noise),
        }
        loss, metrics = losses["matching_loss"] + losses["adjoint_loss"], losses
        if self.edits or self.one_step:
            variant_loss = self.edit_loss if self.edits else self.one_step_loss
            added, added_metrics = variant_loss(batch, noise)
            loss, metrics = loss + added, losses | added_metrics
        return loss, {name: value.detach() for name, value in (metrics | {"policy_loss": loss}).items()}

    def adjoint_loss(self, obs: Tensor, noise: Noise) -> Tensor:
        """Loss (S,) of the fine-tuned flow, whose base is the target network of the behaviour flow."""
        flow_steps, base = self.config.flow_steps, self.target_behaviour_velocity
        draws = noise.normal("adjoint_noise", flow_steps, obs.shape[1], self.chunk_dim)
        path = memoryless_rollout(self.policy_velocity(obs), base(obs), draws)
        adjoints = lean_adjoint(base(obs), path, self.terminal_adjoint(obs, path[-1]))
        obs_of_steps = obs.repeat(1, flow_steps, 1)
        return adjoint_matching_loss(self.policy_velocity(obs_of_steps), base(obs_of_steps), path, adjoints)

    def terminal_adjoint(self, obs: Tensor, x_1: Tensor) -> Tensor:
        """The gradient (S, B, D) of -inverse_temperature Q at the clipped x_1: 0 in a coordinate outside the box."""
        gradient = action_gradient(self.critic.target, obs, x_1.clamp(-1, 1))
        return -self.config.inverse_temperature * (x_1.abs() <= 1) * gradient

    def one_step_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """QAM-F: distillation of the fine-tuned flow from the same noise, and -Q of the clipped policy, (S,)."""
        x_0 = noise.normal("policy_noise", batch.obs.shape[1], self.chunk_dim)
        x_1 = self.distilled(batch.obs, x_0)
        distill_loss = (x_1 - self.flow_action(batch.obs, x_0)).square().mean((1, 2))
        q_loss = -self.critic(batch.obs, x_1.clamp(-1, 1), constant=True).mean((1, 2))
        return self.config.bc_coef * distill_loss + q_loss, {"distill_loss": distill_loss, "q_loss": q_loss}

    def edit_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """QAM-E: -Q of the edited action, and the entropy of the edit, which is not in the critic's target; (S,)."""
        x_0 = noise.normal("policy_noise", batch.obs.shape[1], self.chunk_dim)
        x_1, log_prob = self.edited(batch.obs, self.flow_action(batch.obs, x_0), noise, "policy")
        q_loss = -self.critic(batch.obs, x_1, constant=True).mean((1, 2))
        entropy, entropy_coef = -log_prob.mean(1), self.temperature.coef
        metrics = {"q_loss": q_loss, "entropy": entropy, "entropy_coef": entropy_coef}
        return q_loss - entropy_coef * entropy, metrics
