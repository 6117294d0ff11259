"""The board: entries that the audit admits, ranked suite by suite, and those that it refuses, with every reason."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from analysis.labels.names import display_name
from analysis.labels.wording import provenance_facts
from analysis.leaderboard.audit import Audit, Finding, audit
from analysis.leaderboard.entries import read_entries
from analysis.loading.load import Suite, assemble
from analysis.loading.read import ResultsError, Run
from analysis.statistics.metrics import HEAD_TO_HEAD_SEEDS
from analysis.statistics.pairs import pairs_of
from analysis.statistics.scores import ALL_TASKS, ScoreRow, score_rows
from analysis.tables.success import caption, note_of, part_of
from analysis.tables.table import Table, write_texts

RANK_RULE = (
    "Entries share a rank where the difference of their final scores to the best of the rank does not stand at 5 % "
    "(Holm over all pairs of the suite)."
)


@dataclass(frozen=True)
class Line:
    """An agent of an entry on one suite."""

    rank: int | None  # None where the suite's tasks have no common scale
    audit: Audit
    agent: str  # as in the path
    score: ScoreRow


@dataclass(frozen=True)
class Ranking:
    """All lines of one suite, the best first."""

    suite: Suite
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Board:
    rankings: tuple[Ranking, ...]
    admitted: tuple[Audit, ...]
    refused: tuple[Audit, ...]


def read_board(leaderboard: Path) -> Board:
    """Reads, audits and ranks. Raises ResultsError, one line, where a folder is no entry or there is none."""
    audits = [audit(entry) for entry in read_entries(leaderboard)]
    admitted: list[Audit] = []
    suites: dict[str, Suite] = {}
    refused = [one for one in audits if one.faults]
    for one in audits:
        if one.faults:
            continue
        try:
            suites |= with_entry(suites, one)
        except ResultsError as error:
            text = f"it cannot stand beside the entries before it: {error}"
            refused.append(replace(one, faults=(Finding("comparison", text),)))
        else:
            admitted.append(one)
    by_label = {label(one, run): (one, run.agent) for one in admitted for run in runs_of(one)}
    rankings = tuple(ranked(suites[name], by_label) for name in sorted(suites))
    return Board(rankings, tuple(admitted), tuple(sorted(refused, key=lambda one: one.entry.id)))


def runs_of(one: Audit) -> list[Run]:
    return [files.run for files in one.entry.runs if files.run]


def label(one: Audit, run: Run) -> str:
    """What a suite of several entries calls an agent of one of them."""
    return f"{one.entry.id}/{run.agent}"


def with_entry(suites: dict[str, Suite], one: Audit) -> dict[str, Suite]:
    """The suites of an entry, with its runs beside those that are there. ResultsError where they do not go together."""
    found = {}
    for name in sorted({run.config["suite"] for run in runs_of(one)}):
        own = [
            replace(
                run, name=f"{one.entry.id}/{run.name}", config=run.config | {"agent": label(one, run), "variant": ""}
            )
            for run in runs_of(one)
            if run.config["suite"] == name
        ]
        found[name] = assemble(name, [*(suites[name].runs if name in suites else ()), *own])
    return found


def ranked(suite: Suite, by_label: dict[str, tuple[Audit, str]]) -> Ranking:
    """The lines of a suite in order; by name where there is no mean over tasks to go by."""
    rows = [row for row in score_rows(suite, suite.agents) if suite.measure is None or row.task == ALL_TASKS]
    rows.sort(key=lambda row: -np.nan_to_num(row.estimates["final"].mean, nan=-np.inf) if suite.measure else 0.0)
    ranks = ranks_of(suite, [row.agent for row in rows]) if suite.measure else [None] * len(rows)
    return Ranking(suite, tuple(Line(rank, *by_label[row.agent], row) for rank, row in zip(ranks, rows, strict=True)))


def ranks_of(suite: Suite, agents: Sequence[str]) -> list[int]:
    """Ranks of agents, the best first: a rank ends with the first that is told from its best."""
    apart = {frozenset((pair.first, pair.second)) for pair in pairs_of(suite, agents) if pair.significant}
    ranks: list[int] = []
    best = agents[0]
    for number, agent in enumerate(agents, start=1):
        if frozenset((best, agent)) in apart:
            best = agent
            ranks.append(number)
        else:
            ranks.append(ranks[-1] if ranks else 1)
    return ranks


# --------------------------------------------------------------------------------------------------------- tables


def reading_table(ranking: Ranking) -> Table:
    """For people."""
    by_task = ranking.suite.measure is None
    columns = ["rank", "entry", "agent", *["task"] * by_task, "end of offline", "final", "seeds"]
    rows = []
    for line in ranking.lines:
        estimates = line.score.estimates
        rows.append(
            ["-" if line.rank is None else str(line.rank), line.audit.entry.id, display_name(line.agent)]
            + [line.score.task] * by_task
            + [[part_of(estimates["offline_end"])], [part_of(estimates["final"])], str(line.score.seeds[0])]
        )
    return Table(columns, rows)


def numbers_table(board: Board) -> Table:
    """For programs: every line of every suite, then the entries that are not admitted, each with its reasons."""
    columns = ["suite", "rank", "entry", "name", "agent", "task", "num_tasks", "seeds", "data_origin", "commit"]
    scores = ("final", "offline_end", "online_auc")
    columns += [f"{score}{limit}" for score in scores for limit in ("", "_low", "_high")]
    columns += ["marks", "not_admitted"]
    rows = []
    for ranking in board.rankings:
        for line in ranking.lines:
            entry, row = line.audit.entry, line.score
            cells = [ranking.suite.name, line.rank, entry.id, entry.card["name"], line.agent, row.task, row.num_tasks]
            cells += [row.seeds[0], ranking.suite.origin, entry.card["commit"]]
            cells += [getattr(row.estimates[score], part) for score in scores for part in ("mean", "low", "high")]
            rows.append([*cells, joined(line.audit.marks), None])
    for one in board.refused:
        cells = [None, None, one.entry.id, one.entry.card["name"], *[None] * 5, one.entry.card["commit"]]
        rows.append([*cells, *[None] * 9, joined(one.marks), joined(one.faults)])
    return Table(columns, rows)


def joined(findings: Sequence[Finding]) -> str:
    return "; ".join(map(str, findings))


def words_of(ranking: Ranking) -> str:
    """What the numbers of a ranking are."""
    rows = [line.score for line in ranking.lines]
    suite = replace(ranking.suite, agents=())  # it is neither bold here nor named by label
    few = min(row.seeds[0] for row in rows) < HEAD_TO_HEAD_SEEDS
    claims = [f"Fewer than {HEAD_TO_HEAD_SEEDS} seeds: too few for a claim that one is better than another."] * few
    return " ".join([f"{' · '.join(provenance_facts(suite))}.", *caption(suite), *note_of(rows), RANK_RULE, *claims])


def to_markdown(board: Board) -> str:
    """The board for reading, also on a terminal."""
    blocks = ["# Leaderboard"]
    for ranking in board.rankings:
        blocks += [f"## {ranking.suite.name}", reading_table(ranking).markdown(), words_of(ranking)]
    if board.admitted:
        blocks.append("## Entries")
    for one in board.admitted:
        card = one.entry.card
        facts = [f"**{one.entry.id}**: {card['name']}, {card['authors']}. {card.get('paper') or card['description']}"]
        facts += [f"* {mark}" for mark in one.marks]
        blocks.append("\n".join(facts))
    if board.refused:
        blocks.append("## Not admitted")
    for one in board.refused:
        blocks.append("\n".join([f"**{one.entry.id}**", *(f"* {fault}" for fault in one.faults)]))
    return "\n\n".join(blocks) + "\n"


def write_board(board: Board, out: Path) -> list[Path]:
    """Writes `leaderboard.csv` and `.md` into `out`; returns their paths."""
    return write_texts({"leaderboard.csv": numbers_table(board).csv(), "leaderboard.md": to_markdown(board)}, out)
