"""DPPO and ReinFlow against numbers of their official code: rollouts, the policy's chains and their densities, updates.

Their files differ from those of `tests/test_parity.py`: an update is one on decisions, and what comes before it is in
the file, too. The official networks are written in PyTorch, and here not residual ones.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import AGENTS
from agents.blocks.config import settings_of, with_settings
from agents.blocks.diffusion import Level, Schedule, denoising_loss
from agents.blocks.flow import t_like
from agents.blocks.ppo import RolloutStatistics, estimate_advantages, pack_chain
from agents.dppo import DPPO
from agents.reinflow import ReinFlow
from bench.training.engine import set_up_compiler
from datasets.batch import Decisions, Trajectories
from tests.seeded_noise import RecordedNoise, SeededNoise
from tests.test_parity import ON_POLICY, PARITY_DIR, TOLERANCE, distance

FILES = [path for path in sorted(PARITY_DIR.glob("*.npz")) if path.stem in ON_POLICY]
EMBEDDING = 16  # of the step, in every file

MODULES = {
    "dppo": {"actor": "target_denoiser", "actor_ft": "denoiser", "critic": "value.mlp"},
    "reinflow": {"policy": "velocity", "noise": "noise_std", "critic": "value.mlp"},
}
SETTINGS = {
    "horizon_steps": "chunk_length",
    "denoising_steps": "denoising_steps",
    "inference_steps": "flow_steps",
    "ft_denoising_steps": "fine_tuned_steps",
    "gamma_denoising": "denoising_discount",
    "clip_ploss_coef": "clip_range",
    "clip_ploss_coef_base": "first_clip_range",
    "clip_ploss_coef_rate": "clip_range_rate",
    "randn_clip_value": "max_step_noise",
    "min_logprob_denoising_std": "min_std",
    "min_std": "min_std",
    "max_std": "max_std",
    "logprob_min": "min_log_prob",
    "logprob_max": "max_log_prob",
    "account_for_initial_stochasticity": "count_start",
    "gae_lambda": "gae_lambda",
    "ent_coef": "entropy_coef",
    "vf_coef": "value_coef",
    "actor_lr": "learning_rate",
    "critic_lr": "value_learning_rate",
    "critic_weight_decay": "value_weight_decay",
    "mlp_dims": "policy_hidden_dims",
    "noise_hidden_dims": "noise_hidden_dims",
    "residual_style": "residual",
}


class File:
    """One file: what the official program was given, and what it computed."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as archive:
            self.arrays = {key: torch.from_numpy(value) for key, value in archive.items() if value.dtype.kind == "f"}
            self.config: dict[str, Any] = json.loads(str(archive["config_json"]))
        self.name = path.stem
        self.num_updates = len({key.split("/")[0] for key in self.arrays if re.match(r"step\d", key)})

    def agent(self, num_seeds: int) -> Any:
        """The agent with the file's settings and starting parameters, the same for each seed, after one rollout."""
        agent_class, config = AGENTS[self.name]
        settings = {
            ours: self.config[official]
            for official, ours in SETTINGS.items()
            if official in self.config and ours in settings_of(config)
        }
        settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        value_dims = tuple(len(self.arrays[key]) for key in sorted(self._biases("params/critic/"))[:-1])
        released = {"first_policy_rollout": 1, "gae_at_time_limits": "released", "value_hidden_dims": value_dims}
        released |= {"rollout_times": "released"} if self.name == "reinflow" else {"policy_activation": "mish"}
        released |= {"residual": False}
        config = with_settings(config, **(released | settings))
        obs, chains = self.arrays["step0/batch/observations"], self.arrays["step0/batch/chains"]
        agent: Any = agent_class(
            config, obs.shape[-1], chains.shape[-1] // config.chunk_length, SeededNoise(range(num_seeds))
        )
        agent.statistics.rollouts.fill_(1.0)
        if self.name == "dppo":
            agent.schedule = in_single_precision(agent.schedule)
        self.load(agent, "params/")
        return agent

    def load(self, agent: Any, prefix: str) -> None:
        parameters = dict(agent.named_parameters())
        with torch.no_grad():
            for name, value in self.translated(prefix).items():
                parameters[name].copy_(value.expand_as(parameters[name]))

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}

    def noise(self, prefix: str, num_seeds: int) -> RecordedNoise:
        recorded = {name: value for name, value in self.under(f"{prefix}/noise/").items() if name != "denoising_step"}
        return RecordedNoise(recorded, num_seeds)

    def translated(self, prefix: str) -> dict[str, Tensor]:
        """Parameters, or their gradients, by our names: (in, out), the observation before the step's embedding."""
        named = {}
        for path, value in self.under(prefix).items():
            module, _, rest = path.partition("/")
            kind = rest.rsplit(".", 1)[1]
            if embedding := re.match(r"time_embedding\.([13])\.", rest):
                layer = "step.mlp." + {"1": "hidden.0", "3": "out"}[embedding[1]]
            else:
                index = int(re.search(r"moduleList\.(\d+)\.", rest)[1])  # type: ignore[index]
                last = index == len(self._biases(f"{prefix}{module}/")) - 1
                layer = ("mlp." if "mlp_mean" in rest else "") + ("out" if last else f"hidden.{index}")
            value = value.T if kind == "weight" else value
            if "mlp_mean.moduleList.0." in rest and kind == "weight":
                chunk = self.arrays["step0/batch/chains"].shape[-1]
                rows = [slice(chunk), slice(chunk + EMBEDDING, None), slice(chunk, chunk + EMBEDDING)]
                value = torch.cat([value[part] for part in rows])
            named[f"{MODULES[self.name][module]}.{layer}.{kind}"] = value
        return named

    def decisions(self, step: int, num_seeds: int) -> Decisions:
        batch = self.under(f"step{step}/batch/")
        old = batch["old_log_prob"].reshape(len(batch["chains"]), -1)
        record = pack_chain(batch["chains"].unsqueeze(0), old.unsqueeze(0))[0]
        values = (batch["observations"], record, batch["advantages"], batch["returns"])
        return Decisions(*(torch.stack([value] * num_seeds) for value in values))

    def _biases(self, prefix: str) -> list[str]:
        return [key for key in self.arrays if key.startswith(prefix) and re.search(r"moduleList.*bias$", key)]


def in_single_precision(schedule: Schedule) -> Schedule:
    """The schedule by sums and products of float32, as the official program makes it: 7e-6 apart from ours."""
    betas = torch.tensor(schedule.betas[1:])
    alphas = 1 - betas
    bars = alphas.cumprod(0)
    before = torch.cat([torch.ones(1), bars[:-1]])
    columns = (
        *(bars.sqrt(), (1 - bars).sqrt(), betas * before.sqrt() / (1 - bars)),
        *((1 - before) * alphas.sqrt() / (1 - bars), betas.sqrt(), (betas * (1 - before) / (1 - bars)).sqrt()),
    )
    table = torch.cat([schedule.table[:1], torch.stack(columns, 1)])
    return replace(schedule, table=table, levels=tuple(Level(*row) for row in table.tolist()))


def check(far: dict[str, float], request: pytest.FixtureRequest, what: str, num_seeds: int, execution: str) -> None:
    """Distances by kind and name. What is no gradient, parameter or action counts as a metric in the table."""
    largest: dict[str, float] = {}
    for key, value in far.items():
        kind = key.split()[0]
        kind = kind if kind in ("gradient", "parameter", "action") else "metric"
        largest[kind] = max(largest.get(kind, 0.0), value)
    request.node.user_properties.append(("parity", (what, num_seeds, execution, largest)))
    assert all(value <= TOLERANCE for value in far.values()), sorted(far.items(), key=lambda item: -item[1])[:8]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_chains_and_their_densities_equal_those_of_the_official_code(
    path: Path, request: pytest.FixtureRequest
) -> None:
    official = File(path)
    agent, far = official.agent(2), {}
    for mode in ("act", "evaluate"):
        found = official.under(f"{mode}/")
        obs = torch.stack([found.get("observations", official.arrays["act/observations"])] * 2)
        acted = agent.act(obs, official.noise(mode, 2), "collect" if mode == "act" else "evaluate")
        far[f"action {mode}"] = distance(acted, found["actions"].clamp(-1, 1))
        if "chains" not in found:
            continue
        if mode == "act":
            _, record = agent.collect(obs, official.noise(mode, 2))
            far["action chain"] = distance(record[..., : found["chains"][0].numel()], found["chains"].flatten(1))
        if official.name == "reinflow":
            far |= reinflow_parts(agent, obs, found, mode)
        else:
            points = torch.stack([found["chains"]] * 2)
            # Coordinates' densities of both signs have this mean.
            size = float(found["log_prob_elementwise"].abs().max())
            far["density act"] = distance(agent.log_prob(obs, points), found["log_prob"], size)
    check(far, request, f"{official.name}, chains", 2, "eager")


def reinflow_parts(agent: ReinFlow, obs: Tensor, found: dict[str, Tensor], mode: str) -> dict[str, float]:
    """Velocities and deviations at the points of the official chain, and its density at the times of acting."""
    points, far = torch.stack([found["chains"]] * 2), {}
    velocity = agent.velocity(obs)
    assert list(agent._rollout_times) == pytest.approx(found["times"].tolist())
    for k, t in enumerate(agent._rollout_times):
        ours = velocity(t_like(obs, t), points[:, :, k])
        far[f"velocity {mode} {k}"] = distance(ours, found["velocities"][k], float(found["velocities"].abs().max()))
        far[f"deviation {mode} {k}"] = distance(agent.step_std(obs, t), found["stds"][k])
    agent._times = agent._rollout_times
    far[f"density {mode}"] = distance(agent.log_prob(obs, points)[0], found["log_prob"])
    agent._times = tuple(k / agent.config.flow_steps for k in range(agent.config.flow_steps))
    return far


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("execution", "num_seeds"),
    [("eager", 1), ("eager", 2), *(pytest.param("compiled", n, marks=pytest.mark.slow) for n in (1, 2))],
)
def test_updates_equal_those_of_the_official_code(
    path: Path, num_seeds: int, execution: str, request: pytest.FixtureRequest
) -> None:
    official = File(path)
    agent, far = official.agent(num_seeds), {}
    parameters, gradients = dict(agent.named_parameters()), {}
    execute = type(agent).update_online
    if execution == "eager":
        gradients = request.getfixturevalue("gradients")
    else:
        set_up_compiler()
        execute = torch.compile(execute, fullgraph=True, dynamic=False, backend="aot_eager_decomp_partition")
    for step in range(official.num_updates):
        batch, expected = official.decisions(step, num_seeds), official.under(f"step{step}/metric/")
        if official.name == "reinflow":
            far |= reinflow_densities(agent, batch, official, step)
        metrics = execute(agent, batch, RecordedNoise({}, num_seeds))
        policy_loss = metrics["policy_loss"]
        if official.name == "reinflow":
            policy_loss = policy_loss + agent.config.entropy_coef * metrics["entropy"]
            far[f"metric {step} entropy"] = distance(metrics["entropy"], -expected["entropy_loss"])
        # A mean of advantages that cancel, whose size is 1; a difference of ratios of size 1.
        far[f"metric {step} policy_loss"] = distance(policy_loss, expected["pg_loss"], size=1.0)
        far[f"metric {step} divergence"] = distance(metrics["kl_divergence"], expected["approx_kl"], size=0.1)
        far[f"metric {step} clip_share"] = distance(metrics["clip_share"], expected["clipfrac"])
        far[f"metric {step} value_loss"] = distance(metrics["value_loss"], 2 * expected["v_loss"])
        for name, value in official.translated(f"step{step}/grad/").items():
            if execution == "eager":
                far[f"gradient {step} {name}"] = distance(gradients[parameters[name]], value)
        for name, value in official.translated(f"step{step}/params_after/").items():
            far[f"parameter {step} {name}"] = distance(parameters[name], value)
    check(far, request, official.name, num_seeds, execution)


def reinflow_densities(agent: ReinFlow, batch: Decisions, official: File, step: int) -> dict[str, float]:
    points = batch.record[..., :-1].unflatten(-1, (-1, agent.chunk_dim))
    log_prob, entropy = agent.log_prob(batch.obs, points)
    return {
        f"density {step}": distance(log_prob, official.arrays[f"step{step}/new_log_prob"]),
        f"entropy {step}": distance(entropy, official.arrays[f"step{step}/entropy"]),
    }


DPPO_FILES = [path for path in FILES if path.stem == "dppo"]


@pytest.mark.parametrize("path", DPPO_FILES, ids=lambda path: path.stem)
def test_cloning_equals_that_of_dppo(path: Path, request: pytest.FixtureRequest) -> None:
    official = File(path)
    agent = official.agent(1)
    assert isinstance(agent, DPPO)
    batch = official.under("cloning/batch/")
    action_chunk = batch["actions"].unsqueeze(0)
    predict = agent.target_denoiser.requires_grad_()(batch["observations"].unsqueeze(0))
    loss = denoising_loss(
        predict, action_chunk, torch.ones(action_chunk.shape[:3]), official.noise("cloning", 1), agent.schedule
    )
    loss.sum().backward()
    parameters = dict(agent.named_parameters())
    far = {"loss": distance(loss, official.arrays["cloning/loss"])}
    for name, value in official.translated("cloning/grad/").items():
        gradient = parameters[name].grad
        assert gradient is not None
        far[f"gradient {name}"] = distance(gradient, value)
    check(far, request, "dppo, cloning", 1, "eager")


@pytest.mark.parametrize("path", DPPO_FILES, ids=lambda path: path.stem)
def test_scaled_rewards_and_advantages_equal_those_of_dppo(path: Path, request: pytest.FixtureRequest) -> None:
    official = File(path)
    agent, gamma, far = official.agent(1), official.config["gamma"], {}
    statistics, carried = RolloutStatistics(1, torch.device("cpu")), None
    for number in sorted({key.split("/")[0] for key in official.arrays if key.startswith("rollout")}):
        found = official.under(f"{number}/")
        trajectories = trajectories_of(found, gamma)
        # There the sum goes on in an episode that does: what it has come to is put into the first reward.
        reward = found["rewards"].clone()
        if carried is not None:
            reward[0] += (1 - found["firsts"][0]) * gamma * carried
        carried = reward[0]
        for t in range(1, len(reward)):
            carried = reward[t] + (1 - found["firsts"][t]) * gamma * carried
        scaled = statistics.scaled(trajectories_of({**found, "rewards": reward}, gamma), agent.config.max_reward)
        far[f"variance {number}"] = distance(statistics.variance, found["reward_variance"])
        far[f"reward {number}"] = distance(scaled.chunk_return[0, 1:], found["scaled_rewards"][1:])

        trajectories.chunk_return.copy_(found["scaled_rewards"])
        limits = ("released",) if found["truncated"].any() else ("released", "stop")
        for at_time_limits in limits:
            advantage, target = estimate_advantages(trajectories, agent.value, agent.config.gae_lambda, at_time_limits)
            far[f"advantage {number} {at_time_limits}"] = distance(advantage[0], found["advantages"])
            far[f"target {number} {at_time_limits}"] = distance(target[0], found["returns"])
    check(far, request, "dppo, rollouts", 1, "eager")


def trajectories_of(found: dict[str, Tensor], gamma: float) -> Trajectories:
    """Every step a decision; an observation after an episode's end is that of the next one, as in the file."""
    obs = found["observations"]
    continues = 1 - found["firsts"][1:]
    continues[-1] = 0.0
    values = {
        "begins": torch.ones_like(found["rewards"]),
        "obs": obs,
        "record": obs[..., :0],
        "chunk_return": found["rewards"],
        "bootstrap": gamma * (1 - found["terminated"]),
        "next_obs": torch.cat([obs[1:], found["last_observations"].unsqueeze(0)]),
        "continues": continues,
    }
    return Trajectories(**{name: value.unsqueeze(0).clone() for name, value in values.items()})
