"""Which changes of an agent's formulas its tests notice: a sign, a coefficient or a mask at a time, in memory.

Run as `python -m tests.benchmarks.mutations [MODULE …] [--each N]`, for modules such as fql or blocks.critic; prints a
table, and the changes that survive.
"""

import argparse
import ast
import contextlib
import copy
import gc
import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType

import pytest

ROOT = Path(__file__).parents[2]
KINDS = ("sign", "coefficient", "mask")
TESTS = (
    "parity",
    "parity_ppo",
    "parity_scratch",
    "scratch_agents",
    "batch_renorm",
    "flow_agents",
    "classical",
    "adjoint",
    "diffusion",
    "ppo",
    "flow",
    "networks",
    "gradients",
    "releases",
    "agents",
)
UNIT = "not compiled and not -2"  # of the parity tests those that are eager, of one seed
NO_FORMULA = ("__init__", "__post_init__", "check_config")  # what they say is tested elsewhere


def places(tree: ast.Module, kind: str) -> list[tuple[ast.AST, str, int | None]]:
    """Where a change of the kind can be made: parent, field and index of each node."""
    found: dict[tuple[int, str, int | None], tuple[ast.AST, str, int | None]] = {}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        if function.name not in NO_FORMULA:
            for parent, field, index, node in _children(function):
                if _fits(node, parent, kind):  # a function in a function comes by twice
                    found[id(parent), field, index] = (parent, field, index)
    return list(found.values())


def _children(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """All nodes below that compute a value; not those of indices, ranges, errors and annotations."""
    for field, value in ast.iter_fields(node):
        if field in ("slice", "annotation", "returns", "decorator_list"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            skipped = isinstance(child, ast.Raise | ast.JoinedStr) or (
                isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id in ("range", "slice")
            )
            if isinstance(child, ast.AST) and not skipped:
                yield node, field, index, child
                yield from _children(child)


def _fits(node: ast.AST, parent: ast.AST, kind: str) -> bool:
    if kind == "sign":
        negated = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        number = isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)
        return (negated and not number) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub))
    if kind == "mask":
        return isinstance(node, ast.Attribute) and node.attr in ("valid", "bootstrap", "continues")
    scales = isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Mult)
    return scales and (
        (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.Attribute) and ast.unparse(node).startswith("self.config."))
    )


def mutant_of(tree: ast.Module, kind: str, number: int) -> tuple[ast.Module, str]:
    """The module with its `number`-th change of a kind, and the line that it is in, before and after."""
    tree = copy.deepcopy(tree)
    parent, field, index = places(tree, kind)[number]
    value = getattr(parent, field)
    node = value if index is None else value[index]
    before = ast.unparse(parent)
    new = _changed(node, kind)
    if index is None:
        setattr(parent, field, new)
    else:
        value[index] = new
    return ast.fix_missing_locations(tree), f"line {node.lineno}: {before[:90]} -> {ast.unparse(parent)[:90]}"


def _changed(node: ast.AST, kind: str) -> ast.AST:
    if kind == "mask":
        return ast.parse(f"({ast.unparse(node)} * 0 + 1)", mode="eval").body
    if kind == "coefficient":
        return ast.parse(f"(1.1 * {ast.unparse(node)})", mode="eval").body
    if isinstance(node, ast.UnaryOp):
        return node.operand
    assert isinstance(node, ast.BinOp)
    return ast.BinOp(node.left, ast.Sub() if isinstance(node.op, ast.Add) else ast.Add(), node.right)


def survives(module: str, kind: str, number: int) -> bool:
    """Whether no test of the agents notices: none of the agent's name, none at all, and none in a fresh process."""
    from agents import AGENTS

    users = [name for name, (agent, _) in AGENTS.items() if agent.__module__ == f"agents.{module}"]
    files = [f"scratch_{name.removesuffix('_scratch')}" for name in users if name.endswith("_scratch")]
    named = f"({' or '.join([*users, *files, module])}) and {UNIT}"
    mutant = (module, kind, number)
    return not (users and _fork_notices(mutant, named)) and not _fork_notices(mutant, UNIT) and not _notices(mutant)


def _path(module: str) -> Path:
    return ROOT / "agents" / f"{module.replace('.', '/')}.py"


def _arguments(tests: str) -> list[str]:
    """Those of pytest, for the tests that it chooses by the expression `tests`."""
    files = [str(path) for name in TESTS if (path := ROOT / "tests" / f"test_{name}.py").exists()]
    return ["-x", "-q", "-p", "no:cacheprovider", *files, "-k", tests]


def _notices(mutant: tuple[str, str, int]) -> bool:
    """Whether a test fails in a new process, which imports the changed module."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.benchmarks.mutated", *_arguments(UNIT)]
    environment = {**os.environ, "MUTANT": "/".join(map(str, mutant)), "MUJOCO_GL": "disable"}
    outcome = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if outcome.returncode not in (0, 1):  # 1: a test failed
        return "error" in outcome.stdout.lower()  # a module that cannot be imported is noticed as well
    return outcome.returncode == 1


def _fork_notices(mutant: tuple[str, str, int] | None, tests: str) -> bool:
    """The same in a copy of this process, which has imported everything: seconds instead of many."""
    child = os.fork()
    if not child:
        code = 1
        with _silenced(), contextlib.suppress(BaseException):
            if mutant is not None:
                _change(*mutant)
            code = int(pytest.main(_arguments(tests)) not in (0, 5))  # 5: no test has such a name
        os._exit(code)
    return os.waitpid(child, 0)[1] != 0


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    before = os.dup(1), os.dup(2)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    yield
    sys.stdout.flush()
    os.dup2(before[0], 1)
    os.dup2(before[1], 2)


def _change(module: str, kind: str, number: int) -> None:
    """Gives all functions of the module that this process has the code of the changed module."""
    path = _path(module)
    found = list(_codes(compile(mutant_of(ast.parse(path.read_text()), kind, number)[0], str(path), "exec")))
    codes = {(code.co_qualname, code.co_firstlineno): code for code in found}
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__.co_filename == str(path):
            function.__code__ = codes[function.__code__.co_qualname, function.__code__.co_firstlineno]


def _codes(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    modules = [path.stem for path in sorted((ROOT / "agents").glob("[a-z]*.py"))]
    parser.add_argument("modules", nargs="*", default=modules)
    parser.add_argument("--each", type=int, default=1, help="changes of each kind and module, drawn at random")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    chosen = []
    for module in options.modules:
        tree = ast.parse(_path(module).read_text())
        for kind in KINDS:
            count = len(places(tree, kind))
            numbers = sorted(random.Random(f"{module} {kind}").sample(range(count), min(count, options.each)))
            chosen += [(module, kind, number, mutant_of(tree, kind, number)[1]) for number in numbers]
    with _silenced():
        pytest.main(["--collect-only", *_arguments(UNIT)])  # imports what the copies of this process need
    if _fork_notices(None, UNIT):
        raise RuntimeError("tests of the agents fail without a change")
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        outcomes = pool.starmap(survives, [one[:3] for one in chosen], chunksize=1)
    print("| module | " + " | ".join(KINDS) + " |\n|---|" + "---|" * len(KINDS))
    for module in options.modules:
        cells = []
        for kind in KINDS:
            of = [
                lives for (name, its, *_), lives in zip(chosen, outcomes, strict=True) if (name, its) == (module, kind)
            ]
            cells.append(f"{of.count(False)} of {len(of)}" if of else "-")
        print(f"| {module} | " + " | ".join(cells) + " |")
    print(f"{outcomes.count(False)} of {len(outcomes)} changes are noticed")
    for (module, kind, _, where), lives in zip(chosen, outcomes, strict=True):
        if lives:
            print(f"survives: {module}, {kind}, {where}")


if __name__ == "__main__":
    main()
