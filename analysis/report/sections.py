"""What the page shows of a suite beside its scores and curves: the tables of `analysis.tables` and
`analysis.published`, and the performance profile."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.figures.comparisons import THRESHOLDS
from analysis.labels.style import styles_of
from analysis.loading.load import Suite
from analysis.loading.read import SUCCESS
from analysis.published.points import PublishedPoint
from analysis.published.verdict_tables import rule, summary_table, tables_by_source
from analysis.published.verdicts import judge
from analysis.statistics.metrics import performance_profile
from analysis.statistics.pairs import finals, pairs_of
from analysis.statistics.scores import ScoreRow
from analysis.tables.comparisons import all_pairs, pair_caption, pair_reading
from analysis.tables.paper import caption, reading_table
from analysis.tables.success import wilson_note
from analysis.tables.table import Cell, Table


@dataclass(frozen=True)
class TableSection:
    """A heading, what the numbers below it are, their table, and tables that are folded away."""

    title: str
    words: str
    table: Table
    folded: tuple[tuple[str, Table], ...] = ()


def table_sections(suite: Suite, rows: Sequence[ScoreRow], published: Sequence[PublishedPoint]) -> list[TableSection]:
    """Offline to online by task, the pairs of agents, the verdicts; those that the suite has."""
    by_task = reading_table(suite, {(row.task, row.agent): row for row in rows})
    sections = [TableSection("Offline to online", " ".join([*caption(suite), *daggers(by_task)]), by_task)]
    pairs = pairs_of(suite, styles_of(suite.agents)) if suite.measure else all_pairs(suite)
    if suite.online_steps and pairs:
        sections.append(TableSection("Pairs of agents", pair_caption(suite, pairs), pair_reading(suite, pairs)))
    if verdicts := judge(suite, published):
        folded = tuple(tables_by_source(suite, verdicts))
        words = " ".join([rule(), *daggers(*(table for _, table in folded))])
        sections.append(TableSection("Against published numbers", words, summary_table(suite, verdicts), folded))
    return sections


def daggers(*tables: Table) -> list[str]:
    """What a dagger means, where one of the tables has one."""
    return wilson_note("†" in str(cell) for table in tables for row in table.rows for cell in row)


def sort_value(cell: Cell) -> float | None:
    """The number that a cell begins with (of two numbers the last, where a run ended); None: text, or nothing."""
    text = cell if isinstance(cell, str) else str(cell[-1]) if isinstance(cell, Sequence) and cell else ""
    match = re.fullmatch(r"<?(-?\d[\d,]*\.?\d*(?:e[-+]?\d+)?)[%+]?(?: \[.*)?", text)
    return float(match[1].replace(",", "")) if match else None


def numeric_columns(table: Table) -> list[bool]:
    """Which columns hold numbers, or nothing where there is none."""
    columns = [list(cells) for cells in zip(*table.rows, strict=True)]
    return [
        any(sort_value(cell) is not None for cell in cells)
        and all(sort_value(cell) is not None or str(cell) == "-" or not isinstance(cell, str) for cell in cells)
        for cells in columns
    ]


def profile_data(suite: Suite, number: dict[str, int]) -> list[dict[str, Any]]:
    """Shares of runs above THRESHOLDS by agent, for those with runs at their end on every task; of success rates."""
    if suite.measure != SUCCESS or not suite.online_steps:
        return []
    profiles = []
    for agent in suite.agents:
        strata = [finals(cell) for cell in suite.cells_of(agent)]
        if all(map(len, strata)):
            profile = performance_profile(strata, THRESHOLDS)
            profiles.append({"agent": number[agent], "mean": profile.mean, "low": profile.low, "high": profile.high})
    return profiles
