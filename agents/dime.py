"""DIME (Celik et al., arXiv 2502.02316) as SAC Flow's authors ran it: a diffusion policy of bounded entropy.

Q's gradient runs back through all steps of a learnt diffusion, whose densities against those of a fixed reverse process
bound the entropy of its actions from below. Critics are CrossQ's, over the distribution of returns. Parameters of the
release that never move (prior, betas, mass) are constants here.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from agents.blocks.base import Adam, Agent, Metrics, Noise, Phase, gradient_step
from agents.blocks.config import check_config
from agents.blocks.critic import project, q_metrics
from agents.blocks.flow import rollout_gradient_norms, tanh_log_det
from agents.blocks.gaussian import gaussian_log_prob
from agents.blocks.joint_critic import RenormCritics
from agents.blocks.kernels import by_member, by_seed
from agents.blocks.networks import MLP, Dims
from agents.blocks.temperature import Temperature, check_learnt_coef
from datasets.batch import Batch

PRIOR_STD = 2.5  # S, of x_0
LARGEST_DRIFT = 1e4


@dataclass(frozen=True)
class DIMEConfig:
    """Settings of DIME, those of SAC Flow's comparison; in brackets the authors' own."""

    chunk_length: int = 1  # H, environment steps per action chunk
    denoising_steps: int = 16  # N, from the prior to the action
    target_run_cost: float = 4.0  # per coordinate, of the part of the entropy's bound that the temperature holds
    entropy_coef: float = 1.0  # alpha, initial value
    policy_delay: int = 3  # critic steps for each step of policy and temperature
    num_critics: int = 2
    num_atoms: int = 101  # of the distribution of returns, between
    min_value: float = -200.0
    max_value: float = 200.0
    atom_entropy_coef: float = 0.005  # of the entropy of that distribution, in the critics' loss
    action_scale: float = 1.0  # of an action of 1 in the environment's units: of critics' inputs; as released
    critic_hidden_dims: tuple[int, ...] = (1024, 1024)  # [2048, 2048]
    critic_learning_rate: float = 3e-4
    learning_rate: float = 3e-4  # of the policy
    adam_b1: float = 0.5  # Adam's first beta, of policy and critics
    temperature_learning_rate: float = 1e-3
    max_gradient_entry: float = 1.0  # of the policy
    policy_hidden_dims: tuple[int, ...] = (256, 256, 256)  # the first one is the width of the step's features, too

    def __post_init__(self) -> None:
        everything = (-math.inf, math.inf)
        check_config(
            self,
            target_run_cost=everything,
            min_value=everything,
            max_value=(self.min_value + 1e-6, math.inf),
            action_scale=(1e-6, math.inf),
            adam_b1=(0, 0.9999),
        )
        check_learnt_coef(self)
        if self.num_atoms < 2:
            raise ValueError(f"DIMEConfig.num_atoms = {self.num_atoms}: must be at least 2")


class Diffusion(nn.Module):
    """The drift f(s, x, k), and the step size of each coordinate, which is learnt: eta_k = step_size c_k / friction."""

    def __init__(self, obs_dim: int, chunk_dim: int, hidden_dims: Dims, num_steps: int, noise: Noise) -> None:
        super().__init__()
        width = hidden_dims[0]
        self.phase = nn.Parameter(torch.zeros(noise.num_seeds, 1, width, device=noise.device))
        self.embed_step = MLP(2 * width, (width,), width, noise, init="lecun")
        self.drift = MLP(chunk_dim + obs_dim + width, hidden_dims, chunk_dim, noise, init="lecun", out_scale=0.0)
        with torch.no_grad():  # as released: normal numbers, and a last layer of next to nothing
            self.phase.copy_(noise.normal("init", 1, width))
            self.drift.out.weight.add_(1e-8)
        self.step_size = nn.Parameter(torch.full((noise.num_seeds, 1), 0.1, device=noise.device))
        self.friction = nn.Parameter(torch.ones(noise.num_seeds, chunk_dim, device=noise.device))
        self.schedule = cosine_schedule(num_steps)

    def eta(self, k: int) -> Tensor:
        """The step size (S, 1, D) of step k = 0 ... N - 1."""
        size, friction = (by_seed(nn.functional.softplus, value) for value in (self.step_size, self.friction))
        return (size * self.schedule[k] / friction).unsqueeze(1)

    def forward(self, obs: Tensor, k: int, x: Tensor) -> Tensor:
        count = self.phase.shape[-1]
        share = torch.arange(count, dtype=x.dtype, device=x.device) / (count - 1)
        frequencies = 0.1 * (1 - share) + 100.0 * share  # rounded as in the release: angles reach hundreds
        angle = by_member(torch.add, (frequencies * k).expand_as(self.phase), self.phase)
        step = self.embed_step(torch.cat([by_seed(torch.sin, angle), by_seed(torch.cos, angle)], -1))
        inputs = torch.cat([x, obs, step.expand(-1, x.shape[1], -1)], -1)
        return self.drift(inputs).clamp(-LARGEST_DRIFT, LARGEST_DRIFT)


def cosine_schedule(num_steps: int) -> tuple[float, ...]:
    """c_k of steps k = 0 ... N - 1, from about 1 to .01."""
    angles = [math.pi / 2 * (1.008 - (num_steps - k) / num_steps) / 1.008 for k in range(num_steps)]
    return tuple(0.001 + 0.999 * math.cos(angle) ** 2 for angle in angles)


class Path(NamedTuple):
    """A rollout of the diffusion. -(run_cost + terminal_cost) bounds the entropy of its actions from below."""

    action_chunk: Tensor  # (S, B, H, A)
    run_cost: Tensor  # (S, B): log densities of the steps over those of the reference backwards, and of the tanh
    terminal_cost: Tensor  # (S, B): log density of x_0


class DIME(Agent):
    """Maximum entropy reinforcement learning of a diffusion policy."""

    config: DIMEConfig
    policy_modules = ("diffusion",)

    def __init__(self, config: DIMEConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.period = config.policy_delay
        dims = (obs_dim, self.chunk_dim)
        self.diffusion = Diffusion(*dims, config.policy_hidden_dims, config.denoising_steps, noise)
        self.action_scale = torch.full((self.chunk_dim,), config.action_scale, device=noise.device)
        self.critic = DistributionCritic(config, obs_dim, self.action_scale, noise)
        self.temperature = Temperature(
            config.entropy_coef,
            -config.target_run_cost * self.chunk_dim,
            config.temperature_learning_rate,
            noise,
        )
        self.policy_optimizer = Adam(self.diffusion.parameters(), config.learning_rate, b1=config.adam_b1)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.rollout(obs, noise, "act").action_chunk  # the same in both modes, as released

    def rollout(self, obs: Tensor, noise: Noise, draw: str) -> Path:
        """The policy's path at obs (S, B, O), from numbers drawn under names that begin with `draw`."""
        x, step_noise = self.draw(obs, noise, draw)
        terminal_cost = gaussian_log_prob(x / PRIOR_STD, torch.full_like(x, math.log(PRIOR_STD)))
        run_cost = torch.zeros_like(terminal_cost)
        for k in range(self.config.denoising_steps):
            before, eta = x, self.diffusion.eta(k)
            x = self.step(obs, k, before, step_noise)
            backwards = before - (x - eta * x / PRIOR_STD**2)
            # Of equal variances 2 eta: only the squares differ.
            run_cost = run_cost + (0.25 * backwards.square() / eta - 0.5 * step_noise[:, k].square()).sum(-1)
        return Path(self.chunk_of(x), run_cost - tanh_log_det(x, "exact"), terminal_cost)

    def draw(self, obs: Tensor, noise: Noise, name: str) -> tuple[Tensor, Tensor]:
        """x_0 (S, B, D) and step noise (S, N, B, D) for obs (S, B, O)."""
        x_0 = PRIOR_STD * noise.normal(f"{name}_noise", obs.shape[1], self.chunk_dim)
        return x_0, noise.normal(f"{name}_step_noise", self.config.denoising_steps, *x_0.shape[1:])

    def step(self, obs: Tensor, k: int, x: Tensor, step_noise: Tensor) -> Tensor:
        """The point (S, B, D) after step k = 0 ... N - 1 of Euler and Maruyama from x."""
        eta = self.diffusion.eta(k)
        mean = x + eta * (self.diffusion(obs, k, x) - x / PRIOR_STD**2)
        return mean + (2 * eta).sqrt() * step_noise[:, k]

    def chunk_of(self, x: Tensor) -> Tensor:
        return x.tanh().unflatten(-1, (self.chunk_length, -1))

    def update_turn(self, batch: Batch, noise: Noise, turn: int) -> Metrics:
        """A step of the critic, and at the last turn one of policy and temperature, which see the new critic."""
        critic_loss, metrics = self.critic_loss(batch, noise)
        gradient_step((self.critic.optimizer, critic_loss))
        if turn < self.period - 1:
            return metrics
        policy_loss, policy_metrics, run_cost = self.policy_loss(batch, noise)
        policy_metrics["entropy_coef"] = self.temperature.coef
        temperature_loss = self.temperature.loss(-run_cost.detach().mean(1))
        gradient_step((self.policy_optimizer, policy_loss), max_entry=self.config.max_gradient_entry)
        gradient_step((self.temperature.optimizer, temperature_loss))
        return metrics | policy_metrics

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of critic, policy and temperature."""
        return self.update_turn(batch, noise, self.period - 1)

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Cross entropy (S,) to the distribution of the chunk's return plus the soft value of the policy's next one."""
        with torch.no_grad():
            path = self.rollout(batch.next_obs, noise, "next")
            next_bonus = -self.temperature.coef.unsqueeze(-1) * (path.run_cost + path.terminal_cost)
        return self.critic.loss(batch, path.action_chunk, next_bonus)

    def policy_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics, Tensor]:
        """-Q, the mean of the critics, and the bound of the entropy (S,); its metrics; and the run costs (S, B)."""
        path = self.rollout(batch.obs, noise, "policy")
        q_loss = -self.critic(batch.obs, path.action_chunk, constant=True).mean((1, 2))
        entropy = -(path.run_cost + path.terminal_cost).mean(1)
        loss = q_loss - self.temperature.coef * entropy
        metrics = {"policy_loss": loss, "q_loss": q_loss, "entropy": entropy}
        return loss, {name: value.detach() for name, value in metrics.items()}, path.run_cost

    def gradient_norms(self, batch: Batch, noise: Noise, phase: Phase) -> Metrics:
        """As the base class says; what the steps add to the bound on the way is no part of them."""
        x_0, step_noise = self.draw(batch.obs, noise, "policy")

        def loss(x: Tensor) -> Tensor:
            q = self.critic(batch.obs, self.chunk_of(x), constant=True).mean(1)
            return (-self.temperature.coef.unsqueeze(-1) * tanh_log_det(x, "exact") - q).mean(1)

        def step(k: int, x: Tensor) -> Tensor:
            return self.step(batch.obs, k, x, step_noise)

        return rollout_gradient_norms(step, x_0, self.config.denoising_steps, loss, self.diffusion.parameters())


class DistributionCritic(nn.Module):
    """CrossQ's critics over atoms of the return (C51, arXiv 1707.06887). Called, it is the mean Q (S, N, B)."""

    def __init__(self, config: DIMEConfig, obs_dim: int, action_scale: Tensor, noise: Noise) -> None:
        super().__init__()
        self.config = config
        sizes = (obs_dim, config.critic_hidden_dims, config.num_critics, action_scale, noise, config.num_atoms)
        self.online = RenormCritics(*sizes)
        self.optimizer = Adam(self.online.parameters(), config.critic_learning_rate, b1=config.adam_b1)
        self.atoms = torch.linspace(config.min_value, config.max_value, config.num_atoms, device=noise.device)

    def forward(self, obs: Tensor, action_chunk: Tensor, constant: bool = False) -> Tensor:
        return self.mean_of(self.online(obs, action_chunk, constant=constant).softmax(-1))

    def mean_of(self, probability: Tensor) -> Tensor:
        """The mean (…,) of distributions (…, atoms)."""
        return (probability * self.atoms).sum(-1)

    def loss(self, batch: Batch, next_action_chunk: Tensor, next_bonus: Tensor) -> tuple[Tensor, Metrics]:
        """Cross entropies (S,), summed over critics, to the mean of the critics' projected targets.

        Both the next chunk (S, B, H, A) and the bonus (S, B) are constants. The running statistics move.
        """
        logits, next_logits = self.online.joint(batch, next_action_chunk)  # (S, N, B, atoms)
        with torch.no_grad():
            next_return = self.atoms + next_bonus.unsqueeze(-1)  # (S, B, atoms)
            values = batch.chunk_return.unsqueeze(-1) + batch.bootstrap.unsqueeze(-1) * next_return
            target = project(next_logits.softmax(-1).mean(1), values, self.atoms)
        log_probability = logits.log_softmax(-1)
        probability = log_probability.exp()
        cross_entropy = -(target.unsqueeze(1) * log_probability).sum(-1)  # (S, N, B)
        negentropy = (probability * log_probability).sum(-1)
        weight = batch.valid[:, None, :, -1]
        loss = (weight * (cross_entropy + self.config.atom_entropy_coef * negentropy)).mean(2).sum(1)
        return loss, {"critic_loss": loss.detach(), **q_metrics(self.mean_of(probability.detach()))}
