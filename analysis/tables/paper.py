"""The table of the papers: tasks by agents, end of the offline phase -> end of the online phase, with intervals."""

import math
from pathlib import Path

from analysis.labels.style import styles_of
from analysis.labels.wording import provenance_facts, task_label
from analysis.loading.load import Suite
from analysis.loading.read import SUCCESS, Measure
from analysis.tables.success import (
    ALL_TASKS,
    BOLD_RULE,
    Estimate,
    Row,
    aligned,
    csv_text,
    emphasised,
    escape,
    show_number,
    suite_rows,
    write_texts,
)

ARROW = "→"
SIDES = ("offline_end", "final")  # columns of the main table


def write_paper_table(suite: Suite, out: Path) -> list[Path]:
    """Writes `<suite>_offline_to_online` as .csv, .md and .tex into `out`; returns their paths."""
    rows = {(row.task, row.agent): row for row in suite_rows(suite)}
    texts = {"csv": to_csv(suite, rows), "md": to_markdown(suite, rows), "tex": to_latex(suite, rows)}
    return write_texts({f"{suite.name}_offline_to_online.{kind}": text for kind, text in texts.items()}, out)


def scopes(suite: Suite) -> list[str]:
    """The tasks, and all of them together where there are several with a common scale."""
    return [*suite.tasks, *([ALL_TASKS] if suite.measure and len(suite.tasks) > 1 else [])]


def sides(suite: Suite) -> tuple[str, ...]:
    """The columns that a suite has: both, or that of its only phase."""
    return SIDES[: 1 + bool(suite.online_steps)] if suite.offline_updates else SIDES[1:]


def sides_of(suite: Suite, row: Row) -> tuple[str, ...]:
    """The columns that an agent of the suite has."""
    return tuple(side for side in sides(suite) if side == "final" or row.agent not in suite.from_scratch)


def to_csv(suite: Suite, rows: dict[tuple[str, str], Row]) -> str:
    """One line per task and agent, numbers as in the main table, and whether they are bold."""
    columns = ["suite", "task", "agent", "seeds_min", "seeds_max"]
    columns += [f"{side}{part}" for side in sides(suite) for part in ("", "_low", "_high", "_bold")]
    lines: list[list[object]] = []
    for scope in scopes(suite):
        for agent in styles_of(suite.agents):
            if row := rows.get((scope, agent)):
                fields: list[object] = [suite.name, scope, agent, *row.seeds]
                for side in sides(suite):
                    estimate = row.estimates[side]
                    numbers = (estimate.mean, estimate.low, estimate.high)
                    fields += ["" if math.isnan(number) else f"{number:.6f}" for number in numbers]
                    fields.append(str(side in row.bold).lower())
                lines.append(fields)
    return csv_text(columns, lines)


def to_markdown(suite: Suite, rows: dict[tuple[str, str], Row]) -> str:
    """Tasks by agents."""
    lines = [["task", *styles_of(suite.agents)]]
    for scope in scopes(suite):
        measure = scope_measure(suite, scope)
        cells = [rows.get((scope, agent)) for agent in styles_of(suite.agents)]
        shown = []
        for row in cells:
            estimates = {side: row.estimates[side] for side in sides_of(suite, row)} if row else {}
            parts = [emphasised(show(e, measure), row is not None and s in row.bold) for s, e in estimates.items()]
            shown.append(f" {ARROW} ".join(parts) or "-")
        lines.append([scope if scope == ALL_TASKS else task_label(suite, scope), *shown])
    return f"## {suite.name}\n\n{' '.join(caption(suite))}\n\n{aligned(lines)}\n"


def to_latex(suite: Suite, rows: dict[tuple[str, str], Row]) -> str:
    """A bare `tabular` to be read in by \\input: means in one line, intervals in small print below them."""
    agents = list(styles_of(suite.agents))
    lines = [
        r"% needs \usepackage{booktabs} in the preamble",
        rf"\begin{{tabular}}{{l{'c' * len(agents)}}}",
        r"\toprule",
        " & ".join(["task", *map(escape, agents)]) + r" \\",
        r"\midrule",
    ]
    arrow = r" $\rightarrow$ "
    for scope in scopes(suite):
        measure = scope_measure(suite, scope)
        lines += [r"\midrule"] * (scope == ALL_TASKS)
        means, limits = [escape(scope if scope == ALL_TASKS else task_label(suite, scope))], [""]
        for agent in agents:
            row = rows.get((scope, agent))
            numbers, small = [], []
            for side in sides_of(suite, row) if row else ():
                assert row is not None
                number, interval = show_parts(row.estimates[side], measure)
                number, interval = number.replace("-", "$-$"), interval.replace("-", "$-$")
                numbers.append(rf"\textbf{{{number}}}" if side in row.bold else number)
                small.append(interval)
            means.append(arrow.join(numbers) or "--")
            limits.append(rf"{{\scriptsize {arrow.join(small)}}}" if any(small) else "")
        lines += [" & ".join(means) + r" \\", " & ".join(limits) + r" \\[2pt]"]
    lines.append(r"\midrule")
    span = rf"\multicolumn{{{len(agents) + 1}}}{{l}}"
    lines += [rf"{span}{{\footnotesize {escape(text)}}} \\" for text in caption(suite, latex=True)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


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
    told = phases.get(sides(suite), "end of online phase").format("to" if latex else ARROW)
    return [
        f"{' or '.join(names).capitalize()}{unit}, {told}: mean over seeds [95 % t interval].",
        f"{suite.name}: {'; '.join(provenance_facts(suite))}.",
        *(["From scratch: no offline phase, the end of the online phase alone."] * bool(suite.from_scratch)),
        *([BOLD_RULE] * (len(suite.agents) > 1)),
    ]


def show(estimate: Estimate, measure: Measure) -> str:
    """Mean and interval in one."""
    number, interval = show_parts(estimate, measure)
    return f"{number} {interval}".rstrip()


def show_parts(estimate: Estimate, measure: Measure) -> tuple[str, str]:
    """62 and [48, 76] for success rates, which are shown in percent; other scores with two digits."""
    if math.isnan(estimate.mean):
        return "-", ""

    def number(value: float) -> str:
        return f"{100 * value:.0f}" if measure == SUCCESS else show_number(value)

    interval = "" if math.isnan(estimate.low) else f"[{number(estimate.low)}, {number(estimate.high)}]"
    return number(estimate.mean), interval
