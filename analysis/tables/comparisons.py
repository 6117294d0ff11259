"""Which agent is better, pair by pair, and the scalars of runs that the main table leaves out; as CSV and Markdown."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.labels.names import name_in
from analysis.labels.style import styles_of
from analysis.labels.wording import counted, provenance_facts, two_digits
from analysis.loading.load import Cell, Suite
from analysis.loading.read import SUCCESS, Measure
from analysis.statistics import comparisons, metrics
from analysis.statistics.metrics import Array, Interval
from analysis.statistics.pairs import Pair, finals, pairs_of
from analysis.statistics.scores import ALL_TASKS
from analysis.tables.success import wilson_note
from analysis.tables.table import DAGGER, Part, Table, limits_of, write_texts
from analysis.tables.table import Cell as TableCell

THRESHOLDS = (0.5, 0.9)  # of the success rate, for "steps to"
NOTHING = Interval(mean=np.array(np.nan), low=np.array(np.nan), high=np.array(np.nan))


def write_comparisons(suite: Suite, out: Path) -> list[Path]:
    """Writes `<suite>_comparisons` and `<suite>_metrics`, each as .csv and .md, into `out`; returns their paths."""
    texts = {f"{suite.name}_metrics.{kind}": text for kind, text in metrics_texts(suite).items()}
    if len(suite.agents) > 1 and suite.online_steps:
        pairs = all_pairs(suite)
        texts |= {f"{suite.name}_comparisons.{kind}": text for kind, text in pair_texts(suite, pairs).items()}
    return write_texts(texts, out)


# --------------------------------------------------------------------------------------------------------- pairs


def all_pairs(suite: Suite) -> list[Pair]:
    """Over all tasks first (none where they have no common scale), then task by task where there are several."""
    scopes = [ALL_TASKS] * (suite.measure is not None) + list(suite.tasks) * (len(suite.tasks) > 1)
    agents = styles_of(suite.agents)
    return [pair for scope in scopes or suite.tasks for pair in pairs_of(suite, agents, scope)]


def pair_texts(suite: Suite, pairs: Sequence[Pair]) -> dict[str, str]:
    """The pairs as CSV, with all numbers, and those over all tasks as Markdown for reading."""
    chosen = [pair for pair in pairs if pair.task == ALL_TASKS] or list(pairs)
    reading = pair_reading(suite, chosen).markdown()
    return {
        "csv": pair_numbers(suite, pairs).csv(),
        "md": f"## {suite.name}\n\n{pair_caption(suite, chosen)}\n\n{reading}\n",
    }


def pair_reading(suite: Suite, pairs: Sequence[Pair]) -> Table:
    """Pairs for people."""
    columns = ["first", "second", "difference", "p (Holm)", "P(first better)", "ties", "seeds needed"]
    return Table(columns, [reading_line(suite, pair) for pair in pairs])


def pair_numbers(suite: Suite, pairs: Sequence[Pair]) -> Table:
    columns = ["suite", "task", "first", "second", "num_tasks", "seeds_first", "seeds_second", "paired"]
    columns += ["difference", "difference_low", "difference_high", "p_value", "p_holm"]
    columns += ["probability_of_improvement", "probability_low", "probability_high", "ties", "seeds_needed", "wilson"]
    rows = []
    for pair in pairs:
        result = pair.result
        cells: list[TableCell] = [suite.name, pair.task, pair.first, pair.second, pair.num_tasks, *pair.seeds]
        cells += [pair.paired, *limits(result.difference), result.p_value, pair.p_holm]
        cells += [*limits(result.probability), result.ties, result.seeds_needed]
        cells.append("probability_of_improvement" * result.probability.wilson)
        rows.append(cells)
    return Table(columns, rows, digits=".6g")


def reading_line(suite: Suite, pair: Pair) -> list[TableCell]:
    result = pair.result
    first, second = name_in(suite, pair.first), name_in(suite, pair.second)
    return [
        first if pair.task == ALL_TASKS else f"{pair.task}: {first}",
        second,
        [part_of(result.difference, pair.significant)],
        p_value_text(result.p_value, pair.p_holm),
        [part_of(result.probability)],
        f"{result.ties:.0%}",
        seeds_text(result.seeds_needed),
    ]


def p_value_text(p_value: float, corrected: float) -> str:
    """The corrected one; a dash where one run has none."""
    return "-" if math.isnan(p_value) else "<0.001" if corrected < 0.001 else f"{corrected:.2g}"


def seeds_text(seeds_needed: int | None) -> str:
    return f"{comparisons.MOST_SEEDS}+" if seeds_needed is None else str(seeds_needed)


def pair_caption(suite: Suite, pairs: Sequence[Pair]) -> str:
    """What the pairs rest on, and what they allow to say."""
    sentences = [
        f"{' · '.join(provenance_facts(suite))}.",
        "Difference of final scores, first minus second, with 95 % t interval; bold where it stands at 5 % after Holm's"
        " correction over the pairs of the table.",
        "P(first better): a run of the first beats one of the second, ties counted half.",
        "Seeds needed: per task and agent, to find this difference in 4 of 5 repetitions if it and its spread are the"
        " true ones.",
    ]
    if any(pair.result.probability.wilson for pair in pairs):
        sentences.append(
            f"{DAGGER} Where no run of one lies among those of the other: Wilson's interval of as many runs as"
            " the smaller side has."
        )
    if any(pair.paired for pair in pairs):
        sentences.append("Runs that go on from one offline phase are compared with each other.")
    if not all(pair.head_to_head for pair in pairs):
        least = metrics.HEAD_TO_HEAD_SEEDS
        sentences.append(f"Fewer than {least} seeds: too few for a claim that one agent is better than another.")
    return " ".join(sentences)


# ------------------------------------------------------------------------------------------------ further scalars


def further_scalars(cell: Cell, measure: Measure) -> dict[str, Array]:
    """Scalars of each run (n,) by column of `<suite>_metrics.csv`; what needs success rates only where there are."""
    # There is nothing to lose for an agent that begins untrained.
    dip = np.full(len(cell.seeds), np.nan) if cell.from_scratch else metrics.worst_dip(cell.online_score)
    scalars = {"worst_dip": dip}
    if measure == SUCCESS:
        scalars["regret"] = metrics.regret(cell.online_steps, cell.online_score)
        scalars["training_regret"] = 1.0 - cell.behaviour_success
        for threshold in THRESHOLDS:
            steps, reached = metrics.steps_to(cell.online_steps, cell.online_score, threshold)
            done = ~np.isnan(steps)
            scalars[f"steps_to_{threshold:.0%}".rstrip("%")] = steps if len(cell.online_steps) > 1 else steps * np.nan
            scalars[f"reached_{threshold:.0%}".rstrip("%")] = np.where(done, reached.astype(np.float64), np.nan)
    return scalars


def metrics_texts(suite: Suite) -> dict[str, str]:
    """Interquartile mean of the final score and the further scalars, per agent over all tasks and by task."""
    scopes = [ALL_TASKS] * (suite.measure is not None) + list(suite.tasks)
    rows: list[tuple[str, str, dict[str, Interval]]] = []
    for scope in scopes:
        tasks = suite.tasks if scope == ALL_TASKS else (scope,)
        measure = suite.measure if scope == ALL_TASKS else suite.measures[scope]
        assert measure is not None
        for agent in styles_of(suite.agents):
            cells = [suite.cells[task, agent] for task in tasks if (task, agent) in suite.cells]
            if cells:
                rows.append((scope, agent, estimates_of(cells, measure, suite.online_steps)))
    names = list(dict.fromkeys(name for *_, estimates in rows for name in estimates))
    numbers = Table(
        ["suite", "task", "agent", *(f"{name}{limit}" for name in names for limit in ("", "_low", "_high")), "wilson"],
        [
            [suite.name, scope, agent]
            + [value for name in names for value in limits(estimates.get(name, NOTHING))]
            + [" ".join(name for name in names if estimates.get(name, NOTHING).wilson)]
            for scope, agent, estimates in rows
        ],
        digits=".6g",
    )
    reading = Table(
        ["agent", *(name.replace("_", " ") + " %" * name[-1].isdigit() for name in names)],
        [
            [("" if scope == ALL_TASKS else f"{scope}: ") + name_in(suite, agent)]
            + [[part_of(estimates.get(name, NOTHING))] for name in names]
            for scope, agent, estimates in [row for row in rows if row[0] == ALL_TASKS] or rows
        ],
    )
    note = wilson_note(estimate.wilson for *_, estimates in rows for estimate in estimates.values())
    return {
        "csv": numbers.csv(),
        "md": f"## {suite.name}\n\n{' '.join([metrics_caption(suite), *note])}\n\n{reading.markdown()}\n",
    }


def estimates_of(cells: Sequence[Cell], measure: Measure, budget: int) -> dict[str, Interval]:
    """Estimates over the runs of `cells`, one for each task."""
    strata = [finals(cell) for cell in cells]
    estimates = {}
    if all(map(len, strata)):
        iqm = metrics.iqm_interval(strata, bounds=measure.bounds)
        estimates["final_iqm"] = metrics.spread_or_wilson(iqm, strata, measure.bounds)
    scalars = [further_scalars(cell, measure) for cell in cells]
    for name in scalars[0]:
        bounds = (
            (0.0, float(budget)) if name.startswith("steps_to") else (0.0, 1.0) if measure == SUCCESS else (0.0, np.inf)
        )
        estimates[name] = metrics.mean_interval([of_cell[name] for of_cell in scalars], bounds)
    return estimates


def metrics_caption(suite: Suite) -> str:
    """What the columns mean."""
    sentences = [f"{' · '.join(provenance_facts(suite))}.", "With 95 % intervals."]
    if len(suite.tasks) > 1:
        sentences.append(
            "Final IQM: interquartile mean over the runs of all tasks, which leaves out the hardest and easiest."
        )
    sentences.append("Worst dip: score at the hand-over minus the lowest after it.")
    if SUCCESS in suite.measures.values():
        sentences.append(
            "Regret: 1 - online AUC of evaluations; training regret: share of training episodes that fail."
        )
        sentences.append(
            f"Steps to: environment steps to the first evaluation at that success rate, at most"
            f" {counted(suite.online_steps, 'step')} (runs that never get there count with all); reached: their share."
        )
    return " ".join(sentences)


def limits(interval: Interval) -> list[float]:
    """Estimate and both limits."""
    return [float(interval.mean), float(interval.low), float(interval.high)]


def part_of(interval: Interval, bold: bool = False) -> Part:
    """0.62 and [0.48, 0.76], steps without digits; no limits where they are undefined, a dash where nothing is."""
    mean, low, high = limits(interval)
    if math.isnan(mean):
        return Part("-", bold=bold)

    def show(number: float) -> str:
        return f"{number:,.0f}" if abs(mean) >= 1_000 else two_digits(number)

    return Part(show(mean), limits_of(show(low), show(high), interval.wilson), bold)
