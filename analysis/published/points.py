"""Published numbers: reading them, whose they are and how they were made, and the compact table that comes with us.

`python -m analysis.published.sources compact PATH` makes `analysis/published/published.csv` anew from the files of a
release, `python -m analysis.published.sources import FILE` turns rates per seed into a results folder. Two formats,
CSV or gzipped CSV:

* curves: `source,suite,task,method,env_step,mean,std_or_ci,n_seeds`. env_step is online environment steps, 0 the end
  of the offline phase, negative the offline updates still to go; std_or_ci is `ci95:[low;high]`, `std:x` or empty.
* per seed: `method,task,offline_updates,online_steps,seed_index,success_rate`; the source is the name of the file.
"""

import argparse
import csv
import dataclasses
import functools
import gzip
import hashlib
import io
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from analysis.labels.wording import count_label
from analysis.loading.read import ResultsError
from analysis.statistics.metrics import CONFIDENCE

COMPACT = Path(__file__).with_name("published.csv")
COMPARED_STEPS = (0, 200_000, 500_000, 1_000_000)  # online steps at which the compact table has numbers
CURVES_HEADER = ("source", "suite", "task", "method", "env_step", "mean", "std_or_ci", "n_seeds")
SEEDS_HEADER = ("method", "task", "offline_updates", "online_steps", "seed_index", "success_rate")


class PublishedError(ResultsError):
    """What is wrong in a file of published numbers, where, and what would be right: one line, printed as it is."""


# ------------------------------------------------------------------------------------- how the numbers were made


@dataclass(frozen=True)
class Protocol:
    """What two numbers must have in common before a difference between them says anything; None: not known."""

    num_critics: int | None = None
    q_aggregation: str | None = None  # of the target critics to one value
    pessimism: float | None = None  # standard deviations below the mean; pessimistic aggregation
    chunk_length: int | None = None  # environment steps per action chunk
    offline_updates: int | None = None  # gradient updates before the first online step
    critic_updates_per_offline_step: int | None = None
    utd_ratio: int | None = None  # gradient updates per environment step
    online_steps: int | None = None
    success_timing: str | None = None  # from the state after ("post") or before ("pre") the action
    eval_episodes: int | None = None  # per evaluation and run
    data_origin: str | None = None


# Of these a difference only changes how precise a number is, or where a curve ends.
HARMLESS = ("eval_episodes", "online_steps")
IN_WORDS = {
    "num_critics": "critics",
    "q_aggregation": "value of the critics",
    "pessimism": "pessimism of the critics",
    "chunk_length": "steps per chunk",
    "offline_updates": "offline updates",
    "critic_updates_per_offline_step": "critic updates per offline step",
    "utd_ratio": "updates per online step",
    "online_steps": "online steps",
    "success_timing": "success timing",
    "eval_episodes": "evaluation episodes",
    "data_origin": "data",
}


@dataclass(frozen=True)
class Method:
    """The agent of ours that a published method is, and where the method departs from the protocol of its source."""

    agent: str
    departs: Mapping[str, Any]


def method(agent: str, **departs: Any) -> Method:
    return Method(agent, departs)


@dataclass(frozen=True)
class Source:
    """Where numbers come from. `best_of_curve`: they may be maxima over checkpoints, which no final score can match."""

    label: str  # in legends and tables
    citation: str
    licence: str
    protocol: Protocol
    methods: Mapping[str, Method]
    best_of_curve: bool = False
    suite_prefix: str = ""  # of the suites that an import of its rates per seed makes


_FULL = Protocol(
    num_critics=2,
    q_aggregation="mean",
    chunk_length=1,
    offline_updates=1_000_000,
    critic_updates_per_offline_step=1,
    utd_ratio=1,
    online_steps=1_000_000,
    success_timing="post",
    eval_episodes=50,
    data_origin="published",
)
_CHUNKS = {"chunk_length": 5}
_MINIMUM = {"q_aggregation": "min"}  # IFQL, IQL and ReBRAC take the smaller of two critics
_UNKNOWN_VALUE = {"q_aggregation": None, "pessimism": None}
_ONLINE_ONLY = {"num_critics": 10, "offline_updates": 0, "critic_updates_per_offline_step": None}

# Facts (numbers) are carried over with their source; licences are those of the repositories that the numbers lie in.
SOURCES: dict[str, Source] = {
    "qc_plot_data": Source(
        label="Q-chunking release",
        citation="arXiv 2507.07969, plot data in github.com/ColinQiyangLi/qc: mean, 95 % bootstrap interval over seeds",
        licence="MIT",
        protocol=_FULL,
        methods={
            "FQL": method("fql"),
            "QC-FQL": method("qc_fql", **_CHUNKS),
            "QC": method("qc", **_CHUNKS),
            "BFN": method("bfn"),
            "IFQL": method("ifql", **_MINIMUM),
            "QC-IFQL": method("ifql", **_MINIMUM, **_CHUNKS),
            "IQL": method("iql", **_MINIMUM),
            "ReBRAC": method("rebrac", **_MINIMUM),
            "RLPD": method("rlpd", **_ONLINE_ONLY),
            "RLPD-AC": method("rlpd_ac", **_ONLINE_ONLY, **_CHUNKS),
        },
    ),
    "fql_paper_table3_offline": Source(
        label="FQL paper, offline",
        citation="arXiv 2502.02538, table of offline results: mean, standard deviation over seeds",
        licence="figures of a paper",
        protocol=dataclasses.replace(_FULL, online_steps=0),
        methods={
            "FQL": method("fql"),
            "FBRAC": method("fbrac", **_UNKNOWN_VALUE),
            "IFQL": method("ifql", **_MINIMUM),
            "IQL": method("iql", **_MINIMUM),
            "ReBRAC": method("rebrac", **_MINIMUM),
        },
    ),
    "fql_paper_table4": Source(
        label="FQL paper, online",
        citation="arXiv 2502.02538, table of offline-to-online results: mean, standard deviation over seeds",
        licence="figures of a paper",
        protocol=_FULL,
        methods={
            "FQL": method("fql"),
            "IFQL": method("ifql", **_MINIMUM),
            "IQL": method("iql", **_MINIMUM),
            "ReBRAC": method("rebrac", **_MINIMUM),
            "RLPD": method("rlpd", **(_ONLINE_ONLY | _UNKNOWN_VALUE | {"num_critics": None})),
        },
    ),
    "cfp_paper_table5": Source(
        label="critic-free pretraining paper",
        citation="follow-up of the Q-chunking authors, table 5, ordinary offline-to-online rows: means without spread",
        licence="figures of a paper",
        protocol=dataclasses.replace(_FULL, critic_updates_per_offline_step=None),
        methods={
            "FQL-O2O": method("fql"),
            "QC-O2O": method("qc", **_CHUNKS),
            "QCFQL-O2O": method("qc_fql", **_CHUNKS),
            "QCFQL-nstep-O2O": method("flow_mlp", **_CHUNKS),  # K = 4, plain velocity, no entropy
        },
        best_of_curve=True,
    ),
    "qam_cube_success_by_seed": Source(
        label="QAM release",
        citation="arXiv 2601.14234, experiment data of the release: success rate of every seed",
        licence="MIT",
        protocol=Protocol(
            num_critics=10,
            q_aggregation="pessimistic",
            pessimism=0.5,
            chunk_length=5,
            offline_updates=1_000_000,
            utd_ratio=1,
            online_steps=500_000,
            eval_episodes=50,
            data_origin="published",
        ),
        methods={
            "FQL": method("qc_fql"),  # chunks of 5 actions: what the Q-chunking paper calls QC-FQL
            "IFQL": method("ifql"),
            "DSRL": method("dsrl"),
            "FBRAC": method("fbrac"),
            "FAWAC": method("fawac"),
            "DAC": method("dac"),
            "QSM": method("qsm"),
            "QAM": method("qam"),
            "QAM-E": method("qam_e"),
            "QAM-F": method("qam_f"),
            "FEdit": method("fedit"),
            "ReBRAC": method("rebrac"),
            "RLPD": method("rlpd_ac", **_ONLINE_ONLY),
        },
        suite_prefix="qam",
    ),
    "sacflow_repo_log": Source(
        label="SAC Flow release, one log",
        citation="arXiv 2509.25756, the training log left in its repository: one seed, first 200k offline updates",
        licence="no licence file; two numbers",
        protocol=dataclasses.replace(_FULL, chunk_length=5, critic_updates_per_offline_step=2),
        methods={"SACFlow-T": method("sac_flow_t")},
    ),
}


def source_of(name: str) -> Source:
    """A known source, or one of which nothing is known but its name."""
    return SOURCES.get(name) or Source(name, name, "not known", Protocol(), {})


def agent_of(source: str, method: str) -> str:
    """Name of our agent for a method; of a source that is not known, the method's own name in our spelling."""
    known = source_of(source).methods.get(method)
    return known.agent if known else re.sub(r"[^a-z0-9]+", "_", method.lower()).strip("_")


def protocol_of(source: str, method: str) -> Protocol:
    """How the numbers of a method were made."""
    origin = source_of(source)
    known = origin.methods.get(method)
    return dataclasses.replace(origin.protocol, **(known.departs if known else {}))


def meaningful(field: str, ours: Protocol, theirs: Protocol) -> bool:
    """Whether a field is to be compared: how critics become one value only where there are as many of them."""
    if field not in ("q_aggregation", "pessimism"):
        return True
    as_many = ours.num_critics is not None and ours.num_critics == theirs.num_critics
    return as_many and (field == "q_aggregation" or ours.q_aggregation == theirs.q_aggregation == "pessimistic")


def differences(ours: Protocol, theirs: Protocol) -> tuple[list[str], list[str]]:
    """What forbids a comparison, and what only deserves to be said (harmless differences, what is not known)."""
    forbidding, remarks = [], []
    for field in dataclasses.fields(Protocol):
        a, b, words = getattr(ours, field.name), getattr(theirs, field.name), IN_WORDS[field.name]
        if a == b or not meaningful(field.name, ours, theirs):
            continue
        if a is None or b is None:
            remarks.append(f"{words} not known")
        else:
            told = [count_label(value) if isinstance(value, int) else value for value in (b, a)]
            (remarks if field.name in HARMLESS else forbidding).append(f"{words}: theirs {told[0]}, ours {told[1]}")
    return forbidding, remarks


# -------------------------------------------------------------------------------------------------- the numbers


@dataclass(frozen=True)
class Point:
    """Success of a published method at one step; NaN where the source gives no limits or no spread."""

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

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.source, self.task, self.method, self.step

    @property
    def interval(self) -> tuple[float, float]:
        """95 % limits: as published, else Student's from the spread; NaN without either."""
        if not math.isnan(self.low) or math.isnan(self.std) or self.num_seeds < 2:
            return self.low, self.high
        half = float(stdtrit(self.num_seeds - 1, 0.5 + CONFIDENCE / 2)) * self.std / math.sqrt(self.num_seeds)
        return max(0.0, self.mean - half), min(1.0, self.mean + half)


@dataclass(frozen=True)
class Series:
    """The points of one method of one source on one task, by ascending step."""

    source: str
    task: str
    method: str
    points: tuple[Point, ...]

    @property
    def agent(self) -> str:
        return agent_of(self.source, self.method)

    @property
    def seeds(self) -> tuple[int, int]:
        """Fewest and most seeds of a point."""
        numbers = [point.num_seeds for point in self.points]
        return min(numbers), max(numbers)


def series_of(points: Iterable[Point]) -> list[Series]:
    """Points put together to curves, sorted by task, source and method."""
    curves: dict[tuple[str, str, str], list[Point]] = defaultdict(list)
    for point in points:
        curves[point.task, point.source, point.method].append(point)
    return [
        Series(source, task, method, tuple(sorted(members, key=lambda point: point.step)))
        for (task, source, method), members in sorted(curves.items())
    ]


def read_published(path: Path | None = None) -> list[Point]:
    """The points of the compact table, and of a file or of every CSV file of a folder in their place where they agree.

    Raises PublishedError, one line, for a file that does not follow its format.
    """
    points: dict[tuple[str, str, str, int], Point] = {}
    files = [COMPACT, *(files_under(path) if path else ())]
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


def read_file(path: Path) -> list[Point]:
    """The points of one file of either format."""
    header, rows = open_table(path)
    if header == CURVES_HEADER:
        return list(curve_points(path, rows))
    return list(seed_points(path, rows))


def open_table(path: Path) -> tuple[tuple[str, ...], Iterator[tuple[int, list[str]]]]:
    """The header, and the rows with their numbers of line; lines that begin with # stand before the header."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.name.endswith(".gz") else content).decode("utf-8")
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

    def spread(self, column: str, mean: float) -> tuple[float, float, float]:
        """Low, high, standard deviation; NaN where absent."""
        text = self._row[column]
        if not text:
            return math.nan, math.nan, math.nan
        number = _NUMBER.pattern
        if match := re.fullmatch(rf"std:(?P<std>{number})", text):
            std = float(match["std"])
            if 0.0 <= std <= 1.0:
                return math.nan, math.nan, std
        elif match := re.fullmatch(rf"ci95:\[(?P<low>{number});(?P<high>{number})\]", text):
            low, high = float(match["low"]), float(match["high"])
            # Published means of resamples are rounded: an interval may miss its mean by the last digit.
            if 0.0 <= low <= high <= 1.0 and low - 0.005 <= mean <= high + 0.005:
                return low, high, math.nan
        raise self.refuse(column, "ci95:[low;high] around the mean within [0, 1], std:x with x from 0 to 1, or nothing")


def curve_points(path: Path, rows: Iterable[tuple[int, list[str]]]) -> Iterator[Point]:
    """Points of the format of curves; a point that stands there twice is refused."""
    seen: dict[tuple[str, str, str, int], int] = {}
    for line, row in rows:
        fields = Fields(path, line, CURVES_HEADER, row)
        mean = fields.rate("mean")
        low, high, std = fields.spread("std_or_ci", mean)
        point = Point(
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


def read_seed_rates(path: Path) -> list[SeedRate]:
    """Every row of a file of rates per seed, checked."""
    header, rows = open_table(path)
    if header != SEEDS_HEADER:
        raise PublishedError(f"{path} has no rates per seed: its header is not {','.join(SEEDS_HEADER)}")
    return list(seed_rates(path, rows))


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


def seed_points(path: Path, rows: Iterable[tuple[int, list[str]]]) -> Iterator[Point]:
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
        yield Point(source, task, task, name, step, mean, math.nan, math.nan, std, len(values), values)


@functools.cache
def task_name(published: str) -> str:
    """`cube-double-play-singletask-task1-v0` -> `cube-double-task1`; other names as they are."""
    match = re.fullmatch(r"(.+?)-(?:play|navigate|noisy)(?:-100m)?-singletask-(task\d+)-v0", published)
    return f"{match[1]}-{match[2]}" if match else published


# -------------------------------------------------------------------------------------------- the compact table


def compact_text(files: Sequence[Path]) -> str:
    """The end points of every method that is an agent here or an opponent, as a CSV file that says where it is from."""
    points = [
        point
        for file in files
        for point in read_file(file)
        if point.step in COMPARED_STEPS
        and point.method in source_of(point.source).methods
        and re.search(r"-(task\d+|mh|ph)$", point.task)
    ]
    if not points:
        raise PublishedError(f"nothing to carry over from {', '.join(map(str, files))}: no known method of a source")
    points.sort(key=lambda point: (point.source, point.task, point.method, point.step))
    buffer = io.StringIO()
    buffer.write("# Published success rates: end of the offline phase, and after 200k, 500k and 1M online steps.\n")
    buffer.write(
        "# Columns: analysis/published/sources.py. Made by `python -m analysis.published.sources compact PATH` from:\n"
    )
    for file in files:
        buffer.write(f"# {file.name}, SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}\n")
    for name in sorted({point.source for point in points}):
        buffer.write(f"# {name}: {SOURCES[name].citation}. Licence: {SOURCES[name].licence}.\n")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CURVES_HEADER)
    for point in points:
        suite = re.sub(r"-(task\d+|mh|ph)$", "", point.task)
        if not math.isnan(point.low):
            spread = f"ci95:[{point.low:.4f};{point.high:.4f}]"
        else:
            spread = "" if math.isnan(point.std) else f"std:{point.std:.4f}"
        writer.writerow(
            [point.source, suite, point.task, point.method, point.step, f"{point.mean:.4f}", spread, point.num_seeds]
        )
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 after one line on what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.published.sources", description="Files of published numbers."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    compact = commands.add_parser("compact", help="make the table of end points that the project comes with")
    compact.add_argument("path", type=Path, metavar="PATH", help="a file of published numbers, or a folder of them")
    compact.add_argument(
        "--out", type=Path, default=COMPACT, metavar="FILE", help="default: analysis/published/published.csv"
    )
    importing = commands.add_parser("import", help="rates per seed as a results folder")
    importing.add_argument("file", type=Path, metavar="FILE", help="rates per seed")
    importing.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    options = parser.parse_args(arguments)
    actions: dict[str, Callable[[], str]] = {"compact": lambda: _compact(options), "import": lambda: _import(options)}
    try:
        print(actions[options.command]())
    except (ResultsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _compact(options: argparse.Namespace) -> str:
    text = compact_text(files_under(options.path))
    draft = options.out.with_name(f".{options.out.name}.draft")
    draft.write_text(text, encoding="utf-8", newline="\n")
    draft.replace(options.out)
    return f"wrote {options.out}"


def _import(options: argparse.Namespace) -> str:
    from analysis.published.imported import import_as_results

    return "\n".join(import_as_results(options.file, options.results))


if __name__ == "__main__":
    sys.exit(main())
