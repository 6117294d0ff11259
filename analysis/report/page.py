"""One HTML page of everything under `results/`: tables, figures to point at, every run, failures, protocol cards.

The page stands alone: style, script and data are inside, nothing is fetched, it opens from a file. The same results
give the same bytes. A suite that cannot be read is named with its reason, and the others are shown.
"""

import base64
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from analysis.labels.names import display_name
from analysis.labels.style import styles_of
from analysis.labels.wording import count_label, counted, provenance_facts, task_label, two_digits
from analysis.loading.load import Suite, find_runs, load_results, shared_phases
from analysis.loading.read import ResultsError
from analysis.loading.run_record import RunRecord, Scalar, Video, embedded_bytes, read_record
from analysis.published.points import PublishedPoint
from analysis.report.chart_data import agent_data, numbers, suites_data, swatch
from analysis.report.protocol_card import CardSection, protocol, write_protocol
from analysis.report.sections import TableSection, numeric_columns, sort_value, table_sections
from analysis.statistics.scores import ALL_TASKS, ScoreRow
from analysis.tables.success import HEADINGS, caption, note_of, show, show_runs, show_seeds, suite_rows
from bench.runs.contract import LOG, STATES, VIDEOS, broken_links, replacing

TEMPLATES = Path(__file__).resolve().parent
SCRIPTS = ("charts.js", "page.js")  # the page's script is these in a row: the second draws with the first
SCALAR_BYTES = 12_000_000  # all scalars of all runs on the page; beyond it each gets fewer points
POINT_BYTES, SERIES_BYTES = 9, 20  # what they weigh on the page
FEWEST_POINTS = 4  # per scalar and phase, however many runs there are
VIDEO_BYTES = 8_000_000  # of videos inside the page by default; the others are linked
SHOWN_STARTS = 10  # of a run that was started more often: the first and the last ones
SCALAR_DIGITS = 4  # of training scalars: more than a chart can show
ORIGIN_WORDS = {
    "published": "published data: the data set as released with the benchmark",
    "generated": "generated data: made by a script, not the published data; do not compare with published results",
    "user": "data from a file that a user named; do not compare with published results",
    "none": "no data: every agent learns from scratch",
}


@dataclass(frozen=True)
class PageSuite:
    """One suite on the page."""

    suite: Suite
    slug: str  # of its section
    records: list[RunRecord]
    card: list[CardSection]
    rows: list[ScoreRow]
    sections: list[TableSection]
    states: Counter[str]


@dataclass(frozen=True)
class Report:
    """What was written, and which suites could not be read (name -> reason)."""

    written: list[Path]
    refused: dict[str, str]


def write_report(
    results: Path,
    out: Path,
    suites: Sequence[str] | None = None,
    video_bytes: int = VIDEO_BYTES,
    code_names: bool = False,
    published: Sequence[PublishedPoint] = (),
    mixed_matmul: bool = False,
) -> Report:
    """Writes the page to `out` and `<suite>_protocol.md` and `.tex` beside it.

    Runs that are not complete are taken in and marked. Raises ResultsError where no suite could be read.
    """
    loaded, refused = load_each(results, suites, mixed_matmul)
    entries = []
    for index, suite in enumerate(replace(suite, code_names=code_names) for suite in loaded):
        records = []
        for run in suite.runs:
            records.append(read_record(results, run, video_bytes))
            video_bytes -= embedded_bytes(records[-1].videos)
        slug = "suite-" + (re.sub(r"[^A-Za-z0-9-]+", "-", suite.name).strip("-") or str(index))
        if slug in {other.slug for other in entries}:
            slug += f"-{index}"
        states = Counter(run.state for run in suite.runs)
        rows = suite_rows(suite)
        sections = table_sections(suite, rows, published)
        entries.append(PageSuite(suite, slug, records, protocol(suite, records), rows, sections, states))
    named = {name: reason.replace(f"{results}/", "") for name, reason in refused.items()}
    page = render(entries, named, code_names, os.path.relpath(results, out.parent))
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as draft:  # a page that is open in a browser is replaced whole
        draft.write_text(page, encoding="utf-8", newline="\n")
    written = [out]
    for one in entries:
        written += write_protocol(one.suite, one.card, out.parent)
    return Report(written, refused)


def load_each(
    results: Path, names: Sequence[str] | None, mixed_matmul: bool = False
) -> tuple[list[Suite], dict[str, str]]:
    """Every suite that can be read, and why the others cannot."""
    present = sorted({name.split("/")[0] for name in find_runs(results, names)})
    suites, refused = [], {}
    for name in present:
        try:
            suites += load_results(results, [name], allow_incomplete=True, mixed_matmul=mixed_matmul)
        except ResultsError as error:
            refused[name] = str(error)
    for link in broken_links(results, names or ()):
        name = link.relative_to(results).parts[0]
        if name not in present:
            refused[name] = f"{link} is a link that leads nowhere"
    if not suites:
        more = f" (and {counted(len(refused) - 1, 'suite')} more)" if len(refused) > 1 else ""
        raise ResultsError(f"{next(iter(refused.values()))}{more}")
    # Read one by one, suites do not know of the offline phases that they share.
    shared = shared_phases({suite.name: suite.runs for suite in suites})
    notes = {suite.name: tuple(note for name, note in shared if name == suite.name) for suite in suites}
    return [replace(suite, notes=(*suite.notes, *notes[suite.name])) for suite in suites], refused


# ------------------------------------------------------------------------------------------------------- the page


def render(entries: Sequence[PageSuite], refused: dict[str, str], code_names: bool, results: str) -> str:
    """The page; `results` is the way from its folder to the results folder, for links to videos."""
    environment = templates(TEMPLATES)
    parts = [(TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS]
    script = "".join(['"use strict";\n(() => {\n', *parts, "})();\n"])  # names of one page, none of the browser's
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    agents = styles_of({agent for one in entries for agent in one.suite.agents})
    charts = suites_data((one.suite for one in entries), agents)
    runs, thinned = runs_data(entries, results)
    unfinished = [record for one in entries for record in by_need(one.records)]
    # The browser runs this script and no other, whatever names, logs and notes hold; and fetches nothing.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        digest=digest,
        script=script,
        style=style,
        suites=entries,
        refused=refused,
        origins={
            origin: ORIGIN_WORDS[origin] for origin in ORIGIN_WORDS if any(o.suite.origin == origin for o in entries)
        },
        agents=list(agents),
        called=partial(display_name, code_names=code_names),
        swatches={agent: swatch(look) for agent, look in agents.items()},
        state_names=[state for state in STATES if state != "complete"],
        columns=HEADINGS,
        all_tasks=ALL_TASKS,
        facts=provenance_facts,
        caption=caption,
        note_of=note_of,
        log_file=LOG,
        task_label=task_label,
        counted=counted,
        show=show,
        show_seeds=show_seeds,
        show_runs=show_runs,
        sort_value=sort_value,
        numeric_columns=numeric_columns,
        score_words=score_words,
        progress=progress,
        unfinished=unfinished,
        logs=[record for record in unfinished if record.run.state == "failed" and record.log],
        profiles=[suite["profiles"] for suite in charts],
        chart_data=embedded(
            {"agents": [agent_data(agent, look, code_names) for agent, look in agents.items()], "suites": charts}
        ),
        run_data=embedded(runs),
        thinned=thinned,
    )


def templates(folder: Path) -> jinja2.Environment:
    """The templates of a folder and of the report; nothing that a file says can become a part of a page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = count_label
    return environment


def embedded(data: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(data, separators=(",", ":"), sort_keys=True, allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def by_need(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Runs that are not complete, failed ones first."""
    order = {"failed": 0, "preempted": 1, "running": 2}
    unfinished = [record for record in records if not record.run.complete]
    return sorted(unfinished, key=lambda record: (order[record.run.state], record.run.name))


def score_words(score: float) -> str:
    """A score in a table: two digits, none from a thousand on."""
    return f"{score:,.0f}" if abs(score) >= 1_000 else two_digits(score)


def progress(record: RunRecord) -> str:
    """How far a run has come, in words."""
    config, status = record.run.config, record.status
    if status.get("phase") == "online":
        return f"online step {status.get('env_steps', 0):,} of {config['online_steps']:,}"
    if "updates" in status:
        return f"offline update {status['updates']:,} of {config['offline_updates']:,}"
    return "not known"


# --------------------------------------------------------------------------------------------------- data of runs


class Pool:
    """Values that many runs have in common, each once; runs carry their number."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.index: dict[str, int] = {}

    def add(self, value: Any) -> int:
        key = json.dumps(value, sort_keys=True)
        if key not in self.index:
            self.index[key] = len(self.values)
            self.values.append(value)
        return self.index[key]


def runs_data(entries: Sequence[PageSuite], results: str) -> tuple[dict[str, Any], int | None]:
    """Everything that the pages of runs show, and to how many points scalars had to be thinned (None: not)."""
    pool = Pool()
    series = [scalar for one in entries for record in one.records for scalar in (*record.train, *record.timing)]
    points = points_within(series, SCALAR_BYTES)
    runs = [
        run_data(record, pool, points, results) | {"suite": index}
        for index, one in enumerate(entries)
        for record in one.records
    ]
    return {"pool": pool.values, "runs": runs}, points


def points_within(series: Sequence[Scalar], budget: int) -> int | None:
    """Most points per scalar and phase so that all scalars stay within `budget` bytes; None where they all fit."""
    lengths = np.array([len(scalar.x) for scalar in series])
    budget -= len(lengths) * SERIES_BYTES
    if lengths.sum() * POINT_BYTES <= budget:
        return None
    low, high = FEWEST_POINTS, int(lengths.max())
    while low < high:
        middle = (low + high + 1) // 2
        fits = np.minimum(lengths, middle).sum() * POINT_BYTES <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def run_data(record: RunRecord, pool: Pool, points: int | None, results: str) -> dict[str, Any]:
    run = record.run
    config = {key: value for key, value in run.config.items() if key not in ("seed", "config_hash")}
    starts = run.provenance["starts"]
    kept = starts if len(starts) <= SHOWN_STARTS else [starts[0], *starts[1 - SHOWN_STARTS :]]
    rest = {key: value for key, value in run.provenance.items() if key not in ("starts", "dataset", "schema_version")}
    hidden = ("schema_version", "state")
    status = {key: value for key, value in record.status.items() if value is not None and key not in hidden}
    evaluations = run.evaluations
    at = np.where(evaluations.online, evaluations.env_steps, evaluations.updates)
    return {
        "name": run.name,
        "state": run.state,
        "seed": run.config["seed"],
        "hash": run.config.get("config_hash"),
        "config": pool.add(config),
        "dataset": pool.add(run.provenance["dataset"]),
        "provenance": pool.add(rest),
        "starts": [start_data(start, pool) for start in kept],
        "num_starts": len(starts),
        "status": status,
        "measure": run.measure.name if run.measure else None,
        "grid": pool.add({"online": evaluations.online.astype(int).tolist(), "at": at.tolist()}),
        "score": numbers(evaluations.score),
        "return": numbers(record.mean_return),
        "length": numbers(record.mean_length),
        "episode_seeds": record.episode_seeds,
        "train": [scalar_data(scalar, pool, points) for scalar in record.train],
        "timing": [scalar_data(scalar, pool, points) for scalar in record.timing],
        "notes": [note.removeprefix(f"{run.name}: ") for note in run.notes] + list(record.damage),
        "log": list(record.log),
        "log_of": record.log_of if record.log_of != run.name else "",
        "videos": [video_data(video, run.name, results) for video in record.videos],
    }


def start_data(start: dict[str, Any], pool: Pool) -> dict[str, Any]:
    """A start of a run; what starts have in common is in the pool."""
    single = ("started_at", "seconds", "resumed_from", "pack", "slurm_job")
    shared = {key: value for key, value in start.items() if key not in single}
    return {key: start[key] for key in single if key in start} | {"shared": pool.add(shared)}


def scalar_data(scalar: Scalar, pool: Pool, points: int | None) -> list[Any]:
    """[name, is online, unit, steps as differences in that unit, values, rows, rows that are not finite]."""
    thin = scalar if points is None else scalar.thinned(points)
    steps = np.diff(thin.x, prepend=0)
    unit = max(1, int(np.gcd.reduce(steps))) if len(steps) else 1  # as a rule the log interval
    values = numbers(thin.value, SCALAR_DIGITS)
    online = int(thin.phase == "online")
    return [pool.add(thin.name), online, unit, (steps // unit).tolist(), values, scalar.rows, scalar.not_finite]


def video_data(video: Video, run: str, results: str) -> dict[str, Any]:
    link = Path(results, run, VIDEOS, video.file).as_posix()
    return {"caption": video.caption, "file": link, "data": video.data, "still": video.still}
