"""Which curves a figure shows: its suite, the task of a panel, and what they are scored by."""

from dataclasses import dataclass, replace
from pathlib import Path

from analysis.figures.curves import has_agents_figure, has_tasks_figure
from analysis.figures.returns import has_returns_figure
from analysis.labels.wording import alternatives
from analysis.loading.load import Suite, find_runs, load_results
from analysis.loading.read import NORMALISED_RETURN, RETURN, ResultsError
from analysis.loading.training import in_returns, normalised, training_returns

FORMATS = (".pdf", ".svg", ".png")


@dataclass(frozen=True)
class Shown:
    """The curves of one panel."""

    suite: Suite  # scored as the panel scores it, with its tasks alone
    task: str | None  # None: the mean over the suite's tasks
    training: bool = False  # of training episodes, in place of evaluations


def stem_of(figure: str) -> str:
    """Name of a figure without folder and format; the name of a suite may hold dots."""
    name = Path(figure).name
    return next((name.removesuffix(suffix) for suffix in FORMATS if name.endswith(suffix)), name)


def find_figure(results: Path, figure: str, task: str | None, allow_incomplete: bool, mixed_matmul: bool) -> Shown:
    """What the panel of a task, or of the mean over the tasks, shows in the figure of this file name or stem."""
    stem = stem_of(figure)
    suites = list(dict.fromkeys(name.split("/")[0] for name in find_runs(results)))
    owners = [name for name in suites if stem.startswith(f"{name}_")]
    if not owners:
        expected = [f"{name}_{kind}" for name in suites for kind in ("success", "tasks", "returns")]
        raise ResultsError(f"no suite under {results} has a figure {stem!r}{alternatives(stem, expected)}")
    # Of suites "a" and "a_b" the figure a_b_success belongs to the longer one.
    (suite,) = load_results(results, [max(owners, key=len)], allow_incomplete, mixed_matmul)
    means = {f"{suite.name}_{suite.measure.file_name}"} if suite.measure else set()
    if has_agents_figure(suite):
        means.add(f"{suite.name}_agents")
    panels = {f"{suite.name}_tasks"} if has_tasks_figure(suite) else set()
    of_returns = [f"{suite.name}_{kind}" for kind in ("returns", "training_returns") if has_returns_figure(suite)]
    drawn = {*means, *panels, *of_returns}
    if stem not in drawn:
        raise ResultsError(
            f"{stem!r} is not a figure of curves of suite {suite.name}{alternatives(stem, sorted(drawn))}"
        )
    if task is not None and task not in suite.tasks:
        raise ResultsError(f"no task {task!r} in suite {suite.name}{alternatives(task, suite.tasks)}")
    if stem in means:
        return Shown(suite, task)
    common = tuple(name for name in suite.tasks if suite.measures[name] == NORMALISED_RETURN)
    has_mean = stem in of_returns and len(common) > 1
    if task is None and not has_mean:
        task, *others = suite.tasks
        if others:
            raise ResultsError(f"{stem} has a panel per task; choose one with --task: {', '.join(suite.tasks)}")
    if stem in panels:
        return Shown(suite, task)
    return _of_returns(suite, results, task, common, training=stem.endswith("_training_returns"))


def _of_returns(suite: Suite, results: Path, task: str | None, common: tuple[str, ...], training: bool) -> Shown:
    """A panel of one task's returns, or that of the mean over the tasks that have reference returns."""
    cells = training_returns(suite, results) if training else in_returns(suite).cells
    if task is None:
        cells = {key: cell for key, cell in normalised(suite, cells).items() if key[0] in common}
        return Shown(replace(suite, cells=cells, tasks=common), None, training)
    return Shown(replace(suite, cells=cells, measures=dict.fromkeys(suite.tasks, RETURN)), task, training)
