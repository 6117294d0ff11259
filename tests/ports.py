"""How the files of official programs read as agents of ours: what a `Port` is, and those of the flow family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from agents.blocks.base import Agent

Settings = dict[str, Any]

CRITIC = {"critic/value_net": "critic.online.mlp", "target_critic/value_net": "critic.target.mlp"}
VALUE = {"value/value_net": "value.mlp"}
Q_METRICS = {f"critic/{name}": name for name in ("critic_loss", "q_mean", "q_min", "q_max")}


@dataclass(frozen=True)
class Port:
    """How the file of one official program reads as an agent of ours."""

    agent: str
    modules: Mapping[str, str]  # official modules -> ours; the longest that a path begins with counts
    metrics: Mapping[str, str]  # official metrics -> ours
    settings: Callable[[Settings], Settings] = lambda official: {}  # beside `COMMON`, from the file's own config
    factors: Mapping[str, float] = field(default_factory=dict)  # of an official loss and its gradient to become ours
    # Official tensors by path, in the layout of flax; of a program in another one.
    layout: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: tensors
    action_size: Callable[[Agent], float] = lambda agent: 0.0  # of the numbers whose difference an action is


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


def tanh_gaussian(official: str, ours: str) -> dict[str, str]:
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


def bc_coef(official: Settings) -> Settings:
    return {"bc_coef": official["alpha"]}


_QAM_MODULES = {
    **CRITIC,
    "actor_slow/mlp": "behaviour_velocity.mlp",
    "target_actor_slow/mlp": "target_behaviour_velocity.mlp",
    "actor_fast/mlp": "policy_velocity.mlp",
    **tanh_gaussian("edit_actor", "edit_policy"),
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

FLOW_PORTS: dict[str, Port] = {
    "fql": Port("fql", {**CRITIC, **_BEHAVIOUR, "actor_onestep_flow/mlp": "one_step_policy"}, _FLOW_METRICS, bc_coef),
    "qc_fql": Port(
        "qc_fql", {**CRITIC, **_BEHAVIOUR, "actor_onestep_flow/mlp": "one_step_policy"}, _FLOW_METRICS, bc_coef
    ),
    "naive_sac_flow": Port(
        "naive_sac_flow",
        {**CRITIC, **_BEHAVIOUR, "actor_onestep_flow/mlp": "policy_velocity.mlp"},
        _FLOW_METRICS,
        bc_coef,
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
        lambda official: {**bc_coef(official), "flow_steps": official["denoising_steps"]},
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
            **bc_coef(official),
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
            **tanh_gaussian("actor", "latent_policy"),
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
        bc_coef,
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
