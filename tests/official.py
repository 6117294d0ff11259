"""Numbers that official programs computed, and how they read as ours: a `Port` for each file of tests/parity.

A file holds starting parameters and some updates in a row: the batch and the random numbers of each, its metrics, its
gradients and all parameters after it; and what the policy does after the last one. Keys are paths. To be small, those
of tests/parity hold gradients of the first update and parameters after the last one only, where there are many.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents import AGENTS
from agents.blocks.base import Agent
from agents.blocks.config import settings_of, with_settings
from datasets.batch import Batch
from tests.seeded_noise import RecordedNoise, SeededNoise

Settings = dict[str, Any]

CRITIC = {"critic/value_net": "critic.online.mlp", "target_critic/value_net": "critic.target.mlp"}
VALUE = {"value/value_net": "value.mlp"}
Q_METRICS = {f"critic/{name}": name for name in ("critic_loss", "q_mean", "q_min", "q_max")}
# Recorded beside the uniform number that it comes from.
UNDRAWN = ("denoising_step",)


@dataclass(frozen=True)
class Port:
    """How the file of one official program reads as an agent of ours."""

    agent: str
    modules: Mapping[str, str]  # official modules -> ours; the longest that a path begins with counts
    metrics: Mapping[str, str]  # official metrics -> ours
    settings: Callable[[Settings], Settings] = lambda official: {}  # beside `COMMON`, from the file's own config
    factors: Mapping[str, float] = field(default_factory=dict)  # of an official loss and its gradient to become ours


# --- what nearly all configs name alike


def common_settings(official: Settings) -> Settings:
    """Settings under their official names, as far as the file has them."""
    names = {
        "horizon_length": "chunk_length",
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
    }
    settings = {ours: official[name] for name, ours in names.items() if name in official}
    if "rho" in official:
        settings["q_aggregation"] = "pessimistic"
    if official.get("clip_grad") is False:
        settings["max_gradient_norm"] = 1e30
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


# --- one program each


def _flow_t_layer(i: int) -> dict[str, str]:
    layer, ours = f"actor_transformer/layer_{i}", f"velocity_field.layers.{i}"
    projections = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    return {
        f"{layer}/Dense_0": f"{ours}.feed_forward.0",
        f"{layer}/Dense_1": f"{ours}.feed_forward.2",
        f"{layer}/LayerNorm_0": f"{ours}.self_norm",
        f"{layer}/LayerNorm_1": f"{ours}.cross_norm",
        f"{layer}/LayerNorm_2": f"{ours}.feed_forward_norm",
        **{
            f"{layer}/{kind}_attn/{theirs}": f"{ours}.{kind}_attention.{name}"
            for kind in ("self", "cross")
            for theirs, name in projections.items()
        },
    }


def _tanh_gaussian(official: str, ours: str) -> dict[str, str]:
    """Two output layers there, one of both halves here."""
    return {
        f"{official}/MLP_0": f"{ours}.mlp.hidden",
        f"{official}/OutputDenseMean": f"{ours}.mlp.out#0",
        f"{official}/OutputDenseLogStd": f"{ours}.mlp.out#1",
    }


_BEHAVIOUR = {"actor_bc_flow/mlp": "behaviour_velocity.mlp"}
_FLOW_METRICS = {
    **Q_METRICS,
    "actor/actor_loss": "policy_loss",
    "actor/bc_flow_loss": "matching_loss",
    "actor/distill_loss": "distill_loss",
    "actor/q_loss": "q_loss",
    "actor/actor_entropy": "entropy",
    "alpha/alpha_value": "entropy_coef",
}
# What the SAC Flow code calls a distillation is the distance to the batch's chunk.
_SAC_FLOW_METRICS = {**_FLOW_METRICS, "actor/distill_loss": "bc_loss"}


def _bc_coef(official: Settings) -> Settings:
    return {"bc_coef": official["alpha"]}


_QAM_MODULES = {
    **CRITIC,
    "actor_slow/mlp": "behaviour_velocity.mlp",
    "target_actor_slow/mlp": "target_behaviour_velocity.mlp",
    "actor_fast/mlp": "policy_velocity.mlp",
    **_tanh_gaussian("edit_actor", "edit_policy"),
    "edit_alpha": "temperature",
    "one_step_actor/mlp": "one_step_policy",
}
_QAM_METRICS = {
    **Q_METRICS,
    "actor/flow_loss": "matching_loss",
    "actor/adj_loss": "adjoint_loss",
    "actor/edit_q_loss": "q_loss",
    "actor/edit_entropy": "entropy",
    "actor/edit_alpha": "entropy_coef",
    "actor/fql_distill_loss": "distill_loss",
    "actor/fql_q_loss": "q_loss",
}


def _qam(official: Settings) -> Settings:
    chunk_dim = official["action_dim"] * official["horizon_length"]
    return {
        "max_gradient_norm": 1.0 if official["clip_grad"] else 1e30,
        "edit_scale": official["edit_scale"],
        "bc_coef": official["fql_alpha"],
        "target_entropy": official["edit_target_entropy"] / chunk_dim,
    }


_QC = Port(
    "qc",
    {**CRITIC, **_BEHAVIOUR},
    {**Q_METRICS, "actor/bc_flow_loss": "policy_loss"},
)

PORTS: dict[str, Port] = {
    "fql": Port("fql", {**CRITIC, **_BEHAVIOUR, "actor_onestep_flow/mlp": "one_step_policy"}, _FLOW_METRICS, _bc_coef),
    "qc_fql": Port(
        "qc_fql", {**CRITIC, **_BEHAVIOUR, "actor_onestep_flow/mlp": "one_step_policy"}, _FLOW_METRICS, _bc_coef
    ),
    "naive_sac_flow": Port(
        "naive_sac_flow",
        {**CRITIC, **_BEHAVIOUR, "actor_onestep_flow/mlp": "policy_velocity.mlp"},
        _FLOW_METRICS,
        _bc_coef,
    ),
    "sac_flow_g": Port(
        "sac_flow_g",
        {
            **CRITIC,
            "actor_onestep_flow/mlp": "velocity_field.candidate",
            "actor_onestep_flow/gate_net/layers_0": "velocity_field.gate.0",
            "actor_onestep_flow/gate_net/layers_2": "velocity_field.gate.2",
        },
        _SAC_FLOW_METRICS,
        lambda official: {**_bc_coef(official), "flow_steps": official["denoising_steps"]},
    ),
    "sac_flow_t": Port(
        "sac_flow_t",
        {
            **CRITIC,
            "actor_transformer/Dense_0": "velocity_field.embed_obs.0",
            "actor_transformer/Dense_1": "velocity_field.embed_obs.2",
            "actor_transformer/Dense_2": "velocity_field.embed_time.0",
            "actor_transformer/Dense_3": "velocity_field.embed_time.2",
            "actor_transformer/Dense_4": "velocity_field.embed_time.4",
            "actor_transformer/action_proj": "velocity_field.embed_x",
            "actor_transformer/velocity_head": "velocity_field.head",
            **_flow_t_layer(0),
            **_flow_t_layer(1),
        },
        _SAC_FLOW_METRICS,
        lambda official: {
            **_bc_coef(official),
            "flow_steps": official["denoising_steps"],
            "decoder_dim": official["transformer_d_model"],
        },
    ),
    **{name: Port(name, _QAM_MODULES, _QAM_METRICS, _qam) for name in ("qam", "qam_e", "qam_f")},
    "dsrl": Port(
        "dsrl",
        {
            **CRITIC,
            **_BEHAVIOUR,
            "target_actor_bc_flow/mlp": "target_behaviour_velocity.mlp",
            **_tanh_gaussian("actor", "latent_policy"),
            "z_critic/value_net": "latent_critic.mlp",
            "alpha": "temperature",
        },
        {
            **Q_METRICS,
            "critic/distill_loss": "latent_critic_loss",
            "actor/flow_loss": "matching_loss",
            "actor/bc_flow_loss": "matching_loss",
            "actor/actor_loss": "policy_loss",
            "actor/entropy": "entropy",
            "actor/alpha": "entropy_coef",
        },
        lambda official: {
            "noise_scale": official["noise_scale"],
            "target_entropy": official["target_entropy"] / (official["action_dim"] * official["horizon_length"]),
        },
    ),
    "fbrac": Port(
        "fbrac",
        {**CRITIC, "actor_flow/mlp": "policy_velocity.mlp"},
        {**Q_METRICS, "actor/actor_loss": "policy_loss", "actor/bc_flow_loss": "matching_loss"},
        _bc_coef,
    ),
    "fawac": Port(
        "fawac",
        {**CRITIC, **VALUE, "actor/mlp": "policy_velocity.mlp"},
        {**Q_METRICS, "critic/value_loss": "value_loss", "actor/actor_loss": "policy_loss"},
    ),
    "ifql": Port(
        "ifql",
        {**CRITIC, **VALUE, "actor_flow/mlp": "behaviour_velocity.mlp"},
        {
            "critic/critic_loss": "critic_loss",  # its q_* are those of its target
            "value/value_loss": "value_loss",
            "value/v_mean": "value_mean",
            "actor/actor_loss": "policy_loss",
        },
        lambda official: {"expectile": official["kappa"], "num_candidates": official["num_samples"]},
    ),
    "qc": _QC,
    "bfn": _QC,
}


# --- files


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
        wanted = common_settings(self.config) | self.port.settings(self.config)
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
        return {
            name: value * min(1.0, limit / norm if norm else 1.0) * self._factor(name)
            for name, value in self.translated(f"step{step}/grad/").items()
        }

    def parameters(self, step: int) -> dict[str, Tensor]:
        """Our parameters after an update, by name."""
        found = self.translated(f"step{step}/params_after/")
        if f"step{step}/entropy_coef_after" in self.arrays:
            found["temperature.log_coef"] = torch.from_numpy(self.arrays[f"step{step}/entropy_coef_after"]).log()
        return found

    def acts(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """The path of each recorded call of the policy, its observations (B, O) and its chunks (B, H * A)."""
        for prefix in sorted({key.split("/")[0] for key in self.arrays if re.match(r"act\d*/", key)}):
            found = self.under(f"{prefix}/")
            if "action" in found:
                yield prefix, found["observation"].unsqueeze(0), found["action"].reshape(1, -1)
            elif "actions" in found:
                yield prefix, found["observations"], found["actions"].flatten(1)

    def translated(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under a path by our names; halves of one of our layers are put together."""
        found = self.under(prefix)
        named: dict[str, Tensor] = {}
        halves: dict[str, dict[str, Tensor]] = {}
        for path, value in found.items():
            name = self._our_name(path, found)
            name, _, half = name.partition("#")
            if half:
                halves.setdefault(name + half[1:], {})[half[0]] = value
            else:
                named[name] = value
        return named | {name: torch.cat([parts["0"], parts["1"]], -1) for name, parts in halves.items()}

    def _our_name(self, path: str, found: Mapping[str, Tensor]) -> str:
        module = max((name for name in self.port.modules if path.startswith(f"{name}/")), key=len)
        ours, rest = self.port.modules[module], path.removeprefix(f"{module}/")
        if layer := re.match(r"(Dense|LayerNorm)_(\d+)/", rest):
            kind, i = layer[1], int(layer[2])
            last = not any(key.startswith(f"{module}/Dense_{i + 1}/") for key in found)
            rest = rest.removeprefix(layer[0])
            if kind == "LayerNorm":
                ours += f".norms.{i}"
            elif ours.endswith(".hidden"):
                ours += f".{i}"
            else:
                ours += ".out" if last else f".hidden.{i}"
        names = {"kernel": "weight", "scale": "weight", "log_value": "log_coef", "log_temp": "log_coef"}
        return f"{ours}.{names.get(rest, rest)}"

    def _factor(self, name: str) -> float:
        return next((factor for module, factor in self.port.factors.items() if name.startswith(module)), 1.0)


def _spread(official_name: str, found: Mapping[str, Tensor]) -> float:
    """Of what a mean is taken of: a mean that cancels is small beside its rounding errors."""
    if not official_name.endswith("q_mean"):
        return 0.0
    return max(abs(float(found[official_name.replace("q_mean", end)])) for end in ("q_min", "q_max"))
