"""Norms of the policy loss's gradient along its rollout: what they are, for which agents, and what they must not do."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.blocks.flow import euler_step, rollout_gradient_norms
from bench.protocol.config import ConfigError, RunConfig
from bench.training.execution import Preemption
from tests.seeded_noise import SeededNoise
from tests.test_agents import NAMES, WITH_TWO_STEPS, assert_equal_states, batch_of, build, train
from tests.test_engine import TRACED, Setup
from tests.test_train import execute, results_of, table
from tests.tiny_runs import tiny_config

# The loss of these agents' policy runs back through no rollout.
WITHOUT_ROLLOUT = {
    **dict.fromkeys(("fql", "qc_fql"), "one-step policy"),
    **dict.fromkeys(("dac", "qsm", "idql", "bc_diffusion"), "the loss is that of the noise in a noised chunk"),
    **dict.fromkeys(("qc", "bfn", "ifql", "bc"), "matching alone"),
    "fawac": "weighted matching alone",
    "dsrl": "critic of the noise",
    **dict.fromkeys(("qam", "qam_e", "qam_f"), "the adjoint is a constant target of the field"),
    **dict.fromkeys(("dppo", "reinflow"), "each step's density has its own part in the loss"),
    **dict.fromkeys(("sac", "rlpd", "rlpd_ac", "rebrac", "iql", "awac"), "no chain from noise to action"),
    **dict.fromkeys(("crossq", "ppo"), "no chain from noise to action"),
    "qsm_scratch": "the loss is that of the noise in a noised chunk",
}
WITH_ROLLOUT = [name for name in NAMES if name not in WITHOUT_ROLLOUT]


def names_of(flow_steps: int) -> list[str]:
    points = [f"gradient_norm_x_{k}" for k in range(flow_steps + 1)]
    return points + [f"gradient_norm_parameters_{k}" for k in range(flow_steps)]


# --- the definition


@pytest.mark.parametrize("flow_steps", [1, 4, 10])
def test_a_constant_jacobian_multiplies_the_norm_at_every_step(flow_steps: int) -> None:
    """v = c x: each step multiplies by 1 + c / K. l = a . x_K with |a| = 5, so norm k is 5 (1 + c / K)^(K - k)."""
    slope = nn.Parameter(torch.tensor([[[4.0]], [[-0.5]]], dtype=torch.float64))  # one for each of two seeds
    x_0 = torch.randn(2, 7, 2, dtype=torch.float64)
    norms = rollout_gradient_norms(
        lambda k, x: euler_step(lambda t, x: slope * x, x, k, flow_steps),
        x_0,
        flow_steps,
        lambda x: (x @ torch.tensor([3.0, -4.0], dtype=torch.float64)).mean(1),
        [slope],
    )
    assert list(norms) == names_of(flow_steps)
    factor = 1 + slope.detach().flatten() / flow_steps
    for k in range(flow_steps + 1):
        torch.testing.assert_close(norms[f"gradient_norm_x_{k}"], 5 * factor ** (flow_steps - k))
    # Step k adds a . x_k / K, pushed through the steps after it, to the gradient by c.
    for k in range(flow_steps):
        added = (x_0 @ torch.tensor([3.0, -4.0], dtype=torch.float64)).mean(1) * factor ** (flow_steps - 1) / flow_steps
        torch.testing.assert_close(norms[f"gradient_norm_parameters_{k}"], added.abs())


@pytest.mark.parametrize(("gate", "expected"), [(1.0, 9.379), (0.5, 3.574)])
def test_a_gate_keeps_a_steep_candidate_within_the_computed_bound(gate: float, expected: float) -> None:
    """v = g (c(x) - x) with c = 4 x, K = 4: (1 - g / 4 + g)^4, against (1 + 4 / 4)^4 = 16 for v = 4 x."""
    unused = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))

    def growth(velocity: Any) -> float:
        x_0 = torch.ones(1, 3, 2, dtype=torch.float64)
        step = lambda k, x: euler_step(velocity, x, k, 4)  # noqa: E731
        norms = rollout_gradient_norms(step, x_0, 4, lambda x: x.sum(-1).mean(1), [unused])
        assert float(norms["gradient_norm_parameters_0"]) == 0
        return float(norms["gradient_norm_x_0"] / norms["gradient_norm_x_4"])

    ours = growth(lambda t, x: gate * (4 * x - x))
    assert ours == pytest.approx((1 - gate / 4 + gate) ** 4)
    assert ours < expected + 1e-3 < growth(lambda t, x: 4 * x) == pytest.approx(16)


@pytest.mark.parametrize("name", WITH_TWO_STEPS)
@pytest.mark.parametrize("phase", ["offline", "online"])
def test_norms_are_those_of_the_loss_that_trains_the_policy(name: str, phase: Any) -> None:
    """Against one pass of autograd through `policy_loss` as an update calls it."""
    coefs = {"offline": 30.0, "online": 2.0}
    by_phase = hasattr(tiny_config(name).agent_config, "bc_coef_online")
    online = {"bc_coef_online": coefs["online"]} if by_phase else {}
    agent = build(name, [0, 1], bc_coef=coefs["offline"], **online)
    train(agent, [0, 1], offline=1, online=1)
    field = agent.get_submodule(agent.policy_modules[0])
    calls: list[tuple[Tensor, Tensor]] = []

    def recording(module: nn.Module, args: Any, velocity: Any) -> Any:
        def asked(t: Tensor, x: Tensor) -> Tensor:
            if t.shape[1] > 1:
                return velocity(t, x)  # of a matching loss, which takes a time for each sample
            if not x.requires_grad:
                x.requires_grad_()  # x_0, which was drawn
            calls.append((x, t))
            return velocity(t, x)

        return asked

    batch = batch_of([0, 1], agent.chunk_length)
    norms = agent.gradient_norms(batch, SeededNoise([0, 1]), phase)
    hook = field.register_forward_hook(recording)
    loss = agent.policy_loss(batch, SeededNoise([0, 1]), *([coefs[phase]] if by_phase else []))[0]
    hook.remove()
    flow_steps = agent.config.flow_steps
    assert list(norms) == names_of(flow_steps) and len(calls) == flow_steps
    gradients = torch.autograd.grad(loss.sum(), [x for x, _ in calls])
    # The entropy term holds the density of x_0 itself: what that adds does not come back through the rollout.
    direct = agent.temperature.coef.reshape(2, 1, 1) * calls[0][0] if hasattr(agent, "path_log_prob") else 0.0
    for k, gradient in enumerate(gradients):
        of_samples = gradient * batch.obs.shape[1] + (direct if k == 0 else 0.0)
        expected = torch.linalg.vector_norm(of_samples, dim=2).mean(1)
        torch.testing.assert_close(norms[f"gradient_norm_x_{k}"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [*WITH_TWO_STEPS, "diffusion_ql"])
def test_parts_of_the_steps_sum_to_the_gradient_of_an_update(
    name: str, gradients: dict[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its policy is stepped after its critic, which hardly moves then, and its gradients are clipped.
    released = {"q_coef": 3.0, "learning_rate": 1e-9, "max_gradient_norm": 1e9} if name == "diffusion_ql" else {}
    agent = build(name, [0], **released)
    batch = batch_of([0], agent.chunk_length)
    batch = replace(batch, valid=torch.zeros_like(batch.valid))  # a matching loss, which has no rollout, is 0 so
    parts: list[Tensor] = []
    grad = torch.autograd.grad

    def kept(outputs: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        found = grad(outputs, inputs, *rest, **options)
        if isinstance(inputs, list):
            parts.append(torch.cat([part.flatten() for part in found[1:]]))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", kept)
        norms = agent.gradient_norms(batch, SeededNoise([0]), "online")
    for k, part in enumerate(reversed(parts)):
        torch.testing.assert_close(norms[f"gradient_norm_parameters_{k}"], part.norm().reshape(1))
    agent.update_online(batch, SeededNoise([0]))
    field = agent.get_submodule(agent.policy_modules[0])
    trained = torch.cat([gradients[p].flatten() for p in field.parameters() if p.requires_grad])
    torch.testing.assert_close(torch.stack(parts).sum(0), trained, rtol=1e-3, atol=1e-4 * float(trained.abs().max()))


# --- every agent


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("phase", ["offline", "online"])
def test_every_agent_reports_norms_of_each_step_or_has_no_rollout(name: str, phase: Any) -> None:
    agent = build(name, [0, 1, 2])
    train(agent, [0, 1, 2])
    before = {key: value.clone() for key, value in agent.state_tensors().items()}
    norms = agent.gradient_norms(batch_of([0, 1, 2], agent.chunk_length), SeededNoise([0, 1, 2]), phase)
    steps = getattr(agent.config, "flow_steps", 0) or getattr(agent.config, "denoising_steps", 0)
    assert list(norms) == ([] if name in WITHOUT_ROLLOUT else names_of(steps))
    for key, value in norms.items():
        assert value.shape == (3,) and not value.requires_grad and value.isfinite().all() and (value > 0).all(), key
    assert_equal_states(agent.state_tensors(), before)
    assert all(parameter.grad is None for parameter in agent.parameters())


@pytest.mark.parametrize("name", WITH_ROLLOUT)
def test_norms_of_a_pack_are_those_of_its_seeds_alone(name: str) -> None:
    pack = build(name, [5, 6, 7])
    found = pack.gradient_norms(batch_of([5, 6, 7], pack.chunk_length), SeededNoise([5, 6, 7]), "online")
    for slot, seed in enumerate([5, 6, 7]):
        alone = build(name, [seed]).gradient_norms(batch_of([seed], pack.chunk_length), SeededNoise([seed]), "online")
        for key, value in alone.items():
            torch.testing.assert_close(found[key][slot], value[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", WITH_ROLLOUT)
def test_norms_do_not_scale_with_the_batch(name: str) -> None:
    agent, batch = build(name, [0]), batch_of([0], tiny_config(name).agent_config.chunk_length)

    class Twice(SeededNoise):
        """The numbers of the first half of a batch again in the second."""

        def normal(self, draw: str, *shape: int) -> Tensor:
            half = super().normal(draw, *shape[:-2], shape[-2] // 2, shape[-1])
            return torch.cat([half, half], -2)

    once = agent.gradient_norms(batch, SeededNoise([0]), "online")
    doubled = replace(batch, **{key: torch.cat([value, value], 1) for key, value in vars(batch).items()})
    for key, value in agent.gradient_norms(doubled, Twice([0]), "online").items():
        torch.testing.assert_close(value, once[key], rtol=1e-4, atol=0)


# --- in a run


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("sac_flow_t", "eager"),
        ("naive_sac_flow", "eager"),
        pytest.param("flow_mlp", "compiled", marks=pytest.mark.thorough),
    ],
)
def test_measuring_between_updates_changes_no_bit_of_them(name: str, mode: Any) -> None:
    measured, left_alone = (Setup(name, mode=mode, compiler=TRACED) for _ in range(2))
    norms: list[dict[str, float]] = []
    for setup in (measured, left_alone):
        for number in range(4):
            setup.collect(1)
            setup.engine.update_online(number)
            if setup is measured:
                norms += setup.engine.gradient_norms("online", number + 1)[:1]
    assert measured.engine.mode == mode
    assert_equal_states(measured.outcome(), left_alone.outcome())
    assert measured.metrics.take(2) == left_alone.metrics.take(2)
    assert len({norm["gradient_norm_x_0"] for norm in norms}) == 4  # of another batch each time
    assert measured.engine.gradient_norms("online", 4)[0] == norms[-1]


def measuring(agent: str, interval: int, **changes: Any) -> RunConfig:
    """A run of a few updates with an evaluation of one episode at the end of each phase."""
    few = {"offline_updates": 11, "online_steps": 14, "warmup_steps": 4, "eval_episodes": 1}
    few |= {"eval_interval_updates": 100, "eval_interval_steps": 100}
    return tiny_config(agent, suite=f"every-{interval}", gradient_norm_interval=interval, **(few | changes))


@pytest.mark.parametrize("agent", ["sac_flow_g", pytest.param("naive_sac_flow", marks=pytest.mark.slow)])
def test_a_run_with_norms_has_more_rows_and_is_else_the_same(agent: str, data_cache: Any, tmp_path: Any) -> None:
    config, without = measuring(agent, 5), measuring(agent, 0)
    execute([config], tmp_path)
    execute([without], tmp_path)
    ours, theirs = results_of(config, tmp_path), results_of(without, tmp_path)
    assert ours["episodes.csv"] == theirs["episodes.csv"]
    rows = ours["train.csv"].decode().splitlines(keepends=True)
    own = [row for row in rows if "gradient_norm" in row]
    assert "".join(row for row in rows if row not in own) == theirs["train.csv"].decode()
    points = list(dict.fromkeys(tuple(row.split(",")[:3]) for row in own))
    # Every 5 updates and at the end of each phase; online updates begin at environment step 4.
    offline = [("offline", updates, "0") for updates in ("5", "10", "11")]
    assert points == [*offline, ("online", "15", "7"), ("online", "20", "12"), ("online", "22", "14")]
    assert [row.split(",")[3] for row in own] == names_of(config.agent_config.flow_steps) * len(points)

    for polls in (8, 9):  # offline, then online
        with pytest.raises(Preemption):
            execute([config], tmp_path / "stopped", stop_after=polls)
    execute([config], tmp_path / "stopped")
    assert results_of(config, tmp_path / "stopped") == ours


def test_several_updates_per_step_pass_no_multiple_of_the_interval_by(data_cache: Any, tmp_path: Any) -> None:
    config = measuring("flow_mlp", 4, utd_ratio=3, online_steps=9)
    execute([config], tmp_path)
    rows = [row for row in table(config, tmp_path, "train.csv") if row["name"] == "gradient_norm_x_0"]
    assert [int(row["updates"]) for row in rows if row["phase"] == "offline"] == [4, 8, 11]
    # Updates come in threes: 14 (passes 12), 17 (16), 20, 26 (24), 29 (28, and the end); 23 passes none.
    assert [int(row["updates"]) for row in rows if row["phase"] == "online"] == [14, 17, 20, 26, 29]


def test_an_agent_without_a_rollout_has_no_such_rows(data_cache: Any, tmp_path: Any) -> None:
    config = measuring("qc_fql", 5, online_steps=0)
    execute([config], tmp_path)
    names = {row["name"] for row in table(config, tmp_path, "train.csv")}
    assert "policy_loss" in names and not any("gradient" in name for name in names)


def test_the_interval_is_part_of_a_run_and_none_is_as_before_there_was_one() -> None:
    config = tiny_config()
    off = config.replace(gradient_norm_interval=0)
    assert off.to_json()["config_hash"] != config.to_json()["config_hash"]
    assert "gradient_norm_interval" not in off.to_json()
    assert RunConfig.from_json(off.to_json()) == off
    assert RunConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigError, match="gradient_norm_interval is -1; it must be an integer of at least 0"):
        config.replace(gradient_norm_interval=-1)
