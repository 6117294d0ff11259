"""The figure of one suite against published numbers: a row of panels per agent, a panel per task.

Ours as in the other figures, in colour; published means in grey, a source a shade, a line and a marker, with limits
where there are any. Where only a few points of a curve are published, nothing is drawn between them. Whether the two
may be compared, and what differs, is for `analysis.published.verdicts` to say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType

from analysis.figures.curves import (
    CHARACTERS_PER_INCH,
    PANEL_COLUMNS,
    PANEL_STYLE,
    axis_sentence,
    curve_facts,
    draw_curve,
    dress,
    dress_score,
    house_style,
    new_figure,
    phase_widths,
    save,
    title,
)
from analysis.labels.names import name_in
from analysis.labels.style import COLUMN_WIDTH, MATPLOTLIB, PAGE_WIDTH, AgentStyle, styles_of
from analysis.labels.wording import counted, wrapped
from analysis.loading.load import Suite
from analysis.loading.read import SUCCESS
from analysis.published.points import PublishedPoint, Series
from analysis.published.sources import source_of
from analysis.published.verdicts import counterparts, source_order


class GreyStyle(NamedTuple):
    color: str
    line: LineStyleType
    marker: str


GREYS = (
    GreyStyle("0.25", (0, (4, 1.5)), "o"),
    GreyStyle("0.5", (0, (1.5, 1.2)), "s"),
    GreyStyle("0.4", (0, (5, 1.2, 1, 1.2)), "^"),
    GreyStyle("0.6", (0, (3, 1, 1, 1, 1, 1)), "D"),
    GreyStyle("0.35", (0, (7, 2)), "v"),
    GreyStyle("0.65", (0, (2, 2)), "P"),
)
OURS = "#0072B2"
MARKERS_PER_PANEL = 7
LEGEND_CHARACTERS = 56  # of a line of an entry
Counterparts = Mapping[tuple[str, str, str], Sequence[Series]]


def draw_published(suite: Suite, points: Sequence[PublishedPoint], out: Path) -> list[Path]:
    """Writes `<suite>_published.*` into `out`; returns their paths, none where nothing is published for the suite
    within its budget."""
    found = {
        key: curves
        for key, curves in counterparts(suite, points).items()
        if any(published_position(suite, point.step) is not None for curve in curves for point in curve.points)
    }
    if not found:
        return []
    suite = replace(suite, tasks=tuple(task for task in suite.tasks if suite.measures[task].comparable))
    with house_style(PANEL_STYLE):
        return save(published_figure(suite, found), out / f"{suite.name}_published")


def published_figure(suite: Suite, found: Counterparts) -> Figure:
    """Panels of the agents that have a published counterpart."""
    agents = list(dict.fromkeys(agent for agent, _, _ in found))
    sources = sorted({source for _, source, _ in found}, key=source_order)
    shades = {source: GREYS[k % len(GREYS)] for k, source in enumerate(sources)}
    entries = legend_entries(suite, found, shades)
    columns = min(len(suite.tasks), PANEL_COLUMNS)
    deep = -(-len(suite.tasks) // columns)  # rows of one agent
    width = max(COLUMN_WIDTH, PAGE_WIDTH * columns / PANEL_COLUMNS)
    lines = [line for entry in entries.values() for line in entry.splitlines()]
    ncols = max(1, int(width / (0.6 + max(map(len, lines)) / (CHARACTERS_PER_INCH + 3))))
    legend_lines = max(entry.count("\n") + 1 for entry in entries.values()) * -(-len(entries) // ncols)
    figure = new_figure(width, 0.9 + 1.15 * deep * len(agents) + 0.125 * legend_lines)
    grid = figure.subplots(deep * len(agents), columns, squeeze=False)
    for row, agent in enumerate(agents):
        for index, axes in enumerate(grid[row * deep : (row + 1) * deep].flat):
            if index >= len(suite.tasks):
                axes.set_axis_off()
                continue
            task = suite.tasks[index]
            draw_panel(axes, suite, agent, task, found, shades)
            if row == 0 or deep > 1:
                axes.set_title(task, pad=3)
            if index % columns == 0:
                axes.set_ylabel(name_in(suite, agent).replace("@", "\n@"))
            else:
                axes.tick_params(labelleft=False)
            if row < len(agents) - 1 or index + columns < len(suite.tasks):
                axes.tick_params(labelbottom=False)
    joined = {curve.source for curves in found.values() for curve in curves if is_curve(curve)}
    scores = dict.fromkeys(suite.measures[task].name for task in suite.tasks)
    what = f"ours (colour) and published (grey): {' or '.join(scores)} by agent and task"
    protocols = f"protocols that differ: {suite.name}_verdicts.md"
    title(figure, suite, what, [*curve_facts(suite, runs=True), axis_sentence(suite), protocols])
    figure.legend(
        [Line2D([], [], **marks(style, source in joined)) for source, style in shades.items()],
        [entries[source] for source in shades],
        loc="outside lower center",
        fontsize=MATPLOTLIB["legend.fontsize"] - 0.5,
        ncols=ncols,
    )
    return figure


def draw_panel(
    axes: Axes, suite: Suite, agent: str, task: str, found: Counterparts, shades: Mapping[str, GreyStyle]
) -> None:
    """One agent on one task: published below, ours on top."""
    for (name, source, _), curves in found.items():
        for curve in curves if name == agent else ():
            if curve.task == task:
                draw_series(axes, suite, curve, shades[source])
    if (task, agent) in suite.cells:
        draw_curve(axes, suite, [suite.cells[task, agent]], coloured(styles_of(suite.agents)[agent]), 0)
    dress(axes, suite, narrow=True)
    measure = suite.measures[task]
    dress_score(axes, measure, [cell for cell in suite.cells.values() if suite.measures[cell.task] == measure])
    if measure != SUCCESS:
        means = [
            point.mean
            for curves in found.values()
            for curve in curves
            for point in curve.points
            if curve.task in suite.tasks and published_position(suite, point.step) is not None
        ]
        low, high = axes.get_ylim()
        axes.set_ylim(min([low, *means]), max([high, *(1.05 * mean for mean in means)]))


def coloured(style: AgentStyle) -> AgentStyle:
    """The style of an agent, in blue where it is a grey one: grey is what others published."""
    red, green, blue = to_rgb(style.color)
    return style if max(red, green, blue) - min(red, green, blue) > 0.1 else style._replace(color=OURS)


def draw_series(axes: Axes, suite: Suite, curve: Series, style: GreyStyle) -> None:
    """Published points that lie within our budget, with their limits."""
    places, points = [], []
    for point in curve.points:
        place = published_position(suite, point.step)
        if place is not None:
            places.append(place)
            points.append(point)
    if not points:
        return
    mean = np.array([point.mean for point in points])
    limits = np.array([point.interval for point in points])
    bounded = ~np.isnan(limits).any(axis=1)
    below, above = np.maximum(0.0, mean - limits[:, 0]), np.maximum(0.0, limits[:, 1] - mean)
    if is_curve(curve):
        axes.fill_between(
            places, mean - below, mean + above, where=bounded.tolist(), color=style.color, alpha=0.15, lw=0
        )
    elif bounded.any():
        axes.errorbar(
            np.array(places)[bounded],
            mean[bounded],
            yerr=[below[bounded], above[bounded]],
            fmt="none",
            ecolor=style.color,
            elinewidth=0.7,
            capsize=1.5,
            capthick=0.7,
            zorder=2.2,
            clip_on=False,
        )
    every = -(-len(points) // MARKERS_PER_PANEL)
    axes.plot(places, mean, markevery=every, zorder=2.3, clip_on=False, **marks(style, is_curve(curve)))


def is_curve(curve: Series) -> bool:
    """Whether its points are close enough to be joined."""
    return len(curve.points) > MARKERS_PER_PANEL


def published_position(suite: Suite, step: int) -> float | None:
    """Place of a published step on our axis, each phase in its own unit; None beyond our budget."""
    left, right = phase_widths(suite)
    budget, wide = (suite.offline_updates, left) if step < 0 else (suite.online_steps, right)
    if step == 0:
        return 0.0
    return step / budget * wide if budget and abs(step) <= budget else None


def marks(style: GreyStyle, joined: bool) -> dict[str, Any]:
    """How a published curve is drawn, in panels and in the legend."""
    return {
        "color": style.color,
        "linestyle": style.line if joined else "none",
        "linewidth": 0.8,
        "marker": style.marker,
        "markersize": 2.8,
        "markerfacecolor": "white",
        "markeredgewidth": 0.7,
    }


def legend_entries(suite: Suite, found: Counterparts, shades: Mapping[str, GreyStyle]) -> dict[str, str]:
    """Of each source: its name, seeds, and its names for our agents where they are others.

    How its protocol differs from ours is for the verdicts to say, which have the room.
    """
    entries = {}
    for source in shades:
        members = {key: curves for key, curves in found.items() if key[1] == source}
        numbers = [count for curves in members.values() for curve in curves for count in curve.seeds]
        low, high = min(numbers), max(numbers)
        seeds = counted(high, "seed") if low == high else f"{low} to {high} seeds"
        pairs = [(method, name_in(suite, agent)) for agent, _, method in members]
        names = [f"{method} = {name}" for method, name in pairs if simple(method) != simple(name)]
        entries[source] = "\n".join(wrapped([f"{source_of(source).label}, {seeds}", *names], LEGEND_CHARACTERS))
    return entries


def simple(name: str) -> str:
    """Without case and punctuation: QC-FQL and qc_fql are one name."""
    return "".join(filter(str.isalnum, name.lower()))
