"""What the report shows of a single run beyond its score: scalars, rates, log, videos; read from the run's folder.

Scalars are down-sampled to the lowest and the highest row of each bucket of rows in a row: every point is a row of the
file, and extremes stay. Damage in a file that no figure rests on is shown with the run, and does not stop the report.
"""

import base64
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.loading.checks import read_rows
from analysis.loading.read import Run, read_episodes, read_json
from bench.runs.contract import EPISODES, LOG, STATUS, TIMING, TRAIN, VIDEO_INDEX, VIDEOS, RunName, one_line

SCALAR_POINTS = 200  # per scalar and phase
LOG_LINES = 15
LOG_BYTES = 8192
LINE_LENGTH = 300
VIDEO_TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".gif": "image/gif"}


@dataclass(frozen=True)
class Scalar:
    """One scalar of train.csv or timing.csv over one phase, down-sampled; x = gradient updates or environment steps."""

    name: str
    phase: str
    x: NDArray[np.int64]
    value: NDArray[np.float64]
    rows: int  # in the file, those that are not finite left out
    not_finite: int

    def thinned(self, points: int) -> "Scalar":
        """At most `points` of the points, extremes of buckets first."""
        keep = extremes(self.value, points)
        return Scalar(self.name, self.phase, self.x[keep], self.value[keep], self.rows, self.not_finite)


@dataclass(frozen=True)
class Video:
    """A recorded evaluation episode; `data` is a data URI, or None where the file was too large to be embedded."""

    file: str
    caption: str
    data: str | None
    still: bool  # an image and not a film


@dataclass(frozen=True)
class RunRecord:
    """One run; arrays over its evaluations are in the order of `run.evaluations`."""

    run: Run
    status: dict[str, Any]
    mean_return: NDArray[np.float64]
    mean_length: NDArray[np.float64]
    episode_seeds: tuple[int, int] | None  # lowest and highest; None before the first episode
    train: tuple[Scalar, ...]
    timing: tuple[Scalar, ...]
    log: tuple[str, ...]  # last lines, of runs that are not complete
    log_of: str  # the run in whose folder the log lies: the first of a pack
    videos: tuple[Video, ...]
    damage: tuple[str, ...]  # what could not be read, one line each


def read_record(root: Path, run: Run, video_bytes: int) -> RunRecord:
    """The record of one run; videos are embedded as long as they fit into `video_bytes`."""
    folder = root / run.name
    damage: list[str] = []
    status = read_json(folder / STATUS, ()) if (folder / STATUS).is_file() else {}
    returns, lengths, seeds = evaluation_means(folder, run)
    train = read_scalars(folder / TRAIN, damage)
    timing = read_scalars(folder / TIMING, damage)
    log, log_of = ([], "") if run.complete else read_log(root, run)
    videos = read_videos(folder / VIDEOS, video_bytes, damage)
    return RunRecord(
        run, status, returns, lengths, seeds, train, timing, tuple(log), log_of, tuple(videos), tuple(damage)
    )


def evaluation_means(folder: Path, run: Run) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, int] | None]:
    """Mean return and length of each whole evaluation, and the range of episode seeds."""
    rows, _ = read_episodes(folder / EPISODES, run.complete)
    if not len(rows):
        return np.zeros(0), np.zeros(0), None
    seeds = np.asarray(rows["episode_seed"], dtype=np.int64)
    columns = ((rows["phase"] == "online"), rows["env_steps"], rows["updates"])
    keys = np.stack([np.asarray(column, dtype=np.int64) for column in columns], axis=1)
    _, place, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    whole = counts == run.config["eval_episodes"]
    values = (np.asarray(rows[name], dtype=np.float64) for name in ("return", "length"))
    returns, lengths = ((np.bincount(place.ravel(), value) / counts)[whole] for value in values)
    seeds = seeds[whole[place.ravel()]]
    return returns, lengths, (int(seeds.min()), int(seeds.max())) if len(seeds) else None


def read_scalars(path: Path, damage: list[str]) -> tuple[Scalar, ...]:
    """The scalars of a CSV file in the order of their names; a line goes to `damage` where it cannot be read."""
    try:
        content = read_rows(path)
    except FileNotFoundError:
        return ()
    content = content[: content.rfind(b"\n") + 1]  # a last row without its end was being written
    try:
        rows = pd.read_csv(io.BytesIO(content), dtype={"phase": "str", "name": "str", "value": "float64"})
        names, name_of = np.unique(np.asarray(rows["name"], dtype="str"), return_inverse=True)
        online = np.asarray(rows["phase"]) == "online"
        progress = np.where(online, rows["env_steps"].to_numpy(np.int64), rows["updates"].to_numpy(np.int64))
        values = rows["value"].to_numpy(np.float64)
    except (ValueError, KeyError, pd.errors.ParserError) as error:
        if content:
            damage.append(f"{path.name} cannot be read: {one_line(error)[:200]}")
        return ()
    scalars = []
    for index, name in enumerate(names.tolist()):
        for phase, of_phase in (("offline", ~online), ("online", online)):
            at = np.flatnonzero((name_of == index) & of_phase)
            finite = at[np.isfinite(values[at])]
            if at.size:
                whole = Scalar(name, phase, progress[finite], values[finite], len(finite), len(at) - len(finite))
                scalars.append(whole.thinned(SCALAR_POINTS))
    return tuple(scalars)


def extremes(values: NDArray[np.float64], points: int) -> NDArray[np.int64]:
    """Ascending places of at most `points` values: the lowest and the highest of each of points / 2 buckets."""
    if len(values) <= points:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), max(1, points // 2) + 1).astype(np.int64)
    keep = set()
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        bucket = values[start:end]
        keep |= {start + int(bucket.argmin()), start + int(bucket.argmax())}
    return np.array(sorted(keep), dtype=np.int64)


def read_log(root: Path, run: Run) -> tuple[list[str], str]:
    """The last lines of what the process printed, and the run in whose folder they stand: the first of the pack."""
    starts = run.provenance["starts"]
    pack = (starts[-1].get("pack") if starts else None) or []
    this = RunName.of_config(run.config)
    others = [str(dataclasses.replace(this, seed=seed)) for seed in pack[:1] if isinstance(seed, int)]
    for name in (run.name, *others):
        path = root / name / LOG
        if not path.is_file() or not path.stat().st_size:
            continue
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            text = file.read().decode(errors="replace")
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)  # colours of a terminal
        lines = [re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", line)[:LINE_LENGTH] for line in re.split(r"[\r\n]+", text)]
        return [line for line in lines if line.strip()][-LOG_LINES:], name
    return [], ""


def read_videos(folder: Path, budget: int, damage: list[str]) -> list[Video]:
    """The videos that the index in `folder` lists, embedded in its order as long as they fit."""
    index = folder / VIDEO_INDEX
    if not index.is_file():
        return []
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))["videos"]
        files = [str(entry["file"]) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        damage.append(f"{VIDEOS}/{VIDEO_INDEX} cannot be read: {type(error).__name__}: {error}")
        return []
    videos = []
    for entry, file in zip(entries, files, strict=True):
        path = folder / file
        kind = VIDEO_TYPES.get(path.suffix.lower())
        if "/" in file or kind is None or not path.is_file():
            damage.append(f"{VIDEOS}/{file} is listed in {VIDEO_INDEX}, but is not there or not a video")
            continue
        outcome = {None: "", 0: ", not solved", 1: ", solved"}.get(entry.get("success"), "")
        caption = f"episode seed {entry.get('episode_seed')}{outcome}"
        if isinstance(entry.get("return"), int | float):
            caption += f", return {entry['return']:.4g}, {entry.get('length')} steps"
        size = -(-path.stat().st_size // 3) * 4  # as text
        data = None
        if size <= budget:
            budget -= size
            data = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
        videos.append(Video(file, caption, data, kind.startswith("image/")))
    return videos


def embedded_bytes(videos: Sequence[Video]) -> int:
    """What the videos weigh on the page."""
    return sum(len(video.data) for video in videos if video.data)
