"""Who may import whom, read from the syntax trees (imports inside functions and for type checkers too).

A unit is a room (a folder of a package) or a file that stands beside the rooms. Arrows run downward only, from a unit
to those it is allowed below, and no circle of files exists.
"""

import ast
import functools
import importlib
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("datasets", "agents", "bench", "analysis")
CONTRACT = "bench.runs.contract"  # the standard library alone: below every floor
COMMAND_LINE = "bench.command_line"  # over the contract alone: below the rooms of bench and analysis

# Unit -> units that it may import beside itself and the contract; `package` alone is the package's __init__.
SPEC = {"datasets.spec"}
FAMILY = {
    *SPEC,
    "datasets.source",
    "datasets.transitions",
    "datasets.cache",
    "datasets.scale",
    "datasets.unreadable",
    "datasets.numpy_seed",
    "datasets.pictures",
}
REGISTRY = {*SPEC, "datasets.source", "datasets.registry"}
FACE = {
    "agents",
    "agents.blocks",
    "datasets",
    "datasets.batch",
    "datasets.replay",
    "datasets.spec",
    "datasets.transitions",
}
LOADING, STATISTICS, LABELS = "analysis.loading", "analysis.statistics", "analysis.labels"
UNITS: dict[str, set[str]] = {
    # datasets: the ground, families of tasks, the registry over them, the face
    "datasets.batch": set(),
    "datasets.cache": set(),
    "datasets.numpy_seed": set(),
    "datasets.spec": set(),
    "datasets.source": SPEC,
    "datasets.transitions": SPEC,
    "datasets.scale": SPEC,
    "datasets.unreadable": {"datasets.cache"},
    "datasets.pictures": SPEC,
    "datasets.download": {*SPEC, "datasets.cache"},
    "datasets.flat_files": {*SPEC, *(f"datasets.{name}" for name in ("source", "cache", "scale", "unreadable"))},
    "datasets.ogbench": FAMILY,
    "datasets.robomimic": {*FAMILY, "datasets.download"},
    "datasets.minari": FAMILY,
    "datasets.bullet": {*FAMILY, "datasets.download", "datasets.flat_files"},
    "datasets.gymnasium_mujoco": {*SPEC, "datasets.pictures"},
    "datasets.toy": {*FAMILY, "datasets.flat_files"},
    "datasets.user_files": {*FAMILY, "datasets.flat_files"},
    "datasets.registry": {
        *SPEC,
        "datasets.source",
        *(f"datasets.{family}" for family in ("bullet", "gymnasium_mujoco", "minari", "ogbench")),
        *(f"datasets.{family}" for family in ("robomimic", "toy", "user_files")),
    },
    "datasets.store": {*REGISTRY, *(f"datasets.{name}" for name in ("transitions", "cache", "scale", "download"))},
    "datasets.episode_process": REGISTRY,
    "datasets.generate": {
        *REGISTRY,
        "datasets.episode_process",
        "datasets.store",
        "datasets.cache",
        "datasets.download",
    },
    "datasets.environments": {*REGISTRY, "datasets.pictures"},
    "datasets.replay": {*SPEC, "datasets.batch", "datasets.transitions"},
    "datasets.export": {*REGISTRY, "datasets.transitions", "datasets.environments", "datasets.minari"},
    "datasets": {
        *REGISTRY,
        *(f"datasets.{name}" for name in ("environments", "generate", "store", "transitions", "user_files")),
    },
    # agents: algorithms over what they share
    "agents.blocks": {"datasets.batch"},
    "agents": {"agents.blocks", "datasets.batch"},  # and one unit for each algorithm, below
    # bench: runs < protocol < training < tools < grid
    "bench.runs": set(),
    "bench.protocol": {"bench.runs", "agents", "agents.blocks", "datasets", "datasets.registry", "datasets.spec"},
    "bench.training": {"bench.runs", "bench.protocol", *FACE, "datasets.cache"},
    "bench.tools": {
        *("bench.runs", "bench.protocol", "bench.training", *FACE),
        *(
            f"datasets.{name}"
            for name in ("cache", "export", "flat_files", "generate", "minari", "pictures", "registry")
        ),
    },
    "bench.grid": {"bench.runs", "bench.protocol", "bench.training", "bench.tools", *FACE},
    "bench.__main__": {"bench.runs", "bench.training", "bench.tools", "bench.grid", "datasets.spec"},
    COMMAND_LINE: set(),
    "bench": set(),
    # analysis: loading < statistics < labels < figures, tables < published < report < leaderboard
    LOADING: set(),
    STATISTICS: {LOADING},
    LABELS: {LOADING, STATISTICS},
    "analysis.figures": {LOADING, STATISTICS, LABELS},
    "analysis.tables": {LOADING, STATISTICS, LABELS},
    "analysis.published": {LOADING, STATISTICS, LABELS, "analysis.figures", "analysis.tables"},
    "analysis.report": {LOADING, STATISTICS, LABELS, "analysis.figures", "analysis.tables", "analysis.published"},
    "analysis.leaderboard": {LOADING, STATISTICS, LABELS, "analysis.tables", "analysis.report"},
    "analysis.output": {LOADING, STATISTICS, LABELS, "analysis.figures", "analysis.tables", "analysis.published"},
    "analysis.__main__": {
        *(LOADING, LABELS, "analysis.published", "analysis.report", "analysis.leaderboard", "analysis.output")
    },
    "analysis": set(),
}
Sources = Mapping[str, str]  # module -> its text


@functools.cache
def tree() -> Sources:
    """The text of every module of ours, by dotted name."""
    found: dict[str, str] = {}
    for path in (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


@functools.cache
def imports(text: str) -> frozenset[str]:
    """Modules that a text imports, anywhere in it; of `from a import b`, a.b where that is a module of ours."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = names & set(tree())
            found |= inner
            if inner != names:
                found.add(node.module or "")
    return frozenset(found)


def unit_of(module: str) -> str:
    """The room of a module, or the module itself where it stands beside the rooms."""
    return CONTRACT if module == CONTRACT else ".".join(module.split(".")[:2])


def allowed(unit: str) -> set[str]:
    algorithms = {"agents.blocks", "datasets.batch"}
    if unit == "agents":  # the registry
        return UNITS[unit] | {unit_of(module) for module in tree() if module.startswith("agents.")}
    return UNITS.get(unit, algorithms if unit.startswith("agents.") else set())


def violations(texts: Sources) -> list[str]:
    """Imports that run upward or sideways between units, and imports of tests."""
    found = []
    for module, text in texts.items():
        unit = unit_of(module)
        for imported in sorted(imports(text)):
            if imported.split(".")[0] not in (*PACKAGES, "tests"):
                continue
            target = unit_of(imported)
            if target == CONTRACT and unit != CONTRACT:
                continue
            if target == COMMAND_LINE and unit.split(".")[0] in ("bench", "analysis") and unit != CONTRACT:
                continue
            if target != unit and target not in allowed(unit):
                found.append(f"{module} imports {imported}")
    return found


def circles(texts: Sources) -> list[list[str]]:
    """Groups of files that import each other in a circle (strongly connected, by Tarjan's algorithm)."""
    graph = {module: imports(text) & set(texts) - {module} for module, text in texts.items()}
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for target in graph[module]:
            if target not in order:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], order[target])
        if lowest[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in order:
            visit(module)
    return found


def test_arrows_run_downward_only():
    assert violations(tree()) == []


def test_no_circle_of_files_exists():
    assert circles(tree()) == []


def test_every_unit_is_on_the_list_and_the_list_names_no_other():
    units = {unit_of(module) for module in tree()} - {CONTRACT}
    algorithms = {unit for unit in units if unit.startswith("agents.") and unit != "agents.blocks"}
    assert units - algorithms == set(UNITS)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("bench.runs.claims", "from bench.protocol.config import RunConfig"),  # upward between rooms
        ("bench.protocol.schedule", "import bench.training.train"),
        ("bench.training.pack", "def late():\n    from bench.tools import data"),  # lazily
        ("bench.tools.data", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import bench.grid.plan as plan"),
        ("agents.fql", "from agents.sac import SAC"),  # sideways between algorithms
        ("agents.blocks.flow", "import datasets"),
        ("agents.blocks.base", "from bench.protocol import tuned"),
        ("datasets.ogbench.tasks", "from datasets.robomimic import tasks"),  # sideways between families
        ("datasets.bullet.env", "from datasets.registry import task"),
        ("datasets.spec", "import datasets"),
        ("analysis.tables.success", "from analysis.figures.curves import draw_suite"),
        ("analysis.loading.read", "from bench.runs.writer import RunWriter"),  # the contract, and nothing beside it
        ("analysis.report.page", "def late():\n    import agents"),
        (CONTRACT, "import bench.runs.claims"),
        (CONTRACT, "import bench.command_line"),
        (COMMAND_LINE, "from bench.grid import slurm"),
        ("datasets.store", "import bench.command_line"),
        ("bench.grid.plan", "from tests.tiny_runs import tiny_config"),
    ],
)
def test_a_planted_import_in_the_wrong_direction_is_found(module, line):
    texts = dict(tree())
    texts[module] = f"{texts[module]}\n\n{line}\n"
    assert len(violations(texts)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("bench.runs.claims", "from bench.runs.writer import RunWriter"),
        ("bench.runs.claims", "def late():\n    from bench.runs import writer"),
        ("datasets.ogbench.tasks", "def late():\n    import datasets.ogbench.source"),
        (
            "agents.blocks.networks",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import agents.blocks.flow",
        ),
    ],
)
def test_a_planted_circle_is_found(module, line):
    texts = dict(tree())
    texts[module] = f"{texts[module]}\n\n{line}\n"
    assert len(circles(texts)) == 1 and module in circles(texts)[0]


def test_the_contract_is_the_ground():
    assert not {name for name in imports(tree()[CONTRACT]) if name.split(".")[0] in PACKAGES}


def test_every_room_says_in_a_sentence_or_two_what_lives_there():
    for room in (path.parent for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")):
        text = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
        assert text and len(text) <= 400, room


def test_no_file_is_longer_than_500_lines():
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.*")):
        if path.suffix in (".py", ".js", ".css", ".html"):
            assert len(path.read_text().splitlines()) < 500, path


def test_agents_use_torch_alone():
    standard = {
        "ast",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "math",
        "typing",
        "functools",
        "itertools",
        "types",
    }
    standard |= {"hashlib", "json", "os", "pathlib"}
    of_files = {"agents.blocks.policy": {"numpy", "safetensors"}}
    for module, text in tree().items():
        if module.startswith("agents"):
            packages = {name.split(".")[0] for name in imports(text) if name != CONTRACT}
            assert packages <= standard | {"torch", "agents", "datasets"} | of_files.get(module, set()), module


def test_the_driver_names_no_agent_and_no_task():
    agents, datasets = importlib.import_module("agents"), importlib.import_module("datasets")
    names = {*agents.AGENTS, *datasets.TASKS, *(task.domain for task in datasets.TASKS.values())}
    for module, text in tree().items():
        if module.startswith(("bench.training", "bench.runs", "bench.grid")):
            constants = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
            assert not names & {value for value in constants if isinstance(value, str)}, module


def test_no_file_is_named_after_nothing():
    for module in tree():
        assert not {"utils", "common", "core", "helpers", "misc", "math", "types", "logging"} & set(module.split("."))


def test_the_project_never_reads_outside_itself():
    outside = "../" + "shared"
    tests = {str(path): path.read_text() for path in (ROOT / "tests").glob("*.py")}
    pages = [*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/README.md")]
    others = {str(path): path.read_text() for path in (ROOT / "Makefile", *pages)}
    for name, text in {**tree(), **tests, **others}.items():
        assert outside not in text, name
