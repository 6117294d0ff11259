"""Figures of one suite: aggregated curves, one small panel per task, and per agent where they are many. The same input
gives the same bytes.

Offline part in gradient updates and online part in environment steps stand on one axis, each on its own linear scale,
with the hand-over between them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.labels.names import name_in
from analysis.labels.style import COLUMN_WIDTH, MATPLOTLIB, PAGE_WIDTH, AgentStyle, styles_of
from analysis.labels.wording import agent_label, count_label, provenance_facts, wrapped
from analysis.loading.load import Cell, Suite
from analysis.loading.read import NORMALISED_RETURN, SUCCESS, Measure
from analysis.statistics.curves import all_scores, curve_of
from analysis.statistics.metrics import Array, Interval

# Dates and versions of the day would make two drawings of the same results differ.
METADATA = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}
OFFLINE_SHARE = 0.4  # of the width of an axis that has both phases
PANEL_COLUMNS = 5
AGENT_COLUMNS = 4
MOST_CURVES = 8  # that one panel shows well
MOST_RUNS = 40  # thin lines that one panel shows well; more of them hide the means
LABELLED_PANEL_COLUMNS = 3  # where each panel has a scale of its own
PANEL_STYLE = {"lines.linewidth": 1.0, "lines.markersize": 3.0, "xtick.labelsize": 6.0, "ytick.labelsize": 6.0}
MARKERS_PER_LINE = 7
CHARACTERS_PER_INCH = 20  # of the words above a figure


def draw_suite(suite: Suite, out: Path) -> list[Path]:
    """Writes `<suite>_success.*`, of several tasks `<suite>_tasks.*` and, of more than MOST_CURVES agents,
    `<suite>_agents.*` into `out` as PDF, SVG and PNG; returns their paths.

    The first is named after what the suite is scored by; it and the last are left out where the tasks have no common
    scale.
    """
    paths = []
    if suite.measure is not None:
        with house_style():
            paths = save(suite_figure(suite), out / f"{suite.name}_{suite.measure.file_name}")
    with house_style(PANEL_STYLE):
        if has_tasks_figure(suite):
            paths += save(tasks_figure(suite), out / f"{suite.name}_tasks")
        if has_agents_figure(suite):
            paths += save(agents_figure(suite), out / f"{suite.name}_agents")
    return paths


def has_tasks_figure(suite: Suite) -> bool:
    """Whether `<suite>_tasks` is drawn; of one task it would be the suite's figure once more."""
    return len(suite.tasks) > 1


def has_agents_figure(suite: Suite) -> bool:
    """Whether `<suite>_agents` is drawn."""
    return suite.measure is not None and len(suite.agents) > MOST_CURVES


@contextmanager
def house_style(extra: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Within it figures are made and saved; a user's matplotlibrc must not change them."""
    with mpl.rc_context():
        mpl.rcdefaults()
        settings: Any = MATPLOTLIB | dict(extra or {})
        mpl.rcParams.update(settings)
        yield


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes one figure in each format beside `stem`; its parts are laid out once, for all of them."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in METADATA]
    # Figure.savefig would go through every part once more before each format.
    FigureCanvasPdf(figure).print_pdf(paths[0], metadata=METADATA["pdf"])
    FigureCanvasSVG(figure).print_svg(paths[1], metadata=METADATA["svg"])
    figure.dpi = mpl.rcParams["savefig.dpi"]
    FigureCanvasAgg(figure).print_png(paths[2], metadata=METADATA["png"])
    return paths


def suite_figure(suite: Suite) -> Figure:
    """One panel, one line per agent that has runs on all tasks (or, where none has, on some): mean over tasks and
    seeds, 95 % band, and every run as a thin line."""
    assert suite.measure is not None, f"the tasks of {suite.name} have no mean"
    styles = styles_of(suite.agents)
    width = whole_width(suite)
    figure = new_figure(width, 2.5 + legend_height(suite, width))
    axes = figure.add_subplot()
    runs = runs_fit(suite.cells.values())
    whole = [agent for agent in styles if len(suite.cells_of(agent)) == len(suite.tasks)] or list(styles)
    for order, (agent, style) in enumerate(styles.items()):
        if agent in whole:
            draw_curve(axes, suite, suite.cells_of(agent), style, order, runs=runs)
    dress(axes, suite)
    dress_score(axes, suite.measure, list(suite.cells.values()))
    axes.set_ylabel(suite.measure.name)
    what = suite.tasks[0] if len(suite.tasks) == 1 else f"mean over {len(suite.tasks)} tasks"
    partly = [name_in(suite, agent) for agent in styles if agent not in whole]
    absent = [f"not drawn, without runs on all of them: {', '.join(partly)}"] if partly else []
    title(figure, suite, what, facts=[*absent, *curve_facts(suite, runs)])
    legend(figure, suite)
    return figure


def tasks_figure(suite: Suite) -> Figure:
    """One small panel per task with the curves of all agents; all on one scale where they have one in common."""
    styles = styles_of(suite.agents)
    most = PANEL_COLUMNS if suite.measure else LABELLED_PANEL_COLUMNS
    columns = min(len(suite.tasks), most)
    rows = -(-len(suite.tasks) // columns)
    width = max(whole_width(suite), PAGE_WIDTH * columns / most)
    figure = new_figure(width, 0.85 + (1.2 if columns > 1 else 1.6) * rows + legend_height(suite, width))
    cells = suite.cells.values()
    runs = all(runs_fit(cell for cell in cells if cell.task == task) for task in suite.tasks)
    for index, axes in enumerate(panels(figure, rows, columns, len(suite.tasks))):
        task = suite.tasks[index]
        for order, (agent, style) in enumerate(styles.items()):
            if (task, agent) in suite.cells:
                draw_curve(axes, suite, [suite.cells[task, agent]], style, order, runs=runs)
        dress(axes, suite, narrow=columns > 1)
        shown = suite.tasks if suite.measure else (task,)
        dress_score(axes, suite.measures[task], [cell for cell in cells if cell.task in shown])
        axes.set_title(task, pad=3)
        if index % columns == 0 or suite.measure is None:
            axes.set_ylabel(suite.measures[task].name)
        else:
            axes.tick_params(labelleft=False)
        # The last panel of a column carries the axis, also where the last row is not full.
        if index + columns < len(suite.tasks):
            axes.tick_params(labelbottom=False)
    title(figure, suite, "by task", facts=curve_facts(suite, runs))
    legend(figure, suite, heading=axis_sentence(suite) if columns > 1 else "")
    return figure


def agents_figure(suite: Suite) -> Figure:
    """One small panel per agent: its mean over tasks and seeds, band and runs, before the means of all others."""
    assert suite.measure is not None, f"the tasks of {suite.name} have no mean"
    styles = styles_of(suite.agents)
    means = {agent: mean_line(suite, suite.cells_of(agent)) for agent in styles}
    columns = min(len(styles), AGENT_COLUMNS)
    rows = -(-len(styles) // columns)
    figure = new_figure(PAGE_WIDTH, 0.75 + 1.15 * rows)
    runs = all(runs_fit(suite.cells_of(agent)) for agent in styles)
    for index, (axes, (agent, style)) in enumerate(
        zip(panels(figure, rows, columns, len(styles)), styles.items(), strict=True)
    ):
        others = [line for name, line in means.items() if name != agent]
        axes.add_collection(LineCollection(others, colors="0.8", linewidths=0.5, zorder=1.2))
        draw_curve(axes, suite, suite.cells_of(agent), style, order=0, num_agents=1, runs=runs)
        dress(axes, suite, narrow=True)
        dress_score(axes, suite.measure, list(suite.cells.values()))
        axes.set_title(agent_label(suite, agent).replace(" (", "\n("), pad=3)
        if index % columns == 0:
            axes.set_ylabel(suite.measure.name)
        else:
            axes.tick_params(labelleft=False)
        if index + columns < len(styles):
            axes.tick_params(labelbottom=False)
    title(figure, suite, "by agent", facts=[axis_sentence(suite), "grey: the other agents", *curve_facts(suite, runs)])
    return figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, drawn without a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(figure: Figure, rows: int, columns: int, count: int) -> list[Axes]:
    """The first `count` places of a grid, row by row; the others stay empty."""
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_axis_off()
    return grid[:count]


def draw_curve(
    axes: Axes,
    suite: Suite,
    cells: Sequence[Cell],
    style: AgentStyle,
    order: int,
    num_agents: int = 0,
    runs: bool = True,
) -> None:
    """Mean of one agent over the runs of `cells` (one per task), band and, if asked for, runs; order = its place in the
    legend of `num_agents` (default: the suite's)."""
    num_agents = num_agents or len(suite.agents)
    x, curve = placed_curve(suite, cells)
    if runs:
        draw_runs(axes, x, np.concatenate([all_scores(cell) for cell in cells]), style, num_agents)
    axes.fill_between(x, curve.low, curve.high, color=style.color, alpha=max(0.1, 0.2 - 0.02 * num_agents), linewidth=0)
    step = max(1, len(x) // MARKERS_PER_LINE)
    axes.plot(
        x,
        curve.mean,
        color=style.color,
        linestyle=style.line,
        marker=style.marker,
        # Staggered, so that the markers of lines that lie on each other can be seen.
        markevery=(order * step // num_agents, step),
        markeredgecolor="white",
        markeredgewidth=0.3,
        zorder=3 + num_agents - order,  # the first of the legend lies on top
    )


def placed_curve(suite: Suite, cells: Sequence[Cell]) -> tuple[Array, Interval]:
    """The curve of one agent and its places on the axis, both (P + Q - 1,)."""
    curve = curve_of(suite, cells)
    # The hand-over of an agent without an offline phase lies where that of the others does.
    offline_updates = curve.offline_updates + (suite.offline_updates - curve.offline_updates[-1])
    return axis_position(suite, offline_updates, curve.online_steps), curve.interval


def mean_line(suite: Suite, cells: Sequence[Cell]) -> Array:
    """Points (n, 2) of an agent's mean, where there is one."""
    x, curve = placed_curve(suite, cells)
    return np.column_stack([x, curve.mean])[~np.isnan(curve.mean)]


def draw_runs(axes: Axes, x: Array, scores: Array, style: AgentStyle, num_agents: int) -> None:
    """Every run as a thin, faint line; fainter the more there are in the panel. scores (n, len(x))."""
    lines = [np.column_stack([x, run])[~np.isnan(run)] for run in scores]
    alpha = float(np.clip(6.0 / (len(lines) * num_agents), 0.1, 0.4))
    axes.add_collection(LineCollection(lines, colors=style.color, linewidths=0.4, alpha=alpha))


def runs_fit(cells: Iterable[Cell]) -> bool:
    """Whether a panel of these cells has room for its runs as lines."""
    return sum(len(cell.seeds) for cell in cells) <= MOST_RUNS


# ------------------------------------------------------------------------------------------------------ the axis


def axis_position(suite: Suite, offline_updates: NDArray[np.int64], online_steps: NDArray[np.int64]) -> Array:
    """Places of the evaluations, offline ones (P,) and online ones without the hand-over (Q - 1,): (P + Q - 1,).

    The hand-over is 0, the offline phase lies left of it, the online phase right of it, both together are 1 wide.
    """
    left, right = phase_widths(suite)
    offline = offline_updates / max(1, suite.offline_updates) * left - left
    return np.concatenate([offline, online_steps[1:] / max(1, suite.online_steps) * right])


def phase_widths(suite: Suite) -> tuple[float, float]:
    """Shares of the axis for the offline and the online phase; all of it where there is only one."""
    if not suite.offline_updates or not suite.online_steps:
        return float(bool(suite.offline_updates)), float(bool(suite.online_steps))
    return OFFLINE_SHARE, 1.0 - OFFLINE_SHARE


def dress_score(axes: Axes, measure: Measure, cells: Sequence[Cell]) -> None:
    """The vertical scale: [0, 1] for success, else wide enough for all runs of `cells`.

    A normalised return always shows 0 and 1, as dotted lines. A band may reach beyond the scale: with two seeds it is
    many times as wide as the runs are apart, and the scale is theirs.
    """
    if measure == SUCCESS:
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        return
    references = [0.0, 1.0] if measure == NORMALISED_RETURN else []
    for reference in references:
        axes.axhline(reference, color="0.25", linestyle=(0, (1, 2)), linewidth=0.8, zorder=1.5)
    scores = np.concatenate([references, *(all_scores(cell).ravel() for cell in cells)])
    scores = scores[~np.isnan(scores)]
    low, high = (scores.min(), scores.max()) if len(scores) else (0.0, 1.0)
    margin = 0.05 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(axis="y", useOffset=False)


def dress(axes: Axes, suite: Suite, narrow: bool = False) -> None:
    """Scale of both phases, ticks in each one's own unit, the hand-over; a narrow panel has no room to name units."""
    left, right = phase_widths(suite)
    axes.set_xlim(-left - 0.015, right + 0.015)
    marks = {-left: "0"} if left else {}
    if left and right:
        axes.axvline(0.0, color="0.25", linestyle=(0, (3, 2)), linewidth=0.8, zorder=2.5)
        # Both units meet here: the end of the one is the zero of the other.
        marks[0.0] = f"{count_label(suite.offline_updates)} | 0"
    else:
        marks[0.0] = count_label(suite.offline_updates) if left else "0"
    if right:
        marks[right] = count_label(suite.online_steps)
    if not narrow:
        if left:
            marks[-left / 2] = count_label(suite.offline_updates / 2)
        if right:
            marks[right / 2] = count_label(suite.online_steps / 2)
        phases = {}
        if left:
            phases[-left / 2] = "offline\n(gradient updates)"
        if right:
            phases[right / 2] = "online\n(environment steps)"
        # Minor ticks without a mark carry the names of the phases, centred below each (where a major one is, too).
        axes.xaxis.remove_overlapping_locs = False
        axes.set_xticks(list(phases), list(phases.values()), minor=True)
        axes.tick_params(axis="x", which="minor", length=0, pad=13, labelsize=MATPLOTLIB["axes.labelsize"])
    axes.set_xticks(list(marks), list(marks.values()))


def axis_sentence(suite: Suite) -> str:
    """The units of the axis in words, for panels too narrow to carry them."""
    left, right = phase_widths(suite)
    phases = ["offline: gradient updates"] * bool(left) + ["online: environment steps"] * bool(right)
    return "  |  ".join(phases)


def title(figure: Figure, suite: Suite, what: str, facts: Sequence[str] = (), evaluated: bool = True) -> None:
    """What the figure shows, what it rests on and further `facts`, above it; nothing above plain figures."""
    if suite.plain:
        return
    write_above(figure, suite, what, [*provenance_facts(suite, evaluated), *facts])


def write_above(figure: Figure, suite: Suite, what: str, facts: Sequence[str]) -> None:
    """Lines no wider than the figure: the suite and what is shown, then the facts."""
    width = int(figure.get_figwidth() * CHARACTERS_PER_INCH)
    lines = [*wrapped([f"{suite.name}, {what}"], width), *wrapped(facts, width)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", linespacing=1.3)


def curve_facts(suite: Suite, runs: bool) -> list[str]:
    """What bands and thin lines are."""
    single = all(len(cell.seeds) < 2 for cell in suite.cells.values())
    facts = ["no band: one seed" if single else "95 % t band, pointwise"]
    facts += ["thin lines: single runs"] * runs
    return facts + ["dotted: reference returns"] * (NORMALISED_RETURN in suite.measures.values())


def legend(figure: Figure, suite: Suite, heading: str = "") -> None:
    """Agents with all three of their marks, below the figure; the heading stands between the panels and them."""
    styles = styles_of(suite.agents)
    figure.legend(
        [legend_mark(style) for style in styles.values()],
        [agent_label(suite, agent) for agent in styles],
        loc="outside lower center",
        ncols=legend_columns(suite, figure.get_figwidth()),
        title=heading or None,
        title_fontsize=MATPLOTLIB["axes.labelsize"],
    )


def legend_mark(style: AgentStyle) -> Line2D:
    """An agent's line with all three of its marks."""
    edge: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.3}
    return Line2D([], [], color=style.color, linestyle=style.line, marker=style.marker, **edge)


def whole_width(suite: Suite) -> float:
    """Inches of a figure of one panel: a column of a page, or both where the legend would be as tall as the panel."""
    return COLUMN_WIDTH if len(suite.agents) <= MOST_CURVES else PAGE_WIDTH


def legend_columns(suite: Suite, width: float) -> int:
    """Columns of the legend that fit into `width` inches beside each other, at most four."""
    longest = max(len(agent_label(suite, agent)) for agent in suite.agents)
    fitting = int(width / (0.5 + longest / CHARACTERS_PER_INCH))
    return max(1, min(4, fitting, len(suite.agents)))


def legend_height(suite: Suite, width: float) -> float:
    """Inches."""
    return 0.13 * -(-len(suite.agents) // legend_columns(suite, width))
