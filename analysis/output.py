"""All files of `python -m analysis`: what is written for each suite, and for all of them together."""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from analysis.figures.ablations import draw_ablations
from analysis.figures.comparisons import draw_comparisons
from analysis.figures.curves import draw_suite
from analysis.figures.gradients import draw_gradients
from analysis.figures.overview import draw_overview
from analysis.figures.returns import draw_returns
from analysis.loading.gradients import RolloutNorms
from analysis.loading.load import Cell, Suite
from analysis.published.overlay import draw_published
from analysis.published.points import PublishedPoint
from analysis.published.verdict_tables import summarised, write_verdicts
from analysis.published.verdicts import judge
from analysis.tables.comparisons import write_comparisons
from analysis.tables.gradients import write_growth
from analysis.tables.paper import write_paper_table
from analysis.tables.success import suite_rows, to_markdown, write_tables

PARALLEL_RUNS = 300  # from so many on, a process of its own for each suite is worth its start

Norms = Mapping[tuple[str, str], RolloutNorms]  # of one suite, by agent and phase
Training = Mapping[tuple[str, str], Cell]  # of one suite, by task and agent: returns of training episodes


def write_all(
    suites: Sequence[Suite],
    norms: Mapping[str, Norms],
    training: Mapping[str, Training],
    published: Sequence[PublishedPoint],
    out: Path,
) -> tuple[list[Path], list[str]]:
    """Writes everything into `out`, suites side by side where there are many runs: paths, words for the terminal."""
    write = partial(write_suite, published=published, out=out)
    norms_of = [norms[suite.name] for suite in suites]
    training_of = [training.get(suite.name, {}) for suite in suites]
    processes = min(len(suites), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    if processes > 1 and sum(len(suite.runs) for suite in suites) >= PARALLEL_RUNS:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            pending = pool.map(write, suites, norms_of, training_of)
            written = draw_overview(suites, out)
            parts = list(pending)
    else:
        written = draw_overview(suites, out)
        parts = list(map(write, suites, norms_of, training_of))
    return [*written, *(path for paths, _ in parts for path in paths)], [text for _, texts in parts for text in texts]


def write_suite(
    suite: Suite, norms: Norms, training: Training, published: Sequence[PublishedPoint], out: Path
) -> tuple[list[Path], list[str]]:
    """Writes tables and figures of one suite; their paths, and words for the terminal."""
    verdicts = judge(suite, published)
    written: list[Path] = []
    for write in (write_tables, write_paper_table, write_comparisons, draw_suite, draw_comparisons, draw_ablations):
        written += write(suite, out)
    written += draw_gradients(suite, norms, out)
    written += write_growth(suite, norms, out)
    written += draw_returns(suite, training, out)
    written += write_verdicts(suite, verdicts, out)
    written += draw_published(suite, published, out)
    texts = [to_markdown(suite, suite_rows(suite))]
    return written, texts + ([summarised(suite, verdicts)] if verdicts else [])
