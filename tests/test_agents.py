"""What holds for every agent, whatever its algorithm; and what each option of a config changes."""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents import AGENTS
from agents.blocks import kernels
from agents.blocks.base import Adam, Agent, OnPolicyAgent, current_names, gradient_step, polyak_update
from agents.blocks.config import settings_of, with_settings
from agents.blocks.flow import matching_loss, path_entropy
from agents.blocks.joint_critic import JointCriticConfig
from agents.crossq import CrossQ
from agents.fql import FQL, FQLConfig
from agents.sac import SAC as SACAgent
from agents.sac_flow import SACFlow, SACFlowConfig
from agents.scratch_flow import ScratchFlow
from datasets.batch import Batch, Decisions, Trajectories
from tests.seeded_noise import RecordedNoise, SeededNoise
from tests.tiny_runs import RESIDUAL

OBS_DIM, ACTION_DIM, BATCH_SIZE = 5, 2, 16
NAMES = sorted(AGENTS)
SAC_FLOW = [name for name in NAMES if AGENTS[name][0] is SACFlow]
SAC = ("sac", "rlpd", "rlpd_ac")
WITH_TWO_STEPS = [*SAC_FLOW, "naive_sac_flow"]
# Without a critic of actions there is nothing for the tests of critics to look at.
WITHOUT_CRITIC = ("bc", "bc_diffusion", "dppo", "reinflow", "ppo")
WITH_CRITIC = [name for name in NAMES if name not in WITHOUT_CRITIC]
# Their critics' targets are made of V(s'), so that the target critics are aggregated elsewhere.
WITH_STATE_VALUE = ("idql", "ifql", "iql")
SCRATCH_FLOWS = [name for name in NAMES if AGENTS[name][0] is ScratchFlow]
# Their critics have no targets: both sides of their loss come from one pass, by the statistics of both.
JOINT = ("crossq", "dime", *SCRATCH_FLOWS)
WITH_TARGET = [name for name in WITH_CRITIC if name not in JOINT]
# Their losses see what stepped before them in an update; with settings under which no policy sees the critic, or whose
# policy stays at one of their turns.
IN_TURN: dict[str, dict[str, Any]] = {
    "diffusion_ql": {"q_coef": 0.0},
    "idql": {},
    "qsm_scratch": {"inverse_temperature": 0.0},
    **{name: {} for name in (*JOINT, "flowrl")},
}
CRITIC_TURN = {"flowrl": 1, **dict.fromkeys(JOINT, 0)}
State = dict[str, Tensor]
SHARED_METRICS = ("entropy_coef", "entropy", "kl_divergence", "clip_share")  # that may be equal for all seeds at first


def tiny_config(name: str, **changes: Any) -> Any:
    small = {
        "policy_hidden_dims": (16, 16),
        "critic_hidden_dims": (16, 16),
        "num_critics": 2,
        "gate_dim": 8,
        "decoder_dim": 8,
        "value_hidden_dims": (16, 16),
        "noise_hidden_dims": (16,),
        "target_update_interval": 1,  # so that every update moves the targets
        "ema_interval": 1,
        "first_ema_update": 1,
        "first_policy_rollout": 1,  # and the policy
        "max_gradient_norm": 1e9,  # whose clipping would mix the gradients of critic and policy
    }
    config = AGENTS[name][1]
    small |= RESIDUAL if "residual" in settings_of(config) else {}
    return with_settings(config, **({k: v for k, v in small.items() if k in settings_of(config)} | changes))


def build(name: str, seeds: list[int], **changes: Any) -> Any:
    return AGENTS[name][0](tiny_config(name, **changes), OBS_DIM, ACTION_DIM, SeededNoise(seeds))


def batch_of(seeds: list[int], chunk_length: int, batch_size: int = BATCH_SIZE) -> Batch:
    noise = SeededNoise(seeds)
    valid = (noise.uniform("valid", batch_size, 1) > torch.arange(chunk_length) / (2 * chunk_length)).float()
    return Batch(
        obs=noise.normal("obs", batch_size, OBS_DIM),
        action_chunk=noise.normal("action", batch_size, chunk_length, ACTION_DIM).clamp(-1, 1),
        chunk_return=-noise.uniform("return", batch_size),
        bootstrap=0.99**chunk_length * (noise.uniform("mask", batch_size) > 0.2),
        next_obs=noise.normal("next_obs", batch_size, OBS_DIM),
        valid=valid,
    )


def decisions_of(
    agent: OnPolicyAgent, noise: SeededNoise, obs: Tensor, reward: Callable[[Tensor], Tensor]
) -> Decisions:
    """Episodes of one decision at obs (S, B, O) under the agent's own policy; the reward is one of chunks."""
    action_chunk, record = agent.collect(obs, noise)
    ones = torch.ones(obs.shape[0], 1, obs.shape[1])
    trajectories = Trajectories(
        begins=ones,
        obs=obs.unsqueeze(1),
        record=record.unsqueeze(1),
        chunk_return=reward(action_chunk).unsqueeze(1),
        bootstrap=0 * ones,
        next_obs=obs.unsqueeze(1),
        continues=0 * ones,
    )
    advantage, value_target = agent.estimate(trajectories)
    return Decisions(obs, record, advantage[:, 0], value_target[:, 0])


def online_batch(agent: Agent, seeds: list[int]) -> Batch | Decisions:
    if isinstance(agent, OnPolicyAgent):
        noise = SeededNoise(seeds)
        return decisions_of(agent, noise, noise.normal("obs", BATCH_SIZE, OBS_DIM), lambda chunk: chunk.sum((2, 3)))
    return batch_of(seeds, agent.chunk_length)


def train(agent: Agent, seeds: list[int], offline: int = 2, online: int = 2) -> list[dict[str, Tensor]]:
    noise, metrics = SeededNoise(seeds), []
    for _ in range(offline):
        metrics.append(agent.update_offline(batch_of(seeds, agent.chunk_length), noise))
    for number in range(online):
        metrics.append(agent.update_turn(online_batch(agent, seeds), noise, number % agent.period))
    return metrics


def assert_equal_states(found: State, expected: State) -> None:
    assert set(found) == set(expected)
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different, different


def parameters_of(module: nn.Module) -> State:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def changed(module: nn.Module, before: State) -> bool:
    return any(not torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())


# --- every agent


@pytest.mark.parametrize("mode", ["collect", "evaluate"])
@pytest.mark.parametrize("name", NAMES)
def test_actions_are_chunks_in_the_box(name: str, mode: str) -> None:
    agent = build(name, [0, 1])
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.mul_(2 if name == "sac_flow_t_scratch" else 5)  # so that the box matters
    obs = 10 * torch.randn(2, 50, OBS_DIM)
    action_chunk = agent.act(obs, SeededNoise([0, 1]), mode)
    assert action_chunk.shape == (2, 50, agent.chunk_length, ACTION_DIM)
    assert not action_chunk.requires_grad
    assert action_chunk.abs().max() <= 1
    assert action_chunk.abs().max() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_act_needs_only_the_policy_modules(name: str) -> None:
    trained, fresh = build(name, [0]), build(name, [1])
    train(trained, [0])
    for module in trained.policy_modules:
        fresh.get_submodule(module).load_state_dict(trained.get_submodule(module).state_dict())
    loaded = build(name, [2])
    loaded.load_policy(trained.policy_tensors())
    obs = torch.randn(1, 4, OBS_DIM)
    for mode in ("collect", "evaluate"):
        expected = trained.act(obs, SeededNoise([3]), mode)
        for agent in (fresh, loaded):
            assert torch.equal(agent.act(obs, SeededNoise([3]), mode), expected)


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(name: str) -> None:
    states = []
    for seed in (3, 3, 4):
        agent = build(name, [seed])
        train(agent, [seed])
        states.append(agent.state_of_seed(0))
    assert_equal_states(states[0], states[1])
    weights = [key for key in states[0] if key.endswith("weight")]
    assert all(not torch.equal(states[0][key], states[2][key]) for key in weights if "norm" not in key)


@pytest.mark.parametrize("form", ["at once", "member by member"])
@pytest.mark.parametrize("name", NAMES)
def test_a_pack_of_three_equals_three_packs_of_one(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "member by member":  # as larger networks are
        monkeypatch.setattr(kernels, "SMALL", 0)
        monkeypatch.setattr(kernels, "FEW", 0)
    monkeypatch.setattr(sys.modules[__name__], "ACTION_DIM", 3)  # chunks that are no whole number of a CPU's vectors
    pack = build(name, [5, 6, 7])
    pack_metrics = train(pack, [5, 6, 7])
    for slot, seed in enumerate([5, 6, 7]):
        alone = build(name, [seed])
        metrics = train(alone, [seed])
        assert_equal_states(pack.state_of_seed(slot), alone.state_of_seed(0))
        for ours, expected in zip(pack_metrics, metrics, strict=True):
            for key, value in expected.items():
                torch.testing.assert_close(ours[key][slot], value[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_seed_goes_on_in_any_pack_as_if_never_interrupted(name: str) -> None:
    whole = build(name, [1, 2])
    train(whole, [1, 2])
    resumed = build(name, [8, 9, 10])  # other seeds, another size, other slots
    train(resumed, [8, 9, 10], offline=1, online=0)
    resumed.load_seed_states([whole.state_of_seed(1), whole.state_of_seed(0), whole.state_of_seed(1)])
    train(whole, [1, 2])
    train(resumed, [2, 1, 2])
    for slot, original in enumerate([1, 0, 1]):
        assert_equal_states(resumed.state_of_seed(slot), whole.state_of_seed(original))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_state_is_a_copy(name: str) -> None:
    agent = build(name, [1])
    state = agent.state_of_seed(0)
    before = {key: value.clone() for key, value in state.items()}
    train(agent, [1])
    assert_equal_states(state, before)


def everything_in(thing: Any, path: str = "", seen: set[int] | None = None) -> dict[str, Any]:
    """Every tensor and every plain value that hangs on an object, by where it hangs; each object once."""
    seen = set() if seen is None else seen
    if isinstance(thing, Tensor):
        return {path: thing}
    if isinstance(thing, (int, float, str, bool, type(None))):
        return {path: thing}
    if id(thing) in seen:
        return {}
    seen.add(id(thing))
    if isinstance(thing, dict):
        parts = {f"{path}[{key!r}]": value for key, value in thing.items()}
    elif isinstance(thing, (list, tuple, set)):
        parts = {f"{path}[{index}]": value for index, value in enumerate(thing)}
    else:
        parts = {f"{path}.{name}": value for name, value in getattr(thing, "__dict__", {}).items()}
    return {key: value for name, part in parts.items() for key, value in everything_in(part, name, seen).items()}


@pytest.mark.parametrize("name", NAMES)
def test_an_update_changes_nothing_but_what_is_saved(name: str) -> None:
    """So that whatever is killed after an update goes on from `state_of_seed` as if it had not been."""
    agent = build(name, [0, 1])
    before = everything_in(agent)
    values = {path: value.clone() if isinstance(value, Tensor) else value for path, value in before.items()}
    train(agent, [0, 1])
    after = everything_in(agent)
    saved = {tensor.data_ptr() for tensor in agent.state_tensors().values()}
    assert len([value for value in before.values() if isinstance(value, Tensor)]) >= len(saved)
    for path, value in after.items():
        if isinstance(value, Tensor) and value.data_ptr() in saved:
            continue
        assert path in values, f"{path} is new"
        same = torch.equal(value, values[path]) if isinstance(value, Tensor) else value == values[path]
        assert same, f"{path} has changed and is not saved"


def test_states_that_do_not_fit_are_refused() -> None:
    agent = build("fql", [0, 1])
    state = agent.state_of_seed(0)
    with pytest.raises(ValueError, match="1 seed states for an agent of 2"):
        agent.load_seed_states([state])
    with pytest.raises(ValueError, match="of another agent or config"):
        agent.load_seed_states([state, {key: value for key, value in state.items() if "critic" not in key}])
    wider = build("fql", [0, 1], critic_hidden_dims=(17, 16)).state_of_seed(0)
    with pytest.raises(ValueError, match="has shape"):
        agent.load_seed_states([wider, wider])
    other = build("fql", [0])
    train(other, [0], offline=1, online=0)
    with pytest.raises(ValueError, match="the same number of updates"):
        agent.load_seed_states([state, other.state_of_seed(0)])


# How names began before critics and temperatures were blocks.
EARLIER = {
    "critic.online.mlp.": "critic.mlp.",
    "critic.target.mlp.": "target_critic.mlp.",
    "critic.optimizer/steps": "critic_optimizer/steps",
    "temperature.log_coef": "log_entropy_coef",
    "temperature.optimizer/steps": "temperature_optimizer/steps",
}


def under_earlier_names(state: State) -> State:
    renamed = {}
    for name, tensor in state.items():
        prefix = next((prefix for prefix in EARLIER if name.startswith(prefix)), "")
        renamed[EARLIER.get(prefix, "") + name.removeprefix(prefix)] = tensor
    return renamed


@pytest.mark.parametrize("name", NAMES)
def test_states_and_policies_of_older_code_load(name: str) -> None:
    agent, loaded, acting = build(name, [1, 2]), build(name, [8, 9]), build(name, [8, 9])
    train(agent, [1, 2], offline=1, online=0)
    states = [under_earlier_names(agent.state_of_seed(seed)) for seed in (0, 1)]
    earlier = {key for key in states[0] if key not in agent.state_tensors()}
    assert bool(earlier) == (name in WITH_CRITIC)
    assert not any(key.startswith(("critic.", "temperature.")) and "critic.mlp." not in key for key in states[0])
    loaded.load_seed_states(states)
    assert_equal_states(loaded.state_tensors(), agent.state_tensors())
    acting.load_policy(under_earlier_names(agent.policy_tensors()))
    obs = torch.randn(2, 3, OBS_DIM)
    found, expected = (some.act(obs, SeededNoise([1, 2]), "evaluate") for some in (acting, agent))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("temperature", ["off", "fixed"])
def test_older_states_without_a_learnt_temperature_load(temperature: str) -> None:
    agent, loaded = (build("sac_flow_g", [seed], temperature=temperature) for seed in (1, 2))
    loaded.load_seed_states([under_earlier_names(agent.state_of_seed(0))])
    assert_equal_states(loaded.state_tensors(), agent.state_tensors())


def test_an_agent_may_give_an_earlier_name_to_something_else() -> None:
    ours, other = torch.zeros(1), torch.ones(1)
    state = {"log_entropy_coef": ours, "critic.mlp.out.bias": other}
    assert current_names(state, {"log_entropy_coef": ours}) == {
        "log_entropy_coef": ours,
        "critic.online.mlp.out.bias": other,
    }


def test_a_policy_of_another_agent_or_size_is_refused() -> None:
    policy = build("qc", [0]).policy_tensors()
    assert {name.split(".mlp.")[0] for name in policy} == {"behaviour_velocity", "critic.online"}
    with pytest.raises(ValueError, match="of another agent or config"):
        build("qc_fql", [0]).load_policy(policy)
    with pytest.raises(ValueError, match="has shape"):
        build("qc", [0], critic_hidden_dims=(17, 16)).load_policy(policy)


class Scheduled(Agent):
    """Keeps the schedule of a diffusion, which all seeds share, in a buffer."""

    def __init__(self, num_seeds: int, inside: bool) -> None:
        super().__init__(AGENTS["bc"][1], OBS_DIM, ACTION_DIM, SeededNoise(range(num_seeds)))
        self.schedule = nn.Module()
        (self.schedule if inside else self).register_buffer("betas", torch.tensor([0.1, 0.2, 0.3, 0.4]))


@pytest.mark.parametrize("num_seeds", [1, 2])
@pytest.mark.parametrize(("inside", "name"), [(False, "Scheduled.betas"), (True, "Scheduled.schedule.betas")])
def test_a_buffer_without_a_seed_dimension_is_refused_by_name(num_seeds: int, inside: bool, name: str) -> None:
    with pytest.raises(ValueError) as error:
        Scheduled(num_seeds, inside)
    message = str(error.value)
    assert message.startswith(f"{name} has shape (4,)") and "\n" not in message
    assert f"here {num_seeds}" in message and "plain attribute, not a buffer" in message


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_that_is_nan_does_not_harm_its_neighbours(name: str) -> None:
    healthy, ill = build(name, [0, 1, 2]), build(name, [0, 1, 2])
    for parameter in ill.parameters():
        parameter.data[1] = math.nan
    train(healthy, [0, 1, 2])
    train(ill, [0, 1, 2])
    for seed in (0, 2):
        assert_equal_states(ill.state_of_seed(seed), healthy.state_of_seed(seed))
    assert all(value.isnan().all() for key, value in ill.state_of_seed(1).items() if key.endswith("out.weight"))


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_the_policy_loss_does_not_reach_the_critic(name: str, gradients: dict[Tensor, Tensor]) -> None:
    # Although Q of the policy's action is differentiated through the critic.
    agent, batch = build(name, [0]), batch_of([0], tiny_config(name).chunk_length)
    alone_agent = build(name, [0])
    if name == "idql":  # whose critic sees the new V
        ahead = build(name, [0])
        ahead.update_online(batch, SeededNoise([0]))
        alone_agent.value.load_state_dict(ahead.value.state_dict())
    critic_loss = alone_agent.critic_loss(batch, SeededNoise([0]))[0].sum()
    if name in ("diffusion_ql", "flowrl"):  # the sum over its two critics
        critic_loss = 2 * critic_loss
    alone = torch.autograd.grad(critic_loss, list(alone_agent.critic.online.parameters()))
    agent.update_online(batch, SeededNoise([0]))
    for parameter, expected in zip(agent.critic.online.parameters(), alone, strict=True):
        assert torch.equal(gradients[parameter], expected)
    if name not in JOINT:
        assert not any(parameter in gradients for parameter in agent.critic.target.parameters())


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_the_critic_loss_does_not_reach_the_policy(name: str) -> None:
    agents = [build(name, [0], **IN_TURN.get(name, {})) for _ in range(2)]
    batch = batch_of([0], tiny_config(name).chunk_length)
    turn = CRITIC_TURN.get(name, 0)
    agents[0].update_turn(batch, SeededNoise([0]), turn)
    agents[1].update_turn(replace(batch, chunk_return=batch.chunk_return - 100), SeededNoise([0]), turn)
    assert changed(agents[0].critic, parameters_of(agents[1].critic))
    for module in set(agents[0].policy_modules) - {"critic.online", "critic.target" if name in IN_TURN else ""}:
        assert not changed(agents[0].get_submodule(module), parameters_of(agents[1].get_submodule(module)))


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_is_trained_and_targets_are_not(name: str) -> None:
    agent = build(name, [0])
    before = parameters_of(agent)
    train(agent, [0], offline=2, online=1)
    optimised = {parameter for adam in agent.optimizers().values() for parameter in adam.parameters}
    for key, parameter in agent.named_parameters():
        is_target = key.startswith("target_") or "critic.target." in key
        assert parameter.requires_grad == (parameter in optimised), key
        assert parameter.requires_grad != is_target or ".query." in key or ".key." in key
        moves = parameter.requires_grad or is_target
        assert moves == (not torch.equal(parameter, before[key])), key


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_windows_that_leave_their_episode_do_not_train_the_critic(name: str) -> None:
    agent, batch = build(name, [0]), batch_of([0], tiny_config(name).chunk_length)
    batch = replace(batch, valid=torch.zeros_like(batch.valid))
    before = parameters_of(agent.critic.online)
    metrics = agent.update_online(batch, SeededNoise([0]))
    assert float(metrics["critic_loss"]) == 0
    assert not changed(agent.critic.online, before)


@pytest.mark.parametrize("name", WITH_TARGET)
def test_the_target_critic_follows_the_critic_of_before_the_step_or_of_after_it_as_released(name: str) -> None:
    agent = build(name, [0], target_update_rate=0.25)
    train(agent, [0], offline=0, online=1)  # now the two differ
    critic, target = parameters_of(agent.critic.online), parameters_of(agent.critic.target)
    train(agent, [0], offline=0, online=1)
    if name in IN_TURN:
        critic = parameters_of(agent.critic.online)
    for key, value in parameters_of(agent.critic.target).items():
        torch.testing.assert_close(value, 0.75 * target[key] + 0.25 * critic[key])


MASKED = [name for name, (_, config) in AGENTS.items() if "window_mask" in settings_of(config)]


@pytest.mark.parametrize("mask", ["steps", "window"])
@pytest.mark.parametrize("name", MASKED)
def test_windows_that_leave_their_episode_train_the_flow_by_their_valid_steps_or_not_at_all(
    name: str, mask: str, gradients: dict[Tensor, Tensor]
) -> None:
    agent, batch = build(name, [0], window_mask=mask), batch_of([0], AGENTS[name][1].chunk_length)
    valid = torch.ones_like(batch.valid)
    valid[..., -1] = 0
    agent.update_offline(replace(batch, valid=valid), SeededNoise([0]))
    flow = next(getattr(agent, n) for n in ("behaviour_velocity", "denoiser", "policy_velocity") if hasattr(agent, n))
    trains = (mask == "steps" and agent.chunk_length > 1) or name == "fbrac"  # whose flow maximises Q as well
    assert any(bool(gradients[parameter].any()) for parameter in flow.parameters()) == trains


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_detached_numbers_of_each_seed(name: str) -> None:
    agent = build(name, [0, 1])
    for phase, metrics in zip(("offline", "online"), train(agent, [0, 1], offline=1, online=1), strict=True):
        expected = {"critic_loss", "q_mean", "q_min", "q_max"} if name in WITH_CRITIC else set()
        # IDQL's policy stays, that of others at this turn; PPO has nothing to do.
        if not ((phase == "online" and name in ("idql", *JOINT)) or (name, phase) == ("ppo", "offline")):
            expected = expected | {"policy_loss"}
        assert expected <= set(metrics)
        for key, value in metrics.items():
            assert value.shape == (2,) and not value.requires_grad and value.isfinite().all(), key
            assert float(value[0]) != float(value[1]) or key in SHARED_METRICS, key


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_q_metrics_are_those_of_the_batch(name: str) -> None:
    agent, batch = build(name, [0]), batch_of([0], tiny_config(name).chunk_length)
    q = agent.critic(batch.obs, batch.action_chunk).detach()
    passes: list[Tensor] = []
    if name in JOINT:
        joint = agent.critic.online.joint
        agent.critic.online.joint = lambda *rows: [passes.append(one.detach()) or one for one in joint(*rows)]
    metrics = agent.update_online(batch, SeededNoise([0]))
    if name in JOINT:
        q = agent.critic.mean_of(passes[0].softmax(-1)) if name == "dime" else passes[0].squeeze(-1)
    for key, value in (("q_mean", q.mean()), ("q_min", q.min()), ("q_max", q.max())):
        torch.testing.assert_close(metrics[key], value.reshape(1))


# --- metrics and their names

VOCABULARY_FILE = Path(__file__).parent.parent / "results" / "README.md"
# Options whose metrics no registry entry has.
OPTIONS_WITH_METRICS = [("sac_flow_t", {"bc_target": "flow"}), ("sac", {"bc_coef": 0.1})]


def vocabulary() -> set[str]:
    """The metric names of the table in the results' README."""
    table = VOCABULARY_FILE.read_text().split("| metric | |\n|---|---|\n")[1].split("\n\n")[0]
    return {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_every_metric_has_its_meaning_in_the_vocabulary_and_none_there_is_unused() -> None:
    found: set[str] = set()
    for name, changes in [*((name, {}) for name in NAMES), *OPTIONS_WITH_METRICS]:
        agent = build(name, [0], **changes)
        logged = set().union(*train(agent, [0], offline=1, online=1))
        logged |= set(agent.policy_metrics(batch_of([0], agent.chunk_length), SeededNoise([0])))
        assert logged <= vocabulary(), (name, logged - vocabulary())
        found |= logged
    assert found == vocabulary()


@pytest.mark.parametrize("name", NAMES)
def test_policy_metrics_are_of_the_action_of_an_evaluation_and_change_nothing(name: str) -> None:
    agent = build(name, [0, 1])
    train(agent, [0, 1], offline=1, online=1)
    batch, before = batch_of([0, 1], agent.chunk_length), agent.state_of_seed(1)
    metrics = agent.policy_metrics(batch, SeededNoise([0, 1]))
    assert_equal_states(agent.state_of_seed(1), before)
    assert all(parameter.grad is None for parameter in agent.parameters())
    action_chunk = agent.act(batch.obs, SeededNoise([0, 1]), "evaluate")
    for seed in (0, 1):
        valid = batch.valid[seed].bool()
        distance = (action_chunk[seed][valid] - batch.action_chunk[seed][valid]).square().mean()
        torch.testing.assert_close(metrics["action_mse"][seed], distance)
    assert set(metrics) == {"action_mse", "policy_q"} - (set() if name in WITH_CRITIC else {"policy_q"})
    if name in WITH_CRITIC:
        torch.testing.assert_close(metrics["policy_q"], agent.critic(batch.obs, action_chunk).detach().mean((1, 2)))
    assert all(value.shape == (2,) and not value.requires_grad for value in metrics.values())


def test_the_distance_to_data_without_a_valid_step_is_a_number() -> None:
    agent, batch = build("bc", [0]), batch_of([0], 5)
    batch = replace(batch, valid=torch.zeros_like(batch.valid))
    assert float(agent.policy_metrics(batch, SeededNoise([0]))["action_mse"]) == 0


# Options under which an agent reads a field that no registry entry needs.
WITH_TARGETS = {"critic": JointCriticConfig(batch_renorm=False, critic_hidden_dims=(16,))}
OPTIONS_WITH_FIELDS: dict[type[Agent], tuple[dict[str, Any], ...]] = {
    SACFlow: ({"bc_target": "flow"},),
    SACAgent: ({"bc_coef": 0.1},),
    CrossQ: (WITH_TARGETS,),
    ScratchFlow: (WITH_TARGETS,),
}


@pytest.mark.parametrize("name", NAMES)
def test_an_agent_reads_every_field_of_its_config(name: str) -> None:
    # Fields that only one velocity field needs count as read if an agent of the same class reads them.
    read: set[str] = set()
    agent_class, config = AGENTS[name]

    def recording(config: Any) -> Any:
        class Recording(type(config)):
            def __getattribute__(self, key: str) -> Any:
                read.add(key)
                return super().__getattribute__(key)

        values = {field.name: getattr(config, field.name) for field in fields(config)}
        return Recording(**{key: recording(value) if is_dataclass(value) else value for key, value in values.items()})

    names = set(settings_of(config))
    read_in_use: set[str] = set()
    variants = [tiny_config(other) for other in NAMES if AGENTS[other][0] is agent_class]
    variants += [replace(variants[0], **option) for option in OPTIONS_WITH_FIELDS.get(agent_class, ())]
    for variant in variants:
        recorded = recording(variant)
        read.clear()  # what the check at construction read does not count
        agent = agent_class(recorded, OBS_DIM, ACTION_DIM, SeededNoise([0]))
        train(agent, [0], offline=1, online=1)
        for mode in ("collect", "evaluate"):
            agent.act(torch.randn(1, 1, OBS_DIM), SeededNoise([0]), mode)
        read_in_use |= read
    if issubclass(agent_class, OnPolicyAgent):
        read_in_use |= {"num_envs", "rollout_decisions", "batch_decisions", "epochs"}  # by the driver
    assert names <= read_in_use, names - read_in_use


BAD_VALUES = [
    ("fql", "q_aggregation", "men", "one of 'mean', 'min', 'pessimistic' (did you mean 'mean'?)"),
    ("sac_flow_g", "velocity_field", "gate", "one of 'gated', 'decoded', 'plain' (did you mean 'gated'?)"),
    ("sac_flow_t", "norm", "prenorm", "one of 'post', 'pre' (did you mean 'pre'?)"),
    ("sac_flow_t", "temperature", "Auto", "'auto'"),
    ("sac_flow_g", "critic_updates_per_offline_step", 3, "one of 1, 2"),
    ("sac_flow_g", "critic_updates_per_offline_step", True, "one of 1, 2"),
    ("fql", "chunk_length", 0, "a whole number of at least 1"),
    ("fql", "flow_steps", 2.0, "a whole number of at least 1"),
    ("naive_sac_flow", "bc_coef_online", -1.0, "a finite number in [0.0, inf]"),
    ("naive_sac_flow", "learning_rate", math.nan, "a finite number"),
    ("fql", "learning_rate", "3e-4", "a finite number"),
    ("fql", "target_update_rate", 1.5, "a finite number in [0, 1]"),
    ("fql", "normalize_q", 1, "True or False"),
    ("fql", "critic_hidden_dims", (), "a non-empty tuple"),
    ("fql", "policy_hidden_dims", [512], "a non-empty tuple"),
    ("sac_flow_t", "decoder_dim", 30, "a multiple of 4"),
    ("qsm", "sampler", "release", "one of 'released', 'ddpm' (did you mean 'released'?)"),
    ("diffusion_ql", "step_dim", 5, "even and at least 4"),
    ("idql", "policy_hidden_dims", (256, 128), "equal numbers"),
    ("dppo", "policy_hidden_dims", (64, 64), "an odd number of equal widths, or residual false"),
    ("reinflow", "value_hidden_dims", (64, 32, 64), "an odd number of equal widths, or residual false"),
    ("dppo", "max_log_prob", -6.0, "a finite number in [-5.0, inf]"),
    ("sac_flow_g", "policy_noise_std", 0.0, "above 0 unless temperature = 'off'"),
    ("fql", "critic", None, "a CriticConfig"),
    ("crossq", "density", "relased", "one of 'exact', 'released' (did you mean 'released'?)"),
    ("crossq", "batch_renorm", "none", "True or False"),
    ("crossq", "adam_b1", 1.0, "a finite number in [0, 0.9999]"),
    ("sac", "action_scale", 0.0, "a finite number in [1e-06, inf]"),
    ("sac_flow_t_scratch", "decoder_dim", 30, "a multiple of 4"),
    ("sac_flow_t_scratch", "policy_delay", 0, "a whole number of at least 1"),
    ("naive_flow_scratch", "time_input", "by-pass", "one of 'released', 'bypass' (did you mean 'bypass'?)"),
    ("dime", "num_atoms", 1, "at least 2"),
    ("dime", "max_value", -300.0, "a finite number in ["),
    ("flowrl", "matching_weights", "sample", "'per_sample'"),
]


@pytest.mark.parametrize(("name", "field", "value", "expected"), BAD_VALUES)
def test_a_bad_config_value_is_named_with_what_is_allowed(name: str, field: str, value: Any, expected: str) -> None:
    config = AGENTS[name][1]
    with pytest.raises(ValueError) as error:
        with_settings(config, **{field: value})
    message = str(error.value)
    holder = config if hasattr(config, field) else config.critic
    assert message.startswith(f"{type(holder).__name__}.{field} = {value!r}: must be ")
    assert expected in message and "\n" not in message


@pytest.mark.parametrize(
    ("name", "changes"),
    [("sac", {}), ("rlpd", {}), ("dsrl", {}), ("qam_e", {}), ("sac_flow_g", {"temperature": "released"}),
     ("sac_flow_t", {"temperature": "auto"}), ("crossq", {}), ("dime", {}), ("naive_flow_scratch", {})],
)  # fmt: skip
def test_a_learnt_temperature_does_not_begin_at_zero(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^\w+Config\.entropy_coef = 0\.0: must be above 0, its logarithm is learnt$"):
        with_settings(AGENTS[name][1], entropy_coef=0.0, **changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("qam", {}), ("qam_f", {}), ("qam_e", {"edit_scale": 0.0}), ("sac_flow_g", {"temperature": "off"}),
     ("sac_flow_g", {"temperature": "fixed"}), ("reinflow", {})],
)  # fmt: skip
def test_a_coefficient_that_nobody_learns_may_be_zero(name: str, changes: dict[str, Any]) -> None:
    train(build(name, [0], entropy_coef=0.0, **changes), [0], offline=1, online=0)


def two_modes(num_rows: int = 64) -> Batch:
    """One step, two actions in the data, near -.6 and .6; the reward is the action."""
    generator = torch.Generator().manual_seed(0)
    mode = (torch.arange(num_rows) % 2).float().reshape(1, num_rows, 1, 1)
    action_chunk = 1.2 * mode - 0.6 + 0.05 * torch.randn(1, num_rows, 1, 1, generator=generator)
    obs, zeros = torch.zeros(1, num_rows, 1), torch.zeros(1, num_rows)
    return Batch(obs, action_chunk, action_chunk.flatten(1), zeros, obs, torch.ones(1, num_rows, 1))


# Settings of the two-mode problem beside small networks: (both phases, offline only, online only).
Settings = dict[str, Any]
SACFLOW_TWO_MODES = ({"temperature": "off"}, {"bc_coef": 10.0}, {"bc_coef_online": 0.1})
# The base of the fine-tuned flow is a slow copy of the behaviour flow: a faster one, for so few updates.
QAM_TWO_MODES = (
    {"target_update_rate": 0.1, "num_critics": 2},
    {"inverse_temperature": 0.1},
    {"inverse_temperature": 10.0},
)
PPO = {
    "learning_rate": 3e-3,
    "value_learning_rate": 1e-2,
    "ema_rate": 0.1,
    "policy_hidden_dims": (32, 32, 32),
    "first_policy_rollout": 1,
}
TWO_MODES: dict[str, tuple[Settings, Settings, Settings]] = {
    "fql": ({}, {"bc_coef": 10.0}, {"bc_coef": 0.1}),
    "qc_fql": ({}, {"bc_coef": 10.0}, {"bc_coef": 0.1}),
    "naive_sac_flow": ({}, {"bc_coef": 10.0}, {"bc_coef_online": 0.1}),
    **dict.fromkeys(SAC_FLOW, SACFLOW_TWO_MODES),
    "dppo": (PPO | {"cloning_learning_rate": 1e-2}, {}, {"clip_range": 0.2, "first_clip_range": 0.2}),
    "reinflow": (PPO | {"matching_learning_rate": 1e-2}, {}, {"clip_range": 0.2}),
    "dac": ({}, {"bc_coef": 10.0}, {"bc_coef": 0.01}),
    "qsm": ({}, {"inverse_temperature": 0.1}, {"inverse_temperature": 30.0, "bc_coef": 0.3}),
    "diffusion_ql": (
        {"denoising_steps": 20, "learning_rate": 3e-3},
        {"q_coef": 0.0, "num_candidates": 1},
        {"q_coef": 10.0},
    ),
    "idql": ({"ema_rate": 0.1}, {"num_candidates": 1}, {}),
    # Their flow models both modes; one sample of it shows them, the best of many is in the better one already.
    **dict.fromkeys(["qc", "bfn", "ifql"], ({}, {"num_candidates": 1}, {"num_candidates": 32})),
    "fawac": ({}, {"inverse_temperature": 0.0}, {"inverse_temperature": 5.0}),
    "fbrac": ({}, {"bc_coef": 100.0}, {"bc_coef": 0.1}),
    # An entropy that only a wide z has, at a temperature that hides Q; then an entropy that a narrow one has.
    "dsrl": (
        {"entropy_coef": 3.0, "target_update_rate": 0.05, "noise_scale": 2.0},
        {"target_entropy": 0.6},
        {"target_entropy": -2.0},
    ),
    **dict.fromkeys(("qam", "qam_e"), QAM_TWO_MODES),
    # Clipped together with the large adjoint loss, the one-step policy would begin its online phase too slowly.
    "qam_f": (
        {"target_update_rate": 0.1, "num_critics": 2, "max_gradient_norm": 1e3},
        {"inverse_temperature": 0.1, "bc_coef": 10.0},
        {"inverse_temperature": 10.0, "bc_coef": 0.1},
    ),
    **dict.fromkeys(SAC, ({"entropy_coef": 0.01}, {}, {})),
    "rebrac": ({"policy_noise": 0.05, "q_aggregation": "min", "num_critics": 2}, {"bc_coef": 30.0}, {}),
    "iql": ({}, {"inverse_temperature": 0.0}, {}),
    "awac": ({}, {"inverse_temperature": 0.0}, {"inverse_temperature": 5.0}),
    **dict.fromkeys(("bc", "bc_diffusion"), ({}, {}, {})),
    "crossq": ({"entropy_coef": 0.01}, {}, {}),
    **dict.fromkeys(
        SCRATCH_FLOWS,
        ({"entropy_coef": 1e-3, "learning_rate": 3e-3, "critic_learning_rate": 1e-2, "policy_delay": 1}, {}, {}),
    ),
    "dime": (
        {"entropy_coef": 0.01, "critic_learning_rate": 1e-2, "policy_delay": 1}
        | {"min_value": -2.0, "max_value": 2.0, "denoising_steps": 4},
        {},
        {},
    ),
    "flowrl": ({}, {}, {}),
    "qsm_scratch": ({}, {}, {}),
    "ppo": ({}, {}, {}),
}
OFFLINE_UPDATES = {"diffusion_ql": 400}  # where 100 are too few
ONLINE_UPDATES = {"dsrl": 400, "rebrac": 200}  # dsrl: its temperature has to fall first
# Agents whose offline policy does not keep both modes, and why.
ONE_MODE = {
    **dict.fromkeys(WITH_TWO_STEPS, "its squared distance to the actions of the batch is smallest at their mean"),
    "rebrac": "its policy is deterministic, and its squared distance to those actions is smallest at their mean",
    **dict.fromkeys(("iql", "awac"), "its Gaussian has one mean, and evaluation acts by it"),
}
# Agents whose offline policy is held to no actions of the data, and why.
NO_CLONING = dict.fromkeys(
    (*SAC, *JOINT, "flowrl", "qsm_scratch"), "made for online training: Q moves its policy, data hold it to nothing"
)
NO_CLONING["ppo"] = "nothing but its own rollouts moves its policy"
# Agents that do not move to the better mode, and why.
NO_REWARD = dict.fromkeys(("bc", "bc_diffusion"), "it clones the replay, whatever the rewards")


QUICK = ("dppo", "fql", "iql", "sac_flow_g")  # learn to the end in `make test`; the others in make test-all


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.thorough) for n in NAMES])
def test_the_policy_keeps_two_modes_offline_and_moves_to_the_better_one_online(name: str) -> None:
    agent_class, config = AGENTS[name]
    small = {"policy_hidden_dims": (32, 32), "critic_hidden_dims": (32, 32), "gate_dim": 16, "decoder_dim": 16}
    every: dict[str, Any] = {**small, "num_critics": 2}
    sizes = {key: value for key, value in every.items() if key in settings_of(config)}
    both, only_offline, only_online = TWO_MODES[name]
    common = with_settings(config, **({"chunk_length": 1, "learning_rate": 1e-2} | sizes | both))
    batch, obs, noise = two_modes(), torch.zeros(1, 500, 1), SeededNoise([0])

    offline = agent_class(with_settings(common, **only_offline), 1, 1, noise)
    for _ in range(OFFLINE_UPDATES.get(name, 100)):
        offline.update_offline(batch, noise)
    cloned = offline.act(obs, noise, "evaluate").flatten()
    if name in NO_CLONING:
        pass
    elif name in ONE_MODE:
        assert cloned.mean().abs() < 0.35
    else:
        for side in (-1, 1):
            assert 0.2 < float((side * cloned > 0.3).float().mean()) < 0.8

    if name in NO_REWARD:
        return
    online = agent_class(with_settings(common, **only_online), 1, 1, noise)
    online.load_seed_states([offline.state_of_seed(0)])
    for number in range(ONLINE_UPDATES.get(name, 100)):
        experience: Any = batch
        if isinstance(online, OnPolicyAgent):
            experience = decisions_of(online, noise, torch.zeros(1, 64, 1), lambda chunk: chunk.sum((2, 3)))
        online.update_turn(experience, noise, number % online.period)
    assert float((online.act(obs, noise, "evaluate") > 0.4).float().mean()) > 0.9


# --- the parts of base.py


def test_gradient_step_moves_each_loss_own_parameters_by_gradients_of_before_any_step(
    gradients: dict[Tensor, Tensor],
) -> None:
    a, b = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([3.0]))
    step_a, step_b = Adam([a], 0.1), Adam([b], 0.1)
    gradient_step((step_a, a * b), (step_b, a * b.square()))
    assert (float(gradients[a]), float(gradients[b])) == (3.0, 12.0)
    torch.testing.assert_close(torch.cat([a, b]), torch.tensor([1.9, 2.9]))


@pytest.mark.parametrize(("weight_decay", "betas"), [(0.0, (0.9, 0.999)), (0.3, (0.9, 0.999)), (0.0, (0.5, 0.99))])
def test_adam_its_betas_and_its_weight_decay_are_those_of_torch(weight_decay: float, betas: Any) -> None:
    ours, theirs = (nn.Parameter(torch.tensor([[2.0, -3.0], [0.5, 1.0]])) for _ in range(2))
    adam = Adam([ours], 0.1, weight_decay, *betas)
    reference = torch.optim.AdamW([theirs], lr=0.1, betas=betas, weight_decay=weight_decay)
    for step in range(4):
        theirs.grad = (1.0 + step) * theirs.detach() - 1
        adam.step([(1.0 + step) * ours.detach() - 1])
        reference.step()
        torch.testing.assert_close(ours, theirs)


def test_parameters_out_of_reach_of_a_loss_go_on_by_momentum(gradients: dict[Tensor, Tensor]) -> None:
    a, b = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([3.0]))
    optimizer = Adam([a, b], 0.1)
    gradient_step((optimizer, a + b))
    before = float(b.detach())
    gradient_step((optimizer, a * 1.0))
    assert float(gradients[b]) == 0
    assert float(b.detach()) < before


def test_clipping_scales_the_gradients_of_all_steps_together_and_each_seed_alone(
    gradients: dict[Tensor, Tensor],
) -> None:
    # Two seeds; what their gradients are is in the losses. The first seed's are (3, 0) and 4, the second's below 1.
    a, b = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    slopes = torch.tensor([[3.0, 0.0], [0.3, 0.2]])
    gradient_step((Adam([a], 0.1), (slopes * a).sum(1)), (Adam([b], 0.1), torch.tensor([4.0, 0.5]) * b), max_norm=1.0)
    torch.testing.assert_close(gradients[a], torch.tensor([[0.6, 0.0], [0.3, 0.2]]))
    torch.testing.assert_close(gradients[b], torch.tensor([0.8, 0.5]))


def test_entries_of_a_gradient_are_cut_one_by_one_and_what_is_no_number_is_0(gradients: dict[Tensor, Tensor]) -> None:
    a = nn.Parameter(torch.zeros(2, 4))
    slopes = torch.tensor([[3.0, -0.5, math.nan, -7.0], [math.inf, 0.2, -math.inf, 1.0]])
    gradient_step((Adam([a], 0.1), (slopes * a).sum(1)), max_entry=1.0)
    assert torch.equal(gradients[a], torch.tensor([[1.0, -0.5, 0.0, -1.0], [1.0, 0.2, -1.0, 1.0]]))


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.99)])
@pytest.mark.parametrize("compiled", [False, True])
def test_adam_has_its_state_before_the_first_step_and_equals_that_of_torch(
    compiled: bool, betas: tuple[float, float]
) -> None:
    start = torch.randn(2, 3, 5)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    own, reference = Adam([ours], 0.1, 0.0, *betas), torch.optim.Adam([theirs], lr=0.1, betas=betas, eps=1e-8)
    assert own.exp_avg[0].shape == own.exp_avg_sq[0].shape == ours.shape
    step = torch.compile(own.step, backend="eager", fullgraph=True) if compiled else own.step
    for _ in range(20):
        gradient = theirs.detach().sin()
        step([gradient])
        theirs.grad = gradient
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_polyak_update_halves_the_distance_in_138_updates_at_the_usual_rate() -> None:
    online, target = nn.Linear(2, 2), nn.Linear(2, 2)
    distance = (target.weight - online.weight).detach()
    for _ in range(138):
        polyak_update(target, online, 0.005)
    torch.testing.assert_close(target.weight - online.weight, distance / 2, rtol=2e-3, atol=1e-6)


# --- options


@pytest.mark.parametrize("name", WITH_TWO_STEPS)
@pytest.mark.parametrize("critic_updates", [1, 2])
def test_the_matching_step_trains_the_critic_only_if_asked_to(name: str, critic_updates: int) -> None:
    agent = build(name, [0], critic_updates_per_offline_step=critic_updates)
    train(agent, [0])
    before = agent.state_of_seed(0)
    agent.matching_step(batch_of([0], agent.chunk_length), SeededNoise([0]))
    after = agent.state_of_seed(0)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert any("critic" in key for key in moved) == (critic_updates == 2)
    assert any(key.startswith(agent.policy_modules[0]) for key in moved)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if hasattr(AGENTS[name][1], "critic_updates_per_offline_step")]
)
@pytest.mark.parametrize("critic_updates", [1, 2])
def test_an_offline_update_makes_the_stated_number_of_critic_updates(name: str, critic_updates: int) -> None:
    agent = build(name, [0], critic_updates_per_offline_step=critic_updates)
    train(agent, [0], offline=1, online=0)
    assert float(agent.state_of_seed(0)["critic.optimizer/steps"]) == critic_updates


@pytest.mark.parametrize("name", WITH_TWO_STEPS)
def test_each_phase_has_its_bc_coef(name: str) -> None:
    agent = build(name, [0], bc_coef=10.0, bc_coef_online=1000.0)
    metrics = train(agent, [0], offline=1, online=1)
    for coef, found in zip((10.0, 1000.0), metrics, strict=True):
        torch.testing.assert_close(found["policy_loss"], coef * found["bc_loss"] + found["q_loss"])


@pytest.mark.parametrize(
    "name",
    [name for name in WITH_TARGET if name not in WITH_STATE_VALUE and "pessimism" in settings_of(AGENTS[name][1])],
)
def test_the_target_takes_mean_minimum_or_a_pessimistic_value_of_the_critics(name: str) -> None:
    losses = {}
    for aggregation in ("mean", "min", "pessimistic"):
        agent = build(name, [0], num_critics=2, q_aggregation=aggregation, pessimism=0.25)
        with torch.no_grad():  # the two target critics return 1 and 5 for every input
            agent.critic.target.mlp.out.weight.zero_()
            agent.critic.target.mlp.out.bias.copy_(torch.tensor([[[1.0], [5.0]]]))
            agent.critic.online.mlp.out.weight.zero_()
            if hasattr(agent, "temperature"):
                agent.temperature.log_coef.fill_(-math.inf)
        batch = batch_of([0], agent.chunk_length)
        batch = replace(batch, chunk_return=torch.zeros_like(batch.chunk_return), valid=torch.ones_like(batch.valid))
        batch = replace(batch, bootstrap=torch.full_like(batch.bootstrap, 0.9))
        losses[aggregation] = float(agent.critic_loss(batch, SeededNoise([0]))[0].detach())
    assert losses["mean"] == pytest.approx(2.7**2, rel=1e-5)
    assert losses["min"] == pytest.approx(0.9**2, rel=1e-5)
    assert losses["pessimistic"] == pytest.approx((0.9 * 2.5) ** 2, rel=1e-5)  # 3 - 0.25 * 2


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_num_critics_sets_the_size_of_the_ensemble(name: str) -> None:
    agent = build(name, [0], num_critics=3)
    networks = [agent.critic.online, *([agent.critic.target] if name in WITH_TARGET else [])]
    assert all(network.mlp.out.weight.shape[1] == 3 for network in networks)
    train(agent, [0])


def test_normalized_q_has_mean_magnitude_one() -> None:
    agent, batch = build("qc_fql", [0], normalize_q=True), batch_of([0], 5)
    with torch.no_grad():
        agent.critic.online.mlp.out.weight.zero_()
        agent.critic.online.mlp.out.bias.fill_(-40.0)
    assert float(agent.policy_loss(batch, SeededNoise([0]))[1]["q_loss"]) == pytest.approx(1.0)


def test_fql_distils_the_endpoint_of_the_flow_from_the_same_noise() -> None:
    agent = FQL(FQLConfig(policy_hidden_dims=(8,)), OBS_DIM, ACTION_DIM, SeededNoise([0]))
    with torch.no_grad():
        for network in (agent.behaviour_velocity.mlp, agent.one_step_policy):
            network.out.weight.zero_()
            network.out.bias.fill_(0.1)
    draws = {"policy_noise": torch.full((BATCH_SIZE, 10), 0.4), "matching_noise": torch.zeros(BATCH_SIZE, 10)}
    draws["matching_t"] = torch.zeros(BATCH_SIZE, 1)
    metrics = agent.policy_loss(batch_of([0], 5), RecordedNoise(draws))[1]
    # The flow ends at .4 + .1, the policy at .1.
    torch.testing.assert_close(metrics["distill_loss"], torch.tensor([0.16]))


@pytest.mark.parametrize("masked", [False, True])
def test_the_bc_loss_sees_steps_of_the_next_episode_unless_masked(masked: bool) -> None:
    agent, batch = build("sac_flow_g", [0], mask_bc_by_valid=masked), batch_of([0], 5)
    valid = torch.ones_like(batch.valid)
    valid[..., -1] = 0
    other = batch.action_chunk.clone()
    other[:, :, -1] = 0.123
    losses = [
        agent.policy_loss(replace(batch, valid=valid, action_chunk=chunk), SeededNoise([0]), 1.0)[1]["bc_loss"]
        for chunk in (batch.action_chunk, other)
    ]
    assert torch.equal(*losses) == masked


def test_a_policy_held_to_a_flow_is_pulled_to_where_the_flow_leads_from_the_same_noise() -> None:
    agent, batch = build("sac_flow_t", [0], bc_target="flow", temperature="off"), batch_of([0], 5)
    with torch.no_grad():  # the flow adds .2 to every coordinate on its way
        agent.behaviour_velocity.mlp.out.weight.zero_()
        agent.behaviour_velocity.mlp.out.bias.fill_(0.2)
    path = agent.rollout(batch.obs, SeededNoise([0]), "policy", 0.05)
    found = agent.loss_of_path(path, batch, 1.0)[1]["distill_loss"]
    expected = (agent.action_chunk(path) - (path.x_0 + 0.2).clamp(-1, 1).unflatten(-1, (5, -1))).square().mean()
    torch.testing.assert_close(found, expected.detach().reshape(1))


def test_the_flow_that_a_policy_is_held_to_is_cloned_in_both_phases() -> None:
    agent = build("sac_flow_t", [0], bc_target="flow")
    for phase in ({"offline": 1, "online": 0}, {"offline": 0, "online": 1}):
        before = parameters_of(agent.behaviour_velocity)
        train(agent, [0], **phase)
        assert changed(agent.behaviour_velocity, before)
    assert not hasattr(build("sac_flow_t", [0]), "behaviour_velocity")


def test_pretanh_matching_targets_what_the_tanh_maps_to_the_action() -> None:
    agent, batch = build("sac_flow_t", [0], fm_space="pretanh"), batch_of([0], 5)
    target = batch.action_chunk.clamp(-0.98, 0.98)
    target = 0.5 * ((1 + target) / (1 - target)).log()
    expected = matching_loss(agent.velocity_field(batch.obs), target, batch.valid, SeededNoise([0]))
    torch.testing.assert_close(agent.matching_loss(batch, SeededNoise([0]))[0], expected)


@pytest.mark.parametrize(
    ("field", "draw"),
    [("policy_noise_std", "policy"), ("target_noise_std", "next"), ("collect_noise_std", "collect"),
     ("evaluate_noise_std", "evaluate")],
)  # fmt: skip
def test_each_noise_std_acts_in_its_place_alone(field: str, draw: str) -> None:
    def outcome(changes: dict[str, float]) -> dict[str, Tensor]:
        agent, batch = build("flow_mlp", [0], temperature="off", **changes), batch_of([0], 5)
        return {
            "policy": agent.policy_loss(batch, SeededNoise([0]), 1.0)[0].detach(),
            "next": agent.critic_loss(batch, SeededNoise([0]))[0].detach(),
            "collect": agent.act(batch.obs, SeededNoise([0]), "collect"),
            "evaluate": agent.act(batch.obs, SeededNoise([0]), "evaluate"),
        }

    before, after = outcome({}), outcome({field: 0.3})
    assert {key for key in before if not torch.equal(before[key], after[key])} == {draw}


def test_a_rollout_without_noise_is_a_function_of_its_start() -> None:
    agent = build("flow_mlp", [0], evaluate_noise_std=0.0, collect_noise_std=0.1)
    start, obs = torch.randn(4, 10), torch.randn(1, 4, OBS_DIM)

    def act(mode: str, step_noise: Tensor) -> Tensor:
        return agent.act(obs, RecordedNoise({"act_noise": start, "act_step_noise": step_noise}), mode)

    for mode in ("evaluate", "collect"):
        actions = [act(mode, torch.randn(4, 4, 10)) for _ in range(2)]
        assert torch.equal(*actions) == (mode == "evaluate")


def test_paper_sde_scales_its_noise_and_corrects_the_drift() -> None:
    agents = {
        scheme: build("flow_mlp", [0], noise_scheme=scheme, evaluate_noise_std=0.4)
        for scheme in ("additive", "paper_sde")
    }
    obs, start = torch.randn(1, 4, OBS_DIM), torch.zeros(4, 10)
    with torch.no_grad():
        for agent in agents.values():
            agent.velocity_field.mlp.out.weight.zero_()  # v = 0: noise and the drift -sigma^2 x / (2 (1 - t))
    step_noise = torch.zeros(4, 4, 10)
    step_noise[0] = 1.0
    found = {
        scheme: agent.act(obs, RecordedNoise({"act_noise": start, "act_step_noise": step_noise}), "evaluate")
        for scheme, agent in agents.items()
    }
    torch.testing.assert_close(found["additive"], torch.full((1, 4, 5, 2), math.tanh(0.4)))
    shrink = math.prod(1 - 0.08 / 4 / (1 - t) for t in (0.25, 0.5, 0.75))
    torch.testing.assert_close(found["paper_sde"], torch.full((1, 4, 5, 2), math.tanh(0.2 * shrink)))


def test_centred_entropy_is_the_path_entropy_without_its_constant() -> None:
    entropies = {}
    for reference in ("path", "centred"):
        agent = build("sac_flow_g", [0], entropy_reference=reference)
        entropies[reference] = float(agent.policy_loss(batch_of([0], 5), SeededNoise([0]), 1.0)[1]["entropy"])
    assert entropies["path"] - entropies["centred"] == pytest.approx(path_entropy(10, 4, 0.05), rel=1e-5)


def test_the_exact_tanh_term_changes_the_entropy_of_saturated_actions() -> None:
    entropies = []
    for form in ("released", "exact"):
        agent = build("flow_mlp", [0], tanh_log_det=form)
        with torch.no_grad():
            agent.velocity_field.mlp.out.bias.fill_(20.0)
        entropies.append(float(agent.policy_loss(batch_of([0], 5), SeededNoise([0]), 1.0)[1]["entropy"]))
    assert entropies[0] > entropies[1] + 100  # log(1e-6) a coordinate against about -40


@pytest.mark.parametrize(("temperature", "direction"), [("released", -1), ("off", None), ("fixed", 0), ("auto", 1)])
def test_each_temperature_rule_moves_the_coefficient_its_way(temperature: str, direction: int | None) -> None:
    agent = build("sac_flow_g", [0], temperature=temperature)
    train(agent, [0])
    coef = float(agent.temperature.coef)
    if direction is None:
        assert coef == 0
    elif direction == 0:
        assert coef == pytest.approx(0.2)
    else:  # the path entropy is far below its target of 0
        assert (coef - 0.2) * direction > 1e-5


def test_without_temperature_the_entropy_is_in_no_loss() -> None:
    # The released rule with a coefficient of 0 computes the densities, "off" does not.
    off, released = (build("sac_flow_t", [0], temperature=rule) for rule in ("off", "released"))
    released.temperature.log_coef.data.fill_(-math.inf)
    batch = batch_of([0], 5)
    for loss in ("critic_loss", "policy_loss"):
        extra = (1.0,) if loss == "policy_loss" else ()
        found = [getattr(agent, loss)(batch, SeededNoise([0]), *extra)[0] for agent in (off, released)]
        torch.testing.assert_close(*found)


@pytest.mark.parametrize(("temperature", "sign"), [("released", -1), ("auto", 1)])
def test_target_entropy_counts_nats_of_each_coordinate(temperature: str, sign: int) -> None:
    agent = build("sac_flow_g", [0], temperature=temperature, target_entropy=-0.5, entropy_coef=0.3)
    loss = float(agent.temperature_loss(torch.tensor([-128.0])).detach())
    assert loss == pytest.approx(0.3 * (-128 * sign + 5), rel=1e-6)


def test_released_temperature_decays_as_in_the_log_of_the_authors() -> None:
    # Two Adam steps an iteration, the first with a zero gradient; entropy -128.9 throughout.
    config = SACFlowConfig(velocity_field="plain", policy_hidden_dims=(4,))
    agent = SACFlow(config, OBS_DIM, ACTION_DIM, SeededNoise([0]))
    coefs = {}
    for iteration in range(1, 5001):
        for entropy in (0.0, -128.9):
            gradient_step((agent.temperature.optimizer, agent.temperature_loss(torch.tensor([entropy]))))
        coefs[iteration] = agent.temperature.coef
    assert float(coefs[1000]) == pytest.approx(0.135, abs=1e-3)
    assert float(coefs[5000]) == pytest.approx(0.03348, abs=1e-4)


def test_textbook_temperature_grows_without_bound_against_a_constant_entropy() -> None:
    config = SACFlowConfig(velocity_field="plain", policy_hidden_dims=(4,), temperature="auto")
    agent = SACFlow(config, OBS_DIM, ACTION_DIM, SeededNoise([0]))
    for _ in range(1000):
        gradient_step((agent.temperature.optimizer, agent.temperature_loss(torch.tensor([-128.9]))))
    assert float(agent.temperature.coef) == pytest.approx(0.276, abs=2e-3)


def test_the_released_rule_steps_the_temperature_in_the_matching_step_too() -> None:
    agent = build("sac_flow_g", [0])
    train(agent, [0], offline=0, online=1)
    before = float(agent.temperature.coef)
    agent.matching_step(batch_of([0], 5), SeededNoise([0]))
    assert float(agent.temperature.coef) < before  # by momentum: its gradient is zero
