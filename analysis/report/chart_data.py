"""The data of the page's charts: how agents are drawn, and the curves, scores and profiles of each suite."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.markers import MarkerStyle
from numpy.typing import NDArray

from analysis.figures.comparisons import THRESHOLDS
from analysis.figures.curves import OFFLINE_SHARE
from analysis.labels.names import display_name
from analysis.labels.style import AgentStyle
from analysis.loading.load import Suite
from analysis.loading.read import NORMALISED_RETURN, SUCCESS
from analysis.report.sections import profile_data
from analysis.statistics.curves import all_scores, curve_of

DIGITS = 5  # of scores: more than a chart can show


def agent_data(agent: str, look: AgentStyle, code_names: bool) -> dict[str, Any]:
    """How an agent is drawn: the marks of analysis/labels/style.py for SVG."""
    names = {"code": agent, "name": display_name(agent, code_names)}
    return names | {"color": look.color, "dash": dashes(look), "marker": marker_path(look.marker)}


def dashes(look: AgentStyle, width: float = 1.6) -> str:
    """Lengths of dashes and gaps in pixels; matplotlib gives them in widths of the line."""
    pattern = look.line[1] if isinstance(look.line, tuple) else ()
    return " ".join(f"{length * width:g}" for length in pattern or ())


def marker_path(marker: str, size: float = 3.2) -> str:
    """matplotlib's marker as an SVG path around (0, 0), `size` pixels to each side."""
    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform())
    letters = {1: "M", 2: "L", 3: "Q", 4: "C"}
    parts = []
    for points, code in path.iter_segments(curves=True):
        letter = letters.get(int(code))
        if letter is None:
            parts.append("Z")
            continue
        # SVG counts downwards.
        pairs = np.asarray(points, dtype=np.float64).reshape(-1, 2) * (2 * size, -2 * size)
        parts.append(letter + " ".join(f"{value:.4g}" for value in pairs.ravel()))
    return "".join(parts)


def swatch(look: AgentStyle) -> dict[str, str]:
    """What the legend draws."""
    return {"color": look.color, "dash": dashes(look), "marker": marker_path(look.marker)}


def suites_data(suites: Iterable[Suite], agents: Iterable[str]) -> list[dict[str, Any]]:
    """Curves and scores of each suite; tasks and agents by their number."""
    number = {agent: index for index, agent in enumerate(agents)}
    return [suite_data(suite, number) for suite in suites]


def suite_data(suite: Suite, number: dict[str, int]) -> dict[str, Any]:
    grids, curves, cells = {}, [], []
    for agent in suite.agents:
        of_agent = suite.cells_of(agent)
        grids[str(number[agent])] = [of_agent[0].offline_updates.tolist(), of_agent[0].online_steps.tolist()]
        wholes = [(-1, of_agent)] if suite.measure else []
        for task, members in [*wholes, *((suite.tasks.index(cell.task), [cell]) for cell in of_agent)]:
            interval = curve_of(suite, members).interval
            band = {name: numbers(getattr(interval, name)) for name in ("mean", "low", "high")}
            curves.append({"agent": number[agent], "task": task, **band})
        for cell in of_agent:
            scores = [numbers(run) for run in all_scores(cell)]
            place = {"agent": number[agent], "task": suite.tasks.index(cell.task)}
            cells.append({**place, "seeds": cell.seeds.tolist(), "scores": scores})
    return {
        "name": suite.name,
        "tasks": suite.tasks,
        "measure": suite.measure.name if suite.measure else None,
        "measures": [suite.measures[task].name for task in suite.tasks],
        "unit_scale": [suite.measures[task] == SUCCESS for task in suite.tasks],
        "references": [[0, 1] if suite.measures[task] == NORMALISED_RETURN else [] for task in suite.tasks],
        "offline": suite.offline_updates,
        "online": suite.online_steps,
        "share": OFFLINE_SHARE,
        "grids": grids,
        "thresholds": THRESHOLDS.round(DIGITS).tolist(),
        "profiles": [
            {key: value if key == "agent" else numbers(value) for key, value in profile.items()}
            for profile in profile_data(suite, number)
        ],
        "curves": curves,
        "cells": cells,
    }


def numbers(values: NDArray[np.float64], digits: int = DIGITS) -> list[float | int | None]:
    """For JSON: rounded, whole numbers without a point, null for what is not defined."""
    return [compact(value, digits) for value in values.tolist()]


def compact(value: float, digits: int) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
