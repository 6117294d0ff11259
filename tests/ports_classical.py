"""How the files of official diffusion and classical agents read as ours."""

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.ports import CRITIC, Q_METRICS, VALUE, Port, Settings, bc_coef, tanh_gaussian

# Of Diffusion-QL's file: coordinates of an action, and features of the step.
_A, _STEP = 3, 16

_DIFFUSION = Port(
    "dac",
    {
        **CRITIC,
        "actor/FourierFeatures_0": "denoiser.step.frequencies",
        "actor/MLP_0": "denoiser.step.mlp",
        "actor/MLP_1": "denoiser.mlp",
    },
    {"critic/critic_loss": "critic_loss", "critic/q": "q_mean"},  # its policy's is the power of the mask
    bc_coef,
)


def _unclipped_size(agent: Any) -> float:
    """Of x_T / sqrt(alpha_bar_T): the sampler of QSM clips no estimate before it adds noise."""
    return 1 / agent.schedule.at(agent.schedule.num_steps).signal


_POLICY = {"actor/actor_net": "policy.hidden", "actor/mean_net": "policy.out"}
_GAUSSIAN = {
    "actor/actor_net": "policy.mlp.hidden",
    "actor/mean_net": "policy.mlp.out#0",
    "actor/log_std_net": "policy.mlp.out#1",
    "alpha": "temperature",
}
_SAC_METRICS = {
    **Q_METRICS,
    "actor/entropy": "entropy",
    "actor/alpha": "entropy_coef",
    "actor/actor_loss": "policy_loss",
}
# Their loss of the policy is without the cloning.
_RLPD_METRICS = {name: ours for name, ours in _SAC_METRICS.items() if ours != "policy_loss"} | {"actor/q": "q_loss"}
_RLPD_MODULES = {**CRITIC, **tanh_gaussian("actor", "policy"), "alpha": "temperature"}


def _rlpd(official: Settings) -> Settings:
    return {"bc_coef": official["bc_alpha"], "target_entropy": -official["target_entropy_multiplier"]}


def _sac(official: Settings) -> Settings:
    min_q = official.get("min_q", official.get("q_agg") == "min")
    return {
        "q_aggregation": "min" if min_q else "mean",
        "policy_q_aggregation": "as_target" if "min_q" in official else "mean",
        "critic_norm": "after" if official["layer_norm"] else "none",
        "critic_activation": "gelu",
        "policy_activation": "gelu",
        "min_log_std": -5.0,
        "entropy_in_target": official.get("backup_entropy", True),
        "target_entropy": -official["target_entropy_multiplier"],
    }


def _ensemble(official: str, ours: str) -> dict[str, str]:
    """The networks of jaxrl: the last layer stands beside those before it."""
    return {f"{official}/MLP_0": f"{ours}.mlp.hidden", f"{official}/Dense_0": f"{ours}.mlp.out"}


_ENSEMBLE = {
    **_ensemble("critic/VmapStateActionValue_0", "critic.online"),
    **_ensemble("target_critic/VmapStateActionValue_0", "critic.target"),
}


def _residual(official: str, ours: str) -> dict[str, str]:
    blocks = f"{official}/MLPResNet_0"
    return {
        f"{official}/FourierFeatures_0": f"{ours}.step.frequencies",
        f"{official}/MLP_0": f"{ours}.step.mlp",
        f"{blocks}/Dense_0": f"{ours}.embed",
        f"{blocks}/Dense_1": f"{ours}.out",
        **{
            f"{blocks}/MLPResNetBlock_{i}/{layer}": f"{ours}.{name}.{i}"
            for i in range(3)
            for layer, name in (("LayerNorm_0", "norms"), ("Dense_0", "wide"), ("Dense_1", "narrow"))
        },
    }


def _diffusion_ql_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """PyTorch's layers as those of flax: weights transposed, the two critics stacked, the step's features last."""
    names = {"time_mlp.1": "step/Dense_0", "time_mlp.3": "step/Dense_1", "final_layer": "mlp/Dense_3"}
    names |= {f"mid_layer.{2 * i}": f"mlp/Dense_{i}" for i in range(3)}
    found: dict[str, Tensor] = {}
    critics: dict[str, list[Tensor]] = {}
    for path in sorted(tensors):  # the first critic before the second
        module, rest = path.split("/")
        layer, kind = rest.rsplit(".", 1)
        value, name = (tensors[path].T, "kernel") if kind == "weight" else (tensors[path], "bias")
        if (critic := re.fullmatch(r"q[12]_model\.(\d)", layer)) is not None:
            critics.setdefault(f"{module}/Dense_{int(critic[1]) // 2}/{name}", []).append(value)
            continue
        if (layer, kind) == ("mid_layer.0", "weight"):  # x, step, obs
            x, step, obs = value.split([_A, _STEP, value.shape[0] - _A - _STEP])
            value = torch.cat([x, obs, step])
        found[f"{module}/{names[layer]}/{name}"] = value
    return found | {path: torch.stack(pair) for path, pair in critics.items()}


CLASSICAL_PORTS: dict[str, Port] = {
    "dac": _DIFFUSION,
    "qsm": replace(_DIFFUSION, agent="qsm", action_size=_unclipped_size),
    "rebrac": Port(
        "rebrac",
        {
            **CRITIC,
            **_POLICY,
            **{f"target_{path}": f"target_{ours}" for path, ours in _POLICY.items()},
        },
        {**Q_METRICS, "actor/mse": "bc_loss", "actor/actor_loss": "q_loss", "actor/total_loss": "policy_loss"},
        lambda official: {
            "bc_coef": official["alpha_actor"],
            "policy_noise": official["actor_noise"],
            "noise_clip": official["actor_noise_clip"],
            "target_update_interval": official["actor_freq"],
        },
    ),
    "rlpd": Port("rlpd", _RLPD_MODULES, _RLPD_METRICS, _rlpd, {"actor/q": -1.0}),
    "rlpd_ac": Port("rlpd_ac", _RLPD_MODULES, _RLPD_METRICS, _rlpd, {"actor/q": -1.0}),
    "rlpd_ac_qc": Port(
        "rlpd_ac",
        {**_RLPD_MODULES, **_ENSEMBLE},
        _RLPD_METRICS,
        lambda official: {
            **_rlpd(official),
            "bc_mask": "none",
            "critic_norm": "before",
            "critic_activation": "relu",
            "policy_activation": "relu",
            "policy_q_aggregation": "mean",
        },
        {"actor/q": -1.0},
    ),
    "sac": Port("sac", {**CRITIC, **_GAUSSIAN}, _SAC_METRICS, _sac),
    "sac_fql": Port("sac", {**CRITIC, **_GAUSSIAN}, _SAC_METRICS, _sac),
    "iql": Port(
        "iql",
        {**CRITIC, **VALUE, **_POLICY},
        {
            "critic/critic_loss": "critic_loss",  # its q_* are those of its target
            "value/value_loss": "value_loss",
            "value/v_mean": "value_mean",
            "actor/actor_loss": "policy_loss",
        },
        lambda official: {"inverse_temperature": official["alpha"], "expectile": official["expectile"]},
        {"critic/critic_loss": 0.5, "critic.online": 0.5},  # the sum over two critics
    ),
    "diffusion_ql": Port(
        "diffusion_ql",
        {
            "actor/step": "denoiser.step.mlp",
            "actor/mlp": "denoiser.mlp",
            "ema_actor/step": "target_denoiser.step.mlp",
            "ema_actor/mlp": "target_denoiser.mlp",
            "critic": "critic.online.mlp",
            "target_critic": "critic.target.mlp",
        },
        {"bc_loss": "denoising_loss", "ql_loss": "q_loss", "actor_loss": "policy_loss", "critic_loss": "critic_loss"},
        lambda official: {
            "q_coef": official["eta"],
            "noise_schedule": official["beta_schedule"],
            "denoising_steps": official["n_timesteps"],
            "max_gradient_norm": official["grad_norm"],
            "ema_rate": 1 - official["ema_decay"],
            "ema_interval": official["update_ema_every"],
            "first_ema_update": official["step_start_ema"] + 1,
            "critic_norm": "none",
            "critic_activation": "mish",
        },
        {"critic_loss": 0.5},  # the sum over two critics, as our step takes it
        _diffusion_ql_layout,
    ),
    "idql": Port(
        "idql",
        {
            **_ENSEMBLE,
            **_residual("score_model", "denoiser"),
            **_residual("target_score_model", "target_denoiser"),
            "value/MLP_0": "value.mlp.hidden",
            "value/OutputVDense": "value.mlp.out",
        },
        {"critic_loss": "critic_loss", "value_loss": "value_loss", "q": "q_mean", "actor_loss": "policy_loss"},
        lambda official: {
            "expectile": official["critic_hyperparam"],
            "denoising_steps": official["T"],
            "num_candidates": official["N"],
            "learning_rate": official["actor_lr"],
            "ema_rate": official["actor_tau"],
            "online_policy": "trained",
            "critic_norm": "none",
            "critic_activation": "relu",
        },
        {"actor_loss": 1 / 3},  # the sum over the coordinates of an action
    ),
}
