"""FlowRL (Lv et al., arXiv 2506.12811): Q's gradient through a flow policy that is held to the replay's better actions.

A second value function says how much better the best actions of the replay are than the policy's; that weights flow
matching to the replay. As released the weights act as their mean, for the matching loss is averaged first, and the
flow is matched to actions although those it takes are their tanh. Networks, order and rates are the release's, which
computes in bfloat16 on a GPU; here it is float32.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.blocks.base import Adam, Agent, Metrics, Noise, Phase, frozen_copy, gradient_step, polyak_update
from agents.blocks.config import check_config
from agents.blocks.critic import expectile_loss, squared_error
from agents.blocks.flow import rollout_gradient_norms
from agents.blocks.kernels import affine, by_member, layer_norm
from agents.blocks.networks import Dims, LayerNorm, Linear, Members
from datasets.batch import Batch

LAYER_NORM_EPS = 1e-5
LEAST_WEIGHT, LARGEST_WEIGHT = 1e-3, 1.0


@dataclass(frozen=True)
class FlowRLConfig:
    """Settings of FlowRL, as released."""

    chunk_length: int = 1  # H, environment steps per action chunk
    flow_steps: int = 1  # K, steps of the midpoint rule from noise to action
    max_noise: float = 1.0  # to which standard normal numbers are cut, of the start and in matching
    policy_delay: int = 2  # updates of the critics for each of policy and targets, which come with the first
    matching_coef: float = 0.1  # of the weights of the matching loss
    matching_weights: Literal["released", "per_sample"] = "released"  # released: as their mean
    expectile: float = 0.9  # of the second value function
    target_update_rate: float = 0.95  # share of the new parameters in the targets
    num_critics: int = 2
    action_scale: float = 1.0  # of an action of 1 in the environment's units: of the critics' and matching's actions
    learning_rate: float = 3e-4
    policy_hidden_dims: tuple[int, ...] = (512, 512)
    critic_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)  # of Q and of V

    def __post_init__(self) -> None:
        check_config(self, expectile=(0, 1), target_update_rate=(0, 1), action_scale=(1e-6, float("inf")))


class FlowRL(Agent):
    """A flow policy by Q's gradient, held to what the replay does better."""

    config: FlowRLConfig
    policy_modules = ("velocity",)

    def __init__(self, config: FlowRLConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.period = config.policy_delay
        self.action_scale = torch.full((self.chunk_dim,), config.action_scale, device=noise.device)
        dims = config.policy_hidden_dims
        self.velocity = NormedMLP(obs_dim + self.chunk_dim + 1, dims, self.chunk_dim, noise, [F.elu] * len(dims))
        self.critic = FlowRLCritic(config, obs_dim, self.action_scale, noise)
        self.replay_critic = FlowRLCritic(config, obs_dim, self.action_scale, noise)
        self.replay_value = NormedMLP(obs_dim, config.critic_hidden_dims, 1, noise, critic_activations(config))
        self.value_optimizer = Adam(self.replay_value.parameters(), config.learning_rate)
        self.policy_optimizer = Adam(self.velocity.parameters(), config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        return self.policy(obs, noise, "act_noise")  # the same in both modes

    def policy(self, obs: Tensor, noise: Noise, draw: str) -> Tensor:
        """An action chunk (S, B, H, A) at obs (S, B, O)."""
        x = self.start(noise, draw, obs.shape[1])
        for k in range(self.config.flow_steps):
            x = self.step(obs, k, x)
        return self.chunk_of(x)

    def start(self, noise: Noise, draw: str, batch_size: int) -> Tensor:
        """x_0 (S, B, D), normal numbers cut to a size."""
        return noise.normal(draw, batch_size, self.chunk_dim).clamp(-self.config.max_noise, self.config.max_noise)

    def step(self, obs: Tensor, k: int, x: Tensor) -> Tensor:
        """The point (S, B, D) after step k = 0 ... K - 1 of the midpoint rule from x."""
        width = 1 / self.config.flow_steps
        middle = x + 0.5 * width * self.velocity(_joined(obs, x, k * width))
        return x + width * self.velocity(_joined(obs, middle, (k + 0.5) * width))

    def chunk_of(self, x: Tensor) -> Tensor:
        return x.tanh().unflatten(-1, (self.chunk_length, -1))

    def update_turn(self, batch: Batch, noise: Noise, turn: int) -> Metrics:
        """A step of all values; at the first turn one of the policy, which sees the new critic, and of the targets."""
        critic_loss, metrics = self.critic_loss(batch, noise)
        replay_q, replay_loss = self.replay_critic_loss(batch)
        count = self.config.num_critics  # whose losses are summed, as released
        gradient_step((self.critic.optimizer, count * critic_loss), (self.replay_critic.optimizer, count * replay_loss))
        value_loss = self.value_loss(batch)
        gradient_step((self.value_optimizer, value_loss))
        metrics["value_loss"] = value_loss.detach()
        if turn > 0:
            return metrics
        policy_loss, policy_metrics = self.policy_loss(batch, noise, replay_q)
        gradient_step((self.policy_optimizer, policy_loss))
        self.critic.follow()
        self.replay_critic.follow()
        return metrics | policy_metrics

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One step of everything."""
        return self.update_turn(batch, noise, 0)

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Squared error (S,) to the chunk's return plus the target critics' value of the policy's next chunk."""
        with torch.no_grad():
            next_value = self.critic.target_value(batch.next_obs, self.policy(batch.next_obs, noise, "next_noise"))
            target = batch.chunk_return + batch.bootstrap * next_value
        return squared_error(self.critic(batch.obs, batch.action_chunk), target, batch)

    def replay_critic_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Value (S, B) of the batch's chunks under the replay's best actions, a constant; its squared error (S,)."""
        q = self.replay_critic(batch.obs, batch.action_chunk)
        with torch.no_grad():
            target = batch.chunk_return + batch.bootstrap * self.replay_value(batch.next_obs).squeeze(-1)
        return q.detach().amin(1), squared_error(q, target, batch)[0]

    def value_loss(self, batch: Batch) -> Tensor:
        """Expectile loss (S,) of the replay's value to the target critics' of its chunks."""
        with torch.no_grad():
            q = self.replay_critic.target_value(batch.obs, batch.action_chunk)
        value = self.replay_value(batch.obs).squeeze(-1)
        return expectile_loss(value, q, self.config.expectile, batch.valid[..., -1])

    def policy_loss(self, batch: Batch, noise: Noise, replay_q: Tensor) -> tuple[Tensor, Metrics]:
        """-Q, and weighted matching to the batch's chunks where the replay's value (S, B) is above it; (S,)."""
        q = self.critic(batch.obs, self.policy(batch.obs, noise, "policy_noise"), constant=True).amin(1)  # (S, B)
        better = (replay_q - q.detach()).relu()
        weight = self.config.matching_coef * (better - better.mean(1, keepdim=True)).exp()
        weight = weight.clamp(LEAST_WEIGHT, LARGEST_WEIGHT)
        matching = self.matching_loss(batch, noise)  # (S, B)
        if self.config.matching_weights == "per_sample":
            weighted = (weight * matching).mean(1)
        else:
            weighted = weight.mean(1) * matching.mean(1)
        q_loss = -q.mean(1)
        loss = q_loss + weighted
        metrics = {"policy_loss": loss, "q_loss": q_loss, "matching_loss": matching.mean(1)}
        metrics["weight_mean"] = weight.mean(1)
        return loss, {name: value.detach() for name, value in metrics.items()}

    def matching_loss(self, batch: Batch, noise: Noise) -> Tensor:
        """Flow matching (S, B) to the batch's chunks, a mean over coordinates that are valid."""
        x_1 = batch.action_chunk.flatten(2) * self.action_scale
        x_0 = self.start(noise, "matching_noise", x_1.shape[1])
        t = noise.uniform("matching_t", x_1.shape[1], 1)
        error = self.velocity(_joined(batch.obs, (1 - t) * x_0 + t * x_1, t)) - (x_1 - x_0)
        return (batch.valid.unsqueeze(-1) * error.unflatten(-1, batch.action_chunk.shape[2:]).square()).mean((2, 3))

    def gradient_norms(self, batch: Batch, noise: Noise, phase: Phase) -> Metrics:
        x_0 = self.start(noise, "policy_noise", batch.obs.shape[1])

        def loss(x: Tensor) -> Tensor:
            return -self.critic(batch.obs, self.chunk_of(x), constant=True).amin(1).mean(1)

        def step(k: int, x: Tensor) -> Tensor:
            return self.step(batch.obs, k, x)

        return rollout_gradient_norms(step, x_0, self.config.flow_steps, loss, self.velocity.parameters())


class FlowRLCritic(nn.Module):
    """N critics, their slow copies and their optimiser; called, it is Q (S, N, B) of chunks (S, B, H, A)."""

    def __init__(self, config: FlowRLConfig, obs_dim: int, action_scale: Tensor, noise: Noise) -> None:
        super().__init__()
        self.config, self.action_scale = config, action_scale
        kind = (config.critic_hidden_dims, 1, noise, critic_activations(config), (config.num_critics,))
        self.online = nn.ModuleDict({"mlp": NormedMLP(obs_dim + len(action_scale), *kind)})
        self.target = frozen_copy(self.online)
        self.optimizer = Adam(self.online.parameters(), config.learning_rate)

    def forward(self, obs: Tensor, action_chunk: Tensor, constant: bool = False) -> Tensor:
        return self._value(self.online, obs, action_chunk, constant)

    def target_value(self, obs: Tensor, action_chunk: Tensor) -> Tensor:
        """The least value (S, B) of the target critics."""
        return self._value(self.target, obs, action_chunk, False).amin(1)

    def _value(self, network: nn.ModuleDict, obs: Tensor, action_chunk: Tensor, constant: bool) -> Tensor:
        x = torch.cat([obs, action_chunk.flatten(2) * self.action_scale], -1)
        return network["mlp"](x.unsqueeze(1).expand(-1, self.config.num_critics, -1, -1), constant).squeeze(-1)

    def follow(self) -> None:
        polyak_update(self.target, self.online, self.config.target_update_rate)


class NormedMLP(nn.Module):
    """x (S, *members, B, in) -> (S, *members, B, out): Linear, LayerNorm and an activation of its own in each layer."""

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Dims,
        out_dim: int,
        noise: Noise,
        activations: list[Callable[[Tensor], Tensor]],
        members: Members = (),
    ) -> None:
        super().__init__()
        dims = [in_dim, *hidden_dims]
        self.activations = activations
        self.hidden = nn.ModuleList(Linear(i, o, noise, members=members) for i, o in itertools.pairwise(dims))
        self.norms = nn.ModuleList(LayerNorm(dim, noise, members) for dim in hidden_dims)
        self.out = Linear(dims[-1], out_dim, noise, members=members)

    def forward(self, x: Tensor, constant: bool = False) -> Tensor:
        """`constant`: no gradient reaches the parameters, only x."""
        layers = [*self.hidden, *self.norms, self.out]
        parameters = [p.detach() if constant else p for layer in layers for p in (layer.weight, layer.bias)]
        return by_member(self._of_member, x, *parameters)

    def _of_member(self, x: Tensor, *parameters: Tensor) -> Tensor:
        pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
        count = len(self.hidden)
        for linear, norm, activation in zip(pairs[:count], pairs[count:-1], self.activations, strict=True):
            x = activation(layer_norm(affine(x, *linear), *norm, LAYER_NORM_EPS))
        return affine(x, *pairs[-1])


def critic_activations(config: FlowRLConfig) -> list[Callable[[Tensor], Tensor]]:
    """GELU, exact, but for the first hidden layer and the last one."""
    count = len(config.critic_hidden_dims)
    return [_identity if i in (0, count - 1) else F.gelu for i in range(count)]


def _identity(x: Tensor) -> Tensor:
    return x


def _joined(obs: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
    column = t if isinstance(t, Tensor) else torch.full_like(x[..., :1], t)
    return torch.cat([obs, x, column], -1)
