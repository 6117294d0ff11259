"""Agents and tasks from outside the checkout: modules that register them when they are imported.

Imports neither agents nor tasks before there is a plugin: commands that only look at files have the option, too.
"""

import hashlib
import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction, arg

from bench.runs.contract import ConfigError, error_line

_loaded: dict[str, Path] = {}  # in this process: module -> its file


@dataclass(frozen=True)
class Plugins:
    """agents and tasks of your own"""

    plugin: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(metavar="MODULE", help="a module that registers agents or tasks; may be repeated"),
    ] = ()

    def __post_init__(self) -> None:
        load_plugins(self.plugin)  # now: what follows knows their names


def load_plugins(modules: tuple[str, ...]) -> None:
    """Imports modules that have not been loaded. ConfigError for one that cannot be, or that registers nothing."""
    if not (new := [module for module in dict.fromkeys(modules) if module not in _loaded]):
        return
    import agents
    from datasets import registry

    before = set(sys.modules)
    for module in new:
        if not re.fullmatch(r"\w+(\.\w+)*", module) or module.endswith(".py"):
            raise ConfigError(f"--plugin is {module!r}; it takes a module's name, as in `import`: my_module")
        known, has_come = len(agents.AGENTS) + len(registry.FAMILIES), module in set(sys.modules) - before
        try:
            file = importlib.import_module(module).__file__
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise ConfigError(f"--plugin {module} cannot be imported ({error_line(error)})") from error
            raise ConfigError(
                f"--plugin {module}: there is no such module in the current directory or on PYTHONPATH"
            ) from error
        except (Exception, SystemExit) as error:
            raise ConfigError(f"--plugin {module} cannot be imported ({error_line(error)})") from error
        if file is None or (len(agents.AGENTS) + len(registry.FAMILIES) == known and not has_come):
            raise ConfigError(
                f"--plugin {module} registers nothing; it must call agents.register or datasets.register_source"
            )
        _loaded[module] = Path(file)
        registry.PLUGINS.append(module)


def loaded_plugins() -> dict[str, Path]:
    """The modules of this process and their files."""
    return dict(_loaded)


def facts_of_plugins() -> list[dict[str, str]]:
    """What provenance.json says of them."""
    return [
        {"module": module, "file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for module, file in _loaded.items()
    ]
