"""Numbers that official programs computed, and how they read as ours.

A file holds starting parameters and some updates in a row: the batch and the random numbers of each, its metrics, its
gradients and all parameters after it; and what the policy does after the last one. Keys are paths. To be small, those
of tests/parity hold gradients of the first update and parameters after the last one only, where there are many.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from agents import AGENTS
from agents.blocks.base import Agent
from agents.blocks.config import settings_of, with_settings
from datasets.batch import Batch
from tests.ports import FLOW_PORTS, Settings
from tests.ports_classical import CLASSICAL_PORTS
from tests.seeded_noise import RecordedNoise, SeededNoise

Mode = Literal["collect", "evaluate"]

PORTS = FLOW_PORTS | CLASSICAL_PORTS
# Recorded beside the uniform number that it comes from.
UNDRAWN = ("denoising_step",)


def common_settings(official: Settings) -> Settings:
    """Settings under their official names, as far as the file has them."""
    names = {
        "num_qs": "num_critics",
        "q_agg": "q_aggregation",
        "rho": "pessimism",
        "flow_steps": "flow_steps",
        "diffusion_steps": "denoising_steps",
        "beta_schedule": "noise_schedule",
        "tau": "target_update_rate",
        "lr": "learning_rate",
        "clip_grad_norm": "max_gradient_norm",
        "inv_temp": "inverse_temperature",
        "actor_num_samples": "num_candidates",
        "actor_hidden_dims": "policy_hidden_dims",
        "value_hidden_dims": "critic_hidden_dims",
        "critic_hidden_dims": "critic_hidden_dims",
    }
    settings = {ours: official[name] for name, ours in names.items() if name in official}
    if "rho" in official:
        settings["q_aggregation"] = "pessimistic"
    if official.get("clip_grad") is False:
        settings["max_gradient_norm"] = 1e30
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


class Official:
    """One file: what the official program was given, and what it computed."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as archive:
            self.arrays = dict(archive)
        self.name = path.stem
        self.port = PORTS[path.stem]
        self.config: Settings = json.loads(str(self.arrays["config_json"]))
        self.modes = [str(mode) for mode in self.arrays["modes"]]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Arrays whose paths begin so, without that beginning."""
        return {
            key.removeprefix(prefix): torch.from_numpy(np.asarray(value))
            for key, value in self.arrays.items()
            if key.startswith(prefix)
        }

    def agent(self, num_seeds: int) -> Agent:
        """The agent with the file's settings and starting parameters, the same for each seed."""
        agent_class, config = AGENTS[self.port.agent]
        wanted = self._sizes() | common_settings(self.config) | self.port.settings(self.config)
        known = settings_of(config)
        config = with_settings(config, **{name: value for name, value in wanted.items() if name in known})
        obs_dim = self.arrays["step0/batch/observations"].shape[-1]
        action_dim = self.arrays["step0/batch/actions"].shape[-1]
        agent = agent_class(config, obs_dim, action_dim, SeededNoise(range(num_seeds)))
        parameters, loaded = dict(agent.named_parameters()), self.translated("params/")
        assert set(parameters) - {"temperature.log_coef"} <= set(loaded)
        with torch.no_grad():
            for name, value in loaded.items():
                parameters[name].copy_(value.expand_as(parameters[name]))
        return agent

    def _sizes(self) -> Settings:
        """Length of chunks and widths of networks, which some configs leave out, by the arrays."""
        loaded = self.translated("params/")
        layers = {
            "policy_hidden_dims": r"denoiser\.(mlp\.hidden|narrow)",
            "critic_hidden_dims": r"critic\.online\.mlp\.hidden",
        }
        found = {
            setting: tuple(
                value.shape[-1] for name, value in loaded.items() if re.fullmatch(rf"{path}\.\d\.weight", name)
            )
            for setting, path in layers.items()
        }
        sizes: Settings = {setting: dims for setting, dims in found.items() if dims}
        return sizes | {"chunk_length": self.arrays["step0/batch/actions"].shape[1]}

    def batch(self, step: int, num_seeds: int) -> Batch:
        """The batch of an update; rewards and masks are cumulated over the chunk in the file."""
        arrays = self.under(f"step{step}/batch/")
        chunk_length = arrays["rewards"].shape[-1]
        one_seed = {
            "obs": arrays["observations"],
            "action_chunk": arrays["actions"],
            "chunk_return": arrays["rewards"][:, -1],
            "bootstrap": self.config["discount"] ** chunk_length * arrays["masks"][:, -1],
            "next_obs": arrays["next_observations"][:, -1],
            "valid": arrays["valid"],
        }
        return Batch(**{key: torch.stack([value] * num_seeds) for key, value in one_seed.items()})

    def noise(self, prefix: str, num_seeds: int) -> RecordedNoise:
        """The random numbers under a path, such as step0 or act."""
        recorded = {name: value for name, value in self.under(f"{prefix}/noise/").items() if name not in UNDRAWN}
        return RecordedNoise(recorded, num_seeds)

    def metrics(self, step: int) -> Iterator[tuple[str, Tensor, float]]:
        """Our name, the official value, and the size that an error is measured in, of each metric that both have."""
        found = self.under(f"step{step}/metric/")
        for official_name, ours in self.port.metrics.items():
            if official_name in found:
                value = found[official_name] * self.port.factors.get(official_name, 1.0)
                yield ours, value, max(abs(float(value)), _spread(official_name, found))

    def gradients(self, step: int) -> dict[str, Tensor]:
        """The gradient that reached each of our parameters, by name: after clipping, where the program clips."""
        norm = float(self.arrays.get(f"step{step}/grad_norm", 0.0))
        limit = self.config.get("clip_grad_norm", 1.0 if self.config.get("clip_grad") else math.inf)
        found = self.translated(f"step{step}/grad/")
        norms = dict.fromkeys(found, norm)
        if "grad_norm" in self.config:  # of each network alone
            limit = self.config["grad_norm"]
            networks = {name: name.split(".")[0] for name in found}
            norms = {
                name: math.sqrt(sum(float(found[n].square().sum()) for n in found if networks[n] == networks[name]))
                for name in found
            }
        return {
            name: value * min(1.0, limit / norms[name] if norms[name] else 1.0) * self._factor(name)
            for name, value in found.items()
        }

    def parameters(self, step: int) -> dict[str, Tensor]:
        """Our parameters after an update, by name."""
        found = self.translated(f"step{step}/params_after/")
        if f"step{step}/entropy_coef_after" in self.arrays:
            found["temperature.log_coef"] = torch.from_numpy(self.arrays[f"step{step}/entropy_coef_after"]).log()
        return found

    def acts(self) -> Iterator[tuple[str, Mode, Tensor, Tensor]]:
        """The path and mode of each recorded call of the policy, its observations (B, O) and its chunks (B, H * A)."""
        for prefix in sorted({key.split("/")[0] for key in self.arrays if re.match(r"act\d*/", key)}):
            found = self.under(f"{prefix}/")
            if "action" in found:
                yield prefix, "collect", found["observation"].unsqueeze(0), found["action"].reshape(1, -1)
            elif "actions" in found:
                yield prefix, "collect", found["observations"], found["actions"].flatten(1)
            if "evaluate_actions" in found:
                yield prefix, "evaluate", found["observations"], found["evaluate_actions"].flatten(1)

    def translated(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under a path by our names; halves of one of our layers are put together."""
        found = self.port.layout(self.under(prefix))
        named: dict[str, Tensor] = {}
        halves: dict[str, dict[str, Tensor]] = {}
        for path, value in found.items():
            name = self._our_name(path, found)
            name, _, half = name.partition("#")
            if half:
                halves.setdefault(name + half[1:], {})[half[0]] = value
            else:
                named[name] = value.T if name.endswith("frequencies") else value
        return named | {name: torch.cat([parts["0"], parts["1"]], -1) for name, parts in halves.items()}

    def _our_name(self, path: str, found: Mapping[str, Tensor]) -> str:
        module = max((name for name in self.port.modules if path.startswith(f"{name}/")), key=len)
        ours, rest = self.port.modules[module], path.removeprefix(f"{module}/")
        if layer := re.match(r"(Dense|LayerNorm)_(\d+)/", rest):
            kind, i = layer[1], int(layer[2])
            last = not any(key.startswith(f"{module}/Dense_{i + 1}/") for key in found)
            rest = rest.removeprefix(layer[0])
            if kind == "LayerNorm":
                ours = f"{ours.removesuffix('.hidden')}.norms.{i}"
            elif ours.endswith(".hidden"):
                ours += f".{i}"
            else:
                ours += ".out" if last else f".hidden.{i}"
        if ours.endswith("frequencies"):
            return ours
        names = {"kernel": "weight", "scale": "weight", "log_value": "log_coef", "log_temp": "log_coef"}
        return f"{ours}.{names.get(rest, rest)}"

    def _factor(self, name: str) -> float:
        return next((factor for module, factor in self.port.factors.items() if name.startswith(module)), 1.0)


def _spread(official_name: str, found: Mapping[str, Tensor]) -> float:
    """Of what a mean of Q or V is taken of: a mean that cancels is small beside its rounding errors."""
    if not (kind := re.fullmatch(r"(.*/)?([qv])(_mean)?", official_name)):
        return 0.0
    ends = [abs(float(value)) for name, value in found.items() if re.fullmatch(rf"(.*/)?{kind[2]}_(min|max)", name)]
    return max(ends, default=0.0)
