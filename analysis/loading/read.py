"""Reads one run folder, and refuses by name what does not follow the schema (`results/README.md`)."""

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.loading.checks import Checks, check_files, fault_of_config, read_rows
from bench.runs import contract
from bench.runs.contract import (
    COMPLETE,
    CONFIG,
    EPISODES,
    HEADERS,
    ORIGINS,
    PROVENANCE,
    SCHEMA_VERSION,
    STATES,
    STATUS,
    TRAIN,
    RunName,
    StorageError,
    agent_label,
)

WHOLE, NUMBER = r"\d{1,18}", r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
SOLVED = r"-?(?:[01]\.?0*)(?:[eE][+-]?0+)?"
# All rows of an episodes.csv at once, with and without success; `first_bad_row` says which row is at fault.
WITH_SUCCESS, WITHOUT_SUCCESS = (
    re.compile(f"(?:(?:offline|online),{WHOLE},{WHOLE},-?{WHOLE},{success},{NUMBER},{WHOLE}\n)*".encode())
    for success in (SOLVED, "")
)
BEHAVIOUR_ROW = re.compile(f"(?:offline|online),{WHOLE},{WHOLE},behaviour_success,[01]".encode())
# One curve has one axis and one label: these are the same for all runs of a suite, but for agents without an offline
# phase, whose offline_updates are 0.
PROTOCOL_FIELDS = ("success_timing", "offline_updates", "online_steps", "eval_episodes")


class ResultsError(StorageError):
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
    behaviour_success: float  # share of the online training episodes that were solved; NaN without any
    checks: Checks
    notes: tuple[str, ...]

    @property
    def agent(self) -> str:
        """As in the path: the agent, and after an @ the variant of its settings, if it is one."""
        return agent_label(self.config["agent"], self.config.get("variant") or "")

    @property
    def offline_phase(self) -> tuple[str, int] | None:
        """Which shared offline phase it goes on from; None where it trained its own."""
        phase = self.provenance.get("offline_phase")
        return (phase["config_hash"], phase["seed"]) if phase else None

    @property
    def has_data(self) -> bool:
        """Whether it trained on a data set: a run from scratch has none."""
        return self.provenance["dataset"]["origin"] != "none"

    @property
    def complete(self) -> bool:
        """Whether the last row of the last evaluation is on disk."""
        return self.state == "complete"


def read_run(root: Path, name: str) -> Run:
    """One run folder; ResultsError where a file does not follow the schema."""
    folder = root / name
    config = read_json(folder / CONFIG, ("suite", "task", "agent", "seed", *PROTOCOL_FIELDS))
    for field in ("seed", "offline_updates", "online_steps", "eval_episodes"):
        if type(config[field]) is not int or config[field] < 0:
            raise ResultsError(f"{folder / CONFIG}: {field} is {config[field]!r}, expected a whole number")
    claimed = str(RunName.of_config(config))
    if claimed != name:
        raise ResultsError(f"{folder / CONFIG} belongs to {claimed}: a copied or renamed folder counts a run twice")
    if fault := fault_of_config(config):
        raise ResultsError(f"{folder / CONFIG}: {fault}; restore it, or remove the run")
    status_file = folder / STATUS
    state = read_json(status_file, ("state",))["state"] if status_file.is_file() else "running"
    if state not in STATES:
        raise ResultsError(f"{status_file}: state {state!r}, expected one of {', '.join(STATES)}")
    marker = read_marker(folder / COMPLETE)
    if marker is not None:  # the first process to end the run; a later one may say something else
        state = "complete"
    provenance = read_provenance(folder / PROVENANCE)
    complete = state == "complete"
    checks, fault = check_files(folder, config, marker)
    if fault:
        raise ResultsError(f"{folder}: {fault}; restore the file, or remove the run")
    if not complete:  # it goes on writing
        checks = replace(checks, unchecked=())
    episodes, notes = read_episodes(folder / EPISODES, complete)
    references = read_references(provenance, folder / PROVENANCE)
    measure = measure_of(episodes, references)
    if measure == SUCCESS:
        scores = episodes["success"].to_numpy(dtype=np.float64)
    else:
        zero, one = references or (0.0, 1.0)
        scores = (episodes["return"].to_numpy(dtype=np.float64) - zero) / (one - zero)
    evaluations, dropped = evaluate_rows(episodes, scores, folder / EPISODES, config["eval_episodes"], complete)
    if complete:
        check_budget(evaluations, config, folder)
    behaviour = read_behaviour(folder / TRAIN)
    notes = tuple(f"{name}: {note}" for note in (*notes, *dropped))
    return Run(name, config, provenance, state, measure, evaluations, behaviour, checks, notes)


def read_marker(path: Path) -> dict[str, Any] | None:
    """The content of complete.json, which older versions wrote without a schema version; None without the file."""
    try:
        marker = contract.read_json(path)
    except StorageError as error:
        raise ResultsError(str(error)) from None
    version = SCHEMA_VERSION if marker is None else marker.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ResultsError(f"{path}: schema_version {version}, and this analysis reads only version {SCHEMA_VERSION}")
    return marker


def read_json(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """A JSON object of this schema version that has `keys`."""
    try:
        content = contract.read_json(path)
    except StorageError as error:
        raise ResultsError(str(error)) from None
    if content is None:
        raise ResultsError(f"{path} is missing")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ResultsError(f"{path}: schema_version {version}, and this analysis reads only version {SCHEMA_VERSION}")
    for key in keys:
        if key not in content:
            raise ResultsError(f"{path}: no key {key!r}")
    return content


def read_provenance(path: Path) -> dict[str, Any]:
    """Where a run is from, with the shape that the analysis relies on."""
    provenance = read_json(path, ("dataset", "starts"))
    if not isinstance(provenance["dataset"], dict) or not isinstance(provenance["starts"], list):
        raise ResultsError(f"{path}: expected an object under 'dataset' and a list under 'starts'")
    origin = provenance["dataset"].get("origin")
    if origin not in ORIGINS:
        raise ResultsError(f"{path}: dataset origin {origin!r}, expected {' or '.join(ORIGINS)}")
    departures = provenance.get("departures", {})  # runs of older code have no such key
    whole = isinstance(departures, dict) and all(
        isinstance(values, dict) and {"value", "released"} <= values.keys() for values in departures.values()
    )
    if not whole:
        raise ResultsError(f"{path}: departures is {departures!r}, expected for each setting its value and released")
    if odd := [start for start in provenance["starts"] if not contract.is_start(start)]:
        raise ResultsError(f"{path}: a start is {odd[0]!r}, expected an object with objects of versions and engines")
    for key, parts in (("offline_phase", {"config_hash", "seed"}), ("extended_from", {"path", "deviations"})):
        value = provenance.get(key)
        if value and not (isinstance(value, dict) and parts <= value.keys()):
            raise ResultsError(f"{path}: {key} is {value!r}, expected {' and '.join(sorted(parts))} of another run")
    return provenance


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
        content = read_rows(path)
    except FileNotFoundError:
        if complete:
            raise ResultsError(f"{path} is missing although the run is complete") from None
        return pd.DataFrame({column: [] for column in HEADERS[EPISODES]}), []
    notes = []
    if content and not content.endswith(b"\n"):
        if complete:
            raise ResultsError(f"{path}: the last row is cut off although the run is complete")
        content = content[: content.rfind(b"\n") + 1]
        notes.append(f"left out the half-written last row of {EPISODES}")
    if content or complete:
        check_header(content, HEADERS[EPISODES], path)
    start = content.find(b"\n") + 1
    if start == len(content):
        return pd.DataFrame({column: [] for column in HEADERS[EPISODES]}), notes
    if not (WITH_SUCCESS.fullmatch(content, start) or WITHOUT_SUCCESS.fullmatch(content, start)):
        raise ResultsError(first_bad_row(path, content))
    return pd.read_csv(io.BytesIO(content)), notes


def check_header(content: bytes, columns: Sequence[str], path: Path) -> None:
    """ResultsError unless the first line names the columns."""
    first, expected = content.partition(b"\n")[0].decode(errors="replace"), ",".join(columns)
    if first != expected:
        raise ResultsError(f"{path}: header {first[:80]!r}, expected {expected!r}")


def read_behaviour(path: Path) -> float:
    """Share of the online episodes of the training environment that were solved, from `train.csv`; NaN without any."""
    try:
        content = read_rows(path)
    except FileNotFoundError:
        return math.nan
    if not content:
        return math.nan
    check_header(content, HEADERS[TRAIN], path)
    content = content[: content.rfind(b"\n") + 1]
    solved, failed = (content.count(b",behaviour_success,%d\n" % value) for value in (1, 0))
    if solved + failed != content.count(b",behaviour_success,"):
        for number, line in enumerate(content.splitlines(), start=1):
            if b",behaviour_success," in line and not BEHAVIOUR_ROW.fullmatch(line):
                found = line[:80].decode(errors="replace")
                raise ResultsError(f"{path}, line {number}: {found!r}, expected phase,updates,env_steps,name,0 or 1")
    return solved / (solved + failed) if solved + failed else math.nan


def first_bad_row(path: Path, content: bytes) -> str:
    """One line that names the first row of an episodes.csv that does not follow the schema, and why."""
    whole, number = re.compile(WHOLE), re.compile(NUMBER)
    rules: dict[str, tuple[Callable[[str], Any], str]] = {
        "phase": (lambda text: text in ("offline", "online"), "offline or online"),
        "updates": (whole.fullmatch, "a whole number"),
        "env_steps": (whole.fullmatch, "a whole number"),
        "episode_seed": (re.compile("-?" + WHOLE).fullmatch, "a whole number"),
        "success": (re.compile(SOLVED).fullmatch, "0 or 1"),
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
    raise ResultsError(f"{folder}: {STATUS} says complete, but {EPISODES} has no evaluation at {where}")
