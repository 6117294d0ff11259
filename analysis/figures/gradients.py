"""Figures of gradients along the policy's rollout: their norm by flow step, and its growth over training.

A flow step multiplies a gradient by its Jacobian, so norms are averaged and compared on a logarithmic scale.
"""

import dataclasses
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.figures.curves import (
    MARKERS_PER_LINE,
    axis_position,
    draw_runs,
    dress,
    house_style,
    legend,
    legend_height,
    new_figure,
    save,
    write_above,
)
from analysis.labels.style import COLUMN_WIDTH, AgentStyle, styles_of
from analysis.labels.wording import data_label, seeds_label
from analysis.loading.gradients import PHASES, RolloutNorms
from analysis.loading.load import Suite
from analysis.statistics.growth import AllNorms, growth_at, log10, over_training
from analysis.statistics.metrics import Array, stratified_t

ROWS = {"x": "norm at point k", "parameters": "norm by parameters\nin step k"}
PHASE_TITLES = {"offline": "offline phase", "online": "online phase"}
LEAST_SPAN = 10.0  # of a scale from its lower to its upper end, so that small differences look small


def draw_gradients(suite: Suite, norms: AllNorms, out: Path) -> list[Path]:
    """Writes `<suite>_gradients.*` and `<suite>_gradient_growth.*` into `out`; nothing where there are no norms."""
    if not norms:
        return []
    recorded = dataclasses.replace(suite, agents=tuple(sorted({agent for agent, _ in norms})))
    with house_style():
        paths = save(rollout_figure(recorded, norms), out / f"{suite.name}_gradients")
        return paths + save(growth_figure(recorded, norms), out / f"{suite.name}_gradient_growth")


def rollout_figure(suite: Suite, norms: AllNorms) -> Figure:
    """One column for each phase: norms over the rollout from noise to action, of its points and of its parameters."""
    phases = [phase for phase in PHASES if any(of_phase == phase for _, of_phase in norms)]
    figure = new_figure(COLUMN_WIDTH, 3.3 + legend_height(suite, COLUMN_WIDTH))
    grid = figure.subplots(len(ROWS), len(phases), squeeze=False, sharex=True, sharey="row")
    for (kind, name), panels in zip(ROWS.items(), grid, strict=True):
        means: list[Array] = []
        for phase, axes in zip(phases, panels, strict=True):
            for agent, style in styles_of(suite.agents).items():
                if (agent, phase) in norms:
                    means.append(draw_rollout(axes, norms[agent, phase], kind, style, len(suite.agents)))
        dress_log_scale(panels[0], means)
        panels[0].set_ylabel(name)
    for phase, above, below in zip(phases, grid[0], grid[-1], strict=True):
        above.set_title(PHASE_TITLES[phase], pad=3)
        below.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        below.set_xlabel("noise  ←  k / K  →  action")
    title(figure, suite, "gradient of the policy loss along its rollout", "geometric means over training")
    legend(figure, suite)
    return figure


def draw_rollout(axes: Axes, norms: RolloutNorms, kind: str, style: AgentStyle, num_agents: int) -> Array:
    """One agent: the mean of its runs over tasks and seeds, band and runs. Returns the means that were drawn."""
    runs = [over_training(log10(values)) for values in norms.by_kind[kind]]
    x = np.arange(runs[0].shape[1]) / norms.flow_steps
    return draw_mean(axes, x, runs, style, num_agents, markevery=1)


def growth_figure(suite: Suite, norms: AllNorms) -> Figure:
    """One panel over training: the norm at the noise over that at the end of the rollout."""
    figure = new_figure(COLUMN_WIDTH, 2.6 + legend_height(suite, COLUMN_WIDTH))
    axes = figure.add_subplot()
    means: list[Array] = [np.ones(1)]
    nothing = np.zeros(0, dtype=np.int64)
    for agent, style in styles_of(suite.agents).items():
        for phase in PHASES:
            if (agent, phase) not in norms:
                continue
            of_phase = norms[agent, phase]
            hand_over = np.zeros(1, dtype=np.int64)
            offline, online = (of_phase.progress, nothing) if phase == "offline" else (nothing, of_phase.progress)
            x = axis_position(suite, offline, np.concatenate([hand_over, online]))
            growth = [growth_at(values) for values in of_phase.by_kind["x"]]
            every = max(1, len(x) // MARKERS_PER_LINE)
            means.append(draw_mean(axes, x, growth, style, len(suite.agents), markevery=every))
    axes.axhline(1.0, color="0.25", linestyle=(0, (1, 2)), linewidth=0.8, zorder=1.5)
    dress(axes, suite)
    dress_log_scale(axes, means)
    axes.set_ylabel("norm at the noise / at the end")
    title(figure, suite, "growth of the policy's gradient over its rollout", "dotted: no growth")
    legend(figure, suite)
    return figure


def draw_mean(axes: Axes, x: Array, logs: list[Array], style: AgentStyle, num_agents: int, markevery: int) -> Array:
    """Mean over runs of logarithms, by task (n, len(x)), with band and runs, as numbers on a logarithmic scale."""
    draw_runs(axes, x, 10 ** np.concatenate(logs), style, num_agents)
    curve = stratified_t(logs)
    low, high, mean = 10**curve.low, 10**curve.high, 10**curve.mean
    axes.fill_between(x, low, high, color=style.color, alpha=max(0.1, 0.2 - 0.02 * num_agents), linewidth=0)
    axes.plot(
        x,
        mean,
        color=style.color,
        linestyle=style.line,
        marker=style.marker,
        markevery=markevery,
        markeredgecolor="white",
        markeredgewidth=0.3,
        zorder=3,
    )
    return mean


def dress_log_scale(axes: Axes, means: list[Array]) -> None:
    """A logarithmic scale as wide as the means, with plain numbers; bands and runs may reach beyond it."""
    values = np.concatenate(means)
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (1.0, 1.0)
    spread = max(1.0, np.sqrt(LEAST_SPAN * low / high)) * 1.25
    axes.set_yscale("log")
    axes.set_ylim(low / spread, high * spread)
    decades = np.log10(high / low)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1.5 else (1, 3) if decades < 3 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def title(figure: Figure, suite: Suite, what: str, fact: str) -> None:
    """What the figure shows and what it rests on, above it; nothing above plain figures."""
    if suite.plain:
        return
    runs = [len(cell.seeds) for agent in suite.agents for cell in suite.cells_of(agent)]
    band = "95 % t band" if max(runs) > 1 else "no band: one seed"
    tasks = suite.tasks[0] if len(suite.tasks) == 1 else f"mean over {len(suite.tasks)} tasks"
    facts = [tasks, data_label(suite), seeds_label(runs), fact, band, "thin lines: single runs"]
    write_above(figure, suite, what, facts)
