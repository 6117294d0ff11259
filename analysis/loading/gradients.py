"""Reads from `train.csv` the norms of the policy loss's gradient along the flow steps that it runs back through.

`results/README.md` says what the rows are. What does not follow it is refused by name, as in `analysis.loading.read`.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.loading.checks import read_rows
from analysis.loading.load import Suite
from analysis.loading.read import ResultsError
from bench.runs.contract import HEADERS, TRAIN

HEADER = ",".join(HEADERS[TRAIN])
PHASES = ("offline", "online")
KINDS = ("x", "parameters")  # in the names of rows; a rollout of K steps has K + 1 points, and K uses of the parameters
ROW_NAME = re.compile(r"gradient_norm_(x|parameters)_(0|[1-9]\d*)")
WHOLE = re.compile(r"\d+")
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|inf)")
ROWS = re.compile(rb"(?:(?:offline|online),\d+,\d+,[^,\n]*,[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|inf)\n)*")

Array = NDArray[np.float64]
Norms = dict[tuple[str, int], float]  # (kind, k) -> norm, of one run at one point of training
Points = dict[tuple[str, int], Norms]  # (phase, updates offline or environment steps online) -> norms


@dataclass(frozen=True)
class RolloutNorms:
    """The norms of one agent in one phase, on the points of training that any of its runs has.

    Arrays are by task, in the order of the suite: (n, P, K + 1) for the kind "x" and (n, P, K) for "parameters", NaN
    where a run has not come that far or its norm is not finite.
    """

    progress: NDArray[np.int64]  # (P,) gradient updates of the offline phase, environment steps of the online phase
    by_kind: dict[str, list[Array]]

    @property
    def flow_steps(self) -> int:
        """K."""
        return self.by_kind["parameters"][0].shape[2]


def load_norms(suite: Suite, results_dir: Path | str) -> dict[tuple[str, str], RolloutNorms]:
    """By agent and phase, what the runs of `suite` have recorded; agents without such rows are left out."""
    names = {(run.config["task"], run.agent, run.config["seed"]): run.name for run in suite.runs}
    loaded = {}
    for agent in suite.agents:
        runs: list[list[tuple[str, bool, Points]]] = []  # by task: name, whether it is complete, norms
        for cell in suite.cells_of(agent):
            runs.append([])
            for seed, complete in zip(cell.seeds.tolist(), cell.complete.tolist(), strict=True):
                name = names[cell.task, agent, seed]
                runs[-1].append((name, complete, read_norms(Path(results_dir) / name / TRAIN, complete)))
        for phase in PHASES:
            norms = stack(runs, phase)
            if norms is not None:
                loaded[agent, phase] = norms
    return loaded


def read_norms(path: Path, complete: bool) -> Points:
    """The norms in one `train.csv`, every row of which is checked.

    Without such a file there are none: tables and curves do without it. Of a run that is not complete, the row and the
    point that were being written when it stopped are left out, and norms that are not finite are NaN: it may have
    stopped because of them.
    """
    if not path.is_file():
        return {}
    content = read_rows(path)
    cut = content[content.rfind(b"\n") + 1 :]
    if cut and complete:
        raise ResultsError(f"{path}: the last row is cut off although the run is complete")
    content = content.removesuffix(cut)
    first, _, body = content.partition(b"\n")
    if first.decode(errors="replace") != HEADER and (content or complete):
        raise ResultsError(f"{path}: header {first[:80].decode(errors='replace')!r}, expected {HEADER!r}")
    # Most rows are of other names, and most files have thousands: all are checked at once, and looked at if one fails.
    rows = body.decode(errors="replace").split("\n")[:-1]
    if not ROWS.fullmatch(body):
        for number, line in enumerate(rows, start=2):
            check_row(path, number, line)
    points: Points = defaultdict(dict)
    for number, line in enumerate(rows, start=2) if b",gradient_norm_" in body else ():
        if ",gradient_norm_" not in line:
            continue
        phase, updates, env_steps, name, value = line.split(",")
        named = ROW_NAME.fullmatch(name)
        if named is None:
            continue
        norm = float(value)
        if norm < 0 or (complete and not np.isfinite(norm)):
            raise ResultsError(f"{path}, line {number}: {name} is {value!r}, expected a finite number of at least 0")
        here = points[phase, int(updates if phase == "offline" else env_steps)]
        key = named[1], int(named[2])
        if key in here:
            raise ResultsError(f"{path}, line {number}: {name} stands twice {where(phase, updates, env_steps)}")
        here[key] = norm if np.isfinite(norm) else np.nan
    keys = expected_keys(points)
    for place, norms in list(points.items()):
        if odd := norms.keys() ^ keys:
            if not complete and place == list(points)[-1] and norms.keys() < keys:
                del points[place]
                continue
            kind, k = min(odd)
            here = where(place[0], place[1], place[1])
            raise ResultsError(f"{path}: gradient_norm_{kind}_{k} is missing {here if odd & keys else 'elsewhere'}")
    return dict(points)


def check_row(path: Path, number: int, line: str) -> None:
    """ResultsError where one row of a `train.csv` does not follow the schema."""
    fields = line.split(",")
    if len(fields) != HEADER.count(",") + 1:
        raise ResultsError(f"{path}, line {number}: {len(fields)} fields, expected {HEADER.count(',') + 1}")
    phase, updates, env_steps, _, value = fields
    if phase not in PHASES:
        raise ResultsError(f"{path}, line {number}: phase is {phase!r}, expected offline or online")
    for column, field in (("updates", updates), ("env_steps", env_steps)):
        if not WHOLE.fullmatch(field):
            raise ResultsError(f"{path}, line {number}: {column} is {field!r}, expected a whole number")
    if not NUMBER.fullmatch(value):
        raise ResultsError(f"{path}, line {number}: value is {value!r}, expected a number")


def expected_keys(points: Points) -> set[tuple[str, int]]:
    """What each point of a run must have, by the longest rollout among them."""
    flow_steps = max((k + (kind == "parameters") for norms in points.values() for kind, k in norms), default=0)
    return {("x", k) for k in range(flow_steps + 1)} | {("parameters", k) for k in range(flow_steps)}


def where(phase: str, updates: int | str, env_steps: int | str) -> str:
    return f"at offline update {updates}" if phase == "offline" else f"at online step {env_steps}"


def stack(runs: Sequence[Sequence[tuple[str, bool, Points]]], phase: str) -> RolloutNorms | None:
    """The runs of one agent, by task, as arrays; None where no run has norms of this phase."""
    flat = [run for of_task in runs for run in of_task]
    progress = sorted({at for _, _, points in flat for of_phase, at in points if of_phase == phase})
    if not progress:
        return None
    steps = {name: len(norms) // 2 for name, _, points in flat for norms in points.values()}
    first = next(iter(steps))
    for name, flow_steps in steps.items():
        if flow_steps != steps[first]:
            raise ResultsError(
                f"gradient norms are of {steps[first]} flow steps in {first} but of {flow_steps} in {name}"
            )
    for name, complete, points in flat:
        absent = [at for at in progress if (phase, at) not in points]
        if complete and absent:
            raise ResultsError(f"{name} has no gradient norms {where(phase, absent[0], absent[0])}, which others have")
    by_kind: dict[str, list[Array]] = {}
    for kind, count in zip(KINDS, (steps[first] + 1, steps[first]), strict=True):
        by_kind[kind] = [
            np.array(
                [
                    [[points.get((phase, at), {}).get((kind, k), np.nan) for k in range(count)] for at in progress]
                    for _, _, points in of_task
                ]
            )
            for of_task in runs
        ]
    return RolloutNorms(np.array(progress, dtype=np.int64), by_kind)
