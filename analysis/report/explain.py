"""What stands behind one point of a figure: its mean, its interval, and the runs and episodes that give it."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.labels.names import named_agent
from analysis.labels.wording import alternatives, counted
from analysis.loading.checks import read_rows
from analysis.loading.load import Suite
from analysis.loading.read import RETURN, ResultsError, Run, read_episodes
from analysis.loading.training import EPISODES as TRAINING_EPISODES
from analysis.loading.training import RETURN_ROW
from analysis.report.explained_figures import find_figure, stem_of
from analysis.statistics.curves import curve_of
from analysis.statistics.metrics import CONFIDENCE
from bench.runs.contract import EPISODES, TRAIN


@dataclass(frozen=True)
class Evidence:
    """One run at a point: its score and the rows of episodes.csv that give it."""

    run: str
    seed: int
    config_hash: str
    code: tuple[str, ...]  # a commit for each state of the code that trained it, +hash with uncommitted changes
    score: float
    episodes: int
    successes: int | None  # None: a task without success
    mean_return: float
    episode_seeds: tuple[int, int] | None  # lowest and highest; training episodes have none
    file: str
    lines: str  # of the file, the header is line 1: 52-101


@dataclass(frozen=True)
class ExplainedPoint:
    """One point of a curve; `task` is None where it is a mean over the tasks of the suite."""

    figure: str
    suite: str
    task: str | None
    agent: str
    scored_by: str
    phase: str  # "offline" or "online"
    at: int  # gradient updates offline, environment steps online
    handover: bool  # the end of the offline phase, which is also online step 0; untrained where there is no such phase
    mean: float
    low: float
    high: float
    runs: tuple[Evidence, ...]
    without: tuple[str, ...]  # runs of the curve that have not come to this point


def explain(
    results: Path,
    figure: str,
    curve: str,
    step: str,
    task: str | None = None,
    allow_incomplete: bool = False,
    mixed_matmul: bool = False,
) -> ExplainedPoint:
    """The point of an agent's curve at `step` ("50000", or "offline:100000") in the figure of this file name or stem;
    `curve` is either name of the agent.

    Raises ResultsError, one line, for a name or a step that does not exist, with the nearest that does.
    """
    phase, at = read_step(step)
    shown = find_figure(results, figure, task, allow_incomplete, mixed_matmul)
    suite, task = shown.suite, shown.task
    agent = named_agent(curve, suite.agents)
    if agent is None:
        raise ResultsError(f"no curve {curve!r} in {stem_of(figure)}{alternatives(curve, suite.agents)}")
    cells = [suite.cells[task, agent]] if task and (task, agent) in suite.cells else []
    cells = cells if task else suite.cells_of(agent)
    if not cells:
        raise ResultsError(f"{agent} has no run on {task} in suite {suite.name}")
    line = curve_of(suite, cells)
    grid = line.offline_updates if phase == "offline" else line.online_steps
    place = int(np.searchsorted(grid, at))
    if place == len(grid) or grid[place] != at:
        what = "point" if shown.training else "evaluation"
        where = f"{phase} {unit(phase)} {at}"
        raise ResultsError(f"no {what} of {agent} at {where}: {neighbours(grid, at, phase, what)}")
    point = place if phase == "offline" else line.handover + place
    handover = point == line.handover and not shown.training
    if handover:  # online step 0 has no rows of its own
        phase, at = "offline", int(line.offline_updates[-1])
    tasks = {cell.task for cell in cells}
    members = [run for run in suite.runs if run.agent == agent and run.config["task"] in tasks]
    prove = training_evidence if shown.training else evidence
    found = [(run, prove(results, suite, run, phase, at)) for run in members]
    measure = suite.measures[cells[0].task]
    return ExplainedPoint(
        figure=stem_of(figure),
        suite=suite.name,
        task=task,
        agent=agent,
        scored_by=measure.name,
        phase=phase,
        at=at,
        handover=handover,
        mean=float(line.interval.mean[point]),
        low=float(line.interval.low[point]),
        high=float(line.interval.high[point]),
        runs=tuple(proof for _, proof in found if proof),
        without=tuple(f"{run.name} ({run.state})" for run, proof in found if not proof),
    )


def read_step(text: str) -> tuple[str, int]:
    """ "50000" -> ("online", 50000), "offline:100_000" -> ("offline", 100000)."""
    match = re.fullmatch(r"(?:(online|offline):)?(\d[\d_]*)", text.strip())
    if not match:
        raise ResultsError(f"--step is {text!r}; expected an online environment step such as 50000, or offline:UPDATES")
    return match[1] or "online", int(match[2].replace("_", ""))


def unit(phase: str) -> str:
    return "update" if phase == "offline" else "step"


def neighbours(grid: NDArray[np.int64], at: int, phase: str, what: str) -> str:
    """The nearest point of the grid, and what the grid is."""
    nearest = int(grid[np.abs(grid - at).argmin()])
    argument = f"offline:{nearest}" if phase == "offline" else str(nearest)
    return f"the nearest is --step {argument} ({counted(len(grid), what)} from {grid[0]} to {grid[-1]})"


# ------------------------------------------------------------------------------------------------------ which runs


def evidence(results: Path, suite: Suite, run: Run, phase: str, at: int) -> Evidence | None:
    """The rows of one evaluation of a run; None where the run has not come there, or not to its last episode."""
    points = run.evaluations
    progress = points.env_steps if phase == "online" else points.updates
    place = np.flatnonzero((points.online == (phase == "online")) & (progress == at))
    if not place.size:
        return None
    file = results / run.name / EPISODES
    rows, _ = read_episodes(file, run.complete)
    column = "env_steps" if phase == "online" else "updates"
    rows = rows[(rows["phase"] == phase) & (rows[column] == at)]
    success, returns = (np.asarray(rows[name], dtype=np.float64) for name in ("success", "return"))
    seeds = np.asarray(rows["episode_seed"], dtype=np.int64)
    return Evidence(
        run=run.name,
        seed=run.config["seed"],
        config_hash=str(run.config.get("config_hash", "")),
        code=states_of_code(run),
        score=float(returns.mean() if suite.measures[run.config["task"]] == RETURN else points.score[place[0]]),
        episodes=len(rows),
        successes=None if np.isnan(success).any() else int(success.sum()),
        mean_return=float(returns.mean()),
        episode_seeds=(int(seeds.min()), int(seeds.max())),
        file=file.as_posix(),
        lines=ranges(np.asarray(rows.index, dtype=np.int64) + 2),  # rows begin in line 2
    )


def training_evidence(results: Path, suite: Suite, run: Run, phase: str, at: int) -> Evidence | None:
    """The last training episodes of a run that have ended by a step; None before the first."""
    file = results / run.name / TRAIN
    content = read_rows(file) if file.is_file() else b""
    rows = [match for match in RETURN_ROW.finditer(content) if int(match[1]) <= at][-TRAINING_EPISODES:]
    if phase == "offline" or not rows:
        return None
    mean = float(np.mean([float(match[2]) for match in rows]))
    low, high = suite.references(run.config["task"])
    return Evidence(
        run=run.name,
        seed=run.config["seed"],
        config_hash=str(run.config.get("config_hash", "")),
        code=states_of_code(run),
        score=(mean - low) / (high - low),
        episodes=len(rows),
        successes=None,
        mean_return=mean,
        episode_seeds=None,
        file=file.as_posix(),
        lines=ranges(np.array([content.count(b"\n", 0, match.start()) + 1 for match in rows], np.int64)),
    )


def states_of_code(run: Run) -> tuple[str, ...]:
    """Commits of the run's starts in order, each once; 0123abcd+55aa55aa has uncommitted changes of this hash."""
    states: dict[str, None] = {}
    for start in run.provenance["starts"]:
        commit, diff = start.get("commit"), start.get("dirty_diff_hash")
        states[(str(commit)[:12] if commit else "no repository") + (f"+{str(diff)[:8]}" if diff else "")] = None
    return tuple(states)


def ranges(numbers: NDArray[np.int64]) -> str:
    """[2, 3, 4, 9] -> "2-4,9"; ascending numbers."""
    groups = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ",".join(f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0]) for group in groups)


# --------------------------------------------------------------------------------------------------------- output


def to_json(point: ExplainedPoint) -> str:
    """One object; numbers that are not defined are null."""

    def defined(value: Any) -> Any:
        return None if isinstance(value, float) and not np.isfinite(value) else value

    content = {key: defined(value) for key, value in asdict(point).items()}
    return json.dumps(content | {"confidence": CONFIDENCE}, indent=1, sort_keys=True, allow_nan=False) + "\n"


def heading(point: ExplainedPoint) -> list[str]:
    """What the point is and what it says, in lines."""
    where = f"{point.phase} {unit(point.phase)} {point.at}"
    if point.handover:
        where += ", the hand-over (online step 0)" if point.at else ", untrained (online step 0)"
    tasks = {run.run.split("/")[1] for run in point.runs}
    over = f"on {point.task}" if point.task else f"over {counted(len(tasks), 'task')}"
    if np.isnan(point.mean):
        value = f"no {point.scored_by} here: a task has no run that has come so far"
    else:
        value = f"{point.scored_by} {point.mean:.4f}"
        if point.low == point.high:
            value += ", no interval: all runs score alike"
        elif not np.isnan(point.low):
            value += f", {CONFIDENCE:.0%} t interval [{point.low:.4f}, {point.high:.4f}]"
    lines = [
        f"{point.figure}: {point.agent} {over} at {where}",
        f"{value}; {counted(len(point.runs), 'run')}, {counted(sum(run.episodes for run in point.runs), 'episode')}",
    ]
    if point.without:
        lines.append(f"not in it, since they have not come so far: {', '.join(point.without)}")
    return lines


def table(runs: Sequence[Evidence]) -> list[list[str]]:
    """Cells for people, the heading first."""
    lines = [["run", "seed", "config hash", "code", "score", "episodes", "episode seeds", "rows"]]
    for run in runs:
        counts = f"mean return of {run.episodes}"
        if run.successes is not None:
            counts = f"{run.successes} of {run.episodes} solved"
        seeds = "-".join(map(str, dict.fromkeys(run.episode_seeds or ()))) or "training"
        rows = f"{run.file}:{run.lines}"
        facts = [run.run, str(run.seed), run.config_hash, ", ".join(run.code), f"{run.score:.4g}", counts, seeds, rows]
        lines.append(facts)
    return lines


def print_point(point: ExplainedPoint) -> None:
    """Lines and a table: folded to the width of a terminal, else one line per run however long."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = table(point.runs)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=sum(max(len(line[k]) for line in lines) + 3 for k in range(8)) + 80)
    for line in heading(point):
        print(line)
    table_of_runs = Table(box=None, pad_edge=False)
    for name in lines[0]:
        table_of_runs.add_column(name, overflow="fold")
    for line in lines[1:]:
        table_of_runs.add_row(*map(Text, line))
    console.print(table_of_runs)
