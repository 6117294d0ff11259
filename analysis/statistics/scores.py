"""What a suite's runs come to: estimates with limits for each agent, by task and over all tasks, and who is best."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.loading.load import Cell, Suite
from analysis.loading.read import SUCCESS
from analysis.statistics import metrics
from analysis.statistics.comparisons import leaders

ALL_TASKS = "all tasks"
COLUMNS = ("offline_end", "final", "improvement", "online_auc")  # what is estimated
OFFLINE_COLUMNS = ("offline_end", "improvement")  # which an agent without an offline phase does not have
RANKED = ("offline_end", "final", "online_auc")  # columns in which the best are bold


@dataclass(frozen=True)
class Estimate:
    """One number of a table with its 95 % limits; NaN where it is not defined."""

    mean: float
    low: float
    high: float
    wilson: bool = False  # the limits are Wilson's: all runs score alike (`metrics.spread_or_wilson`)

    @classmethod
    def of(cls, interval: metrics.Interval) -> "Estimate":
        return cls(float(interval.mean), float(interval.low), float(interval.high), interval.wilson)


@dataclass(frozen=True)
class ScoreRow:
    """One agent on one task, or over all tasks of the suite (task = ALL_TASKS); estimates by column."""

    task: str
    agent: str
    num_tasks: int
    seeds: tuple[int, int]  # fewest and most runs per task
    missing: int
    incomplete: int
    estimates: dict[str, Estimate]
    bold: frozenset[str]  # columns in which the agent is among the best (`comparisons.leaders`)


def run_scalars(cell: Cell) -> dict[str, metrics.Array]:
    """Each column for every run of a cell, (n,); NaN where a run has not come far enough, and in what rests on the end
    of the offline phase where there is none."""
    scalars = {
        "offline_end": metrics.score_offline_end(cell.offline_score),
        "final": metrics.score_final(cell.online_score),
        "improvement": metrics.improvement(cell.offline_score, cell.online_score),
        "online_auc": metrics.online_auc(cell.online_steps, cell.online_score),
    }
    if cell.from_scratch:
        scalars |= {column: np.full(len(cell.seeds), np.nan) for column in OFFLINE_COLUMNS}
    return scalars


def score_rows(suite: Suite, agents: Collection[str]) -> list[ScoreRow]:
    """Rows over all tasks first (none where tasks have no common scale), then task by task; `agents` in their order."""
    rows = []
    for scope in [ALL_TASKS] * (suite.measure is not None) + list(suite.tasks):
        tasks = suite.tasks if scope == ALL_TASKS else (scope,)
        cells = {
            agent: [suite.cells[task, agent] for task in tasks if (task, agent) in suite.cells] for agent in agents
        }
        cells = {agent: of_agent for agent, of_agent in cells.items() if of_agent}
        bold = best_agents(suite, cells, tasks)
        rows += [score_row(suite, scope, agent, of_agent, bold[agent]) for agent, of_agent in cells.items()]
    return rows


def best_agents(suite: Suite, cells: dict[str, list[Cell]], tasks: Sequence[str]) -> dict[str, frozenset[str]]:
    """The columns in which each agent is bold, of agents that have runs on all `tasks`; the others never are."""
    bold: dict[str, set[str]] = {agent: set() for agent in cells}
    whole = [agent for agent, of_agent in cells.items() if len(of_agent) == len(tasks)]
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


def score_row(suite: Suite, task: str, agent: str, cells: Sequence[Cell], bold: frozenset[str]) -> ScoreRow:
    """One agent over `cells`, one per task, each task with the same weight."""
    scalars = [run_scalars(cell) for cell in cells]
    lowest, highest = suite.measures[cells[0].task].bounds
    intervals = {}
    for column in COLUMNS:
        strata = [values[column] for values in scalars]
        if column == "improvement":
            ends = intervals["final"], intervals["offline_end"]
            intervals[column] = metrics.improvement_interval(strata, *ends, span=highest - lowest)
        else:
            intervals[column] = metrics.mean_interval(strata, (lowest, highest))
    estimates = {column: Estimate.of(interval) for column, interval in intervals.items()}
    seeds = [len(cell.seeds) for cell in cells]
    tasks = None if task == ALL_TASKS else [task]
    return ScoreRow(
        task=task,
        agent=agent,
        num_tasks=len(cells),
        seeds=(min(seeds), max(seeds)),
        missing=suite.missing(agent, tasks),
        incomplete=suite.incomplete(agent, tasks),
        estimates=estimates,
        bold=bold,
    )
