"""Returns of training episodes, from `train.csv`: what an agent earns while it explores, as SAC Flow's curves show it.

They are another number than the returns of evaluations, which act without exploring where an agent can: figures show
the one or the other.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.loading.checks import read_rows
from analysis.loading.load import Cell, Suite
from analysis.loading.read import RETURN
from bench.runs.contract import TRAIN

EPISODES = 20  # the last so many make a point, as in SAC Flow's release
POINTS = 200  # of a curve: every 5,000 steps of a million, as there
RETURN_ROW = re.compile(rb"^online,\d+,(\d+),behaviour_return,([^,\n]+)$", re.MULTILINE)

Array = NDArray[np.float64]


def in_returns(suite: Suite) -> Suite:
    """The suite with its tasks scored by their returns, as the environments pay them, in place of normalised ones."""
    cells = {}
    for (task, agent), cell in suite.cells.items():
        low, high = suite.references(task)
        cells[task, agent] = replace(
            cell,
            offline_score=low + (high - low) * cell.offline_score,
            online_score=low + (high - low) * cell.online_score,
        )
    return replace(suite, cells=cells, measures=dict.fromkeys(suite.tasks, RETURN))


def training_returns(suite: Suite, results_dir: Path | str) -> dict[tuple[str, str], Cell]:
    """By task and agent, in place of evaluations the mean return of the EPISODES last training episodes.

    The files are those that `analysis.loading.gradients` has checked, row by row. NaN before the first episode ends.
    """
    names = {(run.config["task"], run.agent, run.config["seed"]): run.name for run in suite.runs}
    grid = np.unique(np.linspace(0, suite.online_steps, POINTS + 1).astype(np.int64))
    cells = {}
    for (task, agent), cell in suite.cells.items():
        paths = [Path(results_dir) / names[task, agent, seed] / TRAIN for seed in cell.seeds.tolist()]
        curves = np.stack([running_means(*read_returns(path), grid) for path in paths])
        empty = np.full((len(paths), 1), np.nan)
        cells[task, agent] = replace(
            cell,
            offline_updates=cell.offline_updates[-1:],
            offline_score=empty,
            online_steps=grid,
            online_score=curves,
        )
    return cells


def read_returns(path: Path) -> tuple[NDArray[np.int64], Array]:
    """Environment step at which each online training episode ended, and its return: (E,), (E,)."""
    content = read_rows(path) if path.is_file() else b""
    found = RETURN_ROW.findall(content[: content.rfind(b"\n") + 1])
    return np.array([int(step) for step, _ in found], np.int64), np.array([float(value) for _, value in found])


def running_means(steps: NDArray[np.int64], returns: Array, grid: NDArray[np.int64]) -> Array:
    """(G,): mean of the last EPISODES of those that have ended by each step of the grid (G,); NaN without any."""
    sums = np.concatenate([[0.0], np.cumsum(returns)])
    stop = np.searchsorted(steps, grid, side="right")
    start = np.maximum(0, stop - EPISODES)
    with np.errstate(invalid="ignore"):
        return (sums[stop] - sums[start]) / (stop - start)


def normalised(suite: Suite, cells: Mapping[tuple[str, str], Cell]) -> dict[tuple[str, str], Cell]:
    """Cells of returns on the scale of each task's reference returns; tasks without are left out."""
    scaled = {}
    for (task, agent), cell in cells.items():
        if suite.measures[task].comparable:
            low, high = suite.references(task)
            scaled[task, agent] = replace(
                cell,
                offline_score=(cell.offline_score - low) / (high - low),
                online_score=(cell.online_score - low) / (high - low),
            )
    return scaled
