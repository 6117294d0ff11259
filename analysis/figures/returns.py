"""Returns over environment steps of a suite that learns from scratch: a panel per task, and one of the mean over tasks.

Twice, never mixed: returns of evaluations, and returns of training episodes, which is what SAC Flow's figure 4 shows.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.curves import (
    PANEL_STYLE,
    axis_sentence,
    draw_curve,
    dress,
    dress_score,
    house_style,
    legend,
    legend_height,
    new_figure,
    panels,
    runs_fit,
    save,
    title,
    whole_width,
)
from analysis.labels.style import PAGE_WIDTH, styles_of
from analysis.loading.load import Cell, Suite
from analysis.loading.read import NORMALISED_RETURN, RETURN, SUCCESS
from analysis.loading.training import EPISODES, in_returns, normalised

PANEL_COLUMNS = (3, 4)  # panels beside each other, each with a scale of its own
Cells = Mapping[tuple[str, str], Cell]


def draw_returns(suite: Suite, training: Cells, out: Path) -> list[Path]:
    """Writes `<suite>_returns.*` and `<suite>_training_returns.*`; none where success is the score, or where runs have
    an offline phase."""
    if not has_returns_figure(suite):
        return []
    raw = in_returns(suite)
    with house_style(PANEL_STYLE):
        paths = save(returns_figure(suite, raw.cells), out / f"{suite.name}_returns")
        if training:
            figure = returns_figure(suite, training, training=True)
            paths += save(figure, out / f"{suite.name}_training_returns")
    return paths


def has_returns_figure(suite: Suite) -> bool:
    """Whether all runs learn from scratch and all tasks are scored by return."""
    return not suite.offline_updates and SUCCESS not in suite.measures.values()


def returns_figure(suite: Suite, cells: Cells, training: bool = False) -> Figure:
    """A panel per task on a scale of its own, then the mean over the tasks that have reference returns, if several.

    Args:
        cells: returns by task and agent, of evaluations or of `training` episodes.
    """
    raw = replace(suite, cells=dict(cells), measures=dict.fromkeys(suite.tasks, RETURN))
    common = [task for task in suite.tasks if suite.measures[task] == NORMALISED_RETURN]
    count = len(suite.tasks) + (len(common) > 1)
    columns = min(count, min(PANEL_COLUMNS, key=lambda columns: -count % columns))  # the fewest empty places
    rows = -(-count // columns)
    width = max(whole_width(suite), PAGE_WIDTH * min(1.0, columns / PANEL_COLUMNS[0]))
    height = 1.6 if columns > 1 else 2.0
    figure = new_figure(width, 0.85 + height * rows + legend_height(suite, width))
    runs = all(runs_fit(cell for cell in cells.values() if cell.task == task) for task in suite.tasks)
    for index, axes in enumerate(panels(figure, rows, columns, count)):
        if index < len(suite.tasks):
            task = suite.tasks[index]
            draw_panel(axes, raw, [task], runs, narrow=count > 1)
            axes.set_title(task, pad=3)
            axes.set_ylabel("return")
        else:
            whole = replace(suite, cells=normalised(suite, cells))
            draw_panel(axes, whole, common, runs=False, narrow=True)
            # Of the last column, where what is wider than the panel has room to the left alone.
            axes.set_title(f"{len(common)} tasks with reference returns", pad=3, x=1.0, horizontalalignment="right")
            axes.set_ylabel("mean normalised return")
        if index + columns < count:
            axes.tick_params(labelbottom=False)
    single = all(len(cell.seeds) < 2 for cell in cells.values())
    what = "return of training episodes, which explore" if training else "return of evaluations"
    facts = [f"mean of the last {EPISODES} episodes"] * training
    facts += ["no band: one seed" if single else "95 % t band, pointwise", *["thin lines: single runs"] * runs]
    facts += ["dotted: reference returns"] * (len(common) > 1)
    title(figure, suite, what, facts, evaluated=not training)
    legend(figure, suite, heading=axis_sentence(suite) if count > 1 else "")
    return figure


def draw_panel(axes: Axes, suite: Suite, tasks: list[str], runs: bool, narrow: bool) -> None:
    """The agents that have runs on all of `tasks`: mean over tasks and seeds."""
    shown = []
    for order, (agent, style) in enumerate(styles_of(suite.agents).items()):
        if all((task, agent) in suite.cells for task in tasks):
            of_agent = [suite.cells[task, agent] for task in tasks]
            draw_curve(axes, suite, of_agent, style, order, runs=runs)
            shown += of_agent
    dress(axes, suite, narrow)
    dress_score(axes, suite.measures[tasks[0]], shown)
