"""The tables of one suite: per agent over all tasks, and by task; numbers as CSV, for reading as Markdown and LaTeX."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from analysis.labels.names import name_in
from analysis.labels.style import styles_of
from analysis.labels.wording import DEFINITIONS, provenance_facts, task_label, two_digits
from analysis.loading.load import Suite
from analysis.loading.read import SUCCESS
from analysis.statistics import metrics
from analysis.statistics.scores import ALL_TASKS, COLUMNS, Estimate, ScoreRow, score_rows
from analysis.tables.table import DAGGER, Part, Table, limits_of, write_texts

HEADINGS = {
    "offline_end": "end of offline",
    "final": "final",
    "improvement": "improvement",
    "online_auc": "online AUC",
}
WILSON_RULE = f"{DAGGER} Where all runs score alike: Wilson's interval of as many runs."
BOLD_RULE = "Bold: the best, and all that cannot be told from it at 5 % (Holm), where any can."


def suite_rows(suite: Suite) -> list[ScoreRow]:
    """Rows over all tasks first (none where tasks have no common scale), then task by task; agents as in legends."""
    return score_rows(suite, styles_of(suite.agents))


def write_tables(suite: Suite, out: Path) -> list[Path]:
    """Writes `<suite>_table.csv`, `.md`, `.tex` and `<suite>_table_by_task.tex` into `out`; returns their paths.

    There is no `<suite>_table.tex` where there are no rows over all tasks.
    """
    rows = suite_rows(suite)
    overall = [row for row in rows if row.task == ALL_TASKS]
    by_task = [row for row in rows if row.task != ALL_TASKS]
    texts = {
        f"{suite.name}_table.csv": numbers_table(suite, rows).csv(),
        f"{suite.name}_table.md": to_markdown(suite, rows),
        f"{suite.name}_table.tex": to_latex(suite, overall),
        f"{suite.name}_table_by_task.tex": to_latex(suite, by_task),
    }
    if not overall:
        del texts[f"{suite.name}_table.tex"]
    return write_texts(texts, out)


def numbers_table(suite: Suite, rows: Sequence[ScoreRow]) -> Table:
    """Every row with what it rests on."""
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
    columns.append("wilson")
    return Table(
        columns,
        [
            [suite.name, row.task, row.agent, suite.origin, suite.success_timing, suite.eval_episodes]
            + ([] if by_success else [suite.measures[suite.tasks[0] if row.task == ALL_TASKS else row.task].name])
            + [row.num_tasks, *row.seeds, row.missing, row.incomplete]
            + [getattr(row.estimates[column], part) for column in COLUMNS for part in ("mean", "low", "high")]
            + [" ".join(names.get(key, key) for key in COLUMNS if row.estimates[key].wilson)]
            for row in rows
        ],
    )


def reading_table(suite: Suite, rows: Sequence[ScoreRow]) -> Table:
    """Agents by columns; rows by task are headed by their task."""
    headed = {
        index: task_label(suite, row.task)
        for index, row in enumerate(rows)
        if row.task != ALL_TASKS and (index == 0 or rows[index - 1].task != row.task)
    }
    return Table(
        ["agent", *HEADINGS.values(), "seeds", "runs"],
        [
            [name_in(suite, row.agent)]
            + [[part_of(row.estimates[column], column in row.bold)] for column in HEADINGS]
            + [show_seeds(row), show_runs(row)]
            for row in rows
        ],
        sections=headed,
    )


def to_markdown(suite: Suite, rows: Sequence[ScoreRow]) -> str:
    """One table over all tasks and one per task, below a paragraph that says what they rest on."""
    blocks = [
        f"## {suite.name}",
        f"{' · '.join(provenance_facts(suite))}. {' '.join([*caption(suite), *note_of(rows)])}",
    ]
    for task in (ALL_TASKS, *suite.tasks) if suite.measure and len(suite.tasks) > 1 else suite.tasks:
        blocks.append(f"### {f'{ALL_TASKS} ({len(suite.tasks)})' if task == ALL_TASKS else task_label(suite, task)}")
        blocks.append(reading_table(suite, [row for row in rows if row.task == task]).markdown())
    if suite.notes:
        blocks.append("\n".join(f"* {note}" for note in suite.notes))
    return "\n\n".join(blocks) + "\n"


def to_latex(suite: Suite, rows: Sequence[ScoreRow]) -> str:
    """One tabular of all rows."""
    by_task = any(row.task != ALL_TASKS for row in rows)
    notes = [f"{suite.name}: {'; '.join(provenance_facts(suite))}.", *caption(suite, by_task), *note_of(rows)]
    return reading_table(suite, rows).latex(notes)


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
    from_scratch = [name_in(suite, agent) for agent in suite.from_scratch]
    if scratch := from_scratch or ([] if suite.offline_updates else ["all agents"]):
        blank = "no end of offline and no improvement" if suite.online_steps else "no end of offline"
        sentences.append(f"No offline phase (hence {blank}): {', '.join(scratch)}.")
    if len(suite.agents) > 1:
        sentences.append(BOLD_RULE)
    if any(len(cell.seeds) < 2 for cell in suite.cells.values()):
        sentences.append("No interval where a task has one seed.")
    if any(suite.incomplete(agent) for agent in suite.agents):
        sentences.append("A run that is not complete counts in the columns for which it has come far enough.")
    return sentences


def part_of(estimate: Estimate, bold: bool = False) -> Part:
    """0.62 and [0.48, 0.76]; without limits where they are undefined, a dash where there is no number."""
    if math.isnan(estimate.mean):
        return Part("-", bold=bold)
    limits = limits_of(two_digits(estimate.low), two_digits(estimate.high), estimate.wilson)
    return Part(two_digits(estimate.mean), limits, bold)


def wilson_note(daggers: Iterable[bool]) -> list[str]:
    """What a dagger means, where there is one."""
    return [WILSON_RULE] * any(daggers)


def note_of(rows: Iterable[ScoreRow]) -> list[str]:
    return wilson_note(estimate.wilson for row in rows for estimate in row.estimates.values())


def show(estimate: Estimate) -> str:
    """0.62 [0.48, 0.76]."""
    return str(part_of(estimate))


def show_seeds(row: ScoreRow) -> str:
    """3, or 3-5 where tasks differ."""
    low, high = row.seeds
    return str(low) if low == high else f"{low}-{high}"


def show_runs(row: ScoreRow) -> str:
    """Whether all runs are there and complete."""
    marks = [f"{row.missing} missing"] * bool(row.missing) + [f"{row.incomplete} incomplete"] * bool(row.incomplete)
    return ", ".join(marks) or "complete"
