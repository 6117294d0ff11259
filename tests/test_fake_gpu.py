"""CUDA paths on a machine without a GPU: what no CUDA graph can hold.

By fake tensors that say that they are on a GPU (tests/fake_gpu). They have no numbers, streams or memory: what only a
GPU can show is for `make test-gpu`.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from filelock import FileLock
from torch._subclasses.fake_tensor import FakeTensorMode

from agents import AGENTS
from tests.fake_gpu.build import NoFakeGPU
from tests.fake_gpu.paths import SEEDS, Finding, findings
from tests.fake_gpu.watch import Operator, Watch

FEW = ("sac_flow_g", "qc_fql", "idql", "qsm", "reinflow")  # of different structure; the others are thorough tests
EACH = [pytest.param(name, marks=[] if name in FEW else [pytest.mark.thorough]) for name in AGENTS]
PLUGIN = "tests.fake_gpu.planted"
PLANTED = {  # agent of that module -> what its fault says
    "Waits": "the host waits for the device: aten._local_scalar_dense",
    "CopiesToHost": "_to_copy between host and device",
    "CopiesFromHost": "_to_copy between host and device",
    "SelectsByMask": "the host waits for the device: aten.nonzero",
    "WritesByMask": "index_put_ by a mask",
    "ReadsHostTable": "index of tensors on host and device",
    "IndexesByHostTable": "index of tensors on host and device",
    "AddsHostTable": "found at least two devices",
    "Draws": "on no tape",
    "KeepsGraph": "keep their autograd graph",
    "LaysOutOtherwise": "several layouts",
}

Examined = Callable[[str], list[Finding]]


@pytest.fixture(scope="session")
def examined(tmp_path_factory: pytest.TempPathFactory) -> Examined:
    """What there is to find about an agent, with one seed and with a pack.

    FEW share a process with the planted ones, and so do all others; the first test that asks starts it, and those on
    other workers of pytest read what it wrote.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    planted = [f"planted_{name}" for name in PLANTED]

    def find(name: str) -> list[Finding]:
        few = name in FEW or name in planted
        group = [*FEW, *planted] if few else [other for other in AGENTS if other not in FEW]
        file = folder / f"fake_gpu_{'few' if few else 'others'}.json"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                try:
                    rows = findings(group, plugins=[PLUGIN] * few)
                except NoFakeGPU as error:
                    pytest.skip(str(error))
                file.write_text(json.dumps([asdict(row) for row in rows]))
        return [Finding(**row) for row in json.loads(file.read_text()) if row["agent"] == name]

    return find


@pytest.mark.parametrize("name", EACH)
def test_an_agent_does_nothing_on_a_gpu_that_a_cuda_graph_cannot_hold(name: str, examined: Examined) -> None:
    assert [(finding.seeds, finding.faults) for finding in examined(name)] == [(seeds, []) for seeds in SEEDS]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_named_with_its_line(name: str, examined: Examined) -> None:
    for finding in examined(f"planted_{name}"):
        phases = [fault.split(":")[0] for fault in finding.faults]
        assert phases == ["offline", "online"]
        assert all(PLANTED[name] in fault for fault in finding.faults), finding.faults
        if name not in ("KeepsGraph", "LaysOutOtherwise"):  # found after the line has run
            assert all("(tests/fake_gpu/planted.py:" in fault for fault in finding.faults), finding.faults


def test_views_launch_nothing_and_products_count_their_arithmetic() -> None:
    with FakeTensorMode():
        x, weight, bias = (torch.empty(*shape, device="cuda:0") for shape in ((2, 8, 3), (2, 3, 5), (2, 1, 5)))
        table, places = torch.empty(10**6, device="cuda:0"), torch.zeros(4, dtype=torch.int64, device="cuda:0")
        with Watch() as watch:
            _ = x.transpose(1, 2).unsqueeze(1)
            _ = torch.baddbmm(bias, x, weight)  # spreads the bias, then multiplies
            _ = x + 1
            _ = table.index_select(0, places)  # reads four numbers of a million
            _ = torch.zeros(3)  # on the host
    products, sums = 4 * (2 * 8 * 3 + 2 * 3 * 5 + 2 * 5 + 2 * 8 * 5), 4 * 2 * (2 * 8 * 3)
    assert watch.operators == [
        Operator(2, 2 * 2 * 8 * 3 * 5, products),
        Operator(1, 0, sums),
        Operator(1, 0, 2 * 4 * 4),
    ]
