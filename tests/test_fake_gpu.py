"""CUDA paths on a machine without a GPU: what no CUDA graph can hold, and how many kernels an update launches.

By fake tensors that say that they are on a GPU (tests/fake_gpu). They have no numbers, streams or memory: what only a
GPU can show is for `make test-gpu`.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import cache

import pytest
import torch
from filelock import FileLock
from torch._subclasses.fake_tensor import FakeTensorMode

from agents import AGENTS
from tests.benchmarks.kernels import BANDWIDTH, EAGER_LAUNCH, GRAPH_LAUNCH, RATES, fused_seconds, project, seconds
from tests.fake_gpu.budget import COMPILED, SAMPLE, TABLE, WRITE, counts, departures, read_budget
from tests.fake_gpu.build import NoFakeGPU
from tests.fake_gpu.compiled import fused_launches
from tests.fake_gpu.memory import RememberingFakeTensorMode
from tests.fake_gpu.paths import PARTS, SEEDS, Finding, findings
from tests.fake_gpu.watch import Operator, Watch

FEW = ("sac_flow_g", "qc_fql", "idql", "qsm", "reinflow")  # of different structure; the others are thorough tests
EACH = [pytest.param(name, marks=[] if name in FEW else [pytest.mark.thorough]) for name in AGENTS]
PLUGIN = "tests.fake_gpu.planted"
PLANTED = {  # agent of that module -> what its fault says
    "Waits": "the host waits for the device: aten._local_scalar_dense",
    "CopiesToHost": "_to_copy between host and device",
    "CopiesFromHost": "_to_copy between host and device",
    "SelectsByMask": "index by a mask: the host waits",
    "WritesByMask": "index_put_ by a mask",
    "ReadsHostTable": "index of tensors on host and device",
    "IndexesByHostTable": "index of tensors on host and device",
    "AddsHostTable": "add of tensors on host and device",
    "Draws": "on no tape",
    "KeepsGraph": "keep their autograd graph",
    "LaysOutOtherwise": "several layouts",
}
# In the call that is not watched, which is the first with one seed, fake tensors refuse some of it in their own words.
UNWATCHED = {
    "SelectsByMask": "the host waits for the device: aten.nonzero",
    "AddsHostTable": "found at least two devices",
}

Examined = Callable[[str], list[Finding]]


@pytest.fixture(scope="session")
def examined(tmp_path_factory: pytest.TempPathFactory) -> Examined:
    """What there is to find about an agent, with one seed and with a pack.

    FEW share a process with the planted ones, and so do all others, whose paths are called once: minutes otherwise.
    The first test that asks starts it, and those on other workers of pytest read what it wrote.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    planted = [f"planted_{name}" for name in PLANTED]

    @cache
    def all_of(few: bool) -> list[Finding]:
        group = [*FEW, *planted] if few else [other for other in AGENTS if other not in FEW]
        file = folder / f"fake_gpu_{'few' if few else 'others'}.json"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                try:
                    rows = findings(group, plugins=[PLUGIN] * few, once=not few)
                except NoFakeGPU as error:
                    pytest.skip(str(error))
                file.write_text(json.dumps([asdict(row) for row in rows]))
        return [Finding(**row) for row in json.loads(file.read_text())]

    return lambda name: [row for row in all_of(name in FEW or name in planted) if row.agent == name]


@pytest.mark.parametrize("name", EACH)
def test_an_agent_does_nothing_on_a_gpu_that_a_cuda_graph_cannot_hold(name: str, examined: Examined) -> None:
    assert [(finding.seeds, finding.faults) for finding in examined(name)] == [(seeds, []) for seeds in SEEDS]


@pytest.mark.parametrize("name", EACH)
def test_an_agent_launches_as_many_kernels_as_its_budget_has(name: str, examined: Examined) -> None:
    assert not departures(counts(examined(name)), read_budget())


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_named_with_its_line(name: str, examined: Examined) -> None:
    for finding in examined(f"planted_{name}"):
        phases = [fault.split(":")[0] for fault in finding.faults]
        assert phases == ["offline", "online"]
        said = UNWATCHED.get(name, PLANTED[name]) if finding.seeds == 1 else PLANTED[name]
        assert all(said in fault for fault in finding.faults), finding.faults
        if name not in ("KeepsGraph", "LaysOutOtherwise"):  # found after the line has run
            assert all("(tests/fake_gpu/planted.py:" in fault for fault in finding.faults), finding.faults


def test_the_budget_has_every_agent_and_no_other() -> None:
    eager = {(name, seeds, part) for name in AGENTS for seeds in SEEDS for part in PARTS}
    budget = read_budget()
    compiled = {(name, seeds, COMPILED) for name in AGENTS for seeds in SEEDS}
    add = f"{WRITE}, and with Triton installed --agents NAME --compiled --write"
    assert budget.keys() == eager | compiled, add


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_compiler_fuses_an_update_into_as_many_kernels_as_the_budget_has(name: str) -> None:
    pytest.importorskip("triton", reason="needs Triton: pip install triton")
    try:
        found = dict(fused_launches([(name, 1)]))
    except NoFakeGPU as error:
        pytest.skip(str(error))
    assert not departures(found, read_budget())


@pytest.mark.parametrize(
    ("launches", "lines"),
    [
        (105, []),
        (95, []),
        (106, [f"fql, act, S = 8: 106 launches, +6% against 100 in {TABLE.name}; if that is meant: {WRITE}"]),
        (94, [f"fql, act, S = 8: 94 launches, -6% against 100 in {TABLE.name}; so that it stays so: {WRITE}"]),
    ],
)
def test_a_count_that_departs_from_the_budget_is_named_with_the_way_to_accept_it(launches: int, lines: list) -> None:
    assert departures({("fql", 8, "act"): launches}, {("fql", 8, "act"): 100}) == lines


def test_an_agent_that_the_budget_does_not_have_is_named() -> None:
    (line,) = departures({("new", 1, "act"): 5}, {})
    assert line == f"new, act, S = 1: 5 launches, which {TABLE.name} does not have; add them: {WRITE}"


def test_a_result_is_the_same_from_memory() -> None:
    def results() -> list[tuple]:
        x = torch.empty(4, 6, 5)
        row, turned = x[1], x[:, 2:].transpose(1, 2)
        made = [x, row, turned, row.add_(1), turned @ x[:, 2:], x.double().sum(1), x.to(torch.float64, copy=True)]
        made += torch.native_layer_norm(x, [5], None, None, 1e-6)
        shares = [tensor.untyped_storage()._cdata == x.untyped_storage()._cdata for tensor in made]
        assert made[3] is row
        return [
            (t.shape, t.stride(), t.storage_offset(), t.dtype, t.device, {*vars(t)}, s)
            for t, s in zip(made, shares, strict=True)
        ]

    with FakeTensorMode():
        plain = results()
    with RememberingFakeTensorMode() as mode:
        assert results() == plain
        known = len(mode._known)
        assert results() == plain
        assert known == len(mode._known) > 5


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


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        (Operator(2, 10**6, 10**6), 2 * GRAPH_LAUNCH),
        (Operator(1, 10**12, 10**6), 10**12 / RATES["fp32"]),
        (Operator(1, 10**6, 10**10), 10**10 / BANDWIDTH),
    ],
)
def test_an_operator_takes_as_long_as_its_launches_product_or_traffic(operator: Operator, expected: float) -> None:
    finding = Finding("fql", 1, operators={"act": [operator]})
    assert seconds(finding, "act", RATES["fp32"]) == pytest.approx(expected)


def test_a_fused_update_takes_its_products_and_a_launch_for_each_other_kernel() -> None:
    product, large, other = Operator(1, 10**6, 10**6), Operator(1, 10**12, 10**6), Operator(1, 0, 10**10)
    finding = Finding("fql", 1, operators={"offline": [product, large, *10 * [other]]})
    expected = 10**12 / RATES["fp32"] + 5 * GRAPH_LAUNCH
    assert fused_seconds(finding, 6, RATES["fp32"]) == pytest.approx(expected)


def test_a_projected_run_is_its_updates_and_its_actions_by_seed() -> None:
    # fql: 1M offline updates, 1M steps of which 4,999 precede the first update, an action at each.
    launches = {"offline": 100, "online": 300, "act": 10}
    operators = {part: [Operator(number, 0, 0)] for part, number in launches.items()}
    findings = [Finding("fql", seeds, 3, operators=operators) for seeds in SEEDS]
    projection = project(findings, RATES["fp32"])
    hours = GRAPH_LAUNCH * (1e6 * 100 + (1e6 - 4_999) * 300 / 3 + 1e6 * 10) / 3600
    assert projection.hours == {1: pytest.approx(hours), 8: pytest.approx(hours / 8)}
    assert projection.gain == pytest.approx(8)
    assert seconds(findings[0], "online", RATES["fp32"], EAGER_LAUNCH) == pytest.approx(100 * EAGER_LAUNCH)
