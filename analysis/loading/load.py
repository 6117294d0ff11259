"""Puts runs together to suites of arrays, and refuses by name those that do not belong together.

Nothing here draws or estimates; the other files see only what this one returns.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.loading.cache import Cache
from analysis.loading.checks import listed, notes_of
from analysis.loading.read import NORMALISED_RETURN, PROTOCOL_FIELDS, SUCCESS, Measure, ResultsError, Run, read_run
from bench.runs import contract
from bench.runs.contract import CONFIG, PROVENANCE, flat, nearest

# Two runs that are equal but for these are repetitions of each other; a field that is not listed must agree.
REPETITION_FIELDS = ("seed", "config_hash")
RUN_DEPTH = 4  # folders from the results to a run


@dataclass(frozen=True)
class Cell:
    """The n runs of one agent on one task, on one grid of evaluations; NaN where a run has not come that far.

    The hand-over (end of the offline phase, before the first online step) is the last of the offline points and the
    first of the online ones. An agent without an offline phase has one offline point, at update 0: its hand-over.
    """

    task: str
    agent: str
    seeds: NDArray[np.int64]  # (n,) ascending
    complete: NDArray[np.bool_]  # (n,)
    offline_updates: NDArray[np.int64]  # (P,) gradient updates; last = budget of the offline phase
    offline_score: NDArray[np.float64]  # (n, P)
    online_steps: NDArray[np.int64]  # (Q,) environment steps; first = 0, last = budget of the online phase
    online_score: NDArray[np.float64]  # (n, Q)
    behaviour_success: NDArray[np.float64]  # (n,) of online training episodes
    offline_phases: tuple[tuple[str, int] | None, ...]  # n; runs with the same one are not independent

    @property
    def from_scratch(self) -> bool:
        """Whether there is no offline phase: the score at the hand-over is that of an untrained policy."""
        return not self.offline_updates[-1]


@dataclass(frozen=True)
class Suite:
    """The runs of one suite, checked against each other; `notes` are for the reader, one line each."""

    name: str
    origin: str  # of the data: "published", "generated" or "user"; "none" where no run has any
    success_timing: str
    success_rule: str  # any or last
    eval_episodes: int  # per evaluation and run
    episode_seeds: str  # own: of each run and evaluation; fixed: the same ones in all
    matmuls: tuple[str, ...]  # precisions of products in updates; more than one only where that was asked for
    offline_updates: int  # of the agents that have an offline phase; 0 where none has
    online_steps: int
    tasks: tuple[str, ...]
    measures: dict[str, Measure]  # task -> what it is scored by
    agents: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]  # (task, agent); absent where an agent has no run on a task
    runs: tuple[Run, ...]  # by name
    notes: tuple[str, ...]
    code_names: bool = False  # people read the names of the registry too, not those of the papers
    plain: bool = False  # figures have no words that belong into a caption

    @property
    def measure(self) -> Measure | None:
        """Of means over all tasks; None where there are none: the tasks' scores have no common scale."""
        kinds = set(self.measures.values())
        first = self.measures[self.tasks[0]]
        return first if len(self.tasks) == 1 or (len(kinds) == 1 and first.comparable) else None

    def cells_of(self, agent: str) -> list[Cell]:
        """The cells of one agent in the order of the tasks."""
        return [self.cells[task, agent] for task in self.tasks if (task, agent) in self.cells]

    @property
    def from_scratch(self) -> tuple[str, ...]:
        """The agents without an offline phase that stand beside agents with one."""
        scratch = tuple(agent for agent in self.agents if all(cell.from_scratch for cell in self.cells_of(agent)))
        return scratch if self.offline_updates else ()

    def references(self, task: str) -> tuple[float, float]:
        """The returns that score 0 and 1 on a task; of one that is not scored by them 0 and 1, which change nothing."""
        if self.measures[task] != NORMALISED_RETURN:
            return 0.0, 1.0
        low, high = next(run for run in self.runs if run.config["task"] == task).provenance["reference_returns"]
        return float(low), float(high)

    def missing(self, agent: str, tasks: Sequence[str] | None = None) -> int:
        """Number of runs that another agent or another task has (same seed), and this agent has not."""
        seeds = {seed for cell in self.cells.values() for seed in cell.seeds.tolist()}
        tasks = self.tasks if tasks is None else tasks
        present = sum(len(self.cells[task, agent].seeds) for task in tasks if (task, agent) in self.cells)
        return len(seeds) * len(tasks) - present

    def incomplete(self, agent: str, tasks: Sequence[str] | None = None) -> int:
        """Number of runs of the agent that are not complete."""
        tasks = self.tasks if tasks is None else tasks
        return sum(int((~self.cells[t, agent].complete).sum()) for t in tasks if (t, agent) in self.cells)


def load_results(
    results_dir: Path | str,
    suites: Sequence[str] | None = None,
    allow_incomplete: bool = False,
    mixed_matmul: bool = False,
) -> list[Suite]:
    """Every suite under `results_dir` (or those named), in alphabetical order.

    Raises ResultsError, one line that names the runs, for an empty folder, an unknown suite, files that do not follow
    the schema, runs that are not complete (unless `allow_incomplete`), and runs that do not belong together (whose
    updates multiply in different precisions, unless `mixed_matmul`).
    """
    root = Path(results_dir)
    folders = find_runs(root, suites)
    unborn: dict[str, str] = {}  # run -> what its folder lacks: stopped while it was being set up, nothing to read
    for name in folders:
        lacks = [file for file in (CONFIG, PROVENANCE) if not (root / name / file).is_file()]
        if lacks and allow_incomplete:
            unborn[name] = lacks[0]
        elif lacks:
            raise ResultsError(f"{root / name} has no {lacks[0]}: finish or remove the run, or pass --allow-incomplete")
    lost = [str(link.relative_to(root)) for link in contract.broken_links(root, suites or ())]
    if lost and not allow_incomplete:
        raise ResultsError(
            f"links under {root} lead nowhere: {listed(lost)}; mend or remove them, or pass --allow-incomplete"
        )
    runs = read_runs(root, [name for name in folders if name not in unborn])
    unfinished = [f"{run.name} ({run.state})" for run in runs if not run.complete]
    if unfinished and not allow_incomplete:
        raise ResultsError(
            f"{len(unfinished)} of {len(runs)} runs under {root} are not complete: {listed(unfinished)}; "
            "resume them, or pass --allow-incomplete"
        )
    by_suite: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_suite[run.config["suite"]].append(run)
    notes: dict[str, list[str]] = defaultdict(list)
    for name, file in unborn.items():
        suite = name.split("/")[0]
        if suite not in by_suite:
            raise ResultsError(f"no run of suite {suite} under {root} has begun; choose others with --suite, or wait")
        notes[suite].append(f"{name}: left out, it has no {file} yet")
    for name in lost:
        # A whole suite that is out of reach has no notes of its own.
        suite = name.split("/")[0]
        for noted in [suite] if suite in by_suite else list(by_suite):
            notes[noted].append(f"{name}: left out, it is a link that leads nowhere")
    for suite, note in shared_phases(by_suite):
        notes[suite].append(note)
    return [assemble(suite, by_suite[suite], notes[suite], mixed_matmul) for suite in sorted(by_suite)]


def find_runs(root: Path, suites: Sequence[str] | None = None) -> list[str]:
    """Names `<suite>/<task>/<agent>/seed_<nnn>` of the run folders under `root`, sorted."""
    if not root.is_dir():
        raise ResultsError(f"no results folder at {root}: run a suite first, or name the folder with --results")
    # Also folders whose names are not those of runs, copies for example: they are refused by name when they are read.
    folders = [path.relative_to(root) for path in contract.find_runs(root, holding=None)]
    found = sorted(str(folder) for folder in folders if len(folder.parts) == RUN_DEPTH)
    if not found:
        raise ResultsError(f"no runs under {root}: expected folders <suite>/<task>/<agent>/seed_<nnn>")
    present = sorted({name.split("/")[0] for name in found})
    for suite in suites or ():
        if suite not in present:
            there_are = f"{nearest(suite, present)}; there are: {', '.join(present)}"
            raise ResultsError(f"no suite {suite!r} under {root}{there_are}")
    return [name for name in found if not suites or name.split("/")[0] in suites]


def read_runs(root: Path, names: Sequence[str]) -> list[Run]:
    """The runs of these names, in this order; those that have been read before come from `analysis.loading.cache`.

    Raises ResultsError for the first one, by name, that does not follow the schema.
    """
    cache = Cache(root, names)
    new = [read_run(root, name) for name in names if name not in cache.runs]
    cache.add(new)
    return [cache.runs[name] for name in names]


# ---------------------------------------------------------------------------------------------------- one suite


def assemble(name: str, runs: Sequence[Run], notes: Sequence[str] = (), mixed_matmul: bool = False) -> Suite:
    """The runs of one suite as arrays, after checking that they belong together."""
    for field in PROTOCOL_FIELDS:
        if field != "offline_updates":
            refuse_mix(runs, lambda run, field=field: run.config[field], f"suite {name}: {field}")
    refuse_mix(runs, episode_seeds, f"suite {name}: episode_seeds")
    by_success = [run for run in runs if run.measure == SUCCESS]
    refuse_mix(by_success, success_rule, f"suite {name}: success_rule")
    if not mixed_matmul:
        refuse_mix(runs, matmul, f"suite {name}: matmul", "; --mixed-matmul shows them together, if as two variants")
    refuse_budget_mix(name, runs)
    with_data = [run for run in runs if run.has_data]
    refuse_mix(with_data, lambda run: run.provenance["dataset"]["origin"], f"suite {name}: data origin")
    by_task: dict[str, list[Run]] = defaultdict(list)
    by_agent: dict[str, list[Run]] = defaultdict(list)
    by_cell: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        by_task[run.config["task"]].append(run)
        by_agent[run.agent].append(run)
        by_cell[run.config["task"], run.agent].append(run)
    for task, members in by_task.items():
        where = f"suite {name}, task {task}"
        trained = [run for run in members if run.has_data]
        refuse_mix(trained, lambda run: run.provenance["dataset"].get("name"), f"{where}: dataset")
        refuse_mix(trained, lambda run: run.provenance["dataset"].get("content_hash"), f"{where}: dataset content hash")
        scored = [run for run in members if run.measure is not None]
        if any(run.measure != SUCCESS for run in scored):
            refuse_mix(scored, lambda run: run.provenance.get("reference_returns"), f"{where}: reference_returns")
        refuse_mix(scored, lambda run: run.measure and run.measure.name, f"{where}: the score")
    for members in by_cell.values():
        refuse_config_mix(members)
    cells: dict[tuple[str, str], Cell] = {}
    for agent in sorted(by_agent):
        offline, online = shared_grid(by_agent[agent])
        for task in sorted(by_task):
            if (task, agent) in by_cell:
                cells[task, agent] = stack(task, agent, by_cell[task, agent], offline, online)
    first = runs[0].config
    return Suite(
        name=name,
        origin=(with_data or runs)[0].provenance["dataset"]["origin"],
        success_timing=first["success_timing"],
        success_rule=success_rule((by_success or runs)[0]),
        eval_episodes=first["eval_episodes"],
        episode_seeds=episode_seeds(runs[0]),
        matmuls=tuple(sorted({matmul(run) for run in runs})),
        offline_updates=max(run.config["offline_updates"] for run in runs),
        online_steps=first["online_steps"],
        tasks=tuple(sorted(by_task, key=task_order)),
        measures=measures_of(by_task),
        agents=tuple(sorted(by_agent)),
        cells=cells,
        runs=tuple(sorted(runs, key=lambda run: run.name)),
        notes=(
            *notes,
            *(note for run in runs for note in run.notes),
            *gaps(cells),
            *commit_notes(name, runs),
            *notes_of(name, {run.name: run.checks for run in runs}),
        ),
    )


def success_rule(run: Run) -> str:
    """Which steps of an episode say whether it is solved. Runs of before there was a choice went by the last one."""
    return run.config.get("success_rule", "last")


def matmul(run: Run) -> str:
    """Precision of products in updates. Those of before there was a choice were fp32."""
    return run.config.get("matmul", "fp32")


def episode_seeds(run: Run) -> str:
    """Which episodes evaluations play. Those of before there was a choice all played the same ones."""
    return run.config.get("episode_seeds", "fixed")


def measures_of(by_task: dict[str, list[Run]]) -> dict[str, Measure]:
    """What each task is scored by; a task without any episode so far is taken to be like the others."""
    scored = {task: run.measure for task, members in by_task.items() for run in members if run.measure is not None}
    default = next(iter(scored.values()), SUCCESS)
    return {task: scored.get(task, default) for task in by_task}


def refuse_mix(runs: Sequence[Run], value: Callable[[Run], Any], what: str, instead: str = "") -> None:
    """ResultsError naming two runs, unless `value` is the same for all."""
    for run in runs[1:]:
        if value(run) != value(runs[0]):
            raise ResultsError(f"{what} is {value(runs[0])} in {runs[0].name} but {value(run)} in {run.name}{instead}")


def refuse_budget_mix(name: str, runs: Sequence[Run]) -> None:
    """ResultsError naming two runs, unless all agents have one offline budget, or none at all."""
    by_agent: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_agent[run.agent].append(run)

    def budget(run: Run) -> int:
        return run.config["offline_updates"]

    refuse_mix([run for run in runs if budget(run)], budget, f"suite {name}: offline_updates")
    for agent, members in by_agent.items():
        refuse_mix(members, budget, f"suite {name}, agent {agent}: offline_updates")


def refuse_config_mix(runs: Sequence[Run]) -> None:
    """ResultsError naming the field, unless the runs are repetitions: equal but for the seed."""

    def settings(run: Run) -> dict[str, Any]:
        return {key: value for key, value in run.config.items() if key not in REPETITION_FIELDS} | {
            "matmul": matmul(run)
        }

    first = settings(runs[0])
    for run in runs[1:]:
        other = settings(run)
        if other == first:
            continue
        a, b = flat(first), flat(other)
        field = next(key for key in sorted(a.keys() | b.keys()) if a.get(key, "absent") != b.get(key, "absent"))
        raise ResultsError(
            f"configs differ beyond the seed: {field} is {a.get(field, 'absent')} in {runs[0].name} "
            f"but {b.get(field, 'absent')} in {run.name}"
        )


def shared_grid(runs: Sequence[Run]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offline updates (P,) and online steps (Q,) of the evaluations that all complete runs of an agent have."""
    config = runs[0].config
    # The ends belong to the grid even where no run has reached them yet: they are what the scalars look at.
    offline, online = {config["offline_updates"]}, {0, config["online_steps"]}
    for run in runs:
        offline.update(run.evaluations.updates[~run.evaluations.online].tolist())
        online.update(run.evaluations.env_steps[run.evaluations.online].tolist())
    for run in runs:
        if not run.complete:
            continue
        for phase, grid, points in (
            ("offline update", offline, run.evaluations.updates[~run.evaluations.online]),
            ("online step", online - {0}, run.evaluations.env_steps[run.evaluations.online]),
        ):
            absent = grid - set(points.tolist())
            if absent:
                raise ResultsError(f"{run.name} has no evaluation at {phase} {min(absent)}; it needs the others' grid")
    return np.array(sorted(offline), dtype=np.int64), np.array(sorted(online), dtype=np.int64)


def stack(task: str, agent: str, runs: Sequence[Run], offline: NDArray[np.int64], online: NDArray[np.int64]) -> Cell:
    """The runs of one agent on one task as arrays on the grid, by ascending seed."""
    runs = sorted(runs, key=lambda run: run.config["seed"])
    offline_score = np.full((len(runs), len(offline)), np.nan)
    online_score = np.full((len(runs), len(online)), np.nan)
    for row, run in enumerate(runs):
        points = run.evaluations
        before = ~points.online
        offline_score[row, np.searchsorted(offline, points.updates[before])] = points.score[before]
        online_score[row, np.searchsorted(online, points.env_steps[points.online])] = points.score[points.online]
    online_score[:, 0] = offline_score[:, -1]
    return Cell(
        task=task,
        agent=agent,
        seeds=np.array([run.config["seed"] for run in runs], dtype=np.int64),
        complete=np.array([run.complete for run in runs], dtype=bool),
        offline_updates=offline,
        offline_score=offline_score,
        online_steps=online,
        online_score=online_score,
        behaviour_success=np.array([run.behaviour_success if run.complete else np.nan for run in runs]),
        offline_phases=tuple(run.offline_phase for run in runs),
    )


def gaps(cells: dict[tuple[str, str], Cell]) -> list[str]:
    """One note per agent and task that lacks seeds which the suite has elsewhere, and per run that is not complete."""
    seeds = {seed for cell in cells.values() for seed in cell.seeds.tolist()}
    notes = []
    for agent in sorted({agent for _, agent in cells}):
        for task in sorted({task for task, _ in cells}):
            cell = cells.get((task, agent))
            absent = sorted(seeds - set(cell.seeds.tolist() if cell else []))
            if cell is None:
                notes.append(f"missing: {agent} has no run on {task}; its means are over the other tasks")
            elif absent:
                notes.append(f"missing: {agent} on {task} lacks {listed([f'seed {s}' for s in absent], 8)}")
            if cell is not None and not cell.complete.all():
                unfinished = [f"seed {s}" for s in cell.seeds[~cell.complete].tolist()]
                notes.append(f"incomplete: {agent} on {task}, {listed(unfinished, 8)}")
    return notes


def task_order(name: str) -> list[tuple[int, str]]:
    """Sort key that puts task10 behind task9, and sizes that are spelled out in the order of their numbers."""
    sizes = {"single": 1, "double": 2, "triple": 3, "quadruple": 4}
    words = re.findall(r"\d+|[^\W\d_]+", name)
    return [(int(word), "") if word.isdigit() else (sizes.get(word, 0), word) for word in words]


def commit_notes(name: str, runs: Sequence[Run]) -> list[str]:
    """One note where the runs of a suite were made by more than one state of the code."""
    states = {
        (str(start.get("commit") or "")[:12] or "no repository", str(start.get("dirty_diff_hash") or "")[:8])
        for run in runs
        for start in run.provenance["starts"]
    }
    if len(states) < 2:
        return []
    named = [commit + (f" with changes {diff}" if diff else "") for commit, diff in sorted(states)]
    return [f"suite {name}: runs of {len(states)} states of the code: {listed(named)}"]


def shared_phases(by_suite: Mapping[str, Sequence[Run]]) -> list[tuple[str, str]]:
    """Suite and note, for each pair of suites of which runs go on from the same offline phases."""
    phases: dict[str, set[tuple[str, int]]] = {}
    for suite, runs in by_suite.items():
        phases[suite] = {run.offline_phase for run in runs if run.offline_phase}
    notes = []
    for suite, other in itertools.permutations(sorted(by_suite), 2):
        if common := phases[suite] & phases[other]:
            shared = f"suite {suite}: {len(common)} of its offline phases are also those of suite {other}"
            notes.append((suite, f"{shared}: compare the two seed by seed, their runs are not independent"))
    return notes
