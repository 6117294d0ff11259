"""A pytest plugin: one module of agents as `mutations` has changed it. MUTANT names it, as `fql/sign/0`."""

import ast
import importlib.machinery
import os
from types import CodeType

from tests.benchmarks.mutations import mutant_of

MODULE, KIND, NUMBER = os.environ["MUTANT"].split("/")
read = importlib.machinery.SourceFileLoader.get_code


def get_code(loader: importlib.machinery.SourceFileLoader, name: str) -> CodeType | None:
    if name != f"agents.{MODULE}":
        return read(loader, name)
    path = loader.get_filename(name)
    tree, _ = mutant_of(ast.parse(loader.get_data(path)), KIND, int(NUMBER))
    return compile(tree, path, "exec")


importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
