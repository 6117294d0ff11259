"""Who may import whom, read from the syntax trees (imports inside functions too), and what is named how."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {  # package -> what it may import of ours
    "datasets": {"datasets", "bench.runs.contract"},
    "agents": {"agents", "datasets.batch"},
    "bench": {"bench", "agents", "datasets"},
    "analysis": {"analysis"},
}
FILES = [path for package in FLOORS for path in sorted((ROOT / package).glob("**/*.py"))]


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [node.module or ""]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stay_on_their_floor(path):
    allowed = FLOORS[path.relative_to(ROOT).parts[0]]
    for module in imports(path):
        if module.split(".")[0] in {*FLOORS, "tests"}:
            assert any(module == name or module.startswith(f"{name}.") for name in allowed), f"{path} imports {module}"


def test_agents_use_torch_alone():
    standard = {"ast", "collections", "copy", "dataclasses", "difflib", "math", "typing", "functools", "itertools"}
    for path in sorted((ROOT / "agents").rglob("*.py")):
        assert {module.split(".")[0] for module in imports(path)} <= standard | {"torch", "agents", "datasets"}, path


def test_the_driver_names_no_agent_and_no_task():
    from agents import AGENTS
    from datasets import TASKS

    for name in ("train.py", "engine.py", "rollout.py", "evaluate.py", "checkpoint.py", "writer.py", "launch.py"):
        text = (next((ROOT / "bench").rglob(name))).read_text()
        words = {
            node.value
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not words & ({*AGENTS} | {*TASKS} | {task.domain for task in TASKS.values()}), name


def test_no_file_is_named_after_nothing():
    for path in FILES:
        assert path.stem not in {"utils", "common", "core", "helpers", "misc", "math", "types", "logging"}, path


def test_the_project_never_reads_outside_itself():
    outside = "../" + "shared"
    for path in [*FILES, *sorted((ROOT / "tests").glob("*.py")), ROOT / "Makefile", ROOT / "README.md"]:
        assert outside not in path.read_text(), path
