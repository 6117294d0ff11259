"""Agents that train from scratch against numbers of their official programs: update by update, in three parts.

From the file's state our metrics, gradients and statistics are the file's; our Adam, fed the file's gradients, leaves
the file's parameters; then it goes on from these. Some tensors have no gradient but rounding, which Adam turns into
steps: two libraries that go on each by itself drift apart there (`time_input` of SAC Flow-T).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.blocks.base import Adam
from agents.blocks.flow import tanh_log_det
from bench.training.engine import set_up_compiler
from datasets.batch import Batch, Decisions, Trajectories
from tests.scratch_files import SCRATCH_PORTS, ScratchFile, ScratchPort
from tests.seeded_noise import RecordedNoise
from tests.test_parity import PARITY_DIR, TOLERANCE, distance

FILES = [path for path in sorted(PARITY_DIR.glob("scratch_*.npz")) if path.stem != "scratch_ppo"]
for unknown in (path for path in FILES if path.stem not in SCRATCH_PORTS):
    pytest.exit(f"{unknown} is of no program; there are {', '.join([*SCRATCH_PORTS, 'scratch_ppo'])}", returncode=2)
# Of gradients where they cancel, after BatchRenorm: computed in float64, some of a file's are 8e-6 from the official
# ones and 5e-6 from ours. The files' own description has 2.6e-5 for an independent computation.
GRADIENT_TOLERANCE = 3e-5
ROUNDING = 1e-6  # gradients below it, of tensors whose true gradient is 0


def update(agent: Any, batch: Batch, noise: RecordedNoise, turn: int) -> dict[str, Tensor]:
    return agent.update_turn(batch, noise, turn)


@pytest.fixture
def swapped(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[Tensor, Tensor]]:
    """Adam takes the gradients under "theirs" instead of the agent's, which it leaves under "ours"."""
    found: dict[str, dict[Tensor, Tensor]] = {"ours": {}, "theirs": {}}
    step = Adam.step

    def swapping(adam: Adam, own: Sequence[Tensor]) -> None:
        found["ours"].update(zip(adam.parameters, own, strict=True))
        step(adam, [found["theirs"].get(p, gradient) for p, gradient in zip(adam.parameters, own, strict=True)])

    monkeypatch.setattr(Adam, "step", swapping)
    return found


@pytest.mark.parametrize("num_seeds", [1, 2])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_updates_equal_those_of_the_official_code(
    path: Path, num_seeds: int, swapped: dict[str, dict[Tensor, Tensor]], request: pytest.FixtureRequest
) -> None:
    official = ScratchFile(path, SCRATCH_PORTS[path.stem])
    agent, far = official.agent(num_seeds), {}
    parameters = dict(agent.named_parameters())
    names = {parameter: name for name, parameter in parameters.items()}
    checked: set[str] = set()
    for step in range(3):
        gradients = official.gradients(step)
        swapped["theirs"] = {
            parameters[name]: value.expand_as(parameters[name]).clone() for name, value in gradients.items()
        }
        swapped["ours"].clear()
        noise = official.noise(step, num_seeds)
        metrics = update(agent, official.batch(step, num_seeds), noise, step % agent.period)
        assert not noise.arrays, f"random numbers never drawn: {list(noise.arrays)}"
        far |= {f"metric {step} {name}": distance(metrics[name], *v) for name, v in official.metrics(step).items()}
        for name, value in gradients.items():
            if not parameters[name].requires_grad:  # the dead projections of the decoder
                assert value.abs().max() < ROUNDING, name
                continue
            far[f"gradient {step} {name}"] = distance(swapped["ours"][parameters[name]], value, size=1e-3)
        if gradients:
            assert {names[parameter] for parameter in swapped["ours"]} - {"temperature.log_coef"} <= set(gradients)
        far |= distances_of_state(agent, official, step, checked)
        official.load(agent, official.state(f"step{step}/"))
    state = {**parameters, **dict(agent.named_buffers())}
    assert checked == set(state), set(state) - checked
    report(far, official.name, num_seeds, "eager", request)


def distances_of_state(agent: Any, official: ScratchFile, step: int, checked: set[str]) -> dict[str, float]:
    """Of all parameters and statistics that the file has after an update."""
    own, far = {**dict(agent.named_parameters()), **dict(agent.named_buffers())}, {}
    for name, value in official.state(f"step{step}/").items():
        if name.endswith("calls"):
            assert (own[name] == value).all(), name
        else:
            far[f"parameter {step} {name}"] = distance(own[name], value, size=1e-3)
        checked.add(name)
    return far


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [1, 2])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_compiled_updates_equal_those_of_the_official_code(
    path: Path, num_seeds: int, request: pytest.FixtureRequest
) -> None:
    """Traced whole and decomposed as for machine code; each takes its own gradients, but for those of rounding."""
    set_up_compiler()
    execute = torch.compile(update, fullgraph=True, dynamic=False, backend="aot_eager_decomp_partition")
    official = ScratchFile(path, SCRATCH_PORTS[path.stem])
    agent, far = official.agent(num_seeds), {}
    for step in range(3):
        noise = official.noise(step, num_seeds)
        metrics = execute(agent, official.batch(step, num_seeds), noise, step % agent.period)
        far |= {f"metric {step} {name}": distance(metrics[name], *v) for name, v in official.metrics(step).items()}
        drifting = {name for name, value in official.gradients(step).items() if value.abs().max() < ROUNDING}
        found = distances_of_state(agent, official, step, set())
        far |= {key: value for key, value in found.items() if key.split()[-1] not in drifting}
        official.load(agent, official.state(f"step{step}/"))
    report(far, official.name, num_seeds, "compiled", request)


def report(far: dict[str, float], program: str, num_seeds: int, execution: str, request: pytest.FixtureRequest) -> None:
    """Holds distances, by kind, step and name, against the tolerance, and hands them to the table of `make parity`."""
    largest: dict[str, float] = {}
    for key, value in far.items():
        largest[key.split()[0]] = max(largest.get(key.split()[0], 0.0), value)
    request.node.user_properties.append(("parity", (program, num_seeds, execution, largest)))
    allowed = {key: GRADIENT_TOLERANCE if key.startswith("gradient") else TOLERANCE for key in far}
    assert all(far[key] <= allowed[key] for key in far), sorted(far.items(), key=lambda item: -item[1])[:12]


# --- PPO, whose updates are on a rollout

PPO_FILES = sorted(PARITY_DIR.glob("scratch_ppo.npz"))
PPO_LAYERS = {"Dense_0": "hidden.0", "Dense_1": "hidden.1", "Dense_2": "out"}
PPO_MODULES = {
    **{f"actor/{theirs}": f"policy.mlp.{ours}" for theirs, ours in PPO_LAYERS.items()},
    **{f"critic/{theirs}": f"value.mlp.{ours}" for theirs, ours in PPO_LAYERS.items()},
    "actor": "policy",
}
PPO_PORT = ScratchPort(
    "ppo",
    PPO_MODULES,
    {},
    lambda official: {
        "gae_lambda": official["gae_lambda"],
        "gae_at_time_limits": "released",
        "clip_range": official["clip"],
        "entropy_coef": official["ent_coef"],
        "value_coef": official["vf_coef"],
        "max_gradient_norm": official["max_grad_norm"],
        "learning_rate": official["lr"],
        "value_learning_rate": official["lr"],
        "policy_hidden_dims": (official["width"],) * 2,
        "value_hidden_dims": (official["width"],) * 2,
    },
)


class PPOFile(ScratchFile):
    """Its file has one rollout and three updates on all of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, PPO_PORT)
        rollout = self.under("rollout/")
        self.rollout = rollout
        self.arrays["step0/batch/observations"] = rollout["observations"].flatten(0, 1).numpy()
        self.arrays["step0/batch/actions"] = rollout["actions"].flatten(0, 1).numpy()
        action = (rollout["actions"] / self.scale).clamp(-0.9999, 0.9999)
        self.u = action.atanh()  # (T, E, A)
        # What the official density has beside that of u: here without the scale.
        self.log_det = tanh_log_det(self.u, "released")

    def trajectories(self, num_seeds: int) -> Trajectories:
        """Every step a decision; no episode is cut by a time limit."""
        rollout = self.rollout
        continues = 1 - rollout["terminations"]
        continues[-1] = 0
        values = {
            "begins": torch.ones_like(rollout["rewards"]),
            "obs": rollout["observations"],
            "record": rollout["observations"][..., :0],
            "chunk_return": rollout["rewards"],
            "bootstrap": self.config["gamma"] * (1 - rollout["terminations"]),
            "next_obs": torch.cat([rollout["observations"][1:], rollout["last_observations"].unsqueeze(0)]),
            "continues": continues,
        }
        return Trajectories(**{name: torch.stack([value] * num_seeds) for name, value in values.items()})

    def decisions(self, num_seeds: int) -> Decisions:
        old_log_prob = self.rollout["log_prob"] + self.log_det
        record = torch.cat([self.u, old_log_prob.unsqueeze(-1)], -1)
        parts = (self.rollout["observations"], record, self.rollout["advantages"], self.rollout["returns"])
        return Decisions(*(torch.stack([part.flatten(0, 1)] * num_seeds) for part in parts))


@pytest.mark.parametrize("at_time_limits", ["stop", "released"])
@pytest.mark.parametrize("num_seeds", [1, 2])
@pytest.mark.parametrize("path", PPO_FILES, ids=lambda path: path.stem)
def test_a_rollout_and_its_advantages_equal_those_of_ppo(
    path: Path, num_seeds: int, at_time_limits: str, request: pytest.FixtureRequest
) -> None:
    official = PPOFile(path)
    agent, rollout, far = official.agent(num_seeds, gae_at_time_limits=at_time_limits), official.rollout, {}
    for t, obs in enumerate(rollout["observations"]):
        noise = RecordedNoise({"act_noise": rollout["noise"][t]}, num_seeds)
        action, record = agent.collect(torch.stack([obs] * num_seeds), noise)
        far[f"action {t}"] = distance(action[:, :, 0] * official.scale, rollout["actions"][t])
        density = record[..., -1] - official.log_det[t]
        far[f"metric density {t}"] = distance(density, rollout["log_prob"][t])
        far[f"metric value {t}"] = distance(agent.value(torch.stack([obs] * num_seeds)), rollout["values"][t])
    advantage, target = agent.estimate(official.trajectories(num_seeds))
    far["metric advantage"] = distance(advantage, rollout["advantages"])
    far["metric target"] = distance(target, rollout["returns"])
    report(far, "scratch_ppo, rollout", num_seeds, "eager", request)


@pytest.mark.parametrize(("execution", "num_seeds"), [("eager", 1), ("eager", 2), ("compiled", 2)])
@pytest.mark.parametrize("path", PPO_FILES, ids=lambda path: path.stem)
def test_updates_on_a_rollout_equal_those_of_ppo(
    path: Path, num_seeds: int, execution: str, request: pytest.FixtureRequest
) -> None:
    official, gradients = PPOFile(path), {}
    agent, far = official.agent(num_seeds), {}
    parameters, execute = dict(agent.named_parameters()), type(agent).update_online
    if execution == "eager":
        gradients = request.getfixturevalue("gradients")
    else:
        set_up_compiler()
        execute = torch.compile(execute, fullgraph=True, dynamic=False, backend="aot_eager_decomp_partition")
    for step in range(3):
        metrics = execute(agent, official.decisions(num_seeds), RecordedNoise({}, num_seeds))
        expected = official.under(f"step{step}/metric/")
        loss = metrics["policy_loss"] + agent.config.value_coef * 0.5 * metrics["value_loss"]
        far[f"metric {step} loss"] = distance(loss, expected["loss"])
        # A mean of advantages that cancel, whose size is 1.
        policy_loss = metrics["policy_loss"] + agent.config.entropy_coef * metrics["entropy"]
        far[f"metric {step} policy_loss"] = distance(policy_loss, expected["policy_loss"], size=1.0)
        far[f"metric {step} value_loss"] = distance(0.5 * metrics["value_loss"], expected["value_loss"])
        far[f"metric {step} entropy"] = distance(metrics["entropy"], expected["entropy"])
        if execution == "eager":
            for name, value in official.translated(f"step{step}/grad_clipped/").items():
                far[f"gradient {step} {name}"] = distance(gradients[parameters[name]], value)
        far |= distances_of_state(agent, official, step, set())
    report(far, official.name, num_seeds, execution, request)
