"""Whether one agent's mean score is higher than another's, by the seeds there are, however often one has looked."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from analysis.labels.names import named_agent
from analysis.labels.wording import alternatives, counted, two_digits
from analysis.loading.load import Suite, find_runs, load_results
from analysis.loading.read import SUCCESS, ResultsError
from analysis.statistics.metrics import CONFIDENCE, score_final
from analysis.statistics.sequences import difference_sequence
from bench.runs.contract import Statement, is_among

Outcome = Literal["holds", "refuted", "undecided"]


@dataclass(frozen=True)
class Judgement:
    """A claim, what the seeds say of it, and the scores of the seeds that count."""

    claim: str
    suite: str
    tasks: tuple[str, ...]
    outcome: Outcome
    decided_at: int | None  # seeds of each agent, at the first look that decides it
    difference: float | None  # of the mean scores; None where there is no seed of both
    low: float
    high: float
    scores: dict[str, dict[int, float]]  # agent -> seed -> mean over the tasks of its final scores
    uncounted: tuple[str, ...]  # a line for each agent with seeds that do not count: earlier ones, and later ones yet


def judge(results: Path, text: str, first_seed: int = 0, mixed_matmul: bool = False) -> Judgement:
    """The seeds from `first_seed` on that both agents have, without a gap; later ones wait, whatever they score.

    Raises ResultsError, one line, for agents, suites and tasks that are not there, and scores without bounds;
    ConfigError for what is no claim.
    """
    statement = Statement.parse(text)
    suite, tasks = find_scope(results, statement.where, mixed_matmul)
    agents = [named_agent(name, suite.agents) for name in (statement.first, statement.second)]
    for name, agent in zip((statement.first, statement.second), agents, strict=True):
        if agent is None:
            raise ResultsError(f"suite {suite.name} has no runs of {name!r}{alternatives(name, suite.agents)}")
    if agents[0] == agents[1]:
        raise ResultsError(f"{text!r} compares {agents[0]} with itself")
    by_seed = {agent: scores_by_seed(suite, agent, tasks) for agent in agents if agent}
    end = first_seed
    while all(end in scores for scores in by_seed.values()):
        end += 1
    counted_scores = {
        agent: {seed: scores[seed] for seed in range(first_seed, end)} for agent, scores in by_seed.items()
    }
    lacking = " and ".join(agent for agent, scores in by_seed.items() if end not in scores)
    uncounted = []
    for agent, scores in by_seed.items():
        if number := sum(seed < first_seed for seed in scores):
            does = "does" if number == 1 else "do"
            uncounted.append(f"{agent}: {counted(number, 'seed')} before seed {first_seed} {does} not count")
        if number := sum(seed >= end for seed in scores):
            wait = "waits" if number == 1 else "wait"
            uncounted.append(f"{agent}: {counted(number, 'later seed')} {wait} for seed {end} of {lacking}")
    first, second = (np.array(list(scores.values())) for scores in counted_scores.values())
    sequence = difference_sequence(first, second)
    at = sequence.decided
    outcome: Outcome = "undecided" if at is None else "holds" if sequence.low[at] > 0.0 else "refuted"
    return Judgement(
        claim=str(statement),
        suite=suite.name,
        tasks=tasks,
        outcome=outcome,
        decided_at=at,
        difference=float(first.mean() - second.mean()) if len(first) else None,
        low=float(sequence.low[-1]),
        high=float(sequence.high[-1]),
        scores=counted_scores,
        uncounted=tuple(uncounted),
    )


def find_scope(results: Path, where: str, mixed_matmul: bool) -> tuple[Suite, tuple[str, ...]]:
    """The suite and the tasks of a claim on `SUITE`, on `SUITE/TASKS`, or on `TASKS` that one suite alone has."""
    found = [name.split("/")[:2] for name in find_runs(results)]
    suites = sorted({suite for suite, _ in found})
    name, slash, tasks = where.partition("/")
    if name not in suites and not slash:
        tasks = where
        having = sorted({suite for suite, task in found if is_among(task, tasks)})
        if len(having) > 1:
            raise ResultsError(f"{where} is in {' and '.join(having)}: say which, as in {having[0]}/{where}")
        name = having[0] if having else where
    (suite,) = load_results(results, [name], allow_incomplete=True, mixed_matmul=mixed_matmul)
    chosen = tuple(task for task in suite.tasks if is_among(task, tasks))
    if not chosen:
        raise ResultsError(f"suite {name} has no task {tasks!r}{alternatives(tasks, suite.tasks)}")
    unbounded = [task for task in chosen if suite.measures[task] != SUCCESS]
    if unbounded:
        raise ResultsError(
            f"{unbounded[0]} is scored by its {suite.measures[unbounded[0]].name}, which has no bounds: a claim needs "
            "success rates"
        )
    return suite, chosen


def scores_by_seed(suite: Suite, agent: str, tasks: tuple[str, ...]) -> dict[int, float]:
    """Mean over the tasks of the final success, of the seeds that are complete on all of them, ascending.

    Raises ResultsError for seeds that are not independent, and for runs without online evaluations.
    """
    by_task: list[dict[int, float]] = []
    for task in tasks:
        cell = suite.cells.get((task, agent))
        if cell is None:
            return {}
        phases = [phase for phase in cell.offline_phases if phase is not None]
        if len(set(phases)) < len(phases):
            raise ResultsError(
                f"seeds of {agent} on {task} go on from the same offline phase: they are not independent"
            )
        final, done = score_final(cell.online_score), cell.complete
        if np.isnan(final[done]).any():
            raise ResultsError(f"{agent} on {task} has no evaluation after the offline phase: a claim is about those")
        by_task.append(dict(zip(cell.seeds[done].tolist(), final[done].tolist(), strict=True)))
    shared = sorted(set.intersection(*map(set, by_task)))
    return {seed: float(np.mean([scores[seed] for scores in by_task])) for seed in shared}


SAID = {"holds": "holds", "refuted": "is refuted: it is the other way round", "undecided": "is not decided"}


def lines_of(judgement: Judgement) -> list[str]:
    """For people."""
    number = judgement.decided_at
    if number is None:
        number = min(map(len, judgement.scores.values()))
    lines = [f"{judgement.claim} {SAID[judgement.outcome]}, after {counted(number, 'seed')} of each agent"]
    if judgement.difference is not None:
        lines.append(
            f"difference of final success over {counted(len(judgement.tasks), 'task')}: "
            f"{two_digits(judgement.difference)}, at least {two_digits(judgement.low)}, at most "
            f"{two_digits(judgement.high)}; each limit errs in at most {1 - CONFIDENCE:.0%} of cases, however often "
            "one looks and whenever one stops"
        )
    for agent, scores in judgement.scores.items():
        values = " ".join(f"{seed}:{two_digits(score)}" for seed, score in scores.items()) or "none"
        lines.append(f"seeds of {agent}: {values}")
    return [*lines, *judgement.uncounted]


def to_json(judgement: Judgement) -> str:
    return json.dumps(asdict(judgement) | {"text": "\n".join(lines_of(judgement))}, indent=2) + "\n"
