"""Every agent against numbers of its official code: metrics, gradients, parameters after each update, and the policy.

PARITY_DIR names another folder of such files; `tests/official.py` says what is in one.
"""

import os
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from agents.diffusion_ql import DiffusionQL
from bench.training.engine import set_up_compiler
from datasets.batch import Batch
from tests.official import Official
from tests.seeded_noise import RecordedNoise

PARITY_DIR = Path(os.environ.get("PARITY_DIR", Path(__file__).parent / "parity"))
ON_POLICY = ("dppo", "reinflow")  # in `tests/test_parity_ppo.py`
if not any(PARITY_DIR.glob("*.npz")):
    pytest.exit(f"PARITY_DIR={PARITY_DIR}: no .npz files there", returncode=2)
FILES = [
    path
    for path in sorted(PARITY_DIR.glob("*.npz"))
    if path.stem not in ON_POLICY and not path.stem.startswith("scratch_")  # in `tests/test_parity_scratch.py`
]
TOLERANCE = 1e-5  # of a tensor's largest entry


def update(agent, mode: str, batch: Batch, noise: RecordedNoise) -> dict[str, Tensor]:
    """One update of a file: the offline ones of SAC Flow are its matching step alone."""
    if mode == "offline" and hasattr(agent, "matching_step"):
        return agent.matching_step(batch, noise)
    if hasattr(agent, "policy_step"):
        return agent.policy_step(batch, noise, agent.config.bc_coef)
    return agent.update_offline(batch, noise) if mode == "offline" else agent.update_online(batch, noise)


def distance(ours: Tensor, official: Tensor, size: float = 0.0) -> float:
    """Largest difference of any seed, in units of the official tensor's largest entry or of `size`."""
    scale = max(float(official.abs().max()), size, 1e-30)
    return float((ours.detach() - official).abs().max()) / scale


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
    official = Official(path)
    agent = official.agent(num_seeds)
    parameters = dict(agent.named_parameters())
    far: dict[tuple[str, str], float] = {}  # (kind, what) -> distance
    checked: set[str] = set()

    for step, mode in enumerate(official.modes):
        noise = official.noise(f"step{step}", num_seeds)
        metrics = execute(agent, mode, official.batch(step, num_seeds), noise)
        assert not noise.arrays, f"random numbers never drawn: {list(noise.arrays)}"

        for name, value, size in official.metrics(step):
            if name in metrics:
                far["metric", f"step {step} {name}"] = distance(metrics[name], value, size)
        for name, value in official.gradients(step).items():
            parameter = parameters[name]
            if not parameter.requires_grad:  # targets, and the dead projections of the decoder
                assert not value.any(), name
            elif gradients is not None:
                far["gradient", f"step {step} {name}"] = distance(gradients[parameter], value)
        for name, value in official.parameters(step).items():
            far["parameter", f"step {step} {name}"] = distance(parameters[name], value)
            checked.add(name)
    assert checked >= set(parameters) - {"temperature.log_coef"}

    for prefix, mode, obs, action_chunk in official.acts():
        acted = agent.act(torch.stack([obs] * num_seeds), official.noise(prefix, num_seeds), mode)
        far["action", f"{prefix} {mode}"] = distance(acted.flatten(2), action_chunk, official.port.action_size(agent))
    if "act/probabilities" in official.arrays:  # of the samples among which Diffusion-QL chooses
        found = official.under("act/")
        obs = torch.stack([found["observations"]] * num_seeds)
        q = cast(DiffusionQL, agent).candidates(obs, official.noise("act", num_seeds))[1]
        far["action", "probabilities"] = distance(q.softmax(-1).flatten(1), found["probabilities"])

    largest: dict[str, float] = {}
    for (kind, _), value in far.items():
        largest[kind] = max(largest.get(kind, 0.0), value)
    request.node.user_properties.append(("parity", (official.name, num_seeds, execution, largest)))
    worst = dict(sorted(far.items(), key=lambda item: -item[1])[:8])
    assert all(value <= TOLERANCE for value in far.values()), worst
