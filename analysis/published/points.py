"""Published numbers as points: what the files hold, read and checked. Two formats, CSV or gzipped CSV:

* curves: `source,suite,task,method,env_step,mean,std_or_ci,n_seeds`. env_step is online environment steps, 0 the end
  of the offline phase, negative the offline updates still to go; std_or_ci is `ci95:[low;high]`, `std:x` or empty.
* per seed: `method,task,offline_updates,online_steps,seed_index,success_rate`; the source is the name of the file.
"""

import csv
import functools
import gzip
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from analysis.loading.read import ResultsError
from analysis.published.sources import agent_of, source_of
from analysis.statistics.metrics import CONFIDENCE

COMPACT = Path(__file__).with_name("published.csv")
RETURNS = Path(__file__).with_name("returns.csv")
COMPARED_STEPS = (0, 200_000, 500_000, 1_000_000)  # online steps at which the compact table has numbers
RETURN_STEPS = (25_000, 50_000, 75_000, 100_000, 200_000, 500_000, 1_000_000)  # at which returns are compared
CURVES_HEADER = ("source", "suite", "task", "method", "env_step", "mean", "std_or_ci", "n_seeds")
SEEDS_HEADER = ("method", "task", "offline_updates", "online_steps", "seed_index", "success_rate")


class PublishedError(ResultsError):
    """What is wrong in a file of published numbers, where, and what would be right: one line, printed as it is."""


@dataclass(frozen=True)
class PublishedPoint:
    """Success, or return, of a published method at one step; NaN where the source gives no limits or no spread."""

    source: str
    suite: str
    task: str
    method: str
    step: int  # online environment steps; 0 = end of the offline phase, negative = offline updates still to go
    mean: float
    low: float  # of a 95 % interval
    high: float
    std: float  # over seeds
    num_seeds: int
    values: tuple[float, ...] = ()  # success rate of each seed, where published
    bounds: tuple[float, float] = (0.0, 1.0)  # of a seed's number; none for returns

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.source, self.task, self.method, self.step

    @property
    def interval(self) -> tuple[float, float]:
        """95 % limits: as published, else Student's from the spread; NaN without either."""
        if not math.isnan(self.low) or math.isnan(self.std) or self.num_seeds < 2:
            return self.low, self.high
        half = float(stdtrit(self.num_seeds - 1, 0.5 + CONFIDENCE / 2)) * self.std / math.sqrt(self.num_seeds)
        return max(self.bounds[0], self.mean - half), min(self.bounds[1], self.mean + half)

    def scaled(self, low: float, high: float) -> "PublishedPoint":
        """The point of a return on the scale of returns that score 0 and 1."""
        span = high - low
        limits = ((limit - low) / span for limit in (self.mean, self.low, self.high))
        mean, lowest, highest = limits
        return replace(self, mean=mean, low=lowest, high=highest, std=self.std / span)


@dataclass(frozen=True)
class Series:
    """The points of one method of one source on one task, by ascending step."""

    source: str
    task: str
    method: str
    points: tuple[PublishedPoint, ...]

    @property
    def agent(self) -> str:
        return agent_of(self.source, self.method)

    @property
    def seeds(self) -> tuple[int, int]:
        """Fewest and most seeds of a point."""
        numbers = [point.num_seeds for point in self.points]
        return min(numbers), max(numbers)


def series_of(points: Iterable[PublishedPoint]) -> list[Series]:
    """Points put together to curves, sorted by task, source and method."""
    curves: dict[tuple[str, str, str], list[PublishedPoint]] = defaultdict(list)
    for point in points:
        curves[point.task, point.source, point.method].append(point)
    return [
        Series(source, task, method, tuple(sorted(members, key=lambda point: point.step)))
        for (task, source, method), members in sorted(curves.items())
    ]


def read_published(path: Path | None = None) -> list[PublishedPoint]:
    """The points of the tables that the project comes with, and of a file or of every CSV file of a folder in their
    place where they agree.

    Raises PublishedError, one line, for a file that does not follow its format.
    """
    points: dict[tuple[str, str, str, int], PublishedPoint] = {}
    files = [COMPACT, RETURNS, *(files_under(path) if path else ())]
    for file in files:
        for point in read_file(file):
            if not (point.key in points and points[point.key].values and not point.values):
                points[point.key] = point
    return list(points.values())


def files_under(path: Path) -> list[Path]:
    """`path` itself, or the CSV files of a folder, in order."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise PublishedError(f"no file or folder at {path}: name published curves, or rates per seed, as CSV")
    found = sorted(file for file in path.iterdir() if file.name.endswith((".csv", ".csv.gz")))
    if not found:
        raise PublishedError(f"no .csv and no .csv.gz file in {path}")
    return found


def read_file(path: Path) -> list[PublishedPoint]:
    """The points of one file of either format."""
    header, rows = open_table(path)
    if header == CURVES_HEADER:
        return list(curve_points(path, rows))
    return list(seed_points(path, rows))


def open_table(path: Path) -> tuple[tuple[str, ...], Iterator[tuple[int, list[str]]]]:
    """The header, and the rows with their numbers of line; lines that begin with # stand before the header."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.name.endswith(".gz") else content).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise PublishedError(f"{path} cannot be read as {'gzipped ' * path.name.endswith('.gz')}CSV: {error}") from None
    lines = text.splitlines()
    skipped = next((k for k, line in enumerate(lines) if not line.startswith("#")), len(lines))
    reader = csv.reader(lines[skipped:], strict=True)
    header = tuple(next(reader, []))
    if header not in (CURVES_HEADER, SEEDS_HEADER):
        expected = f"{','.join(CURVES_HEADER)} or {','.join(SEEDS_HEADER)}"
        raise PublishedError(f"{path}, line {skipped + 1}: header {','.join(header)[:80]!r}, expected {expected}")

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in reader:
                yield skipped + reader.line_num, row
        except csv.Error as error:
            raise PublishedError(f"{path}, line {skipped + reader.line_num}: {error}") from None

    return header, rows()


_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


# Cached: a file has many rows and few different fields.
@functools.cache
def whole_number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?\d+", text, re.ASCII) else None


@functools.cache
def success_rate(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) and 0.0 <= float(text) <= 1.0 else None


class Fields:
    """The fields of one row by column, each read with a check; PublishedError names file, line and column."""

    def __init__(self, path: Path, line: int, header: Sequence[str], row: Sequence[str]):
        if len(row) != len(header):
            raise PublishedError(f"{path}, line {line}: {len(row)} fields, expected {len(header)}")
        self._where = f"{path}, line {line}"
        self._row = dict(zip(header, row, strict=True))

    def refuse(self, column: str, expected: str) -> PublishedError:
        return PublishedError(f"{self._where}: {column} is {self._row[column]!r}, expected {expected}")

    def text(self, column: str) -> str:
        if not self._row[column].strip():
            raise self.refuse(column, "a name")
        return self._row[column]

    def whole(self, column: str, least: int | None = None) -> int:
        number = whole_number(self._row[column])
        if number is None or (least is not None and number < least):
            raise self.refuse(column, "a whole number" + ("" if least is None else f" of at least {least}"))
        return number

    def rate(self, column: str) -> float:
        number = success_rate(self._row[column])
        if number is None:
            raise self.refuse(column, "a success rate from 0 to 1")
        return number

    def number(self, column: str) -> float:
        if not _NUMBER.fullmatch(self._row[column]):
            raise self.refuse(column, "a return, a number")
        return float(self._row[column])

    def spread(self, column: str, mean: float, bounds: tuple[float, float]) -> tuple[float, float, float]:
        """Low, high, standard deviation; NaN where absent."""
        text = self._row[column]
        if not text:
            return math.nan, math.nan, math.nan
        number = _NUMBER.pattern
        if match := re.fullmatch(rf"std:(?P<std>{number})", text):
            std = float(match["std"])
            if 0.0 <= std <= bounds[1]:
                return math.nan, math.nan, std
        elif match := re.fullmatch(rf"ci95:\[(?P<low>{number});(?P<high>{number})\]", text):
            low, high = float(match["low"]), float(match["high"])
            # Published means of resamples are rounded: an interval may miss its mean by the last digit.
            if bounds[0] <= low <= high <= bounds[1] and low - 0.005 <= mean <= high + 0.005:
                return low, high, math.nan
        raise self.refuse(column, "ci95:[low;high] around the mean within [0, 1], std:x with x from 0 to 1, or nothing")


def curve_points(path: Path, rows: Iterable[tuple[int, list[str]]]) -> Iterator[PublishedPoint]:
    """Points of the format of curves; a point that stands there twice is refused."""
    seen: dict[tuple[str, str, str, int], int] = {}
    for line, row in rows:
        fields = Fields(path, line, CURVES_HEADER, row)
        by_return = source_of(fields.text("source")).by_return
        bounds = (-math.inf, math.inf) if by_return else (0.0, 1.0)
        mean = fields.number("mean") if by_return else fields.rate("mean")
        low, high, std = fields.spread("std_or_ci", mean, bounds)
        point = PublishedPoint(
            source=fields.text("source"),
            suite=fields.text("suite"),
            task=task_name(fields.text("task")),
            method=fields.text("method"),
            step=fields.whole("env_step"),
            mean=mean,
            low=low,
            high=high,
            std=std,
            num_seeds=fields.whole("n_seeds", least=1),
            bounds=bounds,
        )
        first = seen.setdefault(point.key, line)
        if first != line:
            raise PublishedError(f"{path}, line {line}: {' '.join(map(str, point.key))} stands in line {first} already")
        yield point


class SeedRate(NamedTuple):
    """One row of the format per seed; `task` in our spelling."""

    line: int
    method: str
    task: str
    offline_updates: int
    online_steps: int
    seed: int
    rate: float


def seed_rates(path: Path, rows: Iterable[tuple[int, list[str]]]) -> Iterator[SeedRate]:
    seen: dict[tuple[Any, ...], int] = {}
    for line, row in rows:
        fields = Fields(path, line, SEEDS_HEADER, row)
        key = (
            fields.text("method"),
            task_name(fields.text("task")),
            fields.whole("offline_updates", least=0),
            fields.whole("online_steps", least=0),
            fields.whole("seed_index", least=0),
        )
        rate = SeedRate(line, *key, fields.rate("success_rate"))
        first = seen.setdefault(key, line)
        if first != line:
            raise PublishedError(f"{path}, line {line}: {' '.join(map(str, key))} stands in line {first} already")
        yield rate


def seed_points(path: Path, rows: Iterable[tuple[int, list[str]]]) -> Iterator[PublishedPoint]:
    """Points of the format per seed: the rates of all seeds at one place are one point."""
    source = re.sub(r"\.csv(\.gz)?$", "", path.name)
    rates = list(seed_rates(path, rows))
    budget: dict[tuple[str, str], int] = defaultdict(int)  # offline updates of a method on a task, all in all
    for rate in rates:
        budget[rate.method, rate.task] = max(budget[rate.method, rate.task], rate.offline_updates)
    places: dict[tuple[str, str, int], dict[int, float]] = defaultdict(dict)
    for rate in rates:
        to_go = budget[rate.method, rate.task] - rate.offline_updates
        if rate.online_steps and to_go:
            raise PublishedError(
                f"{path}, line {rate.line}: offline_updates is {rate.offline_updates}, expected "
                f"{budget[rate.method, rate.task]} (end of the offline phase) at online step {rate.online_steps}"
            )
        places[rate.method, rate.task, rate.online_steps - to_go][rate.seed] = rate.rate
    for (name, task, step), by_seed in places.items():
        values = tuple(by_seed[seed] for seed in sorted(by_seed))
        std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        mean = float(np.mean(values))
        yield PublishedPoint(source, task, task, name, step, mean, math.nan, math.nan, std, len(values), values)


@functools.cache
def task_name(published: str) -> str:
    """`cube-double-play-singletask-task1-v0` -> `cube-double-task1`; other names as they are."""
    if re.fullmatch(r"[A-Z][A-Za-z0-9]*-v\d", published):  # of Gymnasium
        return published.lower()
    match = re.fullmatch(r"(.+?)-(?:play|navigate|noisy)(?:-100m)?-singletask-(task\d+)-v0", published)
    return f"{match[1]}-{match[2]}" if match else published
