"""The report's page read without a browser: its structure and numbers, what it says of failures, protocol cards."""

import base64
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.figures.ablations import ablations_of
from analysis.labels.names import named_agent
from analysis.labels.style import AGENT_STYLES, styles_of
from analysis.loading.load import load_results
from analysis.loading.read import ResultsError
from analysis.loading.run_record import SCALAR_POINTS, Scalar, extremes
from analysis.published.points import read_published
from analysis.published.verdict_tables import summary_table
from analysis.published.verdicts import judge
from analysis.report import page as report
from analysis.statistics.curves import curve_of
from analysis.statistics.pairs import pairs_of
from analysis.tables import success as tables
from analysis.tables.comparisons import pair_reading
from analysis.tables.paper import reading_table
from tests.report_runs import add_videos, fail, write_report_results
from tests.test_analysis import edit_json, write_grid, write_run
from tests.test_comparison_tables import write_three

VOID = {"meta", "input", "link", "img", "br", "hr"}
ROOT = Path(__file__).resolve().parents[1]


class Page(HTMLParser):
    """What a browser would find: elements with their text, in order; fails on one that is not closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, Any]]] = []
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.texts: list[tuple[str, dict[str, Any], str]] = []
        self.tables: dict[str, list[list[tuple[str, str | None]]]] = {}
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self.open.append((tag, attributes))
        if tag == "tr" and (caption := self.caption) is not None:
            self.tables[caption].append([])
        if tag in ("td", "th") and (caption := self.caption) is not None:
            self.tables[caption][-1].append(("", attributes.get("data-value")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1][0] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, text: str) -> None:
        if not self.open:
            return
        tag, attributes = self.open[-1]
        self.texts.append((tag, attributes, text))
        inside = [name for name, _ in self.open]
        if tag == "caption":
            self.tables[text] = []
        elif ("td" in inside or "th" in inside) and self.caption is not None and self.tables[self.caption]:
            cell = self.tables[self.caption][-1]
            cell[-1] = (cell[-1][0] + text.strip(), cell[-1][1])

    @property
    def caption(self) -> str | None:
        """Of the table that is open."""
        return next(reversed(self.tables), None) if any(tag == "table" for tag, _ in self.open) else None

    def json(self, name: str) -> Any:
        return json.loads("".join(text for tag, attributes, text in self.texts if attributes.get("id") == name))

    def text_of(self, *tags: str) -> list[str]:
        return [text.strip() for tag, _, text in self.texts if tag in tags and text.strip()]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_report_results(tmp_path_factory.mktemp("report"))
    add_videos(root / "raw/reach/sac_flow_g/seed_000")
    assert main(["report", "--results", str(root)]) == 0
    return root


@pytest.fixture(scope="module")
def page(results: Path) -> Page:
    return Page(results / "figures/report.html")


def write_page(root: Path, **options: Any) -> Page:
    report.write_report(root, root / "out/report.html", **options)
    return Page(root / "out/report.html")


# ------------------------------------------------------------------------------------------------------ structure


def test_page_stands_alone(page: Page):
    assert not re.search(r"https?:|url\(|@import|<link|<iframe", page.source.replace("url(#", ""))
    for tag, attributes in page.elements:
        assert "src" not in attributes, (tag, attributes)
        assert attributes.get("href", "#").startswith("#"), (tag, attributes)
    (policy,) = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    (script,) = [text for tag, attributes, text in page.texts if tag == "script" and not attributes]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy, "a browser runs the page's script and no other"
    assert script.index("class Chart") < script.index("function runPage"), "one draws with the other"


def test_headings_are_in_order_and_names_are_unique(page: Page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    names = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert set(names.values()) == {1}
    targets = {a["href"][1:] for tag, a in page.elements if tag == "a" and not a["href"].startswith("#/run/")}
    assert targets <= set(names)
    assert page.text_of("title") == ["o2o-bench report: bullet, cube-double, raw"]
    assert dict(page.elements)["html"]["lang"] == "en"


def test_every_table_can_be_sorted_from_the_keyboard(page: Page):
    headings = [index for index, (tag, a) in enumerate(page.elements) if tag == "th" and a.get("scope") == "col"]
    assert headings
    assert all(page.elements[index + 1] == ("button", {"type": "button"}) for index in headings)


# -------------------------------------------------------------------------------------------------------- numbers


def test_tables_have_the_numbers_of_the_csv(results: Path, page: Page):
    (suite,) = load_results(results, ["bullet"])
    text = tables.numbers_table(suite, tables.suite_rows(suite)).csv()
    table = pd.read_csv(io.StringIO(text)).set_index(["task", "agent"])
    for caption, task_column in (("bullet, all tasks", False), ("bullet, by task", True)):
        heading, *rows = page.tables[caption]
        columns = [text for text, _ in heading]
        assert len(rows) == (4 if task_column else 2)
        for row in rows:
            texts = [text for text, _ in row]
            task = texts[0] if task_column else "all tasks"
            agent = named_agent(texts[columns.index("agent")], suite.agents)
            expected = table.loc[(task, agent)]
            value = float(row[columns.index("final")][1] or "nan")
            assert value == pytest.approx(float(expected["score_final"]), abs=1e-6)
            assert texts[columns.index("final")].startswith(f"{value:.2f} [{float(expected['score_final_low']):.2f}, ")


def test_page_has_the_tables_of_the_other_files(results: Path, page: Page):
    (suite,) = load_results(results, ["cube-double"], allow_incomplete=True)
    rows = {(row.task, row.agent): row for row in tables.suite_rows(suite)}
    expected = {
        "Offline to online": reading_table(suite, rows),
        "Pairs of agents": pair_reading(suite, pairs_of(suite, styles_of(suite.agents))),
        "Against published numbers": summary_table(suite, judge(suite, read_published())),
    }
    for title, table in expected.items():
        heading, *lines = page.tables[f"cube-double: {title}"]
        assert [text for text, _ in heading] == list(table.columns)
        shown = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.markdown().splitlines()[2:]]
        plain = [[cell.replace("*", "").replace(" ", "") for cell in line] for line in shown]
        assert [[text.replace(" ", "") for text, _ in line] for line in lines] == plain
    assert len(expected["Against published numbers"].rows) > 2
    for text, value in (row[2] for row in page.tables["cube-double: Pairs of agents"][1:]):
        assert text.startswith(f"{float(value or 'nan'):.2f} ["), "a column is sorted by the number that it shows"
    words = [row[7] for row in page.tables["cube-double: FQL against FQL-O2O, critic-free pretraining paper"][1:]]
    assert {value for _, value in words} == {None}, "words are sorted as words"
    assert "raw: Pairs of agents" not in page.tables, "one agent has nobody to be compared with"


def test_page_has_the_performance_profile_of_success_rates(results: Path, page: Page):
    charts = {suite["name"]: suite for suite in page.json("chart-data")["suites"]}
    assert charts["raw"]["profiles"] == charts["bullet"]["profiles"] == []
    profiles = charts["cube-double"]["profiles"]
    assert len(profiles) == 5 and all(profile["mean"][0] == 1 and profile["mean"][-1] == 0 for profile in profiles)
    assert {len(profile["low"]) for profile in profiles} == {len(charts["cube-double"]["thresholds"])}
    assert sum("data-profile" in attributes for tag, attributes in page.elements if tag == "figure") == 1


def test_no_number_on_the_page_is_longer_than_people_read(page: Page):
    shown = page.text_of("td", "p", "dd", "li", "strong")
    assert not [text for text in shown if re.search(r"\d\.\d{6,}", text)]


def test_overview_counts_the_runs_by_state(page: Page):
    heading, *rows = page.tables["Suites and the state of their runs"]
    counts = {row[0][0]: dict(zip([h for h, _ in heading], [c for c, _ in row], strict=True)) for row in rows}
    assert list(counts) == ["bullet", "cube-double", "raw"]
    expected = {"runs": "99", "complete": "97", "running": "1", "preempted": "0", "failed": "1", "missing": "1"}
    assert expected.items() <= counts["cube-double"].items()


def test_curves_are_those_of_the_figures(results: Path, page: Page):
    data = page.json("chart-data")
    (suite,) = load_results(results, ["cube-double"], allow_incomplete=True)
    double = next(entry for entry in data["suites"] if entry["name"] == "cube-double")
    names = [agent["code"] for agent in data["agents"]]
    assert [agent["color"] for agent in data["agents"]][:2] == [AGENT_STYLES[name].color for name in names[:2]]
    assert len(double["curves"]) == 5 * (1 + 4)
    for curve in double["curves"]:
        agent = names[curve["agent"]]
        cells = suite.cells_of(agent) if curve["task"] < 0 else [suite.cells[suite.tasks[curve["task"]], agent]]
        interval = curve_of(suite, cells).interval
        for part in ("mean", "low", "high"):
            numbers = np.array([np.nan if value is None else value for value in curve[part]])
            np.testing.assert_allclose(numbers, getattr(interval, part), rtol=1e-4, atol=1e-6)
    cell = next(c for c in double["cells"] if names[c["agent"]] == "fql" and c["task"] == 1)
    assert cell["seeds"] == [0, 1, 2, 3, 4]
    assert cell["scores"][3][9:] == [None] * 7  # where the failed run ended
    raw = next(entry for entry in data["suites"] if entry["name"] == "raw")
    assert (raw["measure"], raw["unit_scale"]) == ("return", [False])


def test_page_of_a_run_has_its_evaluations_scalars_and_provenance(results: Path, page: Page):
    data = page.json("run-data")
    name = "bullet/ant-bullet-medium/sac_flow_g/seed_001"
    run = next(run for run in data["runs"] if run["name"] == name)
    folder = results / name
    rows = pd.read_csv(folder / "episodes.csv")
    expected = [rows.loc[rows["updates"] == update, "return"].mean() for update in sorted(set(rows["updates"]))]
    assert run["return"] == pytest.approx(expected, rel=1e-4)
    assert data["pool"][run["grid"]] == {"online": [0] * 3 + [1] * 5, "at": [0, 100, 200, 10, 20, 30, 40, 50]}
    train = pd.read_csv(folder / "train.csv")
    for scalar, online, unit, steps, values, count, bad in run["train"]:
        name = data["pool"][scalar]
        phase = train[(train["name"] == name) & (train["phase"] == ("online" if online else "offline"))]
        at = phase["env_steps"] if online else phase["updates"]
        assert (np.cumsum(steps) * unit).tolist() == at.tolist()
        assert values == pytest.approx(phase["value"].tolist(), rel=1e-3, abs=1e-9)
        assert (count, bad) == (40, 0)
    assert [data["pool"][scalar[0]] for scalar in run["timing"]] == ["updates_per_second"] * 2
    config = json.loads((folder / "config.json").read_text())
    assert data["pool"][run["config"]] | {"seed": 1, "config_hash": run["hash"]} == config
    (start,) = run["starts"]
    assert data["pool"][start["shared"]]["versions"]["torch"] == "2.13.0+cpu"
    assert run["episode_seeds"] == [1000, 1004]


def test_failed_and_unfinished_runs_stand_among_the_failures_with_error_and_log(page: Page):
    _, failed, running = page.tables["Runs that are not complete"]
    name = "cube-double/cube-double-task2/fql/seed_003"
    assert [text for text, _ in failed][:3] == [name, "failed", "online step 30 of 100"]
    assert failed[-1][0] == "critic_loss is not finite at online step 31"
    assert [text for text, _ in running][1] == "running"
    (log,) = page.text_of("pre")
    assert log.splitlines()[-1] == "error: critic_loss is not finite <script>"  # without the terminal's colours
    assert len(log.splitlines()) == 15
    assert any("3 of 5 episodes in the evaluation at online step 60" in text for text in page.text_of("li"))


def test_log_of_a_pack_is_that_of_its_first_run(tmp_path: Path):
    for seed in (0, 1):
        folder = write_run(tmp_path, seed=seed, state="failed")
        edit_json(folder / "provenance.json", lambda content: content["starts"][0].update(pack=[0, 1]))
    (tmp_path / "quick/cube-single-task1/fql/seed_000/log.txt").write_text("out of memory\n")
    page = write_page(tmp_path)
    by_seed = {run["seed"]: run for run in page.json("run-data")["runs"]}
    assert by_seed[1]["log"] == by_seed[0]["log"] == ["out of memory"]
    assert (by_seed[0]["log_of"], by_seed[1]["log_of"]) == ("", "quick/cube-single-task1/fql/seed_000")


# ------------------------------------------------------------------------------------------------- size and damage


@pytest.mark.parametrize("points", [2, 7, 100])
def test_thinned_scalars_are_rows_of_the_file_and_keep_extremes(points: int):
    values = np.random.default_rng(0).normal(size=1001)
    keep = extremes(values, points)
    assert len(keep) <= points
    assert (np.diff(keep) > 0).all()
    assert {int(values.argmin()), int(values.argmax())} <= set(keep.tolist())
    assert extremes(values[:points], points).tolist() == list(range(points))


def test_scalars_of_many_runs_stay_within_their_bytes():
    rng = np.random.default_rng(0)
    x = np.arange(1, SCALAR_POINTS + 1) * 5000
    series = [Scalar(f"scalar_{k}", "online", x, rng.normal(size=len(x)), 400, 0) for k in range(300)]
    assert report.points_within(series, 10_000_000) is None
    budget = 200_000
    points = report.points_within(series, budget)
    assert points is not None and points < SCALAR_POINTS
    written = len(report.embedded([report.scalar_data(scalar, report.Pool(), points) for scalar in series]))
    assert 0.7 * budget < written < 1.1 * budget
    assert report.points_within(series, 10) == report.FEWEST_POINTS


def test_page_says_that_scalars_were_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: Path):
    monkeypatch.setattr(report, "SCALAR_BYTES", 25_000)
    shutil.copytree(results / "bullet", tmp_path / "bullet")
    page = write_page(tmp_path)
    assert any(
        "To keep this page small each training scalar is shown with at most" in text for text in page.text_of("p")
    )
    for run in page.json("run-data")["runs"]:
        for _, _, _, steps, _, rows, _ in run["train"]:
            assert len(steps) < rows == 40


def test_scalars_that_are_not_finite_are_left_out_and_counted(tmp_path: Path):
    file = write_run(tmp_path) / "train.csv"
    rows = [
        "offline,1,0,loss,1.5",
        "offline,2,0,loss,nan",
        "offline,3,0,loss,inf",
        "offline,4,0,loss,2.5",
        "offline,5,",
    ]
    file.write_text("\n".join(["phase,updates,env_steps,name,value", *rows]))
    data = write_page(tmp_path).json("run-data")
    (run,) = data["runs"]
    assert run["train"] == [[data["pool"].index("loss"), 0, 1, [1, 3], [1.5, 2.5], 2, 2]]


def test_damaged_train_csv_is_told_with_the_run_and_stops_nothing(tmp_path: Path):
    (write_run(tmp_path) / "train.csv").write_text("phase,updates,env_steps,name,value\nwhat,is,this,now,then\n")
    (run,) = write_page(tmp_path).json("run-data")["runs"]
    assert run["train"] == []
    assert [note[:24] for note in run["notes"]] == ["train.csv cannot be read"]


def test_videos_are_embedded_as_far_as_they_fit_and_linked_beyond(results: Path, tmp_path: Path):
    name = "raw/reach/sac_flow_g/seed_000"
    for limit, embedded in ((8_000_000, [True, True]), (1000, [True, False]), (0, [False, False])):
        out = tmp_path / str(limit) / "page.html"
        report.write_report(results, out, ["raw"], limit)
        run = next(run for run in Page(out).json("run-data")["runs"] if run["name"] == name)
        videos = run["videos"]
        assert [video["data"] is not None for video in videos] == embedded
        assert all((out.parent / video["file"]).is_file() for video in videos)
        assert videos[0]["caption"] == "episode seed 1000, solved, return -3.5, 17 steps"
        assert embedded[0] is False or videos[0]["data"].startswith("data:image/gif;base64,R0lGODlh")


def test_the_best_are_bold_as_in_the_other_tables(tmp_path: Path):
    text = write_page(write_three(tmp_path)).source
    bold = re.findall(r'<th scope="row">([\w-]+)</th>(?:<td[^>]*>[^<]*</td>)*<td[^>]*><strong>', text)
    assert set(bold) == {"FQL", "QC-FQL"}


def test_same_results_give_the_same_bytes(tmp_path: Path):
    write_grid(tmp_path / "one/results", agents=("fql", "my_agent"))
    fail(tmp_path / "one/results/quick/cube-double-task1/fql/seed_000", 20)
    shutil.copytree(tmp_path / "one/results", tmp_path / "two/results")
    for number, folder in enumerate(("one", "two")):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PYTHONHASHSEED": str(number),
            "TZ": ("UTC", "Asia/Tokyo")[number],
        }
        command = [sys.executable, "-m", "analysis", "report"]
        done = subprocess.run(command, cwd=tmp_path / folder, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    for name in ("report.html", "quick_protocol.md", "quick_protocol.tex"):
        first, second = (tmp_path / folder / "results/figures" / name for folder in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()


def test_hostile_names_and_logs_are_text(tmp_path: Path):
    name = "</script><img src=x onerror=alert(1)>&\"'"
    write_run(tmp_path, agent="<b>bold</b>".replace("/", "_"), task=name.replace("/", "_"), suite="<i>&amp;")
    failed = write_run(tmp_path, agent="fql", task=name.replace("/", "_"), suite="<i>&amp;", state="failed")
    edit_json(failed / "status.json", lambda content: content.update(error=name))
    (failed / "log.txt").write_text(f"{name}\n<!--<script>\u2028")
    page = write_page(tmp_path)
    assert not [tag for tag, _ in page.elements if tag in ("img", "b", "i")]
    assert sum(tag == "script" for tag, _ in page.elements) == 3
    assert page.text_of("h2")[0] == "<i>&amp;"
    (run,) = [run for run in page.json("run-data")["runs"] if run["state"] == "failed"]
    assert run["log"][0] == run["status"]["error"] == name
    assert run["name"] == str(failed.relative_to(tmp_path))


# ------------------------------------------------------------------------------------------------------- refusing


def test_suite_that_is_refused_is_named_and_the_others_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_run(tmp_path, suite="good")
    (write_run(tmp_path, suite="bad") / "config.json").write_text("{")
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: suite bad is left out of the report: ") and captured.err.count("\n") == 1
    page = Page(tmp_path / "page.html")
    assert "Suite bad is not shown." in page.text_of("strong")
    # Named from the results folder, so that moved results give the same page.
    assert any(text.startswith("bad/cube-single-task1/fql/seed_000/config.json is not") for text in page.text_of("p"))
    assert page.text_of("h2")[0] == "good"
    assert not list(tmp_path.glob("bad_protocol*"))


def test_nothing_readable_is_one_line_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "page.html"
    words = ["report", "--results", str(tmp_path), "--out", str(out)]
    assert main(words) == 2
    (write_run(tmp_path) / "config.json").write_text("{")
    (write_run(tmp_path, suite="other") / "config.json").write_text("{")
    assert main(words) == 2
    assert main([*words, "--suite", "quik"]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("error: no runs under")
    assert "is not valid JSON" in second and second.endswith("(and 1 suite more)")
    assert "did you mean 'quick'?" in third
    assert not out.exists()
    write_run(tmp_path, suite="fine")
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("is a folder; name the HTML file to write\n")
    (tmp_path / "file").write_text("")
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path / "file/page.html")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_run_that_has_not_begun_is_named(tmp_path: Path):
    write_run(tmp_path, seed=0)
    (write_run(tmp_path, seed=1) / "config.json").unlink()
    (write_run(tmp_path, seed=2, state="running") / "episodes.csv").unlink()
    page = write_page(tmp_path)
    assert "quick/cube-single-task1/fql/seed_001: left out, it has no config.json yet" in page.text_of("li")
    assert len(page.json("run-data")["runs"]) == 2


# --------------------------------------------------------------------------------------------------- protocol card


def card(root: Path) -> dict[str, dict[str, str]]:
    report.write_report(root, root / "out/report.html")
    text = (root / "out/quick_protocol.md").read_text()
    sections = re.split(r"^### (.*)$", text, flags=re.M)[1:]
    pairs = zip(sections[::2], sections[1::2], strict=True)
    return {title: dict(re.findall(r"^\* \*\*(.*?)\*\*: (.*)$", body, flags=re.M)) for title, body in pairs}


def test_card_says_by_whom_a_value_is_used(tmp_path: Path):
    for task, weight in (("a", 100.0), ("b", 300.0)):
        write_run(tmp_path, task=task, agent="sac_flow_g", agent_config={"chunk_length": 5, "bc_coef": weight})
        write_run(tmp_path, task=task, agent="fql", agent_config={"chunk_length": 1, "bc_coef": 10.0})
    facts = card(tmp_path)
    assert facts["Budgets"]["chunk_length"] == "1 (FQL), 5 (SAC Flow-G) environment steps executed open loop"
    assert facts["Budgets"]["offline_updates"] == "200 gradient updates"
    assert facts["Settings of the agents"]["SAC Flow-G (sac_flow_g)"] == "bc_coef 100 (a), 300 (b); chunk_length 5"
    assert facts["Evaluation"]["episode seeds"] == (
        "1000 to 1004: the same in every run; the error of these initial states is in no interval"
    )
    assert facts["Evaluation"]["success timing"].startswith("post: ")
    assert facts["Evaluation"]["success rule"] == "last: an episode counts as solved if its last step is a success"
    assert "not comparable with published results" in facts["Tasks and data"]["data origin"]
    assert facts["Code and machines"]["commits"].startswith("0123abcd")


def test_card_says_which_runs_go_on_from_shorter_ones(tmp_path: Path):
    write_run(tmp_path, seed=0)
    origin = {"path": "short/a/fql/seed_001", "deviations": ["train.csv: a row of means"]}
    longer = write_run(tmp_path, seed=1) / "provenance.json"
    edit_json(longer, lambda content: content.update(extended_from=origin))
    assert card(tmp_path)["Runs"]["extended runs"] == "1 go on from finished runs of short; train.csv: a row of means"


def test_variants_are_told_apart_on_the_page_and_in_the_card(tmp_path: Path):
    write_run(tmp_path, agent="my_agent", utd_ratio=1)
    write_run(tmp_path, agent="my_agent", variant="often", utd_ratio=4)
    assert card(tmp_path)["Budgets"]["utd_ratio"].startswith("1 (my_agent), 4 (my_agent@often) ")
    runs = Page(tmp_path / "out/report.html").tables["Runs of quick"][1:]
    assert [row[1][0] for row in runs] == ["my_agent", "my_agent@often"]


def test_card_tells_evaluation_seeds_that_differ(tmp_path: Path):
    write_run(tmp_path, seed=0)
    file = write_run(tmp_path, seed=1) / "episodes.csv"
    file.write_text(file.read_text().replace(",1004,", ",2004,"))
    assert card(tmp_path)["Evaluation"]["episode seeds"] == "1000 to 1004, 1000 to 2004: NOT the same in every run"


def test_card_says_that_own_episodes_are_others_in_each_evaluation(tmp_path: Path):
    file = write_run(tmp_path, episode_seeds="own") / "episodes.csv"
    file.write_text(file.read_text().replace(",1004,", ",2004,"))
    facts = card(tmp_path)
    expected = "own: others in each evaluation and seed, the same for all agents"
    assert facts["Evaluation"]["episode seeds"] == expected and "episode_seeds" not in facts["Budgets"]


def depart(folder: Path, **departures: tuple[Any, Any]) -> None:
    """Writes what a run's settings are and what was published for its agent and task."""
    values = {field: {"value": value, "released": released} for field, (value, released) in departures.items()}
    edit_json(folder / "provenance.json", lambda content: content.update(departures=values))


def test_card_names_the_departures_that_runs_have_recorded(tmp_path: Path):
    for task, weight in (("a", 100.0), ("b", 300.0)):
        for seed in range(2):
            folder = write_run(tmp_path, task=task, seed=seed, agent="my_agent")
            depart(folder, temperature=("off", "released"), bc_coef=(weight, 10.0))
        depart(write_run(tmp_path, task=task, agent="fql"))
    depart(write_run(tmp_path, task="a", agent="my_agent", variant="deep"), num_critics=(10, 2))
    departures = card(tmp_path)["Departures from released code"]
    assert departures["FQL"] == "none in its settings"
    assert departures["my_agent"] == (
        "bc_coef 100 instead of 10; bc_coef 300 instead of 10; temperature off instead of released"
    )
    assert departures["my_agent@deep"] == "num_critics 10 instead of 2"


def test_card_of_older_runs_invents_no_departure(tmp_path: Path):
    settings = {"temperature": "off", "norm": "pre", "critic_updates_per_offline_step": 7, "target_entropy": 3.0}
    write_run(tmp_path, agent="my_agent", agent_config=settings)
    write_run(tmp_path, agent="fql", seed=0)
    depart(write_run(tmp_path, agent="fql", seed=1), bc_coef=(1.0, 10.0))
    write_run(tmp_path, agent="qc_fql", seed=0)
    depart(write_run(tmp_path, agent="qc_fql", seed=1))
    departures = card(tmp_path)["Departures from released code"]
    older = "were written before departures were recorded"
    assert departures["my_agent"] == f"not known: its runs {older}"
    assert departures["FQL"] == f"bc_coef 1 instead of 10; not known: 1 of 2 runs {older}"
    assert departures["QC-FQL"] == f"none in its settings; not known: 1 of 2 runs {older}"


@pytest.mark.parametrize("departures", [None, [], {"bc_coef": 1.0}, {"bc_coef": {"value": 1.0}}])
def test_departures_of_another_shape_are_refused(tmp_path: Path, departures: Any):
    folder = write_run(tmp_path)
    edit_json(folder / "provenance.json", lambda content: content.update(departures=departures))
    with pytest.raises(ResultsError, match=r"provenance.json: departures is .*, expected for each setting its value"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"extended_from": 3}, "extended_from is 3, expected deviations and path of another run"),
        ({"offline_phase": {"seed": 0}}, "offline_phase is .*, expected config_hash and seed of another run"),
        ({"starts": [3]}, "a start is 3, expected an object"),
        ({"starts": [{"versions": [1]}]}, "a start is .*, expected an object with objects of versions"),
        ({"starts": [{"plugins": [{}]}]}, "a start is .*, expected an object"),
    ],
)
def test_provenance_of_another_shape_is_refused(tmp_path: Path, damage: dict[str, Any], said: str):
    edit_json(write_run(tmp_path) / "provenance.json", lambda content: content.update(damage))
    with pytest.raises(ResultsError, match=rf"provenance.json: {said}"):
        load_results(tmp_path)


def test_field_of_a_config_that_nobody_listed_is_shown_by_name_and_compared(tmp_path: Path):
    write_run(tmp_path, agent="fql", replay_ratio=4, mixing={"share": 0.5})
    write_run(tmp_path, agent="sac_flow_g")
    budgets = card(tmp_path)["Budgets"]
    assert budgets["replay_ratio"] == "4 (FQL), not set (SAC Flow-G)"
    assert budgets["mixing.share"] == "0.5 (FQL), not set (SAC Flow-G)"
    write_run(tmp_path, agent="fql", seed=1, replay_ratio=8, mixing={"share": 0.5})
    with pytest.raises(ResultsError, match=r"configs differ beyond the seed: replay_ratio is 4 in .* but 8 in"):
        load_results(tmp_path)
    write_run(tmp_path / "variants", agent="my_agent")
    write_run(tmp_path / "variants", agent="my_agent", variant="often", replay_ratio=8)
    (ablation,) = ablations_of(load_results(tmp_path / "variants")[0])
    assert (ablation.agent, ablation.settings) == ("my_agent", ("replay_ratio",))


def test_latex_card_is_plain_ascii_with_balanced_groups(tmp_path: Path):
    write_run(tmp_path, agent='odd_50%&$#{}~^\\<|>"nämé', task="a_b")
    report.write_report(tmp_path, tmp_path / "out/report.html")
    text = (tmp_path / "out/quick_protocol.tex").read_text()
    assert text.isascii()
    comment, *lines = text.splitlines()
    assert comment.startswith("%")
    commands = {"begingroup", "endgroup", "small", "raggedright", "noindent", "textbf", "textit", "par", "medskip"}
    commands |= {"textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar"}
    for line in lines:
        assert set(re.findall(r"\\([a-zA-Z]+)", line)) <= commands, line
        plain = re.sub(r"\\[&%$#_{}]", "", line)
        assert plain.count("{") == plain.count("}")
        assert not re.search(r"[&%#_~^<>|\"]", plain), line
        assert plain.count("$") == 2 * plain.count("$-$")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_card_compiles(results: Path, tmp_path: Path):
    body = (results / "figures/cube-double_protocol.tex").read_text()
    main_file = tmp_path / "main.tex"
    main_file.write_text(rf"\documentclass[twocolumn]{{article}}\begin{{document}}{body}\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
