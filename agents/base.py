"""What every agent is: the interface, the optimiser step, the target average and the check of a config."""

import copy
import difflib
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from datasets.batch import Batch

Metrics = dict[str, Tensor]  # name -> (S,), detached


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

    Subclasses set `policy_modules`, the names of the submodules that `act` needs (an evaluator copies only these).
    No update synchronises with the device, branches on a tensor's value or counts steps: each may become a CUDA graph.
    """

    policy_modules: tuple[str, ...]

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

    def update_offline(self, batch: Batch, noise: Noise) -> Metrics:
        """One iteration of the offline phase."""
        raise NotImplementedError

    def update_online(self, batch: Batch, noise: Noise) -> Metrics:
        """One gradient update of the online phase."""
        raise NotImplementedError

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

    def _state(self) -> Iterable[tuple[str, Tensor, bool]]:
        """(name, tensor, has a seed dimension) of every parameter, buffer and Adam entry."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.named_parameters()}
        for parameter, name in names.items():
            yield name, parameter, True
        for name, buffer in self.named_buffers():
            yield name, buffer, True
        for optimizer in vars(self).values():
            if isinstance(optimizer, Optimizer):
                for parameter, entries in optimizer.state.items():
                    for entry, tensor in entries.items():
                        yield f"{names[parameter]}/{entry}", tensor, entry != "step"


def frozen_copy(network: nn.Module) -> nn.Module:
    """A target network: equal to `network` now, without gradients."""
    return copy.deepcopy(network).requires_grad_(False)


def adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> Adam:
    """Adam (eps 1e-8) whose state exists before the first step, so that it can be loaded and captured in a graph."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    # Fused only on a GPU: on a CPU the rounding of a fused entry depends on its place in the tensor, thus on the pack.
    on_cuda = any(parameter.is_cuda for parameter in trainable)
    optimizer = Adam(trainable, lr=learning_rate, eps=1e-8, fused=on_cuda, capturable=on_cuda)
    for parameter in trainable:
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def gradient_step(*steps: tuple[Optimizer, Tensor]) -> None:
    """One step of each optimiser down its own loss (S,), with all gradients taken at the parameters before any step.

    A loss moves only parameters of its optimiser. Those that it does not reach get a zero gradient, not none: the
    official code holds all networks in one Adam, which goes on moving them by momentum.
    """
    for optimizer, loss in steps:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        optimizer.zero_grad(set_to_none=True)
        # Summed over S, so that no seed's gradient depends on another's.
        loss.sum().backward(inputs=parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
    for optimizer, _ in steps:
        optimizer.step()


@torch.no_grad()
def polyak_update(target: nn.Module, online: nn.Module, rate: float) -> None:
    """target <- (1 - rate) target + rate online.

    Called before the gradient step: as in the official code the target follows the parameters before that step.
    """
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
