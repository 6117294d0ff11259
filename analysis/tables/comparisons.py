"""Which agent is better, pair by pair, and the scalars of runs that the main table leaves out; as CSV and Markdown."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from analysis.labels.style import styles_of
from analysis.labels.wording import counted, provenance_facts
from analysis.loading.load import Cell, Suite
from analysis.loading.read import SUCCESS, Measure
from analysis.statistics import comparisons, metrics
from analysis.statistics.comparisons import Comparison
from analysis.statistics.metrics import Array, Interval
from analysis.tables.success import (
    ALL_TASKS,
    aligned,
    csv_text,
    emphasised,
    evaluations_behind,
    paired_by_phase,
    show_number,
    write_texts,
)

THRESHOLDS = (0.5, 0.9)  # of the success rate, for "steps to"


@dataclass(frozen=True)
class Pair:
    """Two agents compared by their final scores on the tasks that both have."""

    task: str  # or ALL_TASKS
    first: str
    second: str
    num_tasks: int
    seeds: tuple[int, int]  # fewest runs per task of each
    paired: bool  # their runs share offline phases
    result: Comparison
    p_holm: float  # corrected over the pairs of the task

    @property
    def significant(self) -> bool:
        """Whether the difference stands at 5 % whatever the other pairs are."""
        return self.p_holm < 1.0 - metrics.CONFIDENCE

    @property
    def head_to_head(self) -> bool:
        """Whether there are seeds enough to claim that one is better."""
        return min(self.seeds) >= metrics.HEAD_TO_HEAD_SEEDS


def finals(cell: Cell) -> Array:
    """Final scores of the runs of a cell that have come to their end, (n,)."""
    scores = metrics.score_final(cell.online_score)
    return scores[~np.isnan(scores)]


def pairs_of(suite: Suite, task: str = ALL_TASKS) -> list[Pair]:
    """All pairs of agents with finished runs on a task, or over all tasks that both have; as in legends."""
    tasks = suite.tasks if task == ALL_TASKS else (task,)
    measure = suite.measure if task == ALL_TASKS else suite.measures[task]
    if measure is None:
        return []
    pairs = []
    for first, second in itertools.combinations(styles_of(suite.agents), 2):
        cells = [
            (suite.cells[name, first], suite.cells[name, second])
            for name in tasks
            if (name, first) in suite.cells and (name, second) in suite.cells
        ]
        runs = [(finals(a), finals(b)) for a, b in cells]
        kept = [index for index, (a, b) in enumerate(runs) if len(a) and len(b)]
        if not kept:
            continue
        first_runs, second_runs = [runs[k][0] for k in kept], [runs[k][1] for k in kept]
        paired = all(paired_by_phase(*cells[k]) for k in kept)
        low, high = measure.bounds
        evaluations = min(evaluations_behind("final", cell) for k in kept for cell in cells[k])
        result = comparisons.compare(
            first_runs,
            second_runs,
            paired=paired,
            episodes=suite.eval_episodes * evaluations if measure == SUCCESS else None,
            bounds=(low - high, high - low),
        )
        seeds = min(map(len, first_runs)), min(map(len, second_runs))
        pairs.append(Pair(task, first, second, len(kept), seeds, paired, result, math.nan))
    corrected = comparisons.holm(np.nan_to_num([pair.result.p_value for pair in pairs], nan=1.0))
    return [replace(pair, p_holm=float(p)) for pair, p in zip(pairs, corrected, strict=True)]


def write_comparisons(suite: Suite, out: Path) -> list[Path]:
    """Writes `<suite>_comparisons` and `<suite>_metrics`, each as .csv and .md, into `out`; returns their paths."""
    texts = {f"{suite.name}_metrics.{kind}": text for kind, text in metrics_texts(suite).items()}
    if len(suite.agents) > 1 and suite.online_steps:
        scopes = [ALL_TASKS] * (suite.measure is not None) + list(suite.tasks) * (len(suite.tasks) > 1)
        pairs = [pair for scope in scopes or suite.tasks for pair in pairs_of(suite, scope)]
        texts |= {f"{suite.name}_comparisons.{kind}": text for kind, text in pair_texts(suite, pairs).items()}
    return write_texts(texts, out)


def pair_texts(suite: Suite, pairs: Sequence[Pair]) -> dict[str, str]:
    """The pairs as CSV, with all numbers, and those over all tasks as Markdown for reading."""
    columns = ["suite", "task", "first", "second", "num_tasks", "seeds_first", "seeds_second", "paired"]
    columns += ["difference", "difference_low", "difference_high", "p_value", "p_holm"]
    columns += ["probability_of_improvement", "probability_low", "probability_high", "ties", "seeds_needed"]
    rows = []
    for pair in pairs:
        result = pair.result
        numbers = [*limits(result.difference), result.p_value, pair.p_holm, *limits(result.probability), result.ties]
        rows.append(
            [suite.name, pair.task, pair.first, pair.second, pair.num_tasks, *pair.seeds, str(pair.paired).lower()]
            + ["" if math.isnan(number) else f"{number:.6g}" for number in numbers]
            + [result.seeds_needed if result.seeds_needed is not None else ""]
        )
    shown = [pair for pair in pairs if pair.task == ALL_TASKS] or list(pairs)
    lines = [["first", "second", "difference", "p (Holm)", "P(first better)", "ties", "seeds needed"]]
    for pair in shown:
        result = pair.result
        difference = show_interval(result.difference)
        lines.append(
            [
                pair.first if pair.task == ALL_TASKS else f"{pair.task}: {pair.first}",
                pair.second,
                emphasised(difference, pair.significant),
                "-" if math.isnan(result.p_value) else f"{pair.p_holm:.2g}",
                show_interval(result.probability),
                f"{result.ties:.0%}",
                f"{comparisons.MOST_SEEDS}+" if result.seeds_needed is None else str(result.seeds_needed),
            ]
        )
    return {
        "csv": csv_text(columns, rows),
        "md": f"## {suite.name}\n\n{pair_caption(suite, pairs)}\n\n{aligned(lines)}\n",
    }


def pair_caption(suite: Suite, pairs: Sequence[Pair]) -> str:
    """What the pairs rest on, and what they allow to say."""
    sentences = [
        f"{' · '.join(provenance_facts(suite))}.",
        "Difference of final scores, first minus second, with 95 % t interval; bold where it stands at 5 % after Holm's"
        " correction over the pairs of the table.",
        "P(first better): a run of the first beats one of the second, ties counted half; limits without width where no"
        " run of the one lies among those of the other.",
        "Seeds needed: per task and agent, to find this difference in 4 of 5 repetitions if it and its spread are the"
        " true ones.",
    ]
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
    columns = ["suite", "task", "agent", *(f"{name}{limit}" for name in names for limit in ("", "_low", "_high"))]
    nothing = Interval(*[np.array(np.nan)] * 3)
    numbers = [
        [suite.name, scope, agent]
        + ["" if math.isnan(value) else f"{value:.6g}" for name in names for value in limits(known.get(name, nothing))]
        for scope, agent, known in rows
    ]
    shown = [row for row in rows if row[0] == ALL_TASKS] or rows
    lines = [["agent", *(name.replace("_", " ") + " %" * name[-1].isdigit() for name in names)]]
    lines += [
        [
            agent if scope == ALL_TASKS else f"{scope}: {agent}",
            *(show_interval(known.get(name, nothing)) for name in names),
        ]
        for scope, agent, known in shown
    ]
    return {
        "csv": csv_text(columns, numbers),
        "md": f"## {suite.name}\n\n{metrics_caption(suite)}\n\n{aligned(lines)}\n",
    }


def estimates_of(cells: Sequence[Cell], measure: Measure, budget: int) -> dict[str, Interval]:
    """Estimates over the runs of `cells`, one for each task."""
    strata = [finals(cell) for cell in cells]
    estimates = {}
    if all(map(len, strata)):
        estimates["final_iqm"] = metrics.iqm_interval(strata, bounds=measure.bounds)
    scalars = [further_scalars(cell, measure) for cell in cells]
    for name in scalars[0]:
        bounds = (
            (0.0, float(budget)) if name.startswith("steps_to") else (0.0, 1.0) if measure == SUCCESS else (0.0, np.inf)
        )
        estimates[name] = metrics.stratified_t([own[name] for own in scalars], bounds=bounds)
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


def show_interval(interval: Interval) -> str:
    """0.62 [0.48, 0.76], steps without digits; without limits where they are undefined, a dash where nothing is."""
    mean, low, high = limits(interval)
    if math.isnan(mean):
        return "-"

    def show(number: float) -> str:
        return f"{number:,.0f}" if abs(mean) >= 1_000 else show_number(number)

    return show(mean) + ("" if math.isnan(low) else f" [{show(low)}, {show(high)}]")
