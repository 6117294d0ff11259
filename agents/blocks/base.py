"""What every agent is: the interface, its state in files, the optimiser step and the target average."""

import copy
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from agents.blocks import kernels
from datasets.batch import Batch, Decisions, Trajectories

Metrics = dict[str, Tensor]  # name -> (S,), detached
Phase = Literal["offline", "online"]
Network = TypeVar("Network", bound=nn.Module)


class Noise(Protocol):
    """Random numbers of S seeds, one stream per seed and name.

    The second draw under one name within an update is a new stream. Parameters are drawn under the name "init".
    """

    @property
    def num_seeds(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal numbers (S, *shape)."""
        ...

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), (S, *shape)."""
        ...


# How names of tensors began in older checkpoints and policies -> how they begin now.
EARLIER_NAMES = {
    "critic.mlp.": "critic.online.mlp.",
    "target_critic.": "critic.target.",
    "critic_optimizer/": "critic.optimizer/",
    "log_entropy_coef": "temperature.log_coef",
    "temperature_optimizer/": "temperature.optimizer/",
}


class _CheckedAtConstruction(type):
    """A class whose objects are checked once the constructors of all its subclasses have run."""

    def __call__(cls, *args, **kwargs):
        agent = super().__call__(*args, **kwargs)
        agent.check_seed_dimension()
        return agent


class Agent(nn.Module, metaclass=_CheckedAtConstruction):
    """One algorithm training S seeds at once; every parameter and buffer has a leading seed dimension.

    A subclass has `act` and `update`, or instead of `update` the two phases' updates where they differ. It sets
    `policy_modules`, paths of the submodules that `act` needs (an evaluator copies only these), and `online_only`, the
    config fields that change nothing before the first online step (runs may share what precedes it). Where it values
    actions, `critic` does so (`agents.blocks.critic.Critic`). A tensor that all seeds share, such as a schedule, is a
    plain attribute and no buffer.
    No update synchronises with the device, branches on a tensor's value or counts steps: each may become a CUDA graph.
    An agent whose online updates differ in turn, such as one whose policy moves at every third, sets `period` and has
    `update_turn` instead of `update_online`.
    """

    policy_modules: tuple[str, ...]
    online_only: tuple[str, ...] = ()
    period: int = 1  # online updates after which what an update does repeats

    def __init__(self, config: Any, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__()
        self.config = config
        self.num_seeds = noise.num_seeds
        self.obs_dim = obs_dim
        self.chunk_length: int = config.chunk_length
        self.chunk_dim = self.chunk_length * action_dim  # D, of the flattened chunk

    def check_seed_dimension(self) -> None:
        """ValueError for a parameter or buffer that does not begin with the seeds: one seed could not be saved."""
        for name, tensor in itertools.chain(self.named_parameters(), self.named_buffers()):
            if tensor.shape[:1] != (self.num_seeds,):
                raise ValueError(
                    f"{type(self).__name__}.{name} has shape {tuple(tensor.shape)}: the first dimension of parameters "
                    f"and buffers is that of the seeds, here {self.num_seeds}; a tensor that all seeds share is a "
                    "plain attribute, not a buffer"
                )

    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        """Action chunks (S, B, H, A) in [-1, 1] for obs (S, B, O), without gradient."""
        raise NotImplementedError

    def collect(self, obs: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Chunks (S, B, H, A) to train on, and what the agent wants back with each of them, (S, B, W)."""
        action_chunk = self.act(obs, noise, "collect")
        return action_chunk, action_chunk.new_zeros(*action_chunk.shape[:2], 0)

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        """One iteration of the offline phase; `update` where the agent says nothing else."""
        return self.update(batch, noise)

    def update_online(self, batch: Any, noise: Noise) -> Metrics:
        """One gradient update of the online phase, on a Batch; of an `OnPolicyAgent` on Decisions.

        `update` where the agent says nothing else.
        """
        return self.update(batch, noise)

    def update_turn(self, batch: Any, noise: Noise, turn: int) -> Metrics:
        """The online update number n of a run, counted from 0, where turn = n mod `period`; a metric may be of some
        turns only. `update_online` where the agent says nothing else.
        """
        return self.update_online(batch, noise)

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        """One gradient update of an agent whose phases have the same one."""
        raise NotImplementedError

    @torch.no_grad()
    def policy_metrics(self, batch: Batch, noise: Noise) -> Metrics:
        """What the policy that is evaluated does at the batch's observations; changes nothing.

        action_mse: mean squared distance of its actions to the batch's, over the steps that are valid.
        policy_q: mean over critics and batch of Q of its chunks; only where there are critics.
        They tell a policy that is held too close to the data (a small action_mse) from one that has left it for actions
        that the critics overrate (a large one, and policy_q far above q_mean).
        """
        action_chunk = self.act(batch.obs, noise, "evaluate")
        distance = (action_chunk - batch.action_chunk).square().mean(-1)  # (S, B, H)
        metrics = {"action_mse": (batch.valid * distance).sum((1, 2)) / batch.valid.sum((1, 2)).clamp(min=1)}
        if (critic := getattr(self, "critic", None)) is not None:
            metrics["policy_q"] = critic(batch.obs, action_chunk).mean((1, 2))
        return metrics

    def gradient_norms(self, batch: Batch, noise: Noise, phase: Phase) -> Metrics:
        """Norms of the gradient of the phase's policy loss along the flow steps that it runs back through.

        `agents.blocks.flow.rollout_gradient_norms` defines them. {} for a policy whose loss runs back through no
        rollout. Changes nothing.
        """
        return {}

    def policy_tensors(self) -> dict[str, Tensor]:
        """What `act` needs, by name, with a leading seed dimension; the tensors themselves."""
        prefixes = tuple(f"{module}." for module in self.policy_modules)
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(prefixes)}

    def load_policy(self, policy: Mapping[str, Tensor]) -> None:
        """Load what `policy_tensors` gave, under today's or earlier names, in place. ValueError if it does not fit."""
        tensors = self.policy_tensors()
        policy = current_names(policy, tensors)
        _check_names(policy, tensors)
        for name, tensor in tensors.items():
            if policy[name].shape != tensor.shape:
                raise ValueError(f"{name}: {_shapes(policy[name].shape, tensor.shape)}")
        self.load_state_dict(policy, strict=False)

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that an update changes, by name; the tensors themselves.

        Parameters, buffers and Adam's moments begin with the seed dimension; Adam's step counts, which the seeds share,
        have no dimension.
        """
        names = {parameter: name for name, parameter in self.named_parameters()}
        tensors: dict[str, Tensor] = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        for path, adam in self.optimizers().items():
            tensors[f"{path}/steps"] = adam.steps
            for parameter, mean, mean_sq in zip(adam.parameters, adam.exp_avg, adam.exp_avg_sq, strict=True):
                entry = names[parameter]
                if f"{entry}/exp_avg" in tensors:  # of another Adam, in another phase
                    entry = f"{entry}/{path}"
                tensors |= {f"{entry}/exp_avg": mean, f"{entry}/exp_avg_sq": mean_sq}
        return tensors

    def optimizers(self) -> dict[str, "Adam"]:
        """Every Adam of the agent and of its submodules, by its path, such as `critic.optimizer`."""
        return {
            f"{path}.{name}".removeprefix("."): value
            for path, module in self.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, Adam)
        }

    def state_of_seed(self, seed_index: int) -> dict[str, Tensor]:
        """All that seed `seed_index` of the pack needs to go on, on the CPU: parameters, targets, Adam moments.

        The state fits every slot of every pack of the same config (`load_seed_states`).
        """
        return {
            name: (tensor[seed_index] if tensor.dim() else tensor).detach().cpu().clone()
            for name, tensor in self.state_tensors().items()
        }

    @torch.no_grad()
    def load_seed_states(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Load one state per seed, under today's or earlier names, in place.

        ValueError if they do not fit the agent or differ in step counts.
        """
        if len(states) != self.num_seeds:
            raise ValueError(f"{len(states)} seed states for an agent of {self.num_seeds} seeds")
        tensors = self.state_tensors()
        states = [current_names(state, tensors) for state in states]
        for state in states:
            _check_names(state, tensors)
        for name, tensor in tensors.items():
            rows = [state[name] for state in states]
            for row in rows:
                if row.shape != tensor.shape[1:]:
                    raise ValueError(f"{name}: {_shapes(row.shape, tensor.shape[1:])}")
            if not tensor.dim() and any(not torch.equal(row, rows[0]) for row in rows):
                raise ValueError(f"{name}: seeds of one pack must have made the same number of updates")
            tensor.copy_(torch.stack(rows) if tensor.dim() else rows[0])


def current_names(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with earlier names replaced, except where a name is among `expected`, those of today's agent."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        earlier = next((prefix for prefix in EARLIER_NAMES if name.startswith(prefix)), None)
        if earlier is not None and name not in expected:
            name = EARLIER_NAMES[earlier] + name.removeprefix(earlier)
        renamed[name] = tensor
    return renamed


def _check_names(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if mismatch := found.keys() ^ expected.keys():
        raise ValueError(f"the state is of another agent or config: {min(mismatch)} is only on one side")


def _shapes(found: torch.Size, expected: torch.Size) -> str:
    return f"the state has shape {tuple(found)}, the agent {tuple(expected)}"


class OnPolicyAgent(Agent):
    """An agent whose online phase trains on nothing but what its current policy has collected.

    Its config has num_envs, E environments of each seed; rollout_decisions, chunks that a seed executes, over all of
    them, between updates; and epochs, how often each decision is used. The driver collects, asks for `estimate`, and
    makes as many updates as use each decision `epochs` times.
    """

    def collect(self, obs: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def estimate(self, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
        """Advantage and value target (S, T, E) of each decision, without gradient."""
        raise NotImplementedError

    def update_online(self, batch: Decisions, noise: Noise) -> Metrics:
        raise NotImplementedError


def frozen_copy(network: Network) -> Network:
    """A target network: equal to `network` now, without gradients."""
    return copy.deepcopy(network).requires_grad_(False)


class Adam:
    """Adam (arXiv 1412.6980) with eps 1e-8; b1 and b2 are its two betas. Its state exists before the first step.

    With `weight_decay` it is AdamW (arXiv 1711.05101): parameters shrink by that share of the learning rate.
    All of it lies on the parameters' device, so that it can be loaded, compiled and captured in a CUDA graph.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        weight_decay: float = 0.0,
        b1: float = 0.9,
        b2: float = 0.999,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.b1, self.b2 = b1, b2
        self.exp_avg = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.exp_avg_sq = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = torch.zeros((), device=self.parameters[0].device)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step down `gradients`, one for each parameter."""
        self.steps += 1
        if self.weight_decay:
            for parameter in self.parameters:
                parameter.mul_(1 - self.learning_rate * self.weight_decay)
        gradients = [gradient.contiguous() for gradient in gradients]
        groups: list[Sequence[Tensor]] = [self.parameters, gradients, self.exp_avg, self.exp_avg_sq]
        if torch.compiler.is_compiling():
            return self._elementwise(*groups)
        if not kernels.at_once(self.steps):
            # The rounding of a fused entry depends on its place in the tensor: seed by seed, not on the pack.
            groups = [[row for tensor in group for row in tensor.unbind(0)] for group in groups]
        parameters, gradients, exp_avg, exp_avg_sq = groups
        torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]
            list(parameters),
            list(gradients),
            list(exp_avg),
            list(exp_avg_sq),
            [],
            [self.steps] * len(parameters),
            lr=self.learning_rate,
            beta1=self.b1,
            beta2=self.b2,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def _elementwise(self, *groups: Sequence[Tensor]) -> None:
        """The same step in operations that a compiler fuses; it copies the tensors of the fused operator."""
        correction = -torch.expm1(self.steps * math.log(self.b1))  # 1 - beta^steps without cancellation
        correction_sq = -torch.expm1(self.steps * math.log(self.b2))
        for parameter, gradient, mean, mean_sq in zip(*groups, strict=True):
            mean.lerp_(gradient, 1 - self.b1)
            mean_sq.mul_(self.b2).addcmul_(gradient, gradient, value=1 - self.b2)
            denominator = mean_sq.sqrt() / correction_sq.sqrt() + 1e-8
            parameter.sub_(self.learning_rate / correction * (mean / denominator))


def gradient_step(*steps: tuple[Adam, Tensor], max_norm: float = math.inf, max_entry: float = math.inf) -> None:
    """One step of each optimiser down its own loss (S,), with all gradients taken at the parameters before any step.

    A loss moves only parameters of its optimiser. Those that it does not reach get a zero gradient, not none: the
    official code holds all networks in one Adam, which goes on moving them by momentum.

    Args:
        max_norm: a seed's gradients, of all steps together, are scaled down to this Euclidean norm.
        max_entry: each entry of a gradient is cut to this size, one that is no number to 0.
    """
    # Summed over S, so that no seed's gradient depends on another's.
    gradients = [torch.autograd.grad(loss.sum(), adam.parameters, materialize_grads=True) for adam, loss in steps]
    if max_norm < math.inf:
        squares = [g.unflatten(0, (-1, 1)).flatten(1).square().sum(1) for of_step in gradients for g in of_step]
        scale = (max_norm / torch.stack(squares).sum(0).sqrt()).clamp(max=1.0)  # (S,)
        gradients = [[g * scale.view(-1, *[1] * (g.dim() - 1)) for g in of_step] for of_step in gradients]
    if max_entry < math.inf:
        gradients = [[g.nan_to_num(0.0).clamp(-max_entry, max_entry) for g in of_step] for of_step in gradients]
    for (adam, _), of_step in zip(steps, gradients, strict=True):
        adam.step(of_step)


@torch.no_grad()
def polyak_update(target: nn.Module, online: nn.Module, rate: float | Tensor) -> None:
    """target <- (1 - rate) target + rate online; a rate that depends on what happened is a scalar tensor.

    Most agents call it before the gradient step: in their official code the target follows the parameters before it.
    """
    old: list[Tensor] = list(target.parameters())
    new: list[Tensor] = list(online.parameters())
    if not isinstance(rate, Tensor):
        torch._foreach_lerp_(old, new, rate)  # pyright: ignore[reportPrivateImportUsage]
    elif kernels.at_once(rate):  # the operator above takes no tensor: three launches, not one for each parameter
        torch._foreach_mul_(old, 1 - rate)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(old, torch._foreach_mul(new, rate))  # pyright: ignore[reportPrivateImportUsage]
    else:
        for of_target, of_online in zip(old, new, strict=True):
            of_target.lerp_(of_online, rate)
