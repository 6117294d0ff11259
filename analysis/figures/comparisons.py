"""Figures that compare agents of one suite: performance profiles, and a matrix of pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from analysis.figures.curves import house_style, legend, legend_height, new_figure, save, title, whole_width
from analysis.labels.names import name_in
from analysis.labels.style import COLUMN_WIDTH, PAGE_WIDTH, styles_of
from analysis.loading.load import Suite
from analysis.loading.read import SUCCESS
from analysis.statistics import metrics
from analysis.statistics.pairs import Pair, finals, pairs_of

THRESHOLDS = np.linspace(0.0, 1.0, 101)
# Purple where the row is worse, green where it is better: apart with any colour vision, and in grey by the numbers.
COLORS = "PRGn"


def draw_comparisons(suite: Suite, out: Path) -> list[Path]:
    """Writes `<suite>_profile.*` (of success rates) and `<suite>_comparison.*` into `out`; returns their paths.

    Nothing where tasks have no common scale, or runs no final score.
    """
    paths = []
    if suite.measure is None or not suite.online_steps:
        return paths
    if suite.measure == SUCCESS and any(len(finals(cell)) for cell in suite.cells.values()):
        with house_style():
            paths += save(profile_figure(suite), out / f"{suite.name}_profile")
    if pairs := pairs_of(suite, styles_of(suite.agents)):
        with house_style():
            paths += save(matrix_figure(suite, pairs), out / f"{suite.name}_comparison")
    return paths


def profile_figure(suite: Suite) -> Figure:
    """Share of runs whose final success rate is above each level, tasks weighing alike."""
    styles = styles_of(suite.agents)
    width = whole_width(suite)
    figure = new_figure(width, 2.5 + legend_height(suite, width))
    axes = figure.add_subplot()
    for order, (agent, style) in enumerate(styles.items()):
        strata = [finals(cell) for cell in suite.cells_of(agent)]
        if not all(map(len, strata)):
            continue
        profile = metrics.performance_profile(strata, THRESHOLDS)
        alpha = max(0.1, 0.2 - 0.02 * len(styles))
        axes.fill_between(
            THRESHOLDS, profile.low, profile.high, color=style.color, alpha=alpha, linewidth=0, step="post"
        )
        axes.plot(
            THRESHOLDS,
            profile.mean,
            color=style.color,
            linestyle=style.line,
            marker=style.marker,
            markevery=(order * 14 // len(styles), 14),
            markeredgecolor="white",
            markeredgewidth=0.3,
            drawstyle="steps-post",
            zorder=3 + len(styles) - order,
        )
    axes.set_xlim(-0.015, 1.015)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("final success rate τ")
    axes.set_ylabel("share of runs above τ")
    title(figure, suite, "performance profile")
    legend(figure, suite)
    return figure


def matrix_figure(suite: Suite, pairs: list[Pair]) -> Figure:
    """Probability that a run of the row's agent beats one of the column's; marked where their means differ for sure."""
    agents = [agent for agent in styles_of(suite.agents) if any(agent in (pair.first, pair.second) for pair in pairs)]
    place = {agent: index for index, agent in enumerate(agents)}
    probability = np.full((len(agents), len(agents)), np.nan)
    words = np.full(probability.shape, "", dtype=object)
    for pair in pairs:
        row, column = place[pair.first], place[pair.second]
        better = float(pair.result.probability.mean)
        probability[row, column], probability[column, row] = better, 1.0 - better
        mark = "*" if pair.significant else ""
        words[row, column], words[column, row] = f"{better:.2f}{mark}", f"{1.0 - better:.2f}{mark}"
    many = len(agents) > 7
    width = PAGE_WIDTH if many else COLUMN_WIDTH
    figure = new_figure(width, (0.33 if many else 0.36) * len(agents) + 1.35)
    axes = figure.add_subplot()
    options: dict[str, Any] = {"linewidths": 0.5, "linecolor": "white", "cbar": False, "square": False}
    sns.heatmap(
        probability, vmin=0.0, vmax=1.0, cmap=COLORS, annot=words, fmt="", annot_kws={"size": 6.0}, ax=axes, **options
    )
    names = [name_in(suite, agent) for agent in agents]
    axes.set_xticks(np.arange(len(agents)) + 0.5, names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(np.arange(len(agents)) + 0.5, names, rotation=0)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_ylabel("a run of\nthis agent …")
    key = "" if suite.plain else "\n(ties half; * means differ, 5 %, Holm)"
    axes.set_xlabel(f"… beats one of this with probability{key}")
    title(figure, suite, "final scores, pair by pair")
    return figure
