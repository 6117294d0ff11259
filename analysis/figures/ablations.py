"""Figures of ablations: an agent beside its variants, one panel for each setting that they change."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.figures.curves import (
    axis_sentence,
    curve_facts,
    draw_curve,
    dress,
    dress_score,
    house_style,
    legend_mark,
    new_figure,
    panels,
    runs_fit,
    save,
    title,
)
from analysis.labels.names import name_in
from analysis.labels.style import PAGE_WIDTH, VARIANT_STYLES, AgentStyle, styles_of
from analysis.loading.checks import listed
from analysis.loading.load import Suite, task_order
from analysis.loading.read import Run
from bench.runs.contract import flat

# What may differ without being what an ablation is about; a field that is not listed is shown with its name.
INCIDENTAL = ("agent", "variant", "task", "seed", "dataset", "config_hash", "log_interval", "gradient_norm_interval")
COLUMNS = 3


@dataclass(frozen=True)
class Ablation:
    """An agent and those of its variants that change the same settings."""

    agent: str
    settings: tuple[str, ...]  # names, in alphabetical order
    values: dict[str, str]  # label -> values of the settings, of the agent itself first


def ablations_of(suite: Suite) -> list[Ablation]:
    """Of every agent of the suite that has runs both by itself and as variants, by agent and settings."""
    example = {run.agent: run for run in reversed(suite.runs)}
    found: dict[tuple[str, tuple[str, ...]], dict[str, str]] = defaultdict(dict)
    for label, run in sorted(example.items()):
        base = example.get(run.config["agent"])
        if base is None or base.agent == label:
            continue
        settings = changed_settings(base, run)
        values = found[base.agent, settings]
        values.setdefault(base.agent, values_of(base, settings))
        values[label] = values_of(run, settings)
    return [Ablation(agent, settings, values) for (agent, settings), values in sorted(found.items())]


def changed_settings(base: Run, variant: Run) -> tuple[str, ...]:
    """Names of the settings in which a variant differs from its agent; those of the agent's config without prefix."""
    ours, theirs = flat(base.config), flat(variant.config)
    changed = {name for name in ours | theirs if ours.get(name) != theirs.get(name) and name not in INCIDENTAL}
    return tuple(sorted(name.removeprefix("agent_config.") for name in changed))


def values_of(run: Run, settings: tuple[str, ...]) -> str:
    """The values of `settings` in words."""
    fields = {name.removeprefix("agent_config."): value for name, value in flat(run.config).items()}
    return ", ".join(in_words(fields.get(name, "absent")) for name in settings) or "unchanged"


def in_words(value: Any) -> str:
    """A value for a legend: 4x512 for equal widths of layers."""
    if isinstance(value, list) and value and len(set(map(str, value))) == 1:
        return f"{len(value)}x{value[0]}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def draw_ablations(suite: Suite, out: Path) -> list[Path]:
    """Writes `<suite>_ablations.*` into `out` where the suite has variants whose tasks have a common scale."""
    ablations = [ablation for ablation in ablations_of(suite) if common_tasks(suite, ablation)]
    if not ablations or suite.measure is None:
        return []
    with house_style({"lines.linewidth": 1.0, "lines.markersize": 3.0}):
        return save(ablation_figure(suite, ablations), out / f"{suite.name}_ablations")


def ablation_figure(suite: Suite, ablations: list[Ablation]) -> Figure:
    """Mean over seeds and the tasks they have in common, of the agent (thick) and of its variants in each panel."""
    assert suite.measure is not None
    columns = min(len(ablations), COLUMNS)
    rows = -(-len(ablations) // columns)
    most = max(len(ablation.values) for ablation in ablations)
    figure = new_figure(max(PAGE_WIDTH * columns / COLUMNS, 3.4), 0.6 + (1.65 + 0.11 * most) * rows)
    runs = all(runs_fit(cell for label in one.values for cell in suite.cells_of(label)) for one in ablations)
    for index, axes in enumerate(panels(figure, rows, columns, len(ablations))):
        ablation = ablations[index]
        styles: dict[str, AgentStyle] = {ablation.agent: styles_of([ablation.agent])[ablation.agent]}
        variants = sorted(
            ablation.values.keys() - {ablation.agent}, key=lambda label: task_order(ablation.values[label])
        )
        styles |= {label: VARIANT_STYLES[k % len(VARIANT_STYLES)] for k, label in enumerate(variants)}
        tasks = common_tasks(suite, ablation)
        cells = {label: [suite.cells[task, label] for task in tasks] for label in ablation.values}
        for order, (label, style) in enumerate(styles.items()):
            draw_curve(axes, suite, cells[label], style, order, len(styles), runs)
        dress(axes, suite, narrow=True)
        dress_score(axes, suite.measure, [cell for of_agent in cells.values() for cell in of_agent])
        where = f"\non {listed(tasks)}" if len(tasks) < len(suite.tasks) else ""
        axes.set_title(f"{name_in(suite, ablation.agent)}: {', '.join(ablation.settings)}{where}", pad=3)
        axes.legend(
            [legend_mark(style) for style in styles.values()],
            [legend_label(suite, ablation, label, tasks) for label in styles],
            loc="upper center",
            bbox_to_anchor=(0.5, -0.13),
        )
        if index % columns == 0:
            axes.set_ylabel(suite.measure.name)
        else:
            axes.tick_params(labelleft=False)
    title(figure, suite, f"ablations ({axis_sentence(suite)})", curve_facts(suite, runs))
    return figure


def common_tasks(suite: Suite, ablation: Ablation) -> list[str]:
    """The tasks that the agent and all variants of a panel have: a mean over others would compare tasks."""
    return [task for task in suite.tasks if all((task, label) in suite.cells for label in ablation.values)]


def legend_label(suite: Suite, ablation: Ablation, label: str, tasks: Sequence[str]) -> str:
    """The values, whether they are those of the agent itself, and how many runs on these tasks are not there."""
    marks = ["default"] * (label == ablation.agent)
    marks += [f"{count} missing" for count in [suite.missing(label, tasks)] if count]
    marks += [f"{count} incomplete" for count in [suite.incomplete(label, tasks)] if count]
    return ablation.values[label] + (f" ({', '.join(marks)})" if marks else "")
