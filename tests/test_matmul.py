"""Precision of products in updates (--matmul): what it touches, what it leaves alone, and where it is told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func

from agents import AGENTS
from agents.blocks import kernels
from agents.blocks.base import Agent
from agents.blocks.config import with_settings
from agents.blocks.kernels import NARROW, affine, multiplies, products_in
from agents.blocks.networks import MLP
from agents.blocks.streams import SeedStreams
from analysis.loading.load import load_results
from analysis.loading.read import ResultsError
from bench.protocol.config import ConfigError, RunConfig
from bench.protocol.departures import departures
from bench.training.agreement import MismatchError, check_agreement
from bench.training.engine import check_matmul
from bench.training.execution import Execution, Preemption
from bench.training.pack import prepare_directory
from bench.training.train import run
from tests.seeded_noise import SeededNoise
from tests.test_agents import NAMES, assert_equal_states, batch_of, build
from tests.test_analysis import write_run
from tests.test_engine import ACTION_DIM, CPU, OBS_DIM, TRACED, Setup
from tests.test_report import card
from tests.tiny_runs import provenance_of, tiny_config

SEEDS = [0, 1]
needs_bf16 = pytest.mark.skipif(not multiplies("bf16", CPU), reason="this processor does not multiply bf16")


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().double()


# --- products


@needs_bf16
@pytest.mark.parametrize("members", [(), (3,)])
def test_a_wide_product_in_bf16_has_operands_and_result_rounded_and_a_bias_that_is_not(
    members: tuple[int, ...],
) -> None:
    shapes = ((64, 96), (96, 48), (48,), (64, 48))
    x, weight, bias, slope = (torch.randn(*members, *shape, dtype=torch.float64).float() for shape in shapes)
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    with products_in("bf16"):
        y = affine(x, weight, bias)
        gradients = torch.autograd.grad((y * slope).sum(), (x, weight, bias))
    assert y.dtype == torch.float32 and all(gradient.dtype == torch.float32 for gradient in gradients)
    expected = (
        rounded(x) @ rounded(weight),
        rounded(slope) @ rounded(weight).mT,
        rounded(x).mT @ rounded(slope),
    )
    # One rounding of a sum: at most half a unit of its 8 digits, 2^-9 of it.
    for found, exact in zip((y - bias.unsqueeze(-2), *gradients[:2]), expected, strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2**-8)
        assert (found.double() - exact).norm() / exact.norm() < 2**-9
    torch.testing.assert_close(gradients[2], slope.sum(-2))
    assert not torch.equal(y, affine(x, weight, bias))


@needs_bf16
@pytest.mark.parametrize(("rows", "in_dim", "out_dim"), [(NARROW - 1, 64, 64), (64, NARROW - 1, 64), (64, 64, 1)])
def test_a_narrow_product_is_the_same_in_every_precision(rows: int, in_dim: int, out_dim: int) -> None:
    tensors = [torch.randn(*shape).requires_grad_() for shape in ((rows, in_dim), (in_dim, out_dim), (out_dim,))]

    def numbers() -> list[Tensor]:
        y = affine(*tensors)
        return [y, *torch.autograd.grad(y.square().sum(), tensors)]

    expected = numbers()
    with products_in("bf16"):
        assert all(map(torch.equal, numbers(), expected))


@needs_bf16
@pytest.mark.parametrize("name", [name for name in NAMES if name != "ppo"])  # which has no offline update
def test_an_update_in_bf16_is_near_that_in_fp32_and_leaves_state_and_metrics_in_fp32(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        agent = build(name, SEEDS)
        metrics = agent.update_offline(batch_of(SEEDS, agent.chunk_length, 64), SeededNoise(SEEDS))
        return metrics, agent.state_tensors()

    exact = outcome()
    for all_at_once in (False, True):  # as on a CPU, as on a GPU
        if all_at_once:
            monkeypatch.setattr(kernels, "at_once", lambda x: True)
        with products_in("bf16"):
            found = outcome()
        for ours, theirs in zip(found, exact, strict=True):
            assert all(tensor.dtype == theirs[key].dtype for key, tensor in ours.items())
        for key, value in found[0].items():
            torch.testing.assert_close(value, exact[0][key], rtol=0.05, atol=0.02, msg=lambda text, key=key: key + text)
        means = [key for key in found[1] if key.endswith("exp_avg")]
        apart = sum(float((found[1][key] - exact[1][key]).square().sum()) for key in means)
        whole = sum(float(exact[1][key].square().sum()) for key in means)
        assert 0 < apart < 0.04**2 * whole, (apart / whole) ** 0.5


@needs_bf16
@pytest.mark.parametrize("name", ["qc", "sac_flow_g", "sac_flow_t", "dac", "qam"])
def test_a_seed_in_bf16_does_not_depend_on_its_pack(name: str) -> None:
    def trained(seeds: list[int]) -> list[dict[str, Tensor]]:
        agent = build(name, seeds)
        with products_in("bf16"):
            agent.update_offline(batch_of(seeds, agent.chunk_length, 64), SeededNoise(seeds))
        return [agent.state_of_seed(slot) for slot in range(len(seeds))]

    pack = trained([5, 6, 7])
    for slot, seed in enumerate([5, 6, 7]):
        assert_equal_states(pack[slot], trained([seed])[0])


def test_what_is_entered_is_left_again_even_after_an_error() -> None:
    mlp, x = MLP(32, (32,), 32, SeededNoise(SEEDS)), torch.randn(2, 32, 32)
    expected = mlp(x)
    with pytest.raises(ValueError, match="stop"), products_in("tf32"):
        assert torch.backends.cuda.matmul.allow_tf32
        raise ValueError("stop")
    assert not torch.backends.cuda.matmul.allow_tf32 and torch.equal(mlp(x), expected)


# --- the engine


@needs_bf16
def test_updates_are_in_bf16_and_acts_and_measurements_are_not() -> None:
    exact, rounding = Setup("sac_flow_g"), Setup("sac_flow_g", matmul="bf16")
    rounding.engine.update_offline(0, 3)
    exact.engine.update_offline(0, 3)
    names = [name for name in exact.outcome() if "velocity" in name and name.endswith("weight")]
    assert names and not any(torch.equal(exact.outcome()[name], rounding.outcome()[name]) for name in names)
    rounding.agent.load_seed_states([exact.agent.state_of_seed(index) for index in range(2)])
    obs = torch.randn(2, 1, exact.agent.obs_dim)
    assert all(map(torch.equal, rounding.engine.act(obs, 7), exact.engine.act(obs, 7)))
    assert rounding.engine.policy_metrics(5) == exact.engine.policy_metrics(5)
    assert rounding.engine.gradient_norms("online", 5) == exact.engine.gradient_norms("online", 5)


@needs_bf16
@pytest.mark.thorough
@pytest.mark.parametrize("name", ["sac_flow_g", "qc"])
def test_compiled_updates_are_in_the_precision_of_eager_ones(name: str) -> None:
    compiled, eager = Setup(name, matmul="bf16", mode="compiled", compiler=TRACED), Setup(name, matmul="bf16")
    exact = Setup(name)
    for setup in (compiled, eager, exact):
        setup.engine.update_offline(0, 3)
    assert compiled.engine.mode == "compiled"

    def distance(setup: Setup) -> float:
        means = {name: value for name, value in setup.outcome().items() if name.endswith("exp_avg")}
        return sum(float((value - eager.outcome()[name]).norm()) for name, value in means.items())

    assert distance(compiled) < 0.2 * distance(exact)


class Rounded(torch.fx.Interpreter):
    """Gives of each product in bf16 another neighbour among its numbers, for a share of the entries."""

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if n.target is torch.ops.o2o_bench.onednn_product.default and result.dtype == torch.bfloat16:
            result.view(-1)[::20] *= 1 + 2**-7
        return result


@needs_bf16
def test_a_compiled_update_in_bf16_may_be_a_rounding_of_bf16_away() -> None:
    # Measured of inductor, qc_fql at paper size: gradients 3e-3 and parameters 1e-2 from eager ones after two updates.
    backend = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(Rounded(graph).run))
    compiled, eager = (
        WideSetup("bc", matmul="bf16", mode=mode, compiler=backend, seeds=(0,)) for mode in ("compiled", "eager")
    )
    start = eager.outcome()
    for setup in (compiled, eager):
        setup.engine.update_offline(0, 2)
    assert (compiled.engine.mode, compiled.engine.warnings) == ("compiled", [])
    with pytest.raises(MismatchError, match="gradients"):  # of fp32 that would be too much
        check_agreement(start, eager.outcome(), compiled.outcome())


class WideSetup(Setup):
    """With networks that multiply in bf16."""

    def make_agent(self, name: str, noise: SeedStreams) -> Agent:
        agent_class, config = AGENTS[name]
        return agent_class(with_settings(config, policy_hidden_dims=(64, 64)), OBS_DIM, ACTION_DIM, noise)


# --- runs


@pytest.mark.parametrize(
    ("matmul", "device", "said"),
    [
        ("tf32", "cpu", r"matmul tf32 needs a GPU \(Ampere or newer\); use --matmul fp32"),
        ("bf16", "cpu", r"matmul bf16 needs a processor with instructions for it \(AVX-512 BF16, AMX\) or a GPU"),
        ("tf32", "cuda", r"matmul tf32 needs a GPU \(Ampere or newer\)"),
        ("bf16", "cuda", "matmul bf16 needs a processor"),
    ],
)
def test_a_precision_that_a_device_does_not_have_is_refused(
    matmul: kernels.Matmul, device: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    check_matmul("fp32", torch.device(device))
    with pytest.raises(ConfigError, match=said):
        check_matmul(matmul, torch.device(device))


def test_runs_in_fp32_keep_their_hash_and_others_say_what_they_are() -> None:
    exact, rounding = tiny_config(), tiny_config(matmul="bf16")
    assert "matmul" not in exact.to_json() and "matmul" not in departures(exact)
    assert RunConfig.from_json(exact.to_json()) == exact
    assert rounding.to_json()["matmul"] == "bf16" and RunConfig.from_json(rounding.to_json()) == rounding
    assert departures(rounding)["matmul"] == {"value": "bf16", "released": "fp32"}
    with pytest.raises(ConfigError, match="matmul is 'fp16'; it must be one of fp32, tf32, bf16"):
        tiny_config(matmul="fp16")


def test_a_run_does_not_go_on_in_another_precision(tmp_path: Path) -> None:
    prepare_directory(tiny_config(), tmp_path)
    with pytest.raises(ConfigError, match=r"was written by another config \(matmul fp32 there, bf16 here\)"):
        prepare_directory(tiny_config(matmul="bf16"), tmp_path)


@needs_bf16
def test_a_run_in_bf16_goes_on_as_if_never_stopped(data_cache: Path, tmp_path: Path) -> None:
    config = tiny_config("qc", matmul="bf16", batch_size=64)
    exact = tiny_config("qc", suite="exact", batch_size=64)

    def numbers(config: RunConfig, root: Path) -> str:
        return (config.directory(root) / "train.csv").read_text()

    def execute(config: RunConfig, root: Path, polls: int = 10**9) -> None:
        left = iter(range(polls))
        run([config], root, Execution(device="cpu", checkpoint_seconds=1e9), lambda: next(left, None) is None)

    execute(config, tmp_path / "whole")
    execute(exact, tmp_path / "whole")
    with pytest.raises(Preemption):
        execute(config, tmp_path / "stopped", polls=20)
    execute(config, tmp_path / "stopped")
    assert numbers(config, tmp_path / "stopped") == numbers(config, tmp_path / "whole")
    assert numbers(config, tmp_path / "whole") != numbers(exact, tmp_path / "whole")
    assert provenance_of(config.directory(tmp_path / "whole"))["departures"]["matmul"]["value"] == "bf16"


# --- analysis


def test_a_suite_of_several_precisions_is_refused_unless_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path, agent="fql")
    write_run(tmp_path, agent="fql", variant="bf16", matmul="bf16")
    said = r"suite quick: matmul is fp32 in .*/fql/seed_000 but bf16 in .*/fql@bf16/seed_000; --mixed-matmul shows"
    with pytest.raises(ResultsError, match=said):
        load_results(tmp_path)
    (suite,) = load_results(tmp_path, mixed_matmul=True)
    assert suite.matmuls == ("bf16", "fp32")


def test_seeds_of_one_agent_in_two_precisions_are_refused_all_the_same(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, matmul="bf16")
    with pytest.raises(ResultsError, match=r"beyond the seed: matmul is fp32 in .*/seed_000 but bf16 in .*/seed_001"):
        load_results(tmp_path, mixed_matmul=True)


def test_card_and_captions_say_in_which_precision_updates_multiply(tmp_path: Path) -> None:
    from analysis.labels.wording import provenance_facts

    write_run(tmp_path / "exact")
    write_run(tmp_path / "rounding", matmul="bf16")
    assert card(tmp_path / "exact")["Runs"]["products of layers in updates"].startswith("fp32")
    facts = card(tmp_path / "rounding")
    assert facts["Runs"]["products of layers in updates"].startswith("bf16") and "matmul" not in facts["Budgets"]
    captions = [provenance_facts(load_results(tmp_path / name)[0]) for name in ("exact", "rounding")]
    assert [("products in bf16" in caption) for caption in captions] == [False, True]
