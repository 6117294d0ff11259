"""Every agent against numbers recorded from the official JAX code: metrics, gradients, parameters after each update.

Each file holds starting parameters and four updates in a row with the batch and the random numbers of each.
PARITY_DIR names another folder of such files.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import AGENTS
from agents.blocks.base import Agent
from agents.blocks.config import with_settings
from bench.training.engine import set_up_compiler
from datasets.batch import Batch
from tests.seeded_noise import RecordedNoise, SeededNoise

PARITY_DIR = Path(os.environ.get("PARITY_DIR", Path(__file__).parent / "parity"))
FILES = sorted(PARITY_DIR.glob("*.npz"))
TOLERANCE = 1e-5  # of a tensor's largest entry

# Paths of the official code -> names of ours; the first that matches an agent's path applies.
NAMES = [
    (r"^critic/value_net/", "critic.online.mlp."),
    (r"^target_critic/value_net/", "critic.target.mlp."),
    (r"^(critic\.\w+\.mlp\.)Dense_4/", r"\1out/"),
    (r"^(critic\.\w+\.mlp\.)Dense_(\d)/", r"\1hidden.\2/"),
    (r"^(critic\.\w+\.mlp\.)LayerNorm_(\d)/", r"\1norms.\2/"),
    (r"mlp/Dense_4/", "mlp.out/"),
    (r"mlp/Dense_(\d)/", r"mlp.hidden.\1/"),
    (r"actor_bc_flow/", "behaviour_velocity."),
    (r"gate_net/layers_0/", "gate.0/"),
    (r"gate_net/layers_2/", "gate.2/"),
    (r"layer_(\d)/", r"layers.\1."),
    (r"LayerNorm_0/", "self_norm/"),
    (r"LayerNorm_1/", "cross_norm/"),
    (r"LayerNorm_2/", "feed_forward_norm/"),
    (r"(layers\.\d\.)Dense_0/", r"\1feed_forward.0/"),
    (r"(layers\.\d\.)Dense_1/", r"\1feed_forward.2/"),
    (r"(self|cross)_attn/", r"\1_attention."),
    (r"q_proj/", "query/"),
    (r"k_proj/", "key/"),
    (r"v_proj/", "value/"),
    (r"out_proj/", "out/"),
    (r"actor_transformer/Dense_0/", "velocity_field.embed_obs.0/"),
    (r"actor_transformer/Dense_1/", "velocity_field.embed_obs.2/"),
    (r"actor_transformer/Dense_2/", "velocity_field.embed_time.0/"),
    (r"actor_transformer/Dense_3/", "velocity_field.embed_time.2/"),
    (r"actor_transformer/Dense_4/", "velocity_field.embed_time.4/"),
    (r"actor_transformer/action_proj/", "velocity_field.embed_x/"),
    (r"actor_transformer/velocity_head/", "velocity_field.head/"),
    (r"actor_transformer/", "velocity_field."),
    (r"/(kernel|scale)$", ".weight"),
    (r"/bias$", ".bias"),
]
ONE_STEP_FLOW = {  # the official module of this name holds another network in each agent
    "fql": "one_step_policy.",
    "qc_fql": "one_step_policy.",
    "sac_flow_g": "velocity_field.",
    "naive_sac_flow": "policy_velocity.mlp.",
}
METRICS = {
    "critic/critic_loss": "critic_loss",
    "critic/q_mean": "q_mean",
    "critic/q_min": "q_min",
    "critic/q_max": "q_max",
    "actor/actor_loss": "policy_loss",
    "actor/bc_flow_loss": "matching_loss",
    "actor/distill_loss": "distill_loss",
    "actor/q_loss": "q_loss",
    "actor/actor_entropy": "entropy",
    "alpha/alpha_value": "entropy_coef",
}


def our_name(path: str, agent_name: str) -> str:
    if path.startswith("actor_onestep_flow/"):
        inner = path.removeprefix("actor_onestep_flow/")
        if agent_name in ("fql", "qc_fql", "naive_sac_flow"):
            inner = inner.removeprefix("mlp/")
            inner = inner.replace("Dense_4/", "out/")
            inner = re.sub(r"Dense_(\d)/", r"hidden.\1/", inner)
        else:
            inner = re.sub(r"^mlp/Dense_4/", "candidate.out/", inner)
            inner = re.sub(r"^mlp/Dense_(\d)/", r"candidate.hidden.\1/", inner)
        path = ONE_STEP_FLOW[agent_name] + inner
    for pattern, replacement in NAMES:
        path = re.sub(pattern, replacement, path)
    return path


def arrays_under(file: dict[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): torch.from_numpy(file[key]) for key in file if key.startswith(prefix)}


def build(file: dict[str, np.ndarray], name: str, num_seeds: int) -> Agent:
    """The agent of a file with its starting parameters, the same for each seed."""
    official = json.loads(str(file["config_json"]))
    agent_class, config = AGENTS[name]
    config = with_settings(
        config,
        chunk_length=official["horizon_length"],
        bc_coef=official["alpha"],
        critic_hidden_dims=tuple(official["value_hidden_dims"]),
    )
    if name == "sac_flow_t":
        config = replace(config, decoder_dim=official["transformer_d_model"])
    else:
        config = replace(config, policy_hidden_dims=tuple(official["actor_hidden_dims"]))
    obs_dim = file["step0/batch/observations"].shape[-1]
    agent = agent_class(config, obs_dim, official["action_dim"], SeededNoise(range(num_seeds)))
    parameters = dict(agent.named_parameters())
    loaded = set()
    for path, value in arrays_under(file, "params/").items():
        loaded.add(our_name(path, name))
        with torch.no_grad():
            parameters[our_name(path, name)].copy_(value.expand_as(parameters[our_name(path, name)]))
    assert set(parameters) - {"temperature.log_coef"} == loaded
    return agent


def batch_of(file: dict[str, np.ndarray], step: int, num_seeds: int) -> Batch:
    arrays = arrays_under(file, f"step{step}/batch/")
    discount = json.loads(str(file["config_json"]))["discount"]
    chunk_length = arrays["rewards"].shape[-1]
    one_seed = {
        "obs": arrays["observations"],
        "action_chunk": arrays["actions"],
        "chunk_return": arrays["rewards"][:, -1],
        "bootstrap": discount**chunk_length * arrays["masks"][:, -1],
        "next_obs": arrays["next_observations"][:, -1],
        "valid": arrays["valid"],
    }
    return Batch(**{key: torch.stack([value] * num_seeds) for key, value in one_seed.items()})


def update(agent, mode: str, batch: Batch, noise: RecordedNoise) -> dict[str, Tensor]:
    """One update of a file: the offline ones of SAC Flow are its matching step alone."""
    if mode == "offline" and hasattr(agent, "matching_step"):
        return agent.matching_step(batch, noise)
    if hasattr(agent, "policy_step"):
        return agent.policy_step(batch, noise, agent.config.bc_coef)
    return agent.update_online(batch, noise)


def distance(ours: Tensor, official: Tensor) -> float:
    """Largest difference of any seed, in units of the official tensor's largest entry."""
    return float((ours.detach() - official).abs().max() / official.abs().max().clamp(min=1e-30))


# Compiled updates are held against eager ones, of every agent, in test_engine; and those against the numbers here.
@pytest.mark.parametrize(
    ("execution", "num_seeds"),
    [
        ("eager", 1),
        ("eager", 2),
        *(pytest.param("compiled", num_seeds, marks=pytest.mark.slow) for num_seeds in (1, 2)),
    ],
)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_updates_equal_those_of_the_official_code(
    path: Path, num_seeds: int, execution: str, request: pytest.FixtureRequest
) -> None:
    gradients: dict[Tensor, Tensor] | None = None
    execute = update
    if execution == "eager":
        gradients = request.getfixturevalue("gradients")
    else:  # traced whole and decomposed as for machine code, which would take minutes
        set_up_compiler()
        execute = torch.compile(update, fullgraph=True, dynamic=False, backend="aot_eager_decomp_partition")
    name = path.stem
    with np.load(path) as archive:
        file = dict(archive)
    agent = build(file, name, num_seeds)
    parameters = dict(agent.named_parameters())
    far: dict[str, float] = {}
    checked = 0

    for step, mode in enumerate(file["modes"]):
        recorded = RecordedNoise(arrays_under(file, f"step{step}/noise/"), num_seeds)
        metrics = execute(agent, str(mode), batch_of(file, step, num_seeds), recorded)
        assert not recorded.arrays, f"random numbers never drawn: {list(recorded.arrays)}"

        for official_name, value in arrays_under(file, f"step{step}/metric/").items():
            our = METRICS.get(official_name)
            if our == "distill_loss" and our not in metrics:
                our = "bc_loss"  # what the SAC Flow code calls so is the distance to the batch's chunk
            if our in metrics:
                far[f"step {step} {our}"] = distance(metrics[our], value) / TOLERANCE
        for official_path, value in arrays_under(file, f"step{step}/grad/").items():
            parameter = parameters[our_name(official_path, name)]
            if not parameter.requires_grad:  # targets, and the dead projections of the decoder
                assert not value.any(), official_path
                continue
            if gradients is not None:
                far[f"step {step} gradient of {official_path}"] = distance(gradients[parameter], value) / TOLERANCE
        for official_path, value in arrays_under(file, f"step{step}/params_after/").items():
            far[f"step {step} {official_path}"] = distance(parameters[our_name(official_path, name)], value) / TOLERANCE
            checked += 1
        if f"step{step}/entropy_coef_after" in file:
            value = torch.from_numpy(file[f"step{step}/entropy_coef_after"])
            entropy_coef = agent.get_parameter("temperature.log_coef").exp()
            far[f"step {step} entropy_coef"] = distance(entropy_coef, value) / TOLERANCE

    assert checked >= len(parameters) - 1
    worst = dict(sorted(far.items(), key=lambda item: -item[1])[:8])
    assert all(value <= 1 for value in far.values()), worst
