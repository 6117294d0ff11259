"""The table of the papers: tasks by agents, end of the offline phase -> end of the online phase, with intervals."""

import math
from collections.abc import Mapping
from pathlib import Path

from analysis.labels.names import name_in
from analysis.labels.style import styles_of
from analysis.labels.wording import provenance_facts, task_label, two_digits
from analysis.loading.load import Suite
from analysis.loading.read import SUCCESS, Measure
from analysis.statistics.scores import ALL_TASKS, Estimate, ScoreRow
from analysis.tables.success import BOLD_RULE, suite_rows, wilson_note
from analysis.tables.table import ARROW, Cell, Part, Table, limits_of, write_texts

SIDES = ("offline_end", "final")  # columns of the main table
Rows = Mapping[tuple[str, str], ScoreRow]  # by task (or ALL_TASKS) and agent


def write_paper_table(suite: Suite, out: Path) -> list[Path]:
    """Writes `<suite>_offline_to_online` as .csv, .md and .tex into `out`; returns their paths."""
    rows = {(row.task, row.agent): row for row in suite_rows(suite)}
    reading = reading_table(suite, rows)
    note = wilson_note(row.estimates[side].wilson for row in rows.values() for side in sides_of(suite, row.agent))
    texts = {
        "csv": numbers_table(suite, rows).csv(),
        "md": f"## {suite.name}\n\n{' '.join([*caption(suite), *note])}\n\n{reading.markdown()}\n",
        "tex": reading.latex([*caption(suite, latex=True), *note], stacked=True),
    }
    return write_texts({f"{suite.name}_offline_to_online.{kind}": text for kind, text in texts.items()}, out)


def scopes(suite: Suite) -> list[str]:
    """The tasks, and all of them together where there are several with a common scale."""
    return [*suite.tasks, *([ALL_TASKS] if suite.measure and len(suite.tasks) > 1 else [])]


def sides_of(suite: Suite, agent: str | None = None) -> tuple[str, ...]:
    """The columns that a suite, or an agent of it, has: both, or that of its only phase."""
    sides = SIDES[: 1 + bool(suite.online_steps)] if suite.offline_updates else SIDES[1:]
    return tuple(side for side in sides if side == "final" or agent not in suite.from_scratch)


def numbers_table(suite: Suite, rows: Rows) -> Table:
    """One line per task and agent, numbers as in the main table, and whether they are bold."""
    columns = ["suite", "task", "agent", "seeds_min", "seeds_max"]
    columns += [f"{side}{part}" for side in sides_of(suite) for part in ("", "_low", "_high", "_bold", "_wilson")]
    lines: list[list[Cell]] = []
    for scope in scopes(suite):
        for agent in styles_of(suite.agents):
            if row := rows.get((scope, agent)):
                cells: list[Cell] = [suite.name, scope, agent, *row.seeds]
                for side in sides_of(suite):
                    estimate = row.estimates[side]
                    cells += [estimate.mean, estimate.low, estimate.high, side in row.bold, estimate.wilson]
                lines.append(cells)
    return Table(columns, lines)


def reading_table(suite: Suite, rows: Rows) -> Table:
    """Tasks by agents, the mean over tasks last."""
    agents = list(styles_of(suite.agents))
    lines: list[list[Cell]] = []
    for scope in scopes(suite):
        measure = scope_measure(suite, scope)
        line: list[Cell] = [scope if scope == ALL_TASKS else task_label(suite, scope)]
        for agent in agents:
            row = rows.get((scope, agent))
            sides = sides_of(suite, agent)
            line.append([part_of(row.estimates[side], measure, side in row.bold) for side in sides] if row else [])
        lines.append(line)
    ruled = {index: "" for index, scope in enumerate(scopes(suite)) if scope == ALL_TASKS}
    return Table(["task", *(name_in(suite, agent) for agent in agents)], lines, sections=ruled)


def scope_measure(suite: Suite, scope: str) -> Measure:
    """What the numbers of a line are."""
    measure = suite.measure if scope == ALL_TASKS else suite.measures[scope]
    assert measure is not None
    return measure


def caption(suite: Suite, latex: bool = False) -> list[str]:
    """What the numbers are and rest on, in sentences."""
    names = list(dict.fromkeys(measure.name for measure in suite.measures.values()))
    unit = " in %" if names == [SUCCESS.name] else ""
    phases = {SIDES: "end of offline phase {} end of online phase", SIDES[:1]: "end of offline phase"}
    sides = phases.get(sides_of(suite), "end of online phase").format("to" if latex else ARROW)
    return [
        f"{' or '.join(names).capitalize()}{unit}, {sides}: mean over seeds [95 % t interval].",
        f"{suite.name}: {'; '.join(provenance_facts(suite))}.",
        *(["From scratch: no offline phase, the end of the online phase alone."] * bool(suite.from_scratch)),
        *([BOLD_RULE] * (len(suite.agents) > 1)),
    ]


def part_of(estimate: Estimate, measure: Measure, bold: bool) -> Part:
    """62 and [48, 76] for success rates, which are shown in percent; other scores with two digits."""
    if math.isnan(estimate.mean):
        return Part("-", bold=bold)

    def number(value: float) -> str:
        return f"{100 * value:.0f}" if measure == SUCCESS else two_digits(value)

    return Part(number(estimate.mean), limits_of(number(estimate.low), number(estimate.high), estimate.wilson), bold)
