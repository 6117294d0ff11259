"""What several tests share: the switch for slow tests, and one small generated data set per session."""

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import submitit  # noqa: F401  # first: it closes all handlers of logging, absl's would close what pytest captures

from datasets import registry

if TYPE_CHECKING:
    import torch

    from tests.slurm_cluster import Cluster

os.environ.setdefault("MUJOCO_GL", "disable")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of tiny products wait for each other, for ever on busy cores
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # reproducible products on a GPU, as in python -m bench
os.environ["O2O_BENCH_OFFLINE"] = "1"  # no test downloads anything from a real server

REST = {"thorough", "extra", "slurm", "slow"}  # markers of what `make test` leaves out
EXTRAS = {  # the extras of pyproject.toml, and a module that each brings
    **registry.EXTRAS,
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "video": "av",
    "browser": "playwright",
}
CUBE_DATASET = "cube-single-task1-mixed-generated-4ep-seed0"
TINY_DATASET = "toy-reach-mixed-generated-12ep-seed0"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run the thorough tests (make test-all)")
    parser.addoption("--rest", action="store_true", help="run what `make test` leaves out, and nothing else")
    parser.addoption("--slurm", action="store_true", help="also run the tests on a Slurm cluster of their own (Debian)")
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    rest = {item for item in items if REST & set(item.keywords)}
    if config.getoption("--rest"):
        left_out = set(items) - rest
    elif config.getoption("--all") or any("::" in argument for argument in config.args):  # who names a test wants it
        left_out = set()
    else:
        left_out = rest
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]
    # Those on a cluster wait most of the time: first, so that others fill the cores meanwhile.
    items.sort(key=lambda item: "slurm" not in item.keywords)
    reasons = {
        "slow": (not config.getoption("--slow"), "takes minutes; run with --slow"),
        "slurm": (not config.getoption("--slurm"), "starts a Slurm cluster; make test-slurm"),
        "gpu": (not torch.cuda.is_available(), "needs a CUDA device"),
    }
    for item in items:
        for extra in item.iter_markers("extra"):
            if importlib.util.find_spec(EXTRAS[extra.args[0]]) is None:
                item.add_marker(pytest.mark.skip(reason=f"needs an extra: make setup EXTRAS={extra.args[0]}"))
        for marker, (is_missing, reason) in reasons.items():
            if is_missing and marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """After a run of nothing but parity tests: the largest error of each program's numbers, of all its updates."""
    reports = [report for name in ("passed", "failed") for report in terminalreporter.getreports(name)]
    rows = [value for report in reports for name, value in report.user_properties if name == "parity"]
    if not rows or len(rows) < len(reports):
        return
    kinds = ("metric", "gradient", "parameter", "action")
    terminalreporter.section("largest distance to the official numbers, of a tensor's largest entry")
    terminalreporter.write_line(f"{'program':<16}{'seeds':>6}{'execution':>11}" + "".join(f"{k:>11}" for k in kinds))
    for program, seeds, execution, largest in sorted(rows):
        cells = [f"{largest[kind]:.1e}" if kind in largest else "-" for kind in kinds]
        terminalreporter.write_line(f"{program:<16}{seeds:>6}{execution:>11}" + "".join(f"{c:>11}" for c in cells))


@pytest.fixture(autouse=True)
def renderer() -> Iterator[None]:
    """A test that draws in this process chooses a renderer for all that come after it: for none of them."""
    chosen = os.environ["MUJOCO_GL"]
    yield
    os.environ["MUJOCO_GL"] = chosen


@pytest.fixture(autouse=True)
def compilations() -> Iterator[None]:
    """torch compiles a code no more often than its limit; what a test has compiled goes with it."""
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder ($O2O_BENCH_DATA) that holds TINY_DATASET."""
    import datasets

    folder = tmp_path_factory.mktemp("data")
    before = os.environ.get("O2O_BENCH_DATA")
    os.environ["O2O_BENCH_DATA"] = str(folder)
    try:
        datasets.ensure(TINY_DATASET, workers=1)
        datasets.load("toy-reach", TINY_DATASET)
    finally:
        os.environ.pop("O2O_BENCH_DATA")
        if before is not None:
            os.environ["O2O_BENCH_DATA"] = before
    return folder


@pytest.fixture
def data_cache(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Points this test at `tiny_data`."""
    monkeypatch.setenv("O2O_BENCH_DATA", str(tiny_data))
    return tiny_data


@pytest.fixture
def cube_cache(data_cache: Path) -> Path:
    """`data_cache` with CUBE_DATASET in it, which scripted experts make in a simulator."""
    import datasets

    datasets.ensure(CUBE_DATASET, workers=2)
    return data_cache


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Cluster]":
    """A Slurm cluster of its own for each module that asks for one."""
    from tests.slurm_cluster import NODES, Cluster

    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    cluster = Cluster(tmp_path_factory.mktemp("slurm"), NODES, port=17100 + 100 * process)
    yield cluster
    cluster.does("down")


@pytest.fixture
def cluster(machine: "Cluster", data_cache: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Cluster]":
    """The cluster with an empty queue and all nodes up."""
    monkeypatch.setenv("SLURM_CONF", str(machine.conf))
    yield machine
    machine.does("start-ctld")
    machine.says("scancel", "-u", "root")
    for node in range(1, machine.nodes + 1):
        machine.does("start-node", str(node))
        machine.says("scontrol", "update", f"nodename=node{node}", "state=resume")
    machine.drain(120)


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> "dict[torch.Tensor, torch.Tensor]":
    """The gradient of each parameter in its newest optimiser step; filled while the test runs."""
    from agents.blocks.base import Adam

    newest: dict[torch.Tensor, torch.Tensor] = {}
    step = Adam.step

    def recorded(adam: Adam, own: Sequence["torch.Tensor"]) -> None:
        newest.update(zip(adam.parameters, own, strict=True))
        step(adam, own)

    monkeypatch.setattr(Adam, "step", recorded)
    return newest
