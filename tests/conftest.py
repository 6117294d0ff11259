"""What several tests share: the switch for slow tests, and one small generated data set per session."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

    from tests.slurm_cluster import Cluster

os.environ.setdefault("MUJOCO_GL", "disable")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of tiny products wait for each other, for ever on busy cores
os.environ["O2O_BENCH_OFFLINE"] = "1"  # no test downloads anything from a real server

# Files that take minutes, longest first: processes take whole files, and the last one should not begin at the end.
LONGEST = (
    "test_slurm",
    "test_slurm_faults",
    "test_train",
    "test_engine",
    "test_deaths",
    "test_parity",
    "test_cli",
    "test_minari",
    "test_offline",
    "test_analysis",
    "test_grid",
    "test_mirror",
    "test_gradients",
    "test_gradient_figures",
    "test_comparison_tables",
    "test_report_browser",
    "test_video",
)
TINY_DATASET = "cube-single-task1-mixed-generated-4ep-seed0"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slurm", action="store_true", help="also run the tests on a Slurm cluster of their own (Debian)")
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))
        if "slurm" in item.keywords and not config.getoption("--slurm"):
            item.add_marker(pytest.mark.skip(reason="starts a Slurm cluster; make test-slurm"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def renderer() -> Iterator[None]:
    """A test that draws in this process chooses a renderer for all that come after it: for none of them."""
    chosen = os.environ["MUJOCO_GL"]
    yield
    os.environ["MUJOCO_GL"] = chosen


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder ($O2O_BENCH_DATA) that holds TINY_DATASET, made by the scripted experts."""
    import datasets

    folder = tmp_path_factory.mktemp("data")
    before = os.environ.get("O2O_BENCH_DATA")
    os.environ["O2O_BENCH_DATA"] = str(folder)
    try:
        datasets.ensure(TINY_DATASET, workers=2)
        datasets.load("cube-single-task1", TINY_DATASET)
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
