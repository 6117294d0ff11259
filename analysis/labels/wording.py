"""What figures and tables say about the runs they rest on, so that both say the same."""

import textwrap
from collections.abc import Iterable, Sequence

import numpy as np

from analysis.labels.names import name_in
from analysis.loading.load import Suite
from analysis.loading.read import NORMALISED_RETURN, RETURN
from analysis.statistics.metrics import FLOOR_SEEDS, SMOKE_SEEDS
from bench.runs.contract import nearest

# What success rates do without.
DEFINITIONS = {
    NORMALISED_RETURN: "Normalised return: 0 and 1 are the task's reference returns (random actions; an expert or a "
    "published agent).",
    RETURN: "Return: undiscounted sum of rewards of an episode.",
}


def count_label(count: float) -> str:
    """A number of updates or steps for an axis: 500k, 1M, 1.25k."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return f"{count:.3g}"


def two_digits(number: float) -> str:
    """A score; no minus before a zero."""
    return f"{np.round(number, 2) + 0.0:.2f}"


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 task, 2 tasks."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def seeds_label(numbers: Sequence[int]) -> str:
    """Number of seeds, and what it is too small for; `numbers` are runs per agent and task, the smallest counts."""
    low, high = min(numbers), max(numbers)
    text = counted(high, "seed") if low == high else f"{low} to {high} seeds"
    if low <= SMOKE_SEEDS:
        return f"{text} (smoke)"
    return text if low >= FLOOR_SEEDS else f"{text} (below the floor of {FLOOR_SEEDS})"


def data_label(suite: Suite) -> str:
    """Where the data are from, or that there are none."""
    return "no data" if suite.origin == "none" else f"{suite.origin} data"


def provenance_facts(suite: Suite, evaluated: bool = True) -> list[str]:
    """Origin of the data, seeds, evaluation episodes (where it is `evaluated` that is shown), precision of updates
    below fp32, agents without an offline phase beside others, and how many runs are missing or incomplete."""
    facts = [
        data_label(suite),
        seeds_label([len(cell.seeds) for cell in suite.cells.values()]),
    ]
    facts += [f"{counted(suite.eval_episodes, 'evaluation episode')} per point"] * evaluated
    facts += [f"products in {' and '.join(suite.matmuls)}"] * (suite.matmuls != ("fp32",))
    facts += [f"from scratch: {', '.join(name_in(suite, agent) for agent in suite.from_scratch)}"] * bool(
        suite.from_scratch
    )
    missing = sum(suite.missing(agent) for agent in suite.agents)
    incomplete = sum(suite.incomplete(agent) for agent in suite.agents)
    facts += [f"{counted(missing, 'run')} missing"] * bool(missing)
    facts += [f"{counted(incomplete, 'run')} incomplete"] * bool(incomplete)
    return facts


def wrapped(facts: Sequence[str], width: int) -> list[str]:
    """Facts joined to lines of at most `width` characters; only a fact that fits into no line is broken, at blanks."""
    lines: list[str] = []
    for fact in facts:
        if lines and len(lines[-1]) + 3 + len(fact) <= width:
            lines[-1] += f" · {fact}"
        else:
            lines += textwrap.wrap(fact, width, break_long_words=False, break_on_hyphens=False)
    return lines


def task_label(suite: Suite, task: str) -> str:
    """The name of a task, with what it is scored by where tasks differ in that."""
    return task if len(set(suite.measures.values())) == 1 else f"{task} ({suite.measures[task].name})"


def agent_label(suite: Suite, agent: str) -> str:
    """The name of an agent, marked where runs of it are missing or incomplete."""
    marks = []
    if missing := suite.missing(agent):
        marks.append(f"{missing} missing")
    if incomplete := suite.incomplete(agent):
        marks.append(f"{incomplete} incomplete")
    name = name_in(suite, agent)
    return f"{name} ({', '.join(marks)})" if marks else name


def alternatives(name: str, names: Iterable[str]) -> str:
    """What an error message says after an unknown name: the nearest one, and what there is."""
    there_are = list(names)
    return f"{nearest(name, there_are)}; there are: {', '.join(there_are) or 'none'}"


def listed_values(values: Sequence[int]) -> str:
    """Ascending whole numbers, those in a row as a range: 0 to 4, 7."""
    groups: list[list[int]] = []
    for value in values:
        if groups and value == groups[-1][-1] + 1:
            groups[-1].append(value)
        else:
            groups.append([value])
    return ", ".join(str(group[0]) if len(group) == 1 else f"{group[0]} to {group[-1]}" for group in groups)
