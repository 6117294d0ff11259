"""The verdicts of a suite as CSV, as Markdown, and as one line for each agent and source."""

from collections.abc import Sequence
from pathlib import Path

from analysis.labels.names import name_in
from analysis.labels.wording import two_digits
from analysis.loading.load import Suite
from analysis.published.sources import source_of
from analysis.published.verdicts import (
    ABOVE,
    BELOW,
    CONFORMANT,
    ERROR_RATE,
    MARGIN,
    NOT_COMPARABLE,
    NOT_ENOUGH,
    Difference,
    SideMean,
    Verdict,
    step_label,
)
from analysis.statistics.scores import ALL_TASKS
from analysis.tables.success import wilson_note
from analysis.tables.table import Cell, Part, Table, limits_of, write_texts


def write_verdicts(suite: Suite, rows: Sequence[Verdict], out: Path, margin: float = MARGIN) -> list[Path]:
    """Writes `<suite>_verdicts.csv` and `.md` into `out`; returns their paths, none without rows."""
    if not rows:
        return []
    texts = {
        f"{suite.name}_verdicts.csv": numbers_table(suite, rows).csv(),
        f"{suite.name}_verdicts.md": to_markdown(suite, rows, margin),
    }
    return write_texts(texts, out)


def numbers_table(suite: Suite, rows: Sequence[Verdict]) -> Table:
    """Every verdict with the numbers behind it."""
    parts = ("", "_low", "_high", "_seeds_min", "_seeds_max", "_wilson")
    sides = [f"{side}{part}" for side in ("ours", "published") for part in parts]
    gap = ["difference", "difference_low", "difference_high", "p_adjusted"]
    where = ["suite", "agent", "source", "method", "task", "num_tasks", "step"]
    lines = []
    for row in rows:
        cells: list[Cell] = [suite.name, row.agent, row.source, row.method, row.task, row.num_tasks, row.step]
        for side in (row.ours, row.published):
            cells += [side.mean, side.low, side.high, *side.seeds, side.wilson] if side else [None] * len(parts)
        d = row.difference
        cells += [d.mean, d.low, d.high] if d else [None] * 3
        lines.append([*cells, row.p_adjusted, row.verdict, row.reason])
    return Table([*where, *sides, *gap, "verdict", "reason"], lines)


def to_markdown(suite: Suite, rows: Sequence[Verdict], margin: float = MARGIN) -> str:
    """A summary at the last step, and one table per agent and source."""
    blocks = [summarised(suite, rows, margin)]
    blocks += wilson_note(side.wilson for row in rows for side in (row.ours, row.published) if side)
    for heading, table in tables_by_source(suite, rows):
        blocks += [f"### {heading}", table.markdown()]
    return "\n\n".join(blocks) + "\n"


def tables_by_source(suite: Suite, rows: Sequence[Verdict]) -> list[tuple[str, Table]]:
    """Every verdict with its numbers: heading and table of each agent and source."""
    families: dict[tuple[str, str, str], list[Verdict]] = {}
    for row in rows:
        families.setdefault((row.agent, row.source, row.method), []).append(row)
    tables = []
    for (agent, source, method), members in families.items():
        heading = f"{name_in(suite, agent)} against {method}, {source_of(source).label}"
        lines = []
        for row in members:
            lines.append(
                [
                    row.task if row.num_tasks == 1 else f"{ALL_TASKS} ({row.num_tasks})",
                    step_label(row.step),
                    *((estimate(row.ours), between(row.ours.seeds)) if row.ours else ("-", "-")),
                    estimate(row.published),
                    between(row.published.seeds),
                    estimate(row.difference) if row.difference else "-",
                    row.verdict,
                    row.reason,
                ]
            )
        columns = ["task", "step", "ours", "seeds", "published", "seeds", "difference", "verdict", "reason"]
        tables.append((heading, Table(columns, lines)))
    return tables


def summarised(suite: Suite, rows: Sequence[Verdict], margin: float = MARGIN) -> str:
    """One line per agent and source, the verdicts at the last compared step, below what they rest on."""
    heading = f"## {suite.name}: against published numbers"
    return "\n\n".join([heading, rule(margin), summary_table(suite, rows).markdown()])


def rule(margin: float = MARGIN) -> str:
    """What a verdict promises."""
    return (
        f"Margin {margin:.2f}. A method that is truly equal is called below or above on any task of the suite with "
        f"probability {ERROR_RATE:.0%} at most, at each step. The rule: analysis/README.md."
    )


def summary_table(suite: Suite, rows: Sequence[Verdict]) -> Table:
    """One line per agent and source, at the last compared step."""
    last: dict[tuple[str, str, str], int] = {}
    for row in rows:
        key = (row.agent, row.source, row.method)
        last[key] = max(row.step, last.get(key, row.step))
    lines = []
    for (agent, source, method), step in last.items():
        members = [r for r in rows if (r.agent, r.source, r.method, r.step) == (agent, source, method, step)]
        overall = [row.verdict for row in members if row.task == ALL_TASKS]
        single = [row for row in members if row.task != ALL_TASKS]
        kinds = (BELOW, ABOVE, CONFORMANT, NOT_ENOUGH, NOT_COMPARABLE)
        counts = [f"{n} {kind}" for kind in kinds if (n := sum(row.verdict == kind for row in single))]
        name = f"{method}, {source_of(source).label}"
        lines.append([name_in(suite, agent), name, step_label(step), overall[0] if overall else "-", ", ".join(counts)])
    return Table(["agent", "published", "step", "mean over tasks", "by task"], lines)


def estimate(value: SideMean | Difference) -> str:
    """0.62 [0.48, 0.76], or the mean alone."""
    wilson = isinstance(value, SideMean) and value.wilson
    return str(Part(two_digits(value.mean), limits_of(two_digits(value.low), two_digits(value.high), wilson)))


def between(seeds: tuple[int, int]) -> str:
    return str(seeds[0]) if seeds[0] == seeds[1] else f"{seeds[0]}-{seeds[1]}"
