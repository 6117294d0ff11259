"""What only a GPU can show, of agents of different structure, in minutes: `make test-gpu`.

Everywhere else the same checks are thorough tests on small networks, with a double of torch's CUDA graphs, so that
none of them breaks unseen.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import AGENTS
from agents.blocks.base import Agent
from agents.blocks.streams import SeedStreams
from bench.training.agreement import TOLERANCE_OF_SEVERAL, check_agreement
from bench.training.engine import GRAPH_UPDATES, NOISE_BLOCK, pick_device
from bench.training.execution import Mode, Preemption
from datasets.replay.replay import Placement
from tests.benchmarks import gpu
from tests.benchmarks.gpu import LATE, Check, Rate, rate_table, verdict
from tests.cuda_double import CudaDouble
from tests.test_capture import Waiting, WaitingSetup, line_of, obs_of
from tests.test_engine import ACTION_DIM, OBS_DIM, Setup, assert_close, made_up_transitions
from tests.test_replay import mapped
from tests.test_train import execute, results_of
from tests.tiny_runs import provenance_of, python, tiny_config

STRUCTURES = ("sac_flow_t", "qc", "fql", "reinflow", "diffusion_ql")
PACK = (0, 1, 2, 3, 4, 5, 6, 7)


class Watched:
    """torch.cuda, whose graphs fail where a tensor that they read was freed."""

    graph = staticmethod(partial(torch.cuda.graph, check_input_liveness=True))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)


class PaperSetup(Setup):
    """Networks of published size: of shapes for which a GPU's libraries choose other kernels than for a few units."""

    def make_agent(self, name: str, noise: SeedStreams) -> Agent:
        agent_class, config = AGENTS[name]
        return agent_class(config, OBS_DIM, ACTION_DIM, noise)


@dataclass(frozen=True)
class Place:
    """Where the checks run: a GPU, or a CPU with a double of the GPU's graphs."""

    device: torch.device
    cuda: Any

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def setup(self, name: str, mode: Mode = "graph", **options: Any) -> Setup:
        wide = PaperSetup if self.is_gpu else Setup
        return wide(name, device=self.device, mode=mode, cuda=self.cuda, **options)

    def memory(self) -> int:
        """What torch has taken from the GPU; graphs that live on the double."""
        return torch.cuda.memory_reserved() if self.is_gpu else len(self.cuda.living)

    @contextlib.contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Within it the host must not wait for the GPU."""
        if not self.is_gpu:
            yield
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


ON_GPU = pytest.param("cuda", marks=pytest.mark.gpu)
IN_REHEARSAL = pytest.param("cpu", marks=pytest.mark.thorough)
# Of the checks that take long, one is rehearsed.
EACH_OR_FQL = [pytest.param("cuda", name, marks=pytest.mark.gpu) for name in STRUCTURES]
EACH_OR_FQL.append(pytest.param("cpu", "fql", marks=pytest.mark.thorough))
each_structure = pytest.mark.parametrize(("place", "name"), EACH_OR_FQL, indirect=["place"])


@pytest.fixture(params=[ON_GPU, IN_REHEARSAL])
def place(request: pytest.FixtureRequest) -> Place:
    device = pick_device(request.param)
    return Place(device, Watched() if request.param == "cuda" else CudaDouble())


def begin_online(setup: Setup) -> None:
    """What comes before the first online update."""
    if setup.store is None:
        setup.collect(1)
    else:
        setup.collect_on_policy(setup.store)


def assert_agree(fast: Setup, eager: Setup, start: dict[str, torch.Tensor]) -> None:
    """As far as the engine itself allows after several updates."""
    check_agreement(start, eager.outcome(), fast.outcome(), TOLERANCE_OF_SEVERAL)
    for ours, theirs in zip(*(each.metrics.take(len(fast.seeds)) for each in (fast, eager)), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("name", STRUCTURES)
def test_captured_updates_and_actions_equal_eager_ones_through_the_hand_over(name: str, place: Place) -> None:
    fast, eager = place.setup(name), place.setup(name, mode="eager")
    start = fast.outcome()
    last = NOISE_BLOCK + GRAPH_UPDATES + 3  # beyond a refill of the tape, in bursts and one by one
    for each in (fast, eager):
        each.engine.update_offline(0, NOISE_BLOCK - 2)
        for number in range(NOISE_BLOCK - 2, last):
            each.engine.update_offline(number)

    def assert_acts_alike(step: int) -> None:
        chunks = [each.engine.act(obs_of(each, step), step) for each in (fast, eager)]
        torch.testing.assert_close(*chunks, rtol=1e-2, atol=1e-2)

    assert_acts_alike(0)
    for each in (fast, eager):
        begin_online(each)
        each.engine.update_online(last, 2 * GRAPH_UPDATES)
    for step in range(100, 103):
        assert_acts_alike(step)
    for each in (fast, eager):
        each.engine.update_online(last + 2 * GRAPH_UPDATES, 3)
    assert (fast.engine.mode, fast.engine.warnings) == ("graph", [])
    assert_agree(fast, eager, start)


@each_structure
def test_compiled_updates_equal_eager_ones_in_both_phases(name: str, place: Place) -> None:
    # Few units and steps: a compiler takes its time for each operator.
    mode: Mode = "compiled-graph" if place.is_gpu else "compiled"
    compiler = "inductor" if place.is_gpu else "eager"
    fast = Setup(name, device=place.device, mode=mode, compiler=compiler, cuda=place.cuda)
    eager = Setup(name, device=place.device)
    for each in (fast, eager):
        each.train(offline=12)
    assert (fast.engine.mode, fast.engine.warnings) == (mode, [])
    assert_close(fast, eager)


@pytest.mark.gpu
@pytest.mark.parametrize("name", AGENTS)
def test_captured_updates_and_actions_of_every_agent_equal_eager_ones(name: str) -> None:
    device = pick_device("cuda")
    fast, eager = Setup(name, device=device, mode="graph", cuda=Watched()), Setup(name, device=device)
    for each in (fast, eager):
        each.train(offline=12)
    for step in (100, 105):
        chunks = [each.engine.act(obs_of(each, step), step) for each in (fast, eager)]
        torch.testing.assert_close(*chunks, rtol=1e-2, atol=1e-2)
    assert (fast.engine.mode, fast.engine.warnings) == ("graph", [])
    assert_close(fast, eager)


@each_structure
def test_a_seed_of_a_captured_pack_is_the_seed_alone(name: str, place: Place) -> None:
    pack, alone = place.setup(name, seeds=PACK), place.setup(name, seeds=PACK[3:4])
    start = alone.outcome()
    for each in (pack, alone):
        each.engine.update_offline(0, GRAPH_UPDATES + 2)
    of_pack = {name: value[3:4] if value.dim() else value for name, value in pack.outcome().items()}
    check_agreement(start, alone.outcome(), of_pack, TOLERANCE_OF_SEVERAL)
    assert pack.metrics.take(len(PACK))[3] == pytest.approx(alone.metrics.take(1)[0], rel=1e-2, abs=1e-3)


@each_structure
def test_updates_that_are_set_up_wait_for_nothing(name: str, place: Place) -> None:
    setup = place.setup(name)
    setup.engine.update_offline(0, GRAPH_UPDATES)
    with place.without_waiting():
        setup.engine.update_offline(GRAPH_UPDATES, 2 * NOISE_BLOCK)
    begin_online(setup)
    number = GRAPH_UPDATES + 2 * NOISE_BLOCK
    setup.engine.update_online(number, GRAPH_UPDATES)
    with place.without_waiting():
        setup.engine.update_online(number + GRAPH_UPDATES, NOISE_BLOCK)
        if setup.store is None:
            setup.collect(5)


@pytest.mark.parametrize("placement", ["host", "stream"])
def test_captured_updates_on_data_that_stay_on_the_host_equal_those_on_the_device(
    placement: Placement, place: Place, tmp_path: Path
) -> None:
    away = place.setup("fql", placement=placement, data=mapped(made_up_transitions(), tmp_path))
    near = place.setup("fql", placement="device")
    start = near.outcome()
    for each in (away, near):
        each.engine.update_offline(5, NOISE_BLOCK + 3)  # begins and ends amid a block of draws
        begin_online(each)
        each.engine.update_online(NOISE_BLOCK + 8, 4)
    assert (away.engine.mode, away.engine.warnings) == ("graph", [])
    assert_agree(away, near, start)


def test_capturing_anew_takes_no_more_memory(place: Place) -> None:
    setup = place.setup("fql")
    setup.collect(1)
    taken = []
    for step in range(8):  # a change of phase ends the graphs of the one before
        setup.engine.update_offline(0)
        setup.engine.act(obs_of(setup, step), step)
        setup.engine.update_online(1)
        taken.append(place.memory())
    assert (setup.engine.mode, setup.engine.warnings) == ("graph", [])
    assert len(set(taken[3:])) == 1, taken


def test_a_capture_that_fails_names_its_cause_and_the_next_one_works(place: Place) -> None:
    setup = WaitingSetup(mode="graph", compiler="eager", device=place.device, cuda=place.cuda)
    assert isinstance(setup.agent, Waiting)
    setup.agent.updates = True
    setup.engine.update_offline(0)
    assert f"tests/test_capture.py:{line_of('batch.obs.mean().item()')}" in setup.engine.warnings[0]
    later = place.setup("fql")
    later.engine.update_offline(0, GRAPH_UPDATES)
    assert (later.engine.mode, later.engine.warnings) == ("graph", [])


# --- whole runs


@pytest.mark.gpu
@pytest.mark.parametrize("name", STRUCTURES)
def test_a_stopped_run_on_a_gpu_ends_with_the_same_bytes(name: str, data_cache: Path, tmp_path: Path) -> None:
    config = tiny_config(name)
    execute([config], tmp_path / "whole", device="cuda", engine="graph")
    with pytest.raises(Preemption):
        execute([config], tmp_path / "stopped", stop_after=40, device="cuda", engine="graph")
    execute([config], tmp_path / "stopped", device="cuda", engine="graph")
    assert results_of(config, tmp_path / "stopped") == results_of(config, tmp_path / "whole")


START = """
import sys
from pathlib import Path
from bench.training.execution import Preemption
from tests.test_gpu import resumed_config
from tests.test_train import execute
results, device, engine, stop_after = sys.argv[1:]
try:
    execute([resumed_config(device)], Path(results), float(stop_after), device=device, engine=engine)
except Preemption:
    sys.exit(75)
"""


def resumed_config(device: str) -> Any:
    config = tiny_config("qc_fql")
    return config.replace(agent_config=AGENTS["qc_fql"][1]) if device == "cuda" else config


def test_a_run_resumed_in_another_process_without_its_compiled_code_ends_with_the_same_bytes(
    place: Place, data_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root, device = tmp_path_factory.mktemp("resumed"), place.device.type
    config = resumed_config(device)

    def start(results: str, stop_after: str) -> int:
        words = (str(root / results), device, "auto", stop_after)
        empty = str(tmp_path_factory.mktemp("compiled"))
        done = python("-c", START, *words, timeout=600, TORCHINDUCTOR_CACHE_DIR=empty)
        assert done.returncode in (0, 75), done.stderr
        return done.returncode

    assert [start("whole", "inf"), start("stopped", "40"), start("stopped", "inf")] == [0, 75, 0]
    assert results_of(config, root / "stopped") == results_of(config, root / "whole")
    if place.is_gpu:
        starts = provenance_of(config.directory(root / "stopped"))["starts"]
        assert [each["device"] for each in starts] == 2 * [torch.cuda.get_device_name()]


PLAN = """
import sys, torch
from bench.__main__ import main
code = main(sys.argv[1:])
print("context:", torch.cuda.is_initialized())
sys.exit(code)
"""


def test_a_process_that_plans_holds_no_gpu(place: Place) -> None:
    # A GPU in exclusive mode takes one process: its worker.
    words = ["plan", "--suite", "toy", "--device", place.device.type, "--seeds", "0"]
    done = python("-c", PLAN, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "context: False"


@pytest.mark.gpu
def test_runs_side_by_side_share_out_the_gpus(data_cache: Path, tmp_path: Path) -> None:
    if (gpus := torch.cuda.device_count()) < 2:
        pytest.skip("there is one GPU")
    seeds = [str(seed) for seed in range(gpus)]
    short = "--offline-updates 20 --eval-interval-updates 20 --log-interval 20 --online-steps 40 --eval-episodes 1"
    words = ["run", "--suite", "toy", "--agents", "fql", "--pack", "1", "--results", str(tmp_path), *short.split()]
    done = python("-m", "bench", *words, "--eval-interval-steps", "20", "--device", "cuda", "--seeds", *seeds)
    assert done.returncode == 0, done.stderr
    used = {json.loads(file.read_text())["starts"][0]["visible_gpus"] for file in tmp_path.rglob("provenance.json")}
    assert len(used) == gpus


# --- the command that runs these and measures rates


@pytest.mark.thorough
def test_the_command_rehearses_on_a_cpu_and_writes_one_file(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--only", "fails_names", "--agents", "bc", "--file", str(tmp_path / "found.json")]
    done = python("-m", "tests.benchmarks.gpu", *words, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "VERDICT: it WORKS here: checks: 1 passed, 0 failed, 0 skipped; 2 of 2 rates" in done.stdout
    written = json.loads((tmp_path / "found.json").read_text())
    assert [check["outcome"] for check in written["checks"]] == ["passed"]
    assert [(rate["agent"], rate["mode"], rate["seeds"]) for rate in written["rates"]] == [
        ("bc", "eager", 1),
        ("bc", "eager", 8),
    ]
    assert all(rate["updates_per_second"] > 0 for rate in written["rates"])
    assert {"gpu", "machine", "driver", "cuda", "commit"} <= written.keys()


@pytest.mark.thorough
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_says_in_one_line_that_there_is_no_gpu() -> None:
    done = python("-m", "tests.benchmarks.gpu")
    assert done.returncode == 2
    assert done.stderr == "error: torch finds no GPU; --device cpu rehearses the checks without one\n"


def test_a_peer_that_fails_is_a_line_of_the_verdict_and_takes_no_rate_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "python_with_jax", lambda python, device: "/bin/false")
    eager, *_, jax = rates = gpu.measure_rates(torch.device("cpu"), ["qc_fql"], until=0.0)
    assert eager.reason == LATE and (jax.mode, jax.updates_per_second) == (gpu.JAX, 0.0)
    assert "qc_fql, official JAX, S = 1: /bin/false -m tests.benchmarks.jax_updates" in verdict([], rates)[0]
    assert "ended with exit code 1" in jax.reason


def test_the_verdict_names_what_failed_and_what_was_not_measured() -> None:
    checks = [Check("works", "passed", 1.0, ""), Check("breaks", "failed", 1.0, "E assert 1 == 2")]
    rates = [Rate("fql", "eager", 1, 10.0), Rate("fql", "graph", 1, reason="RuntimeError: no")]
    rates.append(Rate("qc", "graph", 1, reason=LATE))
    text, is_well = verdict(checks, rates)
    assert text.splitlines() == [
        "FAILED breaks",
        "fql, graph, S = 1: RuntimeError: no",
        "VERDICT: it DOES NOT WORK here: checks: 1 passed, 1 failed, 0 skipped; 1 of 3 rates, 1 for want of time not",
    ]
    assert not is_well
    assert not verdict([], rates)[1]  # nothing was checked


def test_rates_stand_beside_the_eager_ones() -> None:
    rates = [Rate("fql", "eager", 1, 10.0), Rate("fql", "graph", 8, 85.0, "it runs eager: so"), Rate("fql", "graph", 1)]
    cells = [cell.strip() for cell in rate_table(rates).splitlines()[-1].split("|")]
    assert cells[1:-1] == ["fql", "10 (1.0x)", "85 (8.5x) !", "-"]
