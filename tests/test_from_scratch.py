"""Agents without an offline phase beside agents with one, in one suite: what is refused, drawn, left blank and said."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from analysis.__main__ import main
from analysis.figures import curves as figures
from analysis.figures import gradients as gradient_figures
from analysis.figures.ablations import ablations_of
from analysis.labels.style import styles_of
from analysis.loading.gradients import load_norms
from analysis.loading.load import Suite, load_results
from analysis.loading.read import ResultsError
from analysis.published import overlay, verdicts
from analysis.published.points import PublishedPoint, read_published
from analysis.report import chart_data, explain
from analysis.report import page as report
from analysis.statistics.pairs import pairs_of
from analysis.statistics.scores import ALL_TASKS
from analysis.tables.success import show, suite_rows
from tests.report_runs import dress
from tests.test_analysis import edit_json, load_one, write_grid, write_run

SCRATCH = ("rlpd", "sac")
OFFLINE = ("fql", "qc_fql")
CUBES = ("cube-double-task1", "cube-double-task2")


def write_mixed(root: Path, seeds: int = 5, **rest: Any) -> Path:
    """Two agents with an offline phase of 200 updates and two with none, all with 50 online steps."""
    write_grid(root, agents=OFFLINE, seeds=seeds, **rest)
    return write_grid(root, agents=SCRATCH, seeds=seeds, offline=(0.2,), **rest)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def suite(root: Path) -> Suite:
    return load_one(root)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ----------------------------------------------------------------------------------------- what stands beside what


def test_agents_without_an_offline_phase_stand_beside_others(suite: Suite):
    assert suite.offline_updates == 200
    assert suite.from_scratch == SCRATCH
    cell = suite.cells["cube-double-task1", "rlpd"]
    assert cell.offline_updates.tolist() == [0]
    assert cell.online_steps.tolist() == [0, 10, 20, 30, 40, 50]
    assert cell.online_score[:, 0] == pytest.approx(0.2), "the evaluation before the first step is the hand-over"


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"agent": "rlpd", "offline": (0.0,)},
            {"agent": "rlpd", "task": "b", "offline": (0.0, 0.2, 0.4)},
            "agent rlpd: offline_updates is 0 in quick/a/rlpd/.* but 200 in quick/b/rlpd/",
        ),
        (
            {"agent": "fql", "offline": (0.0, 0.2)},
            {"agent": "qc_fql", "offline": (0.0, 0.2, 0.4)},
            "suite quick: offline_updates is 100 in quick/a/fql/.* but 200 in quick/a/qc_fql/",
        ),
        (
            {"agent": "fql", "online": (0.0, 0.2)},
            {"agent": "rlpd", "offline": (0.0,), "online": (0.2,)},
            "suite quick: online_steps is 20 in .* but 10 in",
        ),
    ],
)
def test_other_budgets_are_refused_by_name(tmp_path: Path, first: dict[str, Any], second: dict[str, Any], message: str):
    for arguments in (first, second):
        whole: dict[str, Any] = {"task": "a"} | arguments
        write_run(tmp_path, **whole)
    write_run(tmp_path, "a", "sac", offline=(0.0,), online=first.get("online", (0.2, 0.6, 0.8, 1.0)))
    with pytest.raises(ResultsError, match=message):
        load_results(tmp_path)


def test_run_without_its_evaluation_before_the_first_step_is_refused(tmp_path: Path):
    file = write_run(tmp_path, agent="rlpd", offline=(0.2,)) / "episodes.csv"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith("offline")))
    with pytest.raises(ResultsError, match="no evaluation at offline update 0"):
        load_results(tmp_path)


# ---------------------------------------------------------------------------------------------------------- curves


def test_curve_begins_at_the_hand_over(suite: Suite):
    with figures.house_style():
        (axes,) = figures.suite_figure(suite).axes
    lines = {line.get_color(): line for line in axes.lines}
    for agent in suite.agents:
        x = np.asarray(lines[figures.styles_of([agent])[agent].color].get_xdata())
        online = [0.0, 0.12, 0.24, 0.36, 0.48, 0.6]
        assert x == pytest.approx(online if agent in SCRATCH else [-0.4, -0.2, *online])
    assert [text.get_text() for text in axes.get_xticklabels()][:2] == ["0", "200 | 0"]
    assert "from scratch: RLPD, SAC" in axes.figure.get_suptitle()  # type: ignore[union-attr]


def test_suite_of_nothing_else_is_drawn_over_its_steps(tmp_path: Path):
    write_grid(tmp_path, agents=SCRATCH, offline=(0.2,))
    suite = load_one(tmp_path)
    with figures.house_style():
        (axes,) = figures.suite_figure(suite).axes
    assert np.asarray(axes.lines[0].get_xdata()) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert "from scratch" not in axes.figure.get_suptitle()  # type: ignore[union-attr]
    assert main(["--results", str(tmp_path)]) == 0


def test_report_has_the_hand_over_as_its_only_offline_point(root: Path, suite: Suite):
    number = {agent: index for index, agent in enumerate(suite.agents)}
    data = chart_data.suite_data(suite, number)
    assert data["grids"][str(number["rlpd"])] == [[0], [0, 10, 20, 30, 40, 50]]
    assert data["grids"][str(number["fql"])] == [[0, 100, 200], [0, 10, 20, 30, 40, 50]]
    curves = [curve for curve in data["curves"] if curve["agent"] == number["rlpd"]]
    assert {len(curve[part]) for curve in curves for part in ("mean", "low", "high")} == {6}
    assert data["offline"] == 200


# ---------------------------------------------------------------------------------------------------------- tables


def test_what_is_of_the_offline_phase_is_blank(suite: Suite):
    for row in suite_rows(suite):
        blank = {column for column, estimate in row.estimates.items() if math.isnan(estimate.mean)}
        assert blank == ({"offline_end", "improvement"} if row.agent in SCRATCH else set())
        assert [show(row.estimates[column]) for column in blank] == ["-"] * len(blank)


def test_the_best_of_the_offline_phase_are_bold_among_those_that_have_one(tmp_path: Path):
    for seed in range(5):
        for agent, score in (("fql", 1.0), ("qc_fql", 0.2)):
            write_run(tmp_path, agent=agent, seed=seed, offline=(0.0, score), online=(0.2, 0.2, 0.2))
        write_run(tmp_path, agent="rlpd", seed=seed, offline=(0.0,), online=(1.0, 1.0, 1.0))
    bold = {row.agent: row.bold for row in suite_rows(load_one(tmp_path)) if row.task == ALL_TASKS}
    assert bold == {"fql": {"offline_end"}, "qc_fql": set(), "rlpd": {"final", "online_auc"}}


def test_no_file_holds_a_nan_and_fields_are_empty(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--results", str(root), "--out", str(tmp_path)]) == 0
    assert not re.search(r"\bnan\b", capsys.readouterr().out)
    for path in tmp_path.iterdir():
        if path.suffix in (".csv", ".md", ".tex"):
            assert not re.search(r"\bnan\b", path.read_text()), path
    for row in read_csv(tmp_path / "quick_table.csv"):
        assert (row["success_offline_end"] == "") == (row["improvement"] == "") == (row["agent"] in SCRATCH)
        assert row["success_final"] and row["online_auc"]
    for row in read_csv(tmp_path / "quick_metrics.csv"):
        assert (row["worst_dip"] == "") == (row["agent"] in SCRATCH)
        assert row["final_iqm"] and row["steps_to_50"]
    text = (tmp_path / "quick_table.md").read_text()
    assert "No offline phase (hence no end of offline and no improvement): RLPD, SAC." in text
    cells = re.findall(r"^\| RLPD +\| (\S+) +\| (\S+)", text, flags=re.M)
    assert len(cells) == 3
    assert all(end == "-" and final != "-" for end, final in cells)
    paper = (tmp_path / "quick_offline_to_online.md").read_text()
    assert "- →" not in paper, "only one side is there, and no arrow leads to it"


def test_pairs_of_both_kinds_are_compared_by_their_final_scores(suite: Suite):
    pairs = pairs_of(suite, styles_of(suite.agents))
    assert len(pairs) == 6
    assert all(np.isfinite(pair.result.p_value) and not pair.paired for pair in pairs)


# ------------------------------------------------------------------------------------------- card, page, explain


def test_card_and_page_say_who_has_no_offline_phase(root: Path, tmp_path: Path):
    written = report.write_report(root, tmp_path / "report.html")
    assert not written.refused
    text = (tmp_path / "quick_protocol.md").read_text()
    assert "* **offline\\_updates**" not in text
    assert "* **offline_updates**: 200 gradient updates" in text
    assert "* **no offline phase**: RLPD, SAC: the online phase begins with an untrained policy" in text
    page = (tmp_path / "report.html").read_text()
    assert "from scratch: RLPD, SAC" in page
    assert ">nan<" not in page
    chart = json.loads(re.search(r'<script[^>]*id="chart-data"[^>]*>(.*?)</script>', page, flags=re.S)[1])  # type: ignore[index]
    assert chart["suites"][0]["offline"] == 200


def test_card_of_others_does_not_speak_of_it(tmp_path: Path):
    write_grid(tmp_path)
    report.write_report(tmp_path, tmp_path / "out/report.html")
    assert "no offline phase" not in (tmp_path / "out/quick_protocol.md").read_text()


def test_hand_over_is_explained_by_the_rows_before_the_first_step(root: Path):
    found = explain.explain(root, "quick_success", "rlpd", "0")
    assert (found.phase, found.at, found.handover) == ("offline", 0, True)
    assert len(found.runs) == 10 and not found.without
    assert found.mean == pytest.approx(0.2)
    assert {run.lines for run in found.runs} == {"2-6"}
    assert explain.explain(root, "quick_success", "rlpd", "offline:0") == found
    with pytest.raises(ResultsError, match="no evaluation of rlpd at offline update 200"):
        explain.explain(root, "quick_success", "rlpd", "offline:200")


def test_variant_without_offline_phase_is_an_ablation_of_it(tmp_path: Path):
    write_grid(tmp_path, agents=("fql",))
    write_grid(tmp_path, agents=("fql",), variant="scratch", offline=(0.2,))
    suite = load_one(tmp_path)
    assert suite.from_scratch == ("fql@scratch",)
    (ablation,) = ablations_of(suite)
    assert ablation.values == {"fql": "200", "fql@scratch": "0"}
    assert main(["--results", str(tmp_path)]) == 0


def test_norms_of_gradients_lie_in_the_online_phase(tmp_path: Path):
    for agent, offline in (("fql", (0.0, 0.2, 0.4)), ("rlpd", (0.0,))):
        folder = write_run(tmp_path, agent=agent, offline=offline)
        start = 100 * (len(offline) - 1)
        places = ([f"offline,{start},0"] if start else []) + [f"online,{start + k},{k}" for k in (10, 40)]
        rows = [f"{p},gradient_norm_{n},2.0" for p in places for n in ("x_0", "x_1", "parameters_0")]
        (folder / "train.csv").write_text("\n".join(["phase,updates,env_steps,name,value", *rows]) + "\n")
    suite = load_one(tmp_path)
    norms = load_norms(suite, tmp_path)
    assert ("rlpd", "offline") not in norms
    with figures.house_style():
        (axes,) = gradient_figures.growth_figure(suite, norms).axes
    places = {line.get_color(): np.asarray(line.get_xdata()) for line in axes.lines}
    assert places[figures.styles_of(["rlpd"])["rlpd"].color] == pytest.approx([0.15, 0.6])


def test_unfinished_run_without_an_online_evaluation_is_shown(tmp_path: Path):
    write_mixed(tmp_path, seeds=2)
    folder = tmp_path / "quick/cube-double-task1/rlpd/seed_001"
    lines = (folder / "episodes.csv").read_text().splitlines(True)
    (folder / "episodes.csv").write_text("".join(lines[:3]))
    edit_json(folder / "status.json", lambda content: content.update(state="running"))
    assert main(["--results", str(tmp_path), "--allow-incomplete"]) == 0
    report.write_report(tmp_path, tmp_path / "report.html")


# -------------------------------------------------------------------------------------------------- published numbers


def test_verdicts_know_that_there_is_no_offline_phase(tmp_path: Path):
    settings: dict[str, Any] = {"num_critics": 10, "q_aggregation": "mean", "chunk_length": 5}
    write_grid(tmp_path, agents=("qc_fql",), seeds=5, origin="published", utd_ratio=1)
    write_grid(
        tmp_path, agents=("rlpd_ac",), seeds=5, offline=(0.0,), origin="published", utd_ratio=1, agent_config=settings
    )
    suite = load_one(tmp_path)
    assert verdicts.our_protocol(suite, "rlpd_ac").offline_updates == 0
    assert verdicts.our_protocol(suite, "qc_fql").offline_updates == 200
    nothing = math.nan, math.nan, 0.1
    points = [
        PublishedPoint("qc_plot_data", task, task, "RLPD-AC", step, mean, *nothing, 4)
        for task in CUBES
        for step, mean in ((0, 0.0), (20, 0.5), (50, 0.8))
    ]
    rows = verdicts.judge(suite, points)
    assert {row.step for row in rows} == {50}, "an untrained policy reproduces nothing"
    assert verdicts.NOT_COMPARABLE not in {row.verdict for row in rows}, [row.reason for row in rows]
    with figures.house_style():
        figure = overlay.published_figure(suite, verdicts.counterparts(suite, points))
    assert len(figure.axes) == 2


def test_figure_of_a_mixed_suite_shows_all_agents(root: Path, tmp_path: Path):
    from matplotlib.image import imread

    assert main(["--results", str(root), "--out", str(tmp_path)]) == 0
    image = imread(tmp_path / "quick_success.png")[..., :3]
    for agent in (*OFFLINE, *SCRATCH):
        color = np.array(to_rgb(figures.styles_of([agent])[agent].color))
        assert (np.abs(image - color).max(axis=-1) < 0.05).sum() > 100


def test_dressed_runs_of_both_kinds_make_a_page(tmp_path: Path):
    for agent, offline in (("fql", (0.0, 0.2, 0.4)), ("rlpd", (0.0,))):
        dress(write_run(tmp_path, agent=agent, offline=offline), np.random.default_rng(0))
    report.write_report(tmp_path, tmp_path / "report.html")
    assert "from scratch: RLPD" in (tmp_path / "report.html").read_text()


def test_published_points_are_read_beside_such_a_suite(suite: Suite):
    assert verdicts.judge(suite, read_published()) is not None
