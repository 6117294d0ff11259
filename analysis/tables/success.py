"""Tables of one suite in CSV (numbers), Markdown and LaTeX (for reading): per agent over all tasks, and by task."""

import csv
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.labels.style import styles_of
from analysis.labels.wording import DEFINITIONS, provenance_facts, task_label
from analysis.loading.load import Cell, Suite
from analysis.loading.read import SUCCESS
from analysis.statistics import metrics
from analysis.statistics.comparisons import leaders

ALL_TASKS = "all tasks"


@dataclass(frozen=True)
class Estimate:
    """One number of a table with its 95 % limits; NaN where it is not defined."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One agent on one task, or over all tasks of the suite (task = ALL_TASKS); estimates by column."""

    task: str
    agent: str
    num_tasks: int
    seeds: tuple[int, int]  # fewest and most runs per task
    missing: int
    incomplete: int
    estimates: dict[str, Estimate]
    bold: frozenset[str]  # columns in which the agent is among the best (`comparisons.leaders`)


# key of an estimate -> heading for reading
COLUMNS = {
    "offline_end": "end of offline",
    "final": "final",
    "improvement": "improvement",
    "online_auc": "online AUC",
}
BOLD_RULE = "Bold: the best, and all that cannot be told from it at 5 % (Holm), where any can."
OFFLINE_COLUMNS = ("offline_end", "improvement")  # which an agent without an offline phase does not have
RANKED = ("offline_end", "final", "online_auc")  # columns in which the best are bold


def run_scalars(cell: Cell) -> dict[str, metrics.Array]:
    """Each column of the table for every run of a cell, (n,); NaN where a run has not come far enough, and in what
    rests on the end of the offline phase where there is none."""
    scalars = {
        "offline_end": metrics.score_offline_end(cell.offline_score),
        "final": metrics.score_final(cell.online_score),
        "improvement": metrics.improvement(cell.offline_score, cell.online_score),
        "online_auc": metrics.online_auc(cell.online_steps, cell.online_score),
    }
    if cell.from_scratch:
        scalars |= {column: np.full(len(cell.seeds), np.nan) for column in OFFLINE_COLUMNS}
    return scalars


def suite_rows(suite: Suite) -> list[Row]:
    """Rows over all tasks first (none where tasks have no common scale), then task by task; agents as in legends."""
    agents = list(styles_of(suite.agents))
    rows = []
    for scope in [ALL_TASKS] * (suite.measure is not None) + list(suite.tasks):
        tasks = suite.tasks if scope == ALL_TASKS else (scope,)
        cells = {
            agent: [suite.cells[task, agent] for task in tasks if (task, agent) in suite.cells] for agent in agents
        }
        cells = {agent: own for agent, own in cells.items() if own}
        bold = best_agents(suite, cells, tasks)
        rows += [row(suite, scope, agent, own, bold[agent]) for agent, own in cells.items()]
    return rows


def best_agents(suite: Suite, cells: dict[str, list[Cell]], tasks: Sequence[str]) -> dict[str, frozenset[str]]:
    """The columns in which each agent is bold, of agents that have runs on all `tasks`; the others never are."""
    bold: dict[str, set[str]] = {agent: set() for agent in cells}
    whole = [agent for agent, own in cells.items() if len(own) == len(tasks)]
    by_success = all(suite.measures[task] == SUCCESS for task in tasks)
    scalars = {agent: [run_scalars(cell) for cell in cells[agent]] for agent in whole}
    for column in RANKED:
        present = [a for a in whole if column not in OFFLINE_COLUMNS or not any(cell.from_scratch for cell in cells[a])]
        paired = np.array([[all(map(paired_by_phase, cells[a], cells[b])) for b in present] for a in present], bool)
        strata = [[values[column][~np.isnan(values[column])] for values in scalars[agent]] for agent in present]
        if present and all(map(len, itertools.chain.from_iterable(strata))):
            evaluations = [evaluations_behind(column, cell) for agent in present for cell in cells[agent]]
            episodes = suite.eval_episodes * min(evaluations) if by_success else None
            for agent, is_bold in zip(present, leaders(strata, paired, episodes), strict=True):
                bold[agent] |= {column} if is_bold else set()
    return {agent: frozenset(columns) for agent, columns in bold.items()}


def evaluations_behind(column: str, cell: Cell) -> int:
    """How many evaluations a scalar of a run rests on."""
    online = len(cell.online_steps) - 1
    return {"offline_end": 1, "final": min(metrics.FINAL_EVALUATIONS, online), "online_auc": online + 1}[column]


def paired_by_phase(first: Cell, second: Cell) -> bool:
    """Whether run i of the one and run i of the other go on from the same offline phase, for every i."""
    whole = first.complete.all() and second.complete.all()
    return bool(whole) and None not in first.offline_phases and first.offline_phases == second.offline_phases


def row(suite: Suite, task: str, agent: str, cells: Sequence[Cell], bold: frozenset[str]) -> Row:
    """One agent over `cells`, one per task, each task with the same weight."""
    scalars = [run_scalars(cell) for cell in cells]
    lowest, highest = suite.measures[cells[0].task].bounds
    estimates = {}
    for column in COLUMNS:
        bounds = (lowest - highest, highest - lowest) if column == "improvement" else (lowest, highest)
        interval = metrics.stratified_t([values[column] for values in scalars], bounds=bounds)
        estimates[column] = Estimate(float(interval.mean), float(interval.low), float(interval.high))
    seeds = [len(cell.seeds) for cell in cells]
    tasks = None if task == ALL_TASKS else [task]
    return Row(
        task=task,
        agent=agent,
        num_tasks=len(cells),
        seeds=(min(seeds), max(seeds)),
        missing=suite.missing(agent, tasks),
        incomplete=suite.incomplete(agent, tasks),
        estimates=estimates,
        bold=bold,
    )


def write_tables(suite: Suite, out: Path) -> list[Path]:
    """Writes `<suite>_table.csv`, `.md`, `.tex` and `<suite>_table_by_task.tex` into `out`; returns their paths.

    There is no `<suite>_table.tex` where there are no rows over all tasks.
    """
    rows = suite_rows(suite)
    overall = [row for row in rows if row.task == ALL_TASKS]
    by_task = [row for row in rows if row.task != ALL_TASKS]
    texts = {
        f"{suite.name}_table.csv": to_csv(suite, rows),
        f"{suite.name}_table.md": to_markdown(suite, rows),
        f"{suite.name}_table.tex": to_latex(suite, overall),
        f"{suite.name}_table_by_task.tex": to_latex(suite, by_task),
    }
    if not overall:
        del texts[f"{suite.name}_table.tex"]
    return write_texts(texts, out)


def to_csv(suite: Suite, rows: Sequence[Row]) -> str:
    """Numbers with six digits, an empty field where undefined; every row carries what it rests on."""
    facts = ["suite", "task", "agent", "data_origin", "success_timing", "eval_episodes"]
    # Without success the columns do not speak of it, and each row says what its numbers are.
    by_success = suite.measure == SUCCESS
    names = {"offline_end": "success_offline_end", "final": "success_final"}
    if not by_success:
        facts.append("scored_by")
        names = {"offline_end": "score_offline_end", "final": "score_final"}
    counts = ["num_tasks", "seeds_min", "seeds_max", "runs_missing", "runs_incomplete"]
    columns = [*facts, *counts]
    columns += [f"{names.get(key, key)}{limit}" for key in COLUMNS for limit in ("", "_low", "_high")]
    lines: list[list[object]] = []
    for row in rows:
        numbers = [getattr(row.estimates[column], part) for column in COLUMNS for part in ("mean", "low", "high")]
        lines.append(
            [suite.name, row.task, row.agent, suite.origin, suite.success_timing, suite.eval_episodes]
            + ([] if by_success else [suite.measures[suite.tasks[0] if row.task == ALL_TASKS else row.task].name])
            + [row.num_tasks, *row.seeds, row.missing, row.incomplete]
            + ["" if math.isnan(number) else f"{number:.6f}" for number in numbers]
        )
    return csv_text(columns, lines)


def to_markdown(suite: Suite, rows: Sequence[Row]) -> str:
    """One table over all tasks and one per task, below a paragraph that says what they rest on."""
    blocks = [f"## {suite.name}", f"{' · '.join(provenance_facts(suite))}. {' '.join(caption(suite))}"]
    for task in (ALL_TASKS, *suite.tasks) if suite.measure and len(suite.tasks) > 1 else suite.tasks:
        lines = [row for row in rows if row.task == task]
        blocks.append(f"### {f'{ALL_TASKS} ({len(suite.tasks)})' if task == ALL_TASKS else task_label(suite, task)}")
        table = [["agent", *COLUMNS.values(), "seeds", "runs"]]
        for r in lines:
            numbers = [emphasised(show(estimate), column in r.bold) for column, estimate in r.estimates.items()]
            table.append([r.agent, *numbers, show_seeds(r), show_runs(r)])
        blocks.append(aligned(table))
    if suite.notes:
        blocks.append("\n".join(f"* {note}" for note in suite.notes))
    return "\n\n".join(blocks) + "\n"


def write_texts(texts: Mapping[str, str], out: Path) -> list[Path]:
    """Writes texts by file name into `out`, with the same line ends everywhere; returns their paths."""
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
    return [out / name for name in texts]


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows below their heading."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([columns, *rows])
    return buffer.getvalue()


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text; the first row is the heading."""
    widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def to_latex(suite: Suite, rows: Sequence[Row]) -> str:
    """A bare `tabular` to be read in by \\input; asks for booktabs and nothing else. Rows by task are ruled off."""
    columns = ["agent", *COLUMNS.values(), "seeds", "runs"]
    lines = [r"% needs \usepackage{booktabs} in the preamble", rf"\begin{{tabular}}{{l{'c' * (len(columns) - 1)}}}"]
    lines += [r"\toprule", " & ".join(map(escape, columns)) + r" \\", r"\midrule"]
    for index, row in enumerate(rows):
        if row.task != ALL_TASKS and (index == 0 or rows[index - 1].task != row.task):
            lines += [r"\midrule"] * bool(index)
            lines.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{\textit{{{escape(task_label(suite, row.task))}}}}} \\")
        # In text mode a hyphen would stand for the minus.
        numbers = [re.sub(r"-(?=\d)", "$-$", show(estimate)) for estimate in row.estimates.values()]
        marks = [column in row.bold for column in row.estimates]
        numbers = [rf"\textbf{{{text}}}" if bold else text for text, bold in zip(numbers, marks, strict=True)]
        lines.append(" & ".join([escape(row.agent), *numbers, show_seeds(row), show_runs(row)]) + r" \\")
    lines.append(r"\midrule")
    # One row for each sentence: a row that spans all columns cannot break its line.
    by_task = any(row.task != ALL_TASKS for row in rows)
    sentences = [f"{suite.name}: {'; '.join(provenance_facts(suite))}.", *caption(suite, by_task)]
    lines += [rf"\multicolumn{{{len(columns)}}}{{l}}{{\footnotesize {escape(text)}}} \\" for text in sentences]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def caption(suite: Suite, by_task: bool = False) -> list[str]:
    """What the columns mean, in sentences; by_task where the rows over all tasks are left out."""
    tasks = "" if by_task or len(suite.tasks) == 1 else f" and over {len(suite.tasks)} tasks of equal weight"
    if suite.measure is None:
        tasks = ", task by task (no mean over tasks: their scores have no common scale)"
    measures = dict.fromkeys(suite.measures.values())
    name = suite.measure.name if suite.measure else " or ".join(measure.name for measure in measures)
    sentences = [f"{name.capitalize()}: mean over seeds{tasks}, with 95 % t interval."]
    sentences += [DEFINITIONS[measure] for measure in measures if measure in DEFINITIONS]
    if suite.online_steps:
        points = {min(metrics.FINAL_EVALUATIONS, len(cell.online_steps) - 1) for cell in suite.cells.values()}
        last = " or ".join(map(str, sorted(points)))
        sentences += [
            f"Final: mean of the last {last} evaluations; improvement: final minus end of offline, paired by run.",
            f"Online AUC: mean {'success' if suite.measure == SUCCESS else 'score'} over the online phase.",
        ]
    if scratch := suite.from_scratch or (() if suite.offline_updates else ("all agents",)):
        blank = "no end of offline and no improvement" if suite.online_steps else "no end of offline"
        sentences.append(f"No offline phase (hence {blank}): {', '.join(scratch)}.")
    if len(suite.agents) > 1:
        sentences.append(BOLD_RULE)
    if any(len(cell.seeds) < 2 for cell in suite.cells.values()):
        sentences.append("No interval where a task has one seed.")
    if any(suite.incomplete(agent) for agent in suite.agents):
        sentences.append("A run that is not complete counts in the columns for which it has come far enough.")
    return sentences


def show(estimate: Estimate) -> str:
    """0.62 [0.48, 0.76]; without limits where they are undefined, a dash where there is no number."""
    if math.isnan(estimate.mean):
        return "-"
    limits = "" if math.isnan(estimate.low) else f" [{show_number(estimate.low)}, {show_number(estimate.high)}]"
    return show_number(estimate.mean) + limits


def emphasised(text: str, bold: bool) -> str:
    """Bold in Markdown."""
    return f"**{text}**" if bold else text


def show_number(number: float) -> str:
    """Two digits; no minus before a zero."""
    return f"{np.round(number, 2) + 0.0:.2f}"


def show_seeds(row: Row) -> str:
    """3, or 3-5 where tasks differ."""
    low, high = row.seeds
    return str(low) if low == high else f"{low}-{high}"


def show_runs(row: Row) -> str:
    """Whether all runs are there and complete."""
    marks = [f"{row.missing} missing"] * bool(row.missing) + [f"{row.incomplete} incomplete"] * bool(row.incomplete)
    return ", ".join(marks) or "complete"


def escape(text: str) -> str:
    """Text for LaTeX: special characters, and the few beyond ASCII that we use ourselves."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "·": ";"}
    special |= {character: "\\" + character for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)
