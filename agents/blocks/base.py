"""What every agent is: the interface, the optimiser step, the target average and the check of a config."""

import copy
import difflib
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

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


class Agent(nn.Module):
    """One algorithm training S seeds at once; every parameter has a leading seed dimension.

    Subclasses set `policy_modules`, the names of the submodules that `act` needs (an evaluator copies only these), and
    `online_only`, the config fields that change nothing before the first online step (runs may share what precedes it).
    No update synchronises with the device, branches on a tensor's value or counts steps: each may become a CUDA graph.
    """

    policy_modules: tuple[str, ...]
    online_only: tuple[str, ...] = ()

    def __init__(self, config: Any, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__()
        self.config = config
        self.num_seeds = noise.num_seeds
        self.obs_dim = obs_dim
        self.chunk_length: int = config.chunk_length
        self.chunk_dim = self.chunk_length * action_dim  # D, of the flattened chunk

    def act(self, obs: Tensor, noise: Noise, mode: Literal["collect", "evaluate"]) -> Tensor:
        """Action chunks (S, B, H, A) in [-1, 1] for obs (S, B, O), without gradient."""
        raise NotImplementedError

    def collect(self, obs: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Chunks (S, B, H, A) to train on, and what the agent wants back with each of them, (S, B, W)."""
        action_chunk = self.act(obs, noise, "collect")
        return action_chunk, action_chunk.new_zeros(*action_chunk.shape[:2], 0)

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        """One iteration of the offline phase."""
        raise NotImplementedError

    def update_online(self, batch: Any, noise: Noise) -> Metrics:
        """One gradient update of the online phase, on a Batch; of an `OnPolicyAgent` on Decisions."""
        raise NotImplementedError

    def gradient_norms(self, batch: Batch, noise: Noise, phase: Phase) -> Metrics:
        """Norms of the gradient of the phase's policy loss along the flow steps that it runs back through.

        `agents.blocks.flow.rollout_gradient_norms` defines them. {} for a policy whose loss runs back through no
        rollout. Changes nothing.
        """
        return {}

    @torch.no_grad()
    def policy_metrics(self, batch: Batch, noise: Noise) -> Metrics:
        return {}

    def state_of_seed(self, seed_index: int) -> dict[str, Tensor]:
        """All that seed `seed_index` of the pack needs to go on, on the CPU: parameters, targets, Adam moments.

        The state fits every slot of every pack of the same config (`load_seed_states`). Adam's step counts are shared
        by the seeds of a pack.
        """
        return {
            name: (tensor[seed_index] if per_seed else tensor).detach().cpu().clone()
            for name, tensor, per_seed in self._state()
        }

    def load_seed_states(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Load one state per seed, in place. ValueError if they do not fit the agent or differ in step counts."""
        if len(states) != self.num_seeds:
            raise ValueError(f"{len(states)} seed states for an agent of {self.num_seeds} seeds")
        own = list(self._state())
        for state in states:
            if mismatch := {name for name, _, _ in own} ^ set(state):
                raise ValueError(f"the state is of another agent or config: {sorted(mismatch)[0]} is only on one side")
        for name, tensor, per_seed in own:
            rows = [state[name] for state in states]
            shape = tensor.shape[1:] if per_seed else tensor.shape
            if any(row.shape != shape for row in rows):
                raise ValueError(f"{name}: the state has shape {tuple(rows[0].shape)}, the agent {tuple(shape)}")
            if not per_seed and any(not torch.equal(row, rows[0]) for row in rows):
                raise ValueError(f"{name}: seeds of one pack must have made the same number of updates")
            with torch.no_grad():
                tensor.copy_(torch.stack(rows) if per_seed else rows[0])

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that an update changes, by name; the tensors themselves."""
        return {name: tensor for name, tensor, _ in self._state()}

    def _state(self) -> Iterable[tuple[str, Tensor, bool]]:
        """(name, tensor, has a seed dimension) of every parameter, buffer and Adam entry."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.named_parameters()}
        for parameter, name in names.items():
            yield name, parameter, True
        for name, buffer in self.named_buffers():
            yield name, buffer, True
        optimised: set[Tensor] = set()
        for name, adam in vars(self).items():
            if isinstance(adam, Adam):
                yield f"{name}/steps", adam.steps, False
                for parameter, mean, mean_sq in zip(adam.parameters, adam.exp_avg, adam.exp_avg_sq, strict=True):
                    entry = names[parameter]
                    if parameter in optimised:  # by another Adam, in another phase
                        entry = f"{entry}/{name}"
                    optimised.add(parameter)
                    yield f"{entry}/exp_avg", mean, True
                    yield f"{entry}/exp_avg_sq", mean_sq, True


class OnPolicyAgent(Agent):
    """An agent whose online phase trains on nothing but what its current policy has collected.

    Its config has num_envs, E environments of each seed; rollout_steps, environment steps of a seed, over all of them,
    between updates; and epochs, how often each decision is used. The driver collects, asks for `estimate`, and makes as
    many updates as use each decision `epochs` times.
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
    """Adam (arXiv 1412.6980) with beta 0.9 and 0.999, eps 1e-8. Its state exists before the first step.

    All of it lies on the parameters' device, so that it can be loaded, compiled and captured in a CUDA graph.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.learning_rate = learning_rate
        self.exp_avg = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.exp_avg_sq = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = torch.zeros((), device=self.parameters[0].device)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step down `gradients`, one for each parameter."""
        self.steps += 1
        gradients = [gradient.contiguous() for gradient in gradients]
        groups: list[Sequence[Tensor]] = [self.parameters, gradients, self.exp_avg, self.exp_avg_sq]
        if torch.compiler.is_compiling():
            return self._elementwise(*groups)
        if not self.steps.is_cuda:
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
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def _elementwise(self, *groups: Sequence[Tensor]) -> None:
        """The same step in operations that a compiler fuses; it copies the tensors of the fused operator."""
        correction = -torch.expm1(self.steps * math.log(0.9))  # 1 - beta^steps without cancellation
        correction_sq = -torch.expm1(self.steps * math.log(0.999))
        for parameter, gradient, mean, mean_sq in zip(*groups, strict=True):
            mean.lerp_(gradient, 0.1)
            mean_sq.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            denominator = mean_sq.sqrt() / correction_sq.sqrt() + 1e-8
            parameter.sub_(self.learning_rate / correction * (mean / denominator))


def gradient_step(*steps: tuple[Adam, Tensor], max_norm: float = math.inf) -> None:
    """One step of each optimiser down its own loss (S,), with all gradients taken at the parameters before any step.

    A loss moves only parameters of its optimiser. Those that it does not reach get a zero gradient, not none: the
    official code holds all networks in one Adam, which goes on moving them by momentum.

    Args:
        max_norm: a seed's gradients, of all steps together, are scaled down to this Euclidean norm.
    """
    # Summed over S, so that no seed's gradient depends on another's.
    gradients = [torch.autograd.grad(loss.sum(), adam.parameters, materialize_grads=True) for adam, loss in steps]
    if max_norm < math.inf:
        squares = [gradient.unflatten(0, (-1, 1)).flatten(1).square().sum(1) for own in gradients for gradient in own]
        scale = (max_norm / torch.stack(squares).sum(0).sqrt()).clamp(max=1.0)  # (S,)
        gradients = [[g * scale.view(-1, *[1] * (g.dim() - 1)) for g in own] for own in gradients]
    for (adam, _), own in zip(steps, gradients, strict=True):
        adam.step(own)


@torch.no_grad()
def polyak_update(target: nn.Module, online: nn.Module, rate: float | Tensor) -> None:
    """target <- (1 - rate) target + rate online; a rate that depends on what happened is a scalar tensor.

    Called before the gradient step: as in the official code the target follows the parameters before that step.
    """
    if isinstance(rate, Tensor):  # which the fused operator does not take
        for old, new in zip(target.parameters(), online.parameters(), strict=True):
            old.lerp_(new, rate)
    else:
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(target.parameters()), list(online.parameters()), rate
        )


def check_config(config: Any, **ranges: tuple[float, float]) -> None:
    """Check a config dataclass against its annotations; `ranges` overrides [0, inf) of a float field, ends included.

    Integers are counts (>= 1), tuples hold counts. ValueError names field, value, what is allowed and the nearest name.
    """
    hints = typing.get_type_hints(type(config))
    for name in (field.name for field in fields(config)):
        value, kind = getattr(config, name), hints[name]
        if typing.get_origin(kind) is Literal:
            allowed = typing.get_args(kind)
            ok = any(type(value) is type(option) and value == option for option in allowed)
            expected = "one of " + ", ".join(map(repr, allowed)) + _nearest(value, allowed)
        elif kind is float:
            low, high = ranges.get(name, (0.0, math.inf))
            ok = type(value) in (int, float) and math.isfinite(value) and low <= value <= high
            expected = f"a finite number in [{low}, {high}]"
        elif kind is int:
            ok, expected = type(value) is int and value >= 1, "a whole number of at least 1"
        elif kind is bool:
            ok, expected = type(value) is bool, "True or False"
        elif kind == tuple[int, ...]:
            ok = type(value) is tuple and len(value) > 0 and all(type(v) is int and v >= 1 for v in value)
            expected = "a non-empty tuple of whole numbers of at least 1"
        else:
            raise TypeError(f"{type(config).__name__}.{name}: no check for a field of type {kind}")
        if not ok:
            raise ValueError(f"{type(config).__name__}.{name} = {value!r}: must be {expected}")


def _nearest(value: Any, allowed: Sequence[Any]) -> str:
    close = difflib.get_close_matches(str(value), [str(option) for option in allowed], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
