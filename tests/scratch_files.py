"""Numbers of official programs that train from scratch, and how they read as ours.

A file holds parameters, statistics of BatchRenorm, and three updates: batch, random numbers, metrics, gradients, and
what they leave. `policy_delay` is 1 in all of them: each update is our last turn of a period. Actions and densities are
in units of the environment. Those of tests/parity leave out what goes on by itself, so as to be small.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents import AGENTS
from agents.blocks.config import settings_of, with_settings
from datasets.batch import Batch
from tests.ports import Settings
from tests.seeded_noise import RecordedNoise, SeededNoise

KINDS = {"kernel": "weight", "scale": "weight", "mean": "mean", "var": "variance", "steps": "calls"}


@dataclass(frozen=True)
class ScratchPort:
    """How the file of one official program reads as an agent of ours."""

    agent: str
    # Official modules, or whole paths -> ours: a pattern and what it becomes. #0 and #1 are halves of a layer of ours;
    # "" is what never moves there and is constant here.
    modules: Mapping[str, str]
    metrics: Mapping[str, Callable[[dict[str, Tensor]], Tensor]]  # ours -> from the official ones
    settings: Callable[[Settings], Settings]
    factors: Mapping[str, float] = field(default_factory=dict)  # of official gradients, by the beginning of our name
    largest_entries: Mapping[str, float] = field(default_factory=dict)  # to which they are cut, in the same way
    scaled_inputs: tuple[str, ...] = ()  # our modules whose second argument, an action, is to be in the official units
    layout: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: tensors
    noise: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda noise: noise


class ScratchFile:
    """One file: what the official program was given, and what it computed."""

    def __init__(self, path: Path, port: ScratchPort) -> None:
        with np.load(path) as archive:
            self.arrays = dict(archive)
        self.name, self.port = path.stem, port
        self.config: Settings = json.loads(str(self.arrays["config_json"]))
        self.scale = torch.tensor(self.config.get("action_scale", [1.0]))

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Arrays whose paths begin so, without that beginning."""
        found = {key: value for key, value in self.arrays.items() if key.startswith(prefix)}
        return {key.removeprefix(prefix): torch.from_numpy(np.asarray(value)) for key, value in found.items()}

    def agent(self, num_seeds: int, **changes: Any) -> Any:
        """The agent with the file's settings, but for changes, and its starting state, the same for each seed."""
        agent_class, config = AGENTS[self.port.agent]
        wanted = self.port.settings(self.config) | changes
        assert wanted.keys() <= settings_of(config).keys()
        config = with_settings(config, **wanted)
        batch = self.under("step0/batch/")
        dims = (batch["observations"].shape[-1], batch["actions"].shape[-1])
        agent: Any = agent_class(config, *dims, SeededNoise(range(num_seeds)))
        if hasattr(agent, "action_scale"):
            agent.action_scale.copy_(self.scale.expand_as(agent.action_scale))
        for name in self.port.scaled_inputs:  # the official networks see actions in units of the environment
            agent.get_submodule(name).register_forward_pre_hook(self._scaled)
        loaded = self.state("")
        assert set(dict(agent.named_parameters())) == {
            name for name in loaded if name in dict(agent.named_parameters())
        }
        self.load(agent, loaded)
        return agent

    def _scaled(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        obs, action_chunk, *others = inputs
        return obs, action_chunk * self.scale, *others

    def load(self, agent: Any, state: Mapping[str, Tensor]) -> None:
        """Puts parameters and statistics by our names into the agent."""
        own = {**dict(agent.named_parameters()), **dict(agent.named_buffers())}
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value.expand_as(own[name]))

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Parameters and statistics before the first update, or after one ("step0/"); what the file has of them."""
        suffix = "_after" if prefix else ""
        found = self.translated(f"{prefix}params{suffix}/") | self.translated(f"{prefix}stats{suffix}/")
        if (key := f"{prefix}log_entropy_coef_after") in self.arrays:
            found["temperature.log_coef"] = torch.from_numpy(np.asarray(self.arrays[key]))
        return found

    def gradients(self, step: int) -> dict[str, Tensor]:
        """What the optimisers step down: after an element-wise cut, in units of our losses."""
        found = {}
        for name, value in self.translated(f"step{step}/grad/").items():
            largest = self._of(name, self.port.largest_entries, math.inf)
            found[name] = value.clamp(-largest, largest) * self._of(name, self.port.factors, 1.0)
        return found

    def metrics(self, step: int) -> dict[str, tuple[Tensor, float]]:
        """Our name, the official value, and the size that an error is measured in: a mean of densities may cancel."""
        found = self.under(f"step{step}/metric/")
        largest = max((float(v.abs().max()) for name, v in found.items() if name.startswith("policy_log")), default=0.0)
        return {ours: (value(found), largest * (ours == "entropy")) for ours, value in self.port.metrics.items()}

    def batch(self, step: int, num_seeds: int) -> Batch:
        found = self.under(f"step{step}/batch/")
        masks = found["masks"] if "masks" in found else 1 - found["terminations"]
        one_seed = {
            "obs": found["observations"],
            "action_chunk": (found["actions"] / self.scale).unsqueeze(1),
            "chunk_return": found["rewards"],
            "bootstrap": self.config["gamma"] * masks,
            "next_obs": found["next_observations"],
            "valid": torch.ones(len(masks), 1),
        }
        return Batch(**{key: torch.stack([value] * num_seeds) for key, value in one_seed.items()})

    def noise(self, step: int, num_seeds: int) -> RecordedNoise:
        return RecordedNoise(self.port.noise(self.under(f"step{step}/noise/")), num_seeds)

    def translated(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under a path by our names; halves of one of our layers are put together."""
        named: dict[str, Tensor] = {}
        halves: dict[str, dict[str, Tensor]] = {}
        for path, value in self.port.layout(self.under(prefix)).items():
            if (name := self._our_name(path)) is None:
                continue
            name, _, half = name.partition("#")
            if half:
                halves.setdefault(name + half[1:], {})[half[0]] = value
            else:
                named[name] = value
        return named | {name: torch.cat([parts["0"], parts["1"]], -1) for name, parts in halves.items()}

    def _our_name(self, path: str) -> str | None:
        module, _, kind = path.rpartition("/")
        if kind in ("r_max", "d_max"):
            return None
        if path == "log_entropy_coef":
            return "temperature.log_coef"
        for pattern, ours in self.port.modules.items():
            if re.fullmatch(pattern, path):
                return ours or None
            if match := re.fullmatch(pattern, module):
                return f"{match.expand(ours)}.{KINDS.get(kind, kind)}"
        raise AssertionError(f"{self.name}: {path} has no name here")

    @staticmethod
    def _of(name: str, by_module: Mapping[str, float], otherwise: float) -> float:
        return next((value for module, value in by_module.items() if name.startswith(module)), otherwise)


# --- the programs


def _mean(name: str) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda metrics: metrics[name].mean()


def _costs(metrics: dict[str, Tensor]) -> Tensor:
    return -(metrics["policy_run_cost"] + metrics["policy_terminal_cost"]).mean()


def _pair(name: str) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda metrics: (metrics[f"{name}_1"] + metrics[f"{name}_2"]) / 2


METRICS = {name: _mean(name) for name in ("critic_loss", "q_mean", "policy_loss", "entropy_coef")}
METRICS["entropy"] = lambda metrics: -metrics["policy_log_prob"].mean()

_CROSSQ_CRITIC = {
    r"critic/VmapQNetwork_0/BatchRenorm_(\d)": r"critic.online.mlp.norms.\1",
    r"critic/VmapQNetwork_0/Dense_([01])": r"critic.online.mlp.hidden.\1",
    r"critic/VmapQNetwork_0/Dense_2": "critic.online.mlp.out",
}


def _crossq(official: Settings) -> Settings:
    """What the four programs with CrossQ's critic have in common."""
    return {
        "density": "released",
        "entropy_coef": official["alpha"],
        "target_entropy": official["target_entropy"] / official["action_dim"],
        "policy_delay": official["policy_delay"],
        "learning_rate": official["policy_lr"],
        "adam_b1": official["b1"],
        "critic_learning_rate": official["q_lr"],
        "critic_adam_b1": official["b1"],
        "temperature_learning_rate": official["alpha_lr"],
        "temperature_adam_b1": official["b1"],
        "critic_hidden_dims": (official["width"],) * 2,
    }


_DENSE = {  # of Flow-T: the state's embedding, the time's
    **{f"actor/Dense_{i}": f"velocity_field.embed_obs.{2 * i}" for i in (0, 1)},
    **{f"actor/Dense_{i}": f"velocity_field.embed_time.{2 * (i - 2)}" for i in (2, 3, 4)},
    **{f"actor/BatchRenorm_{i}": f"velocity_field.x_norms.{i - 1}" for i in (1, 2, 3, 4)},
}
_PROJECTIONS = {"q": "query", "k": "key", "v": "value", "out": "out"}


def _qsm_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The two critics stacked; frequencies are a row."""
    found = {path: value.T if "Fourier" in path else value for path, value in tensors.items() if "critic_" not in path}
    for path in tensors:
        if "critic_1/" in path:
            pair = torch.stack([tensors[path], tensors[path.replace("critic_1/", "critic_2/")]])
            found[path.replace("critic_1/", "critic/")] = pair
    return found


def _qsm_noise(noise: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole numbers of steps from 0 as uniform numbers that give them; the last step's noise goes unused there."""
    return {
        "next_noise": noise["next_noise"],
        "next_step_noise": noise["next_step_noise"][:-1],
        "next_exploration_noise": noise["next_exploration_noise"],
        "denoising_t": (noise["time"].unsqueeze(-1) + 0.5) / len(noise["next_step_noise"]),
        "denoising_noise": noise["policy_noise"],
    }


def _flowrl_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """PyTorch's layers as those of flax, the two critics stacked."""
    tensors = {path: value.T if value.dim() == 2 else value for path, value in tensors.items()}
    found = {path: value for path, value in tensors.items() if not re.search(r"/Q[12]_", path)}
    for path in tensors:
        if "/Q1_" in path:
            found[path.replace("/Q1_", "/Q_")] = torch.stack([tensors[path], tensors[path.replace("/Q1_", "/Q2_")]])
    return found


_FLOWRL_LAYERS = {"0": "norms.0", "1": "hidden.1", "2": "norms.1", "4": "hidden.2", "5": "norms.2", "7": "hidden.3"}
_FLOWRL_LAYERS["8"] = "norms.3"
_FLOWRL_CRITICS = {
    "critic": "critic.online",
    "critic_target": "critic.target",
    "critic_buffer": "replay_critic.online",
    "critic_target_buffer": "replay_critic.target",
}

SCRATCH_PORTS: dict[str, ScratchPort] = {
    "scratch_crossq": ScratchPort(
        "crossq",
        {
            **_CROSSQ_CRITIC,
            r"actor/BatchRenorm_(\d)": r"policy.norms.\1",
            r"actor/Dense_([012])": r"policy.hidden.\1",
            "actor/Dense_3": "policy.out#0",
            "actor/Dense_4": "policy.out#1",
        },
        METRICS,
        lambda official: {**_crossq(official), "policy_hidden_dims": (official["width"],) * 3},
    ),
    "scratch_sac": ScratchPort(
        "sac",
        {
            r"critic/Dense_([0123])": r"critic.online.mlp.hidden.\1",
            "critic/Dense_4": "critic.online.mlp.out",
            r"target_critic/Dense_([0123])": r"critic.target.mlp.hidden.\1",
            "target_critic/Dense_4": "critic.target.mlp.out",
            r"actor/Dense_([012])": r"policy.mlp.hidden.\1",
            "actor/Dense_3": "policy.mlp.out#0",
            "actor/Dense_4": "policy.mlp.out#1",
        },
        METRICS,
        lambda official: {
            "density": "released",
            "update_order": "in_turn",
            "entropy_coef": official["alpha"],
            "target_entropy": official["target_entropy"] / official["action_dim"],
            "learning_rate": official["policy_lr"],
            "critic_learning_rate": official["q_lr"],
            "target_update_rate": official["tau"],
            "critic_hidden_dims": (official["width"],) * 4,
            "policy_hidden_dims": (official["width"],) * 3,
        },
        scaled_inputs=("critic.online", "critic.target"),
    ),
    "scratch_sac_flow_g": ScratchPort(
        "sac_flow_g_scratch",
        {
            **_CROSSQ_CRITIC,
            "actor/bn": "velocity_field.norm",
            r"actor/candidate_net/layers_(\d)": r"velocity_field.candidate.\1",
            r"actor/gate_net/layers_(\d)": r"velocity_field.gate.\1",
            "actor/fc_logstd/layers_0": "velocity_field.noise_std.hidden.0",
            "actor/fc_logstd/layers_2": "velocity_field.noise_std.hidden.1",
            "actor/fc_logstd/layers_4": "velocity_field.noise_std.out",
            "actor/time_mlp/layers_1": "velocity_field.embed_time.0",
            "actor/time_mlp/layers_3": "velocity_field.embed_time.2",
        },
        METRICS,
        lambda official: {
            **_crossq(official),
            "flow_steps": official["flow_steps"],
            "gate_dim": official["width"],
            "policy_hidden_dims": (official["width"],) * 2,
        },
    ),
    "scratch_naive_flow": ScratchPort(
        "naive_flow_scratch",
        {
            **_CROSSQ_CRITIC,
            "actor/bn": "velocity_field.norm",
            "actor/fc1": "velocity_field.mlp.hidden.0",
            "actor/fc2": "velocity_field.mlp.hidden.1",
            "actor/fc_mean": "velocity_field.mlp.out#0",
            "actor/fc_logstd": "velocity_field.mlp.out#1",
        },
        METRICS,
        lambda official: {
            **_crossq(official),
            "flow_steps": official["flow_steps"],
            "policy_hidden_dims": (official["width"],) * 2,
        },
    ),
    "scratch_sac_flow_t": ScratchPort(
        "sac_flow_t_scratch",
        {
            **_CROSSQ_CRITIC,
            **_DENSE,
            "actor/BatchRenorm_0": "velocity_field.obs_norm",
            "actor/action_proj": "velocity_field.embed_x",
            "actor/velocity_mean_head": "velocity_field.head",
            "actor/velocity_log_std_head": "velocity_field.std_head",
            r"actor/layer_(\d)/BatchRenorm_0": r"velocity_field.layers.\1.self_norm",
            r"actor/layer_(\d)/BatchRenorm_1": r"velocity_field.layers.\1.cross_norm",
            r"actor/layer_(\d)/BatchRenorm_2": r"velocity_field.layers.\1.feed_forward_norm",
            r"actor/layer_(\d)/Dense_0": r"velocity_field.layers.\1.feed_forward.0",
            r"actor/layer_(\d)/Dense_1": r"velocity_field.layers.\1.feed_forward.2",
            **{
                rf"actor/layer_(\d)/(self|cross)_attn/{theirs}_proj": rf"velocity_field.layers.\1.\2_attention.{ours}"
                for theirs, ours in _PROJECTIONS.items()
            },
        },
        METRICS,
        lambda official: {
            **_crossq(official),
            "flow_steps": official["flow_steps"],
            "decoder_dim": official["d_model"],
            "decoder_layers": official["n_layers"],
        },
    ),
    "scratch_dime": ScratchPort(
        "dime",
        {
            r"critic/VmapCritic_0/BatchRenorm_(\d)": r"critic.online.mlp.norms.\1",
            r"critic/VmapCritic_0/Dense_([01])": r"critic.online.mlp.hidden.\1",
            r"critic/VmapCritic_0/Dense_2": "critic.online.mlp.out",
            r"actor/(betas|mass_std|prior_mean|prior_std)": "",
            "actor/dt": "diffusion.step_size",
            "actor/friction": "diffusion.friction",
            "actor/fwd_params/params/timestep_phase": "diffusion.phase",
            r"actor/fwd_params/params/state_time_net/layers_([012])/layers_0": r"diffusion.drift.hidden.\1",
            "actor/fwd_params/params/state_time_net/layers_3": "diffusion.drift.out",
            "actor/fwd_params/params/time_coder_state/layers_0": "diffusion.embed_step.hidden.0",
            "actor/fwd_params/params/time_coder_state/layers_2": "diffusion.embed_step.out",
        },
        {
            **{name: METRICS[name] for name in ("critic_loss", "policy_loss")},
            "entropy_coef": _mean("ent_coef"),
            "entropy": _costs,
        },
        lambda official: {
            "denoising_steps": official["diffusion_steps"],
            "num_atoms": official["atoms"],
            "min_value": float(official["v_min"]),
            "max_value": float(official["v_max"]),
            "atom_entropy_coef": official["entropy_of_atoms_coef"],
            "learning_rate": official["policy_lr"],
            "critic_learning_rate": official["q_lr"],
            "temperature_learning_rate": official["alpha_lr"],
            "adam_b1": official["b1"],
            "max_gradient_entry": official["element_clip"],
            "target_run_cost": official["target_entropy"] / official["action_dim"],
            "policy_delay": official["policy_delay"],
            "critic_hidden_dims": (official["width"],) * 2,
            "policy_hidden_dims": (official["width"],) * 3,
        },
        largest_entries={"diffusion": 1.0},
    ),
    "scratch_qsm": ScratchPort(
        "qsm_scratch",
        {
            "score/FourierFeatures_0/kernel": "denoiser.step.frequencies",
            "score/MLP_0/Dense_0": "denoiser.step.mlp.hidden.0",
            "score/MLP_0/Dense_1": "denoiser.step.mlp.out",
            r"score/MLP_1/Dense_([01])": r"denoiser.mlp.hidden.\1",
            "score/MLP_1/Dense_2": "denoiser.mlp.out",
            r"critic/MLP_0/Dense_([01])": r"critic.online.mlp.hidden.\1",
            "critic/Dense_0": "critic.online.mlp.out",
            r"target_critic/MLP_0/Dense_([01])": r"critic.target.mlp.hidden.\1",
            "target_critic/Dense_0": "critic.target.mlp.out",
        },
        {"critic_loss": _pair("c_loss_mean"), "q_mean": _pair("q_mean"), "policy_loss": _mean("actor_loss_mean")},
        lambda official: {
            "denoising_steps": official["T"],
            "inverse_temperature": float(official["M_q"]),
            "exploration_std": official["exploration_noise"],
            "target_update_rate": official["tau"],
            "learning_rate": official["lr"],
            "critic_hidden_dims": (official["width"],) * 2,
            "policy_hidden_dims": (official["width"],) * 2,
            "step_hidden_dims": (official["time_dim"],) * 2,
            "step_frequencies": official["time_dim"] // 2,
        },
        {"critic.online": 0.5},  # two losses there, their mean here
        layout=_qsm_layout,
        noise=_qsm_noise,
    ),
    "scratch_flowrl": ScratchPort(
        "flowrl",
        {
            **{f"policy/linear{i + 1}": f"velocity.hidden.{i}" for i in (0, 1)},
            "policy/linear3": "velocity.out",
            "policy/LayerNorm": "velocity.norms.0",
            "policy/LayerNorm2": "velocity.norms.1",
            **{
                f"{official}/Q_{theirs}": f"{module}.mlp.{ours}"
                for official, module in _FLOWRL_CRITICS.items()
                for theirs, ours in {"input": "hidden.0", "output": "out"}.items()
            },
            **{
                f"{official}/Q_block/{theirs}": f"{module}.mlp.{ours}"
                for official, module in _FLOWRL_CRITICS.items()
                for theirs, ours in _FLOWRL_LAYERS.items()
            },
            "V_critic_buffer/v_input": "replay_value.hidden.0",
            "V_critic_buffer/v_output": "replay_value.out",
            **{f"V_critic_buffer/block/{theirs}": f"replay_value.{ours}" for theirs, ours in _FLOWRL_LAYERS.items()},
        },
        {},
        lambda official: {
            "flow_steps": official["flow_steps"],
            "matching_coef": official["lamda"],
            "expectile": official["quantile"],
            "target_update_rate": official["tau"],
            "learning_rate": official["lr"],
            "policy_delay": official["target_update_interval"],
            "critic_hidden_dims": (official["width"],) * 4,
            "policy_hidden_dims": (official["width"],) * 2,
        },
        layout=_flowrl_layout,
        noise=lambda noise: noise if "policy_noise" in noise else {"next_noise": noise["next_noise"]},
    ),
}
