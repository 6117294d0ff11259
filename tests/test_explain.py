"""`python -m analysis explain`: the runs, configs, commits and episodes behind one point of a figure."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.figures import curves as figures
from analysis.loading.load import load_results
from analysis.report import explain
from tests.test_analysis import EPISODES, edit_json, write_grid, write_run


def point(
    root: Path, figure: str = "quick_success", curve: str = "fql", step: str = "20", task: str | None = None
) -> dict[str, Any]:
    """What --json prints."""
    found = explain.explain(root, figure, curve, step, task, allow_incomplete=True)
    return json.loads(explain.to_json(found))


def test_the_point_is_the_one_that_the_figure_draws(tmp_path: Path):
    write_grid(tmp_path)
    (suite,) = load_results(tmp_path)
    color = figures.styles_of(suite.agents)["fql"].color
    with figures.house_style():
        (whole,) = figures.suite_figure(suite).axes
        panel = figures.tasks_figure(suite).axes[1]
    curves = [
        np.asarray(line.get_ydata()) for axes in (whole, panel) for line in axes.lines if line.get_color() == color
    ]
    for place, step in ((0, "offline:0"), (2, "0"), (2, "offline:200"), (4, "20"), (7, "50")):
        assert point(tmp_path, step=step)["mean"] == pytest.approx(curves[0][place])
        of_task = point(tmp_path, "quick_tasks.png", "fql", step, "cube-double-task2")
        assert of_task["mean"] == pytest.approx(curves[1][place])


def test_a_curve_has_the_name_of_the_figure_and_that_of_the_registry(tmp_path: Path):
    write_grid(tmp_path, agents=("sac_flow_g", "fql"))
    found = point(tmp_path, curve="SAC Flow-G")
    assert found == point(tmp_path, curve="sac_flow_g") and found["agent"] == "sac_flow_g"


def test_a_panel_of_many_agents_is_the_mean_of_the_suite_s_figure(tmp_path: Path):
    write_grid(tmp_path, agents=("fql", "qc_fql", "qc", "bfn", "ifql", "dsrl", "qam", "dac", "qsm"))
    assert point(tmp_path, "quick_agents.svg")["mean"] == point(tmp_path)["mean"]


def test_rows_that_are_named_give_the_scores_and_the_scores_the_mean(tmp_path: Path):
    write_grid(tmp_path)
    found = point(tmp_path, str(tmp_path / "figures/quick_success.pdf"), step="20")
    assert len(found["runs"]) == 6
    for run in found["runs"]:
        first, last = map(int, run["lines"].split("-"))
        lines = Path(run["file"]).read_text().splitlines()[first - 1 : last]
        rows = [line.split(",") for line in lines]
        assert {(row[0], row[2]) for row in rows} == {("online", "20")}
        solved = sum(int(row[4]) for row in rows)
        assert (run["successes"], run["episodes"]) == (solved, EPISODES)
        assert run["score"] == pytest.approx(solved / EPISODES)
        assert run["episode_seeds"] == [1000, 1004]
        assert run["config_hash"] == json.loads((Path(run["file"]).parent / "config.json").read_text())["config_hash"]
    scores = np.array([run["score"] for run in found["runs"]]).reshape(2, 3)  # by task
    assert found["mean"] == pytest.approx(scores.mean())
    assert found["low"] < found["mean"] < found["high"]


def test_hand_over_has_the_rows_of_the_last_offline_evaluation(tmp_path: Path):
    write_run(tmp_path)
    online, offline = point(tmp_path, step="0"), point(tmp_path, step="offline:200")
    assert online == offline
    assert online["handover"] and online["runs"][0]["lines"] == "12-16"


def test_rows_in_any_order_are_found(tmp_path: Path):
    file = write_run(tmp_path) / "episodes.csv"
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([header, *rows[::2], *rows[1::2]]) + "\n")
    (run,) = point(tmp_path)["runs"]
    assert run["lines"] == "12-14,30-31"
    assert run["successes"] == 3


def test_every_state_of_the_code_is_named(tmp_path: Path):
    folder = write_run(tmp_path)
    start = {"commit": "fedc9876fedc9876", "dirty_diff_hash": "55aa55aa55"}
    edit_json(folder / "provenance.json", lambda content: content["starts"].extend([start, start]))
    assert point(tmp_path)["runs"][0]["code"] == ["0123abcd", "fedc9876fedc+55aa55aa"]


def test_runs_that_have_not_come_to_the_point_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_run(tmp_path, seed=0)
    file = write_run(tmp_path, seed=1, state="failed") / "episodes.csv"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[: 1 + 3 * EPISODES]))
    words = ["explain", "quick_success", "--curve", "fql", "--step", "20", "--results", str(tmp_path)]
    assert main(words) == 2
    assert "are not complete" in capsys.readouterr().err
    assert main([*words, "--allow-incomplete"]) == 0
    printed = capsys.readouterr().out
    assert "not in it, since they have not come so far: quick/cube-single-task1/fql/seed_001 (failed)" in printed
    assert len(point(tmp_path)["runs"]) == 1


def test_tasks_without_success_show_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_run(tmp_path, by_return=True, reference_returns=[0.0, 2.0])
    words = ["explain", "quick_normalised_return", "--curve", "fql", "--step", "20", "--results", str(tmp_path)]
    assert main(words) == 0
    assert "mean return of 5" in capsys.readouterr().out
    found = point(tmp_path, "quick_normalised_return")
    assert found["runs"][0]["successes"] is None
    assert (found["runs"][0]["mean_return"], found["mean"]) == pytest.approx((0.6, 0.3))
    assert found["low"] is None


def test_terminal_shows_the_point_and_a_line_per_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_grid(tmp_path)
    words = ["explain", "quick_success.svg", "--curve", "fql", "--step", "50", "--results", str(tmp_path)]
    assert main(words) == 0
    title, value, heading, *runs = capsys.readouterr().out.splitlines()
    assert title == "quick_success: fql over 2 tasks at online step 50"
    assert value.startswith("success rate 0.") and "95% t interval [" in value and value.endswith("6 runs, 30 episodes")
    assert re.split("  +", heading.strip()) == explain.table(())[0]
    assert len(runs) == 6
    assert all("of 5 solved" in line and "/episodes.csv:37-41" in line for line in runs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("quick_success", "fql", "25"), "no evaluation of fql at online step 25: the nearest is --step 20 (6 eval"),
        (("quick_success", "fql", "999"), "the nearest is --step 50"),
        (("quick_success", "fql", "offline:90"), "at offline update 90: the nearest is --step offline:100 (3 eval"),
        (("quick_success", "fql", "soon"), "--step is 'soon'; expected an online environment step such as 50000"),
        (("quick_success", "fqll", "20"), "no curve 'fqll' in quick_success (did you mean 'fql'?); there are: fql"),
        (("quik_success.pdf", "fql", "20"), "figure 'quik_success' (did you mean 'quick_success'?)"),
        (("quick_table.csv", "fql", "20"), "'quick_table.csv' is not a figure of curves of suite quick"),
        (("quick_tasks", "fql", "20"), "choose one with --task: cube-double-task1, cube-double-task2"),
        (("quick_tasks", "fql", "20", "cube-double-task3"), "no task 'cube-double-task3' in suite quick (did you mean"),
    ],
)
def test_unknown_names_and_steps_are_one_line_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
):
    write_grid(tmp_path)
    figure, curve, step, *task = words
    arguments = ["explain", figure, "--curve", curve, "--step", step, "--results", str(tmp_path)]
    assert main([*arguments, *(["--task", *task] if task else [])]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err


def test_suite_whose_name_begins_like_another_is_found(tmp_path: Path):
    write_run(tmp_path, suite="quick")
    write_run(tmp_path, suite="quick_long", online=(1.0,))
    assert point(tmp_path, "quick_long_success", step="10")["mean"] == 1.0
    assert point(tmp_path, "quick_success", step="10")["mean"] == pytest.approx(0.2)


def test_command_that_does_not_exist_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["explian"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command 'explian' (did you mean 'explain'?); see ")
    assert main(["explain", "quick_success"]) == 2
    assert capsys.readouterr().err.startswith("error: missing: --curve STR, --step STR; see ")


def test_figures_is_the_command_where_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_run(tmp_path)
    printed = []
    for words in ([], ["figures"]):
        assert main([*words, "--results", str(tmp_path), "--suite", "quick"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "quick_success.{pdf,svg,png}" in printed[0]
