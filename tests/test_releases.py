"""Initial values and optimisers of agents in tables, as their releases have them: what no number of an update shows."""

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from agents import AGENTS
from agents.blocks.base import Agent, OnPolicyAgent
from agents.blocks.batch_renorm import BatchRenorm
from agents.blocks.config import settings_of, with_settings
from agents.blocks.networks import LayerNorm, Linear
from agents.ppo import PPO
from tests.seeded_noise import SeededNoise
from tests.test_agents import batch_of, build, decisions_of

SAC_OF_OGBENCH = {"policy_out_scale": 0.1, "policy_activation": "gelu", "critic_activation": "gelu"}
GLOROT = (
    *("naive_sac_flow", "flow_mlp", "fbrac", "fql", "qc_fql", "qc", "bfn", "ifql", "fawac", "dsrl", "qam", "qam_e"),
    *("qam_f", "dac", "qsm", "bc", "bc_diffusion", "awac", "sac", "rlpd", "rlpd_ac", "flowrl", "qsm_scratch"),
)
# Agent and options -> layers whose weights begin otherwise than Glorot's: (rule, factor). Of layers with two heads side
# by side the rule holds for each.
STARTS: list[tuple[str, dict[str, Any], dict[str, tuple[str, float]]]] = [
    *((name, {}, {}) for name in GLOROT),
    ("sac_flow_g", {}, {"velocity_field.gate.0": ("lecun", 1.0), "velocity_field.gate.2": ("open gate", 1.0)}),
    *(("sac_flow_t", {"norm": norm}, {"velocity_field": ("lecun", 1.0)}) for norm in ("post", "pre")),
    *((name, {}, {"": ("torch", 1.0)}) for name in ("dppo", "reinflow")),
    ("sac", SAC_OF_OGBENCH, {"policy.mlp.out": ("glorot", 0.1)}),
    ("rebrac", {}, {"policy.out": ("glorot", 0.1), "target_policy.out": ("glorot", 0.1)}),
    ("iql", {}, {"policy.out": ("glorot", 0.1)}),
    (
        "idql",
        {},
        {f"{d}.{kind}": ("lecun", 1.0) for d in ("denoiser", "target_denoiser") for kind in ("wide", "narrow")},
    ),
    (
        "diffusion_ql",
        {},
        dict.fromkeys(("denoiser", "target_denoiser"), ("torch", 1.0)),
    ),  # its critic is the shared one
    *((name, {}, {"": ("lecun", 1.0)}) for name in ("crossq", "naive_flow_scratch", "flow_mlp_scratch", "ppo")),
    *(("sac_flow_t_scratch", {"time_input": place}, {"": ("lecun", 1.0)}) for place in ("released", "bypass")),
    ("sac_flow_g_scratch", {}, {"velocity_field.gate.2": ("open gate", 1.0), "": ("lecun", 1.0)}),
    ("dime", {}, {"diffusion.drift.out": ("next to nothing", 1.0), "": ("lecun", 1.0)}),
]
TWO_HEADS = ("policy.mlp.out", "latent_policy.mlp.out", "edit_policy.mlp.out")
# The entropy's weight at the start.
TEMPERATURES = {
    **dict.fromkeys(("sac_flow_t", "sac_flow_g", "flow_mlp", "sac"), 0.2),
    **dict.fromkeys(("dsrl", "qam_e", "rlpd", "rlpd_ac", "crossq", "dime"), 1.0),
    **dict.fromkeys(("sac_flow_t_scratch", "sac_flow_g_scratch", "naive_flow_scratch", "flow_mlp_scratch"), 0.2),
}
# Parameters of no layer, by the end of their path: all of one value, or normal with a deviation.
CONSTANTS = {"policy.log_std": 0.0, "diffusion.step_size": 0.1, "diffusion.friction": 1.0}
NORMAL = {"frequencies": 0.2, "diffusion.phase": 1.0}


def agent_with(name: str, options: dict[str, Any]) -> Agent:
    """Sixteen seeds, with layers wide enough for a distribution to show."""
    agent_class, config = AGENTS[name]
    sizes = {"policy_hidden_dims": (64, 64, 64), "critic_hidden_dims": (64, 64), "num_critics": 4, "decoder_dim": 64}
    config = with_settings(config, **{k: v for k, v in sizes.items() if k in settings_of(config)} | options)
    return agent_class(config, 20, 4, SeededNoise(range(16)))


def test_starts_are_known_of_every_agent() -> None:
    assert {name for name, *_ in STARTS} == set(AGENTS)


@pytest.mark.parametrize(
    ("name", "options", "exceptions"), STARTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_layer_begins_as_in_the_release(
    name: str, options: dict[str, Any], exceptions: dict[str, tuple[str, float]]
) -> None:
    agent = agent_with(name, options)
    used: set[str] = set()
    checked = {"temperature.log_coef"}
    for path, layer in agent.named_modules():
        if isinstance(layer, LayerNorm | BatchRenorm):
            assert layer.weight.eq(1).all() and layer.bias.eq(0).all()
        if isinstance(layer, BatchRenorm):
            assert layer.mean.eq(0).all() and layer.variance.eq(1).all() and layer.calls.eq(0).all()
        elif isinstance(layer, Linear):
            exception = next((prefix for prefix in exceptions if path.startswith(prefix)), None)
            used |= set() if exception is None else {exception}
            rule, factor = ("glorot", 1.0) if exception is None else exceptions[exception]
            check_start(path, layer, rule, factor)
        if isinstance(layer, LayerNorm | BatchRenorm | Linear):
            checked |= {f"{path}.weight", f"{path}.bias"}
    for path, parameter in agent.named_parameters():
        if path == "temperature.log_coef":
            assert parameter.exp().tolist() == pytest.approx([TEMPERATURES[name]] * 16)
        for end, value in CONSTANTS.items():
            if path.endswith(end):
                assert parameter.eq(value).all(), path
                checked.add(path)
        for end, std in NORMAL.items():
            if path.endswith(end):
                assert float(parameter.detach().std()) == pytest.approx(std, rel=0.2)
                checked.add(path)
    assert set(dict(agent.named_parameters())) <= checked
    assert used == set(exceptions)


@pytest.mark.parametrize("name", AGENTS)
def test_each_seed_layer_and_critic_begins_on_its_own_and_targets_as_copies(name: str) -> None:
    agent = agent_with(name, {})
    parameters = dict(agent.named_parameters())
    drawn: list[Tensor] = []  # the first numbers of each seed, or of each critic of a seed
    for path, layer in agent.named_modules():
        if not isinstance(layer, Linear) or not (layer.weight != layer.weight.flatten()[0]).any():
            continue  # zeros, or DIME's last layer of 1e-8
        if (source := followed(path, parameters)) is not None:
            assert torch.equal(layer.weight, parameters[f"{source}.weight"]), path
            assert torch.equal(layer.bias, parameters[f"{source}.bias"]), path
        else:
            drawn.append(layer.weight.detach().flatten(0, -3).flatten(1)[:, 0])
    numbers = torch.cat(drawn)
    assert len(numbers.unique()) == len(numbers)


def followed(path: str, parameters: Collection[str]) -> str | None:
    """The layer that a layer starts as a copy of: what its average follows, and what PPO fine-tunes of a clone."""
    found = None
    if ".target." in path:
        found = path.replace(".target.", ".online.")
    elif path.startswith("target_"):
        found = path.removeprefix("target_")
    elif path.split(".")[0] in ("denoiser", "velocity") and f"cloning_{path}.weight" in parameters:
        found = f"cloning_{path}"
    return found


def check_start(path: str, layer: Linear, rule: str, factor: float) -> None:
    weight = layer.weight.detach() / factor
    if rule == "open gate":
        assert not weight.any() and layer.bias.eq(5).all()
        return
    if rule == "next to nothing":
        assert weight.eq(1e-8).all() and not layer.bias.any()
        return
    fan_in, fan_out = weight.shape[-2], weight.shape[-1] // (2 if path in TWO_HEADS else 1)
    bound = {
        "glorot": math.sqrt(6 / (fan_in + fan_out)),
        "lecun": 2 / 0.87962566 / math.sqrt(fan_in),  # a normal of variance 1 / in, cut at two deviations
        "torch": 1 / math.sqrt(fan_in),
    }[rule]
    variance = 1 / fan_in if rule == "lecun" else bound**2 / 3
    # A cut normal seldom comes near its bound.
    assert (0.9 if rule == "lecun" else 0.97) * bound < float(weight.abs().max()) <= bound * (1 + 1e-5), path
    # Five deviations of the mean of n squares; of uniform numbers one has .9 / sqrt(n), of cut normal ones less than 1.
    assert float(weight.square().mean()) == pytest.approx(variance, rel=5 / math.sqrt(weight.numel())), path
    bias = layer.bias.detach()
    if rule == "torch":
        assert 0.5 * bound < float(bias.abs().max()) <= bound
    else:
        assert not bias.any(), path


# --- optimisers

LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY = 3e-4, (0.9, 0.999), 1e-8, 0.0
# Agents whose networks differ: by path of the optimiser, its rate and first beta.
_FLOW = {"policy_optimizer": (3e-4, 0.5), "critic.optimizer": (1e-3, 0.5), "temperature.optimizer": (1e-3, 0.5)}
OWN_RATES: dict[str, dict[str, tuple[float, float]]] = {
    **dict.fromkeys(("sac_flow_t_scratch", "sac_flow_g_scratch", "naive_flow_scratch", "flow_mlp_scratch"), _FLOW),
    "crossq": {
        "policy_optimizer": (1e-3, 0.5),
        "critic.optimizer": (1e-3, 0.5),
        "temperature.optimizer": (1e-3, 0.9),
    },
    "dime": {
        "policy_optimizer": (3e-4, 0.5),
        "critic.optimizer": (3e-4, 0.5),
        "temperature.optimizer": (1e-3, 0.9),
    },
}
# SAC and CrossQ as SAC Flow releases them.
OF_SAC_FLOW: dict[str, tuple[dict[str, Any], dict[str, tuple[float, float]]]] = {
    "sac": (
        {"update_order": "in_turn", "critic_learning_rate": 1e-3},
        {"policy_optimizer": (3e-4, 0.9), "critic.optimizer": (1e-3, 0.9), "temperature.optimizer": (1e-3, 0.9)},
    ),
    "crossq": ({"learning_rate": 3e-4, "temperature_adam_b1": 0.5}, _FLOW),
}
# The norm to which gradients are cut; of all networks together, but of each alone in Diffusion-QL.
CLIPPED: dict[str, float] = dict.fromkeys(("qam", "qam_e", "qam_f", "dac", "qsm", "diffusion_ql"), 1.0)
OFF_POLICY = [name for name, (agent_class, _) in AGENTS.items() if not issubclass(agent_class, OnPolicyAgent)]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        *((name, {"online_policy": "trained"} if name == "idql" else {}, OWN_RATES.get(name)) for name in OFF_POLICY),
        *((name, *as_there) for name, as_there in OF_SAC_FLOW.items()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_network_has_the_optimiser_of_the_release(
    name: str,
    options: dict[str, Any],
    expected: dict[str, tuple[float, float]] | None,
    gradients: dict[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[dict[str, Any]] = []
    fused = torch._fused_adam_  # pyright: ignore[reportPrivateImportUsage]
    monkeypatch.setattr(torch, "_fused_adam_", lambda *a, **settings: (steps.append(settings), fused(*a, **settings)))
    clip = settings_of(AGENTS[name][1]).get("max_gradient_norm")
    assert clip == CLIPPED.get(name)
    agent = build(name, [0], **options, **({"max_gradient_norm": clip} if clip else {}))
    batch = batch_of([0], agent.chunk_length)
    agent.update_online(replace(batch, chunk_return=batch.chunk_return - 1000), SeededNoise([0]))
    assert len(steps) == len(agent.optimizers())
    for settings in steps:
        assert (settings["weight_decay"], settings["eps"]) == (WEIGHT_DECAY, EPS)
        assert (settings["beta2"], settings["amsgrad"]) == (BETAS[1], False)
    expected = expected or dict.fromkeys(agent.optimizers(), (LEARNING_RATE, BETAS[0]))
    assert {path: (adam.learning_rate, adam.b1) for path, adam in agent.optimizers().items()} == expected
    assert sorted((settings["lr"], settings["beta1"]) for settings in steps) == sorted(expected.values())
    norms = {
        path: math.sqrt(sum(float(gradients[parameter].square().sum()) for parameter in adam.parameters))
        for path, adam in agent.optimizers().items()
    }
    if name == "dime":  # whose critics' loss is a cross entropy; its policy's gradient is cut entry by entry
        assert max(float(gradients[p].abs().max()) for p in agent.policy_optimizer.parameters) <= 1
    elif clip is None:
        assert "critic.optimizer" not in norms or norms["critic.optimizer"] > 100
    elif name == "diffusion_ql":
        assert norms["critic.optimizer"] == pytest.approx(clip, rel=1e-4) and norms["policy_optimizer"] <= clip * 1.0001
    else:
        assert math.hypot(*norms.values()) == pytest.approx(clip, rel=1e-4)


def test_the_optimisers_of_ppo_are_those_of_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "_fused_adam_", lambda *a, **settings: steps.append(settings))
    agent = build("ppo", [0])
    assert isinstance(agent, PPO) and settings_of(AGENTS["ppo"][1])["max_gradient_norm"] == 12.0
    noise = SeededNoise([0])
    agent.update_online(decisions_of(agent, noise, noise.normal("obs", 8, 5), lambda chunk: chunk.sum((2, 3))), noise)
    assert set(agent.optimizers()) == {"policy_optimizer", "value_optimizer"}
    assert [(settings["lr"], settings["beta1"], settings["beta2"]) for settings in steps] == [(5e-4, *BETAS)] * 2
    assert {(settings["eps"], settings["weight_decay"]) for settings in steps} == {(EPS, WEIGHT_DECAY)}
