"""Reads `results/` into arrays, and refuses by name to put together runs that do not belong together.

The schema is `results/README.md`. Nothing here draws or estimates; the other files see only what this one returns.
"""

import difflib
import io
import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

SCHEMA_VERSION = 1
ORIGINS = ("published", "generated", "user")
STATES = ("running", "preempted", "failed", "complete")
EPISODE_COLUMNS = {
    "phase": "str",
    "updates": "int64",
    "env_steps": "int64",
    "episode_seed": "int64",
    "success": "float64",
    "return": "float64",
    "length": "int64",
}
# One curve has one axis and one label: these are the same for all runs of a suite.
PROTOCOL_FIELDS = ("success_timing", "offline_updates", "online_steps", "eval_episodes")
# Two runs that are equal but for these are repetitions of each other.
REPETITION_FIELDS = ("seed", "config_hash")


class ResultsError(Exception):
    """What is wrong under `results/`, where, and what would be right: one line, printed as it is."""


@dataclass(frozen=True)
class Measure:
    """What an episode is scored by; the score of an evaluation is the mean over its episodes."""

    name: str  # on axes and in tables
    file_name: str  # in the names of files
    bounds: tuple[float, float]
    comparable: bool  # between tasks: else a mean over tasks has no meaning


SUCCESS = Measure("success rate", "success", (0.0, 1.0), comparable=True)
# (return - random) / (expert - random) with the reference returns of the task; not clipped.
NORMALISED_RETURN = Measure("normalised return", "normalised_return", (-math.inf, math.inf), comparable=True)
RETURN = Measure("return", "return", (-math.inf, math.inf), comparable=False)


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of one run in order, each reduced to its score; all arrays (P,)."""

    online: NDArray[np.bool_]
    updates: NDArray[np.int64]  # gradient updates so far, offline and online
    env_steps: NDArray[np.int64]  # online environment steps so far
    score: NDArray[np.float64]  # of the run's measure


@dataclass(frozen=True)
class Run:
    """One folder `<suite>/<task>/<agent>/seed_<nnn>`; `notes` say what was left out when it was read."""

    name: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    state: str
    measure: Measure | None  # None before the first episode
    evaluations: Evaluations
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether the last row of the last evaluation is on disk."""
        return self.state == "complete"


@dataclass(frozen=True)
class Cell:
    """The n runs of one agent on one task, on one grid of evaluations; NaN where a run has not come that far.

    The hand-over (end of the offline phase, before the first online step) is the last of the offline points and the
    first of the online ones.
    """

    task: str
    agent: str
    seeds: NDArray[np.int64]  # (n,) ascending
    complete: NDArray[np.bool_]  # (n,)
    offline_updates: NDArray[np.int64]  # (P,) gradient updates; last = budget of the offline phase
    offline_score: NDArray[np.float64]  # (n, P)
    online_steps: NDArray[np.int64]  # (Q,) environment steps; first = 0, last = budget of the online phase
    online_score: NDArray[np.float64]  # (n, Q)


@dataclass(frozen=True)
class Suite:
    """The runs of one suite, checked against each other; `notes` are for the reader, one line each."""

    name: str
    origin: str  # of the offline data: "published", "generated" or "user"
    success_timing: str
    eval_episodes: int  # per evaluation and run
    offline_updates: int
    online_steps: int
    tasks: tuple[str, ...]
    measures: dict[str, Measure]  # task -> what it is scored by
    agents: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]  # (task, agent); absent where an agent has no run on a task
    notes: tuple[str, ...]

    @property
    def measure(self) -> Measure | None:
        """Of means over all tasks; None where there are none: the tasks' scores have no common scale."""
        kinds = set(self.measures.values())
        first = self.measures[self.tasks[0]]
        return first if len(self.tasks) == 1 or (len(kinds) == 1 and first.comparable) else None

    def cells_of(self, agent: str) -> list[Cell]:
        """The cells of one agent in the order of the tasks."""
        return [self.cells[task, agent] for task in self.tasks if (task, agent) in self.cells]

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
    results_dir: Path | str, suites: Sequence[str] | None = None, allow_incomplete: bool = False
) -> list[Suite]:
    """Every suite under `results_dir` (or those named), in alphabetical order.

    Raises ResultsError, one line that names the runs, for an empty folder, an unknown suite, files that do not follow
    the schema, runs that are not complete (unless `allow_incomplete`), and runs that do not belong together.
    """
    root = Path(results_dir)
    folders = find_runs(root, suites)
    runs: list[Run] = []
    unborn: dict[str, str] = {}  # run -> what its folder lacks: stopped while it was being set up, nothing to read
    for name in folders:
        lacks = [file for file in ("config.json", "provenance.json") if not (root / name / file).is_file()]
        if not lacks:
            runs.append(read_run(root, name))
        elif allow_incomplete:
            unborn[name] = lacks[0]
        else:
            raise ResultsError(f"{root / name} has no {lacks[0]}: finish or remove the run, or pass --allow-incomplete")
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
    for suite, note in shared_phases(by_suite):
        notes[suite].append(note)
    return [assemble(suite, by_suite[suite], notes[suite]) for suite in sorted(by_suite)]


def find_runs(root: Path, suites: Sequence[str] | None = None) -> list[str]:
    """Names `<suite>/<task>/<agent>/seed_<nnn>` of the run folders under `root`, sorted."""
    if not root.is_dir():
        raise ResultsError(f"no results folder at {root}: run a suite first, or name the folder with --results")
    # Folders that begin with a dot are not suites (copies of the code that a job runs from, for example).
    found = sorted(str(path.relative_to(root)) for path in root.glob("[!.]*/*/*/seed_*") if path.is_dir())
    if not found:
        raise ResultsError(f"no runs under {root}: expected folders <suite>/<task>/<agent>/seed_<nnn>")
    present = sorted({name.split("/")[0] for name in found})
    for suite in suites or ():
        if suite not in present:
            near = difflib.get_close_matches(suite, present, 1)
            guess = f" (did you mean {near[0]!r}?)" if near else ""
            raise ResultsError(f"no suite {suite!r} under {root}{guess}; there are: {', '.join(present)}")
    return [name for name in found if not suites or name.split("/")[0] in suites]


# ---------------------------------------------------------------------------------------------------- one run


def read_run(root: Path, name: str) -> Run:
    """One run folder; ResultsError where a file does not follow the schema."""
    folder = root / name
    config = read_json(folder / "config.json", ("suite", "task", "agent", "seed", *PROTOCOL_FIELDS))
    for field in ("seed", "offline_updates", "online_steps", "eval_episodes"):
        if type(config[field]) is not int or config[field] < 0:
            raise ResultsError(f"{folder}/config.json: {field} is {config[field]!r}, expected a whole number")
    claimed = f"{config['suite']}/{config['task']}/{config['agent']}/seed_{config['seed']:03d}"
    if claimed != name:
        raise ResultsError(f"{folder}/config.json belongs to {claimed}: a copied or renamed folder counts a run twice")
    status_file = folder / "status.json"
    state = read_json(status_file, ("state",))["state"] if status_file.is_file() else "running"
    if state not in STATES:
        raise ResultsError(f"{status_file}: state {state!r}, expected one of {', '.join(STATES)}")
    if (folder / "complete.json").is_file():  # the first process to end the run; a later one may say something else
        state = "complete"
    provenance = read_json(folder / "provenance.json", ("dataset", "starts"))
    if not isinstance(provenance["dataset"], dict) or not isinstance(provenance["starts"], list):
        raise ResultsError(f"{folder}/provenance.json: expected an object under 'dataset' and a list under 'starts'")
    origin = provenance["dataset"].get("origin")
    if origin not in ORIGINS:
        raise ResultsError(f"{folder}/provenance.json: dataset origin {origin!r}, expected {' or '.join(ORIGINS)}")
    complete = state == "complete"
    episodes, notes = read_episodes(folder / "episodes.csv", complete)
    references = read_references(provenance, folder / "provenance.json")
    measure = measure_of(episodes, references)
    if measure is SUCCESS:
        scores = episodes["success"].to_numpy(dtype=np.float64)
    else:
        zero, one = references or (0.0, 1.0)
        scores = (episodes["return"].to_numpy(dtype=np.float64) - zero) / (one - zero)
    evaluations, dropped = evaluate_rows(episodes, scores, folder / "episodes.csv", config["eval_episodes"], complete)
    if complete:
        check_budget(evaluations, config, folder)
    notes = tuple(f"{name}: {note}" for note in (*notes, *dropped))
    return Run(name, config, provenance, state, measure, evaluations, notes)


def read_json(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """A JSON object of this schema version that has `keys`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"{path} is missing") from None
    except ValueError as error:
        raise ResultsError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ResultsError(f"{path}: expected a JSON object, found {type(content).__name__}")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ResultsError(f"{path}: schema_version {version}, and this analysis reads only version {SCHEMA_VERSION}")
    for key in keys:
        if key not in content:
            raise ResultsError(f"{path}: no key {key!r}")
    return content


def read_references(provenance: dict[str, Any], path: Path) -> tuple[float, float] | None:
    """The returns that score 0 and 1, where the provenance in `path` has any (runs of older code have no such key)."""
    references = provenance.get("reference_returns")
    if references is None:
        return None
    numbers = isinstance(references, list) and all(type(number) in (int, float) for number in references)
    if not numbers or len(references) != 2 or not -math.inf < references[0] < references[1] < math.inf:
        raise ResultsError(f"{path}: reference_returns is {references!r}, expected [lower, higher] or null")
    return float(references[0]), float(references[1])


def measure_of(episodes: pd.DataFrame, references: tuple[float, float] | None) -> Measure | None:
    """Success wherever episodes tell it, else their returns; None without any episode."""
    success = np.asarray(episodes["success"], dtype=np.float64)
    if len(success) == 0:
        return None
    if not np.isnan(success).any():
        return SUCCESS
    return NORMALISED_RETURN if references else RETURN


def read_episodes(path: Path, complete: bool) -> tuple[pd.DataFrame, list[str]]:
    """The rows of `episodes.csv`, and what was left out of them.

    A last row without its line end was being written when the run stopped: it is left out (and noted) where the run
    is not complete, and an error where it claims to be. `success` is NaN in every row or in none.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if complete:
            raise ResultsError(f"{path} is missing although status.json says complete") from None
        return pd.DataFrame({column: [] for column in EPISODE_COLUMNS}).astype(EPISODE_COLUMNS), []
    notes = []
    if content and not content.endswith(b"\n"):
        if complete:
            raise ResultsError(f"{path}: the last row is cut off although status.json says complete")
        content = content[: content.rfind(b"\n") + 1]
        notes.append("left out the half-written last row of episodes.csv")
    header = ",".join(EPISODE_COLUMNS)
    first, _, body = content.partition(b"\n")
    if first.decode(errors="replace").rstrip("\r") != header and (content or complete):
        raise ResultsError(f"{path}: header {first[:80].decode(errors='replace')!r}, expected {header!r}")
    if not body:
        return pd.DataFrame({column: [] for column in EPISODE_COLUMNS}).astype(EPISODE_COLUMNS), notes
    try:
        # index_col=False: a row with too many fields must not shift the others into an index.
        dtypes: Any = EPISODE_COLUMNS
        empty = {"success": [""]}  # a task without success; no other field, and no other word, stands for nothing
        rows = pd.read_csv(
            io.BytesIO(content),
            dtype=dtypes,
            na_values=empty,
            keep_default_na=False,
            index_col=False,
            skip_blank_lines=False,
        )
    except (ValueError, pd.errors.ParserError, UnicodeDecodeError):
        raise ResultsError(first_bad_row(path, content)) from None
    no_success = body.count(b",,") == len(rows)
    follows_the_schema = (
        np.isin(rows["phase"].to_numpy(dtype=object), ("offline", "online")),
        np.isnan(rows["success"].to_numpy()) if no_success else np.isin(rows["success"].to_numpy(), (0.0, 1.0)),
        np.isfinite(rows["return"].to_numpy()),
        rows[["updates", "env_steps", "length"]].to_numpy() >= 0,
        body.count(b",") == len(rows) * (len(EPISODE_COLUMNS) - 1),
    )
    if not all(np.all(condition) for condition in follows_the_schema):
        raise ResultsError(first_bad_row(path, content))
    return rows, notes


def first_bad_row(path: Path, content: bytes) -> str:
    """One line that names the first row of an episodes.csv that does not follow the schema, and why."""
    whole = re.compile(r"\d+")
    number = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
    rules: dict[str, tuple[Callable[[str], Any], str]] = {
        "phase": (lambda text: text in ("offline", "online"), "offline or online"),
        "updates": (whole.fullmatch, "a whole number"),
        "env_steps": (whole.fullmatch, "a whole number"),
        "episode_seed": (re.compile(r"-?\d+").fullmatch, "a whole number"),
        "success": (lambda text: number.fullmatch(text) and float(text) in (0, 1), "0 or 1"),
        "return": (number.fullmatch, "a finite number"),
        "length": (whole.fullmatch, "a whole number"),
    }
    lines = content.decode(errors="replace").splitlines()[1:]
    if lines[0].split(",")[4:5] == [""]:
        rules["success"] = (lambda text: not text, "an empty field as in line 2")
    for index, line in enumerate(lines, start=2):
        fields = line.split(",")
        if len(fields) != len(rules):
            return f"{path}, line {index}: {len(fields)} fields, expected {len(rules)}"
        for field, (column, (accepts, expected)) in zip(fields, rules.items(), strict=True):
            if not accepts(field):
                return f"{path}, line {index}: {column} is {field!r}, expected {expected}"
    return f"{path} cannot be read as CSV"


def evaluate_rows(
    rows: pd.DataFrame, scores: NDArray[np.float64], path: Path, eval_episodes: int, complete: bool
) -> tuple[Evaluations, list[str]]:
    """The mean of the rows' `scores` in each evaluation, and what was left out.

    An evaluation that lacks episodes is the last one of a run that was stopped: left out and noted; in a complete run
    it is an error, as is an episode that stands there twice.
    """
    online = (rows["phase"] == "online").to_numpy(dtype=bool)
    keys = np.stack([online.astype(np.int64), *(rows[k].to_numpy() for k in ("updates", "env_steps"))], axis=1)
    episode_seed = rows["episode_seed"].to_numpy()
    order = np.lexsort((episode_seed, keys[:, 1], keys[:, 2], keys[:, 0]))
    keys, episode_seed = keys[order], episode_seed[order]
    changed = (keys[1:] != keys[:-1]).any(axis=1)
    twice = np.flatnonzero(~changed & (episode_seed[1:] == episode_seed[:-1]))
    if twice.size:
        where = point_name(keys[twice[0]])
        raise ResultsError(f"{path}: episode_seed {episode_seed[twice[0]]} stands twice in the evaluation at {where}")
    starts = np.flatnonzero(np.concatenate([[True], changed])) if len(keys) else np.zeros(0, dtype=np.int64)
    counts = np.diff(np.append(starts, len(keys)))
    means = np.add.reduceat(scores[order], starts) / counts if len(keys) else np.zeros(0)
    whole = counts == eval_episodes
    points = keys[starts]
    notes = []
    if not whole.all():
        short = int(np.flatnonzero(~whole)[0])
        where = f"{counts[short]} of {eval_episodes} episodes in the evaluation at {point_name(points[short])}"
        if complete or short != len(whole) - 1 or counts[short] > eval_episodes:
            raise ResultsError(f"{path}: {where}")
        notes.append(f"left out the last evaluation: {where}")
    same_place = (points[1:, [0, 2]] == points[:-1, [0, 2]]).all(axis=1) & (points[1:, 0] == 1)
    if same_place.any():
        where = point_name(points[1:][same_place][0])
        raise ResultsError(f"{path}: two evaluations at {where}, with different numbers of updates")
    points = points[whole]
    return Evaluations(points[:, 0] == 1, points[:, 1], points[:, 2], means[whole]), notes


def point_name(key: NDArray[np.int64]) -> str:
    """How a message calls an evaluation; key = (online, updates, env_steps)."""
    return f"online step {key[2]}" if key[0] else f"offline update {key[1]}"


def check_budget(evaluations: Evaluations, config: dict[str, Any], folder: Path) -> None:
    """A complete run was evaluated at the hand-over and at its end, or it is not complete."""
    offline = evaluations.updates[~evaluations.online]
    steps = evaluations.env_steps[evaluations.online]
    if config["offline_updates"] not in offline:
        where = f"offline update {config['offline_updates']} (end of the offline phase)"
    elif config["online_steps"] > 0 and config["online_steps"] not in steps:
        where = f"online step {config['online_steps']} (end of the run)"
    else:
        return
    raise ResultsError(f"{folder}: status.json says complete, but episodes.csv has no evaluation at {where}")


# ---------------------------------------------------------------------------------------------------- one suite


def assemble(name: str, runs: Sequence[Run], notes: Sequence[str] = ()) -> Suite:
    """The runs of one suite as arrays, after checking that they belong together."""
    for field in PROTOCOL_FIELDS:
        refuse_mix(runs, lambda run, field=field: run.config[field], f"suite {name}: {field}")
    refuse_mix(runs, lambda run: run.provenance["dataset"]["origin"], f"suite {name}: data origin")
    by_task: dict[str, list[Run]] = defaultdict(list)
    by_agent: dict[str, list[Run]] = defaultdict(list)
    by_cell: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        by_task[run.config["task"]].append(run)
        by_agent[run.config["agent"]].append(run)
        by_cell[run.config["task"], run.config["agent"]].append(run)
    for task, members in by_task.items():
        where = f"suite {name}, task {task}"
        refuse_mix(members, lambda run: run.provenance["dataset"].get("name"), f"{where}: dataset")
        refuse_mix(members, lambda run: run.provenance["dataset"].get("content_hash"), f"{where}: dataset content hash")
        scored = [run for run in members if run.measure is not None]
        if any(run.measure is not SUCCESS for run in scored):
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
        origin=runs[0].provenance["dataset"]["origin"],
        success_timing=first["success_timing"],
        eval_episodes=first["eval_episodes"],
        offline_updates=first["offline_updates"],
        online_steps=first["online_steps"],
        tasks=tuple(sorted(by_task, key=task_order)),
        measures=measures_of(by_task),
        agents=tuple(sorted(by_agent)),
        cells=cells,
        notes=(*notes, *(note for run in runs for note in run.notes), *gaps(cells), *commit_notes(name, runs)),
    )


def measures_of(by_task: dict[str, list[Run]]) -> dict[str, Measure]:
    """What each task is scored by; a task without any episode so far is taken to be like the others."""
    known = {task: run.measure for task, members in by_task.items() for run in members if run.measure is not None}
    default = next(iter(known.values()), SUCCESS)
    return {task: known.get(task, default) for task in by_task}


def refuse_mix(runs: Sequence[Run], value: Callable[[Run], Any], what: str) -> None:
    """ResultsError naming two runs, unless `value` is the same for all."""
    for run in runs[1:]:
        if value(run) != value(runs[0]):
            raise ResultsError(f"{what} is {value(runs[0])} in {runs[0].name} but {value(run)} in {run.name}")


def refuse_config_mix(runs: Sequence[Run]) -> None:
    """ResultsError naming the field, unless the runs are repetitions: equal but for the seed."""

    def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for key, value in config.items():
            fields |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return fields

    first = {key: value for key, value in runs[0].config.items() if key not in REPETITION_FIELDS}
    for run in runs[1:]:
        other = {key: value for key, value in run.config.items() if key not in REPETITION_FIELDS}
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
    offline, online = {0, config["offline_updates"]}, {0, config["online_steps"]}
    for run in runs:
        offline.update(run.evaluations.updates[~run.evaluations.online].tolist())
        online.update(run.evaluations.env_steps[run.evaluations.online].tolist())
    for run in runs:
        if not run.complete:
            continue
        for phase, grid, own in (
            ("offline update", offline, run.evaluations.updates[~run.evaluations.online]),
            ("online step", online - {0}, run.evaluations.env_steps[run.evaluations.online]),
        ):
            absent = grid - set(own.tolist())
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
        known = [run.provenance["offline_phase"] for run in runs if run.provenance.get("offline_phase")]
        phases[suite] = {(phase["config_hash"], phase["seed"]) for phase in known}
    notes = []
    for suite, other in itertools.permutations(sorted(by_suite), 2):
        if common := phases[suite] & phases[other]:
            shared = f"suite {suite}: {len(common)} of its offline phases are also those of suite {other}"
            notes.append((suite, f"{shared}: compare the two seed by seed, their runs are not independent"))
    return notes


def listed(names: Sequence[str], limit: int = 4) -> str:
    """Names for a one-line message: the first few, and how many more."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
