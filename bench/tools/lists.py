"""`python -m bench list suites | agents | tasks | settings`: the names that other commands take."""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, get_args

from tyro.conf import Positional

import datasets
from agents import AGENTS
from agents.blocks.config import setting_types, settings_of
from bench.protocol.config import check_agent
from bench.protocol.plugins import Plugins
from bench.protocol.suites import SUITES
from bench.protocol.tuned import tuned_config
from bench.runs.contract import one_line
from bench.runs.quantities import counted


@dataclass(frozen=True)
class SuitesOptions:
    """Every suite, how many runs it has, and what it is for."""


@dataclass(frozen=True)
class AgentsOptions:
    """Every agent, and what it is."""

    plugins: Plugins = Plugins()


@dataclass(frozen=True)
class TasksOptions:
    """Every task by family, and what its environment needs where that is not installed."""

    plugins: Plugins = Plugins()


@dataclass(frozen=True)
class SettingsOptions:
    """An agent's settings, as --agent-config takes them: defaults, what a task's domain changes, what is allowed."""

    agent: Positional[str]
    task: str | None = None  # with the published settings of its domain
    plugins: Plugins = Plugins()


def suites_command(options: SuitesOptions) -> int:
    _print_rows((name, counted(len(make()), "run"), _first_sentence(make)) for name, make in SUITES.items())
    return 0


def agents_command(options: AgentsOptions) -> int:
    _print_rows((name, _first_sentence(sys.modules[kind.__module__])) for name, (kind, _) in AGENTS.items())
    return 0


def tasks_command(options: TasksOptions) -> int:
    for family, specs in groupby(datasets.TASKS.values(), key=lambda spec: spec.suite):
        tasks = list(specs)
        problem = datasets.unavailable(tasks[0].name)
        print(f"{family}{f' - {problem}' if problem else ''}")
        print("\n".join(f"  {task.name}{'' if task.dataset else ' (no data: learned from scratch)'}" for task in tasks))
    return 0


def settings_command(options: SettingsOptions) -> int:
    """Defaults in the first column of values; in the second one what differs for the task."""
    check_agent(options.agent)
    default = AGENTS[options.agent][1]
    tuned = default if options.task is None else tuned_config(options.agent, datasets.task(options.task).domain)
    values, types = settings_of(tuned), setting_types(type(default))
    rows = []
    for name, value in settings_of(default).items():
        published = f"here {_shown(values[name])}" if values[name] != value else ""
        rows.append((name, _shown(value), published, _allowed(types[name])))
    _print_rows(rows)
    return 0


def _print_rows(rows: Iterable[tuple[str, ...]]) -> None:
    """Columns as wide as they need; one without a word is left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column)]
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _first_sentence(thing: Any) -> str:
    """Of its docstring, on one line; empty without one."""
    paragraph = one_line((thing.__doc__ or "").strip().partition("\n\n")[0])
    return re.split(r"(?<=[^.]\w\.) (?=[A-Z])", paragraph)[0]


def _shown(value: Any) -> str:
    """As a command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _allowed(kind: Any) -> str:
    """The values of a field that takes few, or what kind of value it takes."""
    names = get_args(kind)
    if not names:
        return kind.__name__
    return "numbers with commas" if int in names else " | ".join(map(str, names))
