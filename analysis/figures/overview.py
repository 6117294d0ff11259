"""The figure of several suites side by side, one panel each."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from analysis.figures.curves import (
    CHARACTERS_PER_INCH,
    PANEL_STYLE,
    draw_curve,
    dress,
    dress_score,
    house_style,
    legend_mark,
    new_figure,
    panels,
    runs_fit,
    save,
)
from analysis.labels.names import display_name
from analysis.labels.style import MATPLOTLIB, PAGE_WIDTH, styles_of
from analysis.labels.wording import counted, provenance_facts, wrapped
from analysis.loading.load import Suite, task_order
from analysis.loading.read import SUCCESS

COLUMNS = 4
LEGEND_COLUMNS = 5
UNITS = "offline: gradient updates  |  online: environment steps"
BANDS, RUNS = "95 % t bands, pointwise", "thin: single runs"


def draw_overview(suites: Sequence[Suite], out: Path) -> list[Path]:
    """Writes `offline_to_online.*`, one panel per suite that is scored by success, where there are several."""
    drawn = sorted((suite for suite in suites if suite.measure == SUCCESS), key=lambda suite: task_order(suite.name))
    if len(drawn) < 2:
        return []
    with house_style(PANEL_STYLE):
        return save(overview_figure(drawn), out / "offline_to_online")


def overview_figure(suites: Sequence[Suite]) -> Figure:
    """The domains side by side: mean over the tasks and seeds of each suite, bands and runs as in a suite's figure."""
    styles = styles_of({agent for suite in suites for agent in suite.agents})
    columns = min(len(suites), COLUMNS)
    rows = -(-len(suites) // columns)
    legend_rows = -(-len(styles) // LEGEND_COLUMNS)
    runs_of = {suite.name: runs_fit(suite.cells.values()) for suite in suites}
    figure = new_figure(PAGE_WIDTH, 0.55 + 1.85 * rows + 0.13 * legend_rows)
    for index, axes in enumerate(panels(figure, rows, columns, len(suites))):
        suite = suites[index]
        for order, (agent, style) in enumerate(styles.items()):
            if agent in suite.agents:
                draw_curve(axes, suite, suite.cells_of(agent), style, order, len(styles), runs_of[suite.name])
        dress(axes, suite, narrow=True)
        dress_score(axes, SUCCESS, list(suite.cells.values()))
        axes.set_title("\n".join([suite.name, *panel_facts(suite, columns)]), pad=3, fontsize=6.0)
        if index % columns == 0:
            axes.set_ylabel(SUCCESS.name)
        else:
            axes.tick_params(labelleft=False)
    words = [UNITS] if suites[0].plain else [UNITS, BANDS, *[RUNS] * any(runs_of.values())]
    handles = [legend_mark(style) for style in styles.values()]
    figure.legend(
        handles,
        [display_name(agent, suites[0].code_names) for agent in styles],
        loc="outside lower center",
        ncols=min(LEGEND_COLUMNS, len(styles)),
        title=" · ".join(words),
        title_fontsize=MATPLOTLIB["legend.fontsize"],
    )
    return figure


def panel_facts(suite: Suite, columns: int) -> list[str]:
    """What a panel rests on, in lines below its name."""
    if suite.plain:
        return []
    facts = [counted(len(suite.tasks), "task"), *provenance_facts(suite)]
    facts.remove(f"{counted(suite.eval_episodes, 'evaluation episode')} per point")
    return wrapped(facts, int(PAGE_WIDTH / columns * CHARACTERS_PER_INCH))
