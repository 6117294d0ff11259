"""Suites that learn from scratch and are scored by return: curves of evaluations and training, verdicts, refusals."""

from pathlib import Path

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.figures.curves import house_style
from analysis.figures.returns import has_returns_figure, returns_figure
from analysis.labels.wording import provenance_facts
from analysis.loading.load import Suite, load_results
from analysis.loading.read import NORMALISED_RETURN, RETURN, ResultsError
from analysis.loading.training import EPISODES, in_returns, running_means, training_returns
from analysis.published.overlay import draw_published
from analysis.published.points import read_published
from analysis.published.verdicts import BELOW, CONFORMANT, NOT_COMPARABLE, NOT_ENOUGH, Verdict, judge
from analysis.report.explain import explain
from datasets.gymnasium_mujoco.tasks import REFERENCE_RETURNS
from tests.test_analysis import write_json, write_run

STEP = 50_000  # environment steps between evaluations
SETTINGS = {"num_critics": 2, "q_aggregation": "min", "chunk_length": 1}


def write_scratch(
    root: Path,
    task: str,
    returns: list[float],
    seed: int = 0,
    agent: str = "sac",
    episodes: list[float] | None = None,
    budget: int = 0,
) -> None:
    """A complete run without data: mean returns of its evaluations, each STEP steps unless there is a `budget`, and of
    its training episodes, which end at equal distances."""
    references = REFERENCE_RETURNS.get(task)
    budget = budget or STEP * (len(returns) - 1)
    step = budget // (len(returns) - 1)
    folder = write_run(
        root,
        task,
        agent,
        seed,
        suite="mujoco",
        offline=(returns[0],),
        online=tuple(returns[1:]),
        origin="none",
        by_return=True,
        reference_returns=list(references) if references else None,
        online_steps=budget,
        utd_ratio=1,
        agent_config=SETTINGS,
    )
    provenance = {"dataset": {"name": "none", "origin": "none", "content_hash": ""}, "starts": []}
    provenance |= {"schema_version": 1, "reference_returns": list(references) if references else None}
    write_json(folder / "provenance.json", provenance)
    header, *rows = (folder / "episodes.csv").read_text().splitlines()
    fields = [row.split(",") for row in rows]
    spread = [",".join([*row[:2], str(int(row[2]) * step // 10), *row[3:]]) for row in fields]
    (folder / "episodes.csv").write_text("\n".join([header, *spread]) + "\n")
    lines = ["phase,updates,env_steps,name,value"]
    for number, value in enumerate(episodes or [], start=1):
        at = budget * number // len(episodes or [])
        lines += [f"online,0,{at},behaviour_length,9", f"online,0,{at},behaviour_return,{value}"]
    (folder / "train.csv").write_text("\n".join(lines) + "\n")


def load_one(root: Path) -> Suite:
    (suite,) = load_results(root)
    return suite


def verdicts(root: Path) -> dict[tuple[str, str, int], Verdict]:
    return {(row.source, row.task, row.step): row for row in judge(load_one(root), read_published())}


def test_a_suite_without_data_says_so_and_its_tasks_keep_their_own_scores(tmp_path: Path) -> None:
    for seed in range(2):
        write_scratch(tmp_path, "hopper-v4", [20.0, 500.0, 900.0], seed)
        write_scratch(tmp_path, "humanoidstandup-v4", [33_000.0, 90_000.0, 95_000.0], seed)
    suite = load_one(tmp_path)
    assert suite.origin == "none" and provenance_facts(suite)[0] == "no data"
    assert suite.measures == {"hopper-v4": NORMALISED_RETURN, "humanoidstandup-v4": RETURN}
    assert suite.measure is None  # no mean over tasks where one has no scale
    assert suite.references("hopper-v4") == REFERENCE_RETURNS["hopper-v4"]
    raw = in_returns(suite)
    assert raw.cells["hopper-v4", "sac"].online_score == pytest.approx(np.array([[20.0, 500.0, 900.0]] * 2))
    assert raw.cells["humanoidstandup-v4", "sac"].online_score[0, -1] == pytest.approx(95_000.0)


def test_runs_without_data_may_stand_beside_runs_on_data_of_one_origin(tmp_path: Path) -> None:
    write_run(tmp_path, agent="fql")
    folder = write_run(tmp_path, agent="sac", offline=(0.0,), online=(0.2, 0.6, 0.8, 1.0), origin="none")
    assert load_one(tmp_path).origin == "generated"
    provenance = folder.parents[1] / "rlpd" / "seed_000"
    write_run(tmp_path, agent="rlpd", offline=(0.0,), online=(0.2, 0.6, 0.8, 1.0), origin="published")
    assert provenance.is_dir()
    with pytest.raises(ResultsError, match=r"data origin is generated in .*fql.* but published in .*rlpd"):
        load_one(tmp_path)


def test_a_point_of_training_is_the_mean_of_the_last_twenty_episodes() -> None:
    steps, returns = np.arange(1, 31) * 10, np.arange(30.0)
    means = running_means(steps, returns, np.array([0, 9, 10, 55, 200, 300]))
    assert np.isnan(means[:2]).all()
    assert means[2:].tolist() == [0.0, 2.0, np.mean(returns[:20]), np.mean(returns[10:])]
    assert EPISODES == 20


def test_training_returns_are_read_from_the_rows_of_episodes(tmp_path: Path) -> None:
    write_scratch(tmp_path, "hopper-v4", [20.0, 500.0, 900.0], episodes=[float(number) for number in range(100)])
    suite = load_one(tmp_path)
    cell = training_returns(suite, tmp_path)["hopper-v4", "sac"]
    assert cell.online_steps[[0, -1]].tolist() == [0, suite.online_steps]
    assert np.isnan(cell.online_score[0, 0])
    assert cell.online_score[0, -1] == pytest.approx(np.mean(range(80, 100)))
    assert cell.online_score.shape == (1, len(cell.online_steps))


def drawn_titles(suite: Suite, training: bool = False, **cells: object) -> list[str]:
    with house_style():
        shown = training_returns(suite, cells["root"]) if training else in_returns(suite).cells  # type: ignore[arg-type]
        figure = returns_figure(suite, shown, training)
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_a_panel_per_task_and_one_of_the_mean_over_those_with_a_scale(tmp_path: Path) -> None:
    for task in ("hopper-v4", "ant-v4", "humanoidstandup-v4"):
        for seed in range(2):
            write_scratch(tmp_path, task, [20.0, 500.0, 900.0 + seed], seed, episodes=[10.0, 600.0, 700.0])
    suite = load_one(tmp_path)
    expected = ["ant-v4", "hopper-v4", "humanoidstandup-v4", "2 tasks with reference returns"]
    assert drawn_titles(suite) == drawn_titles(suite, training=True, root=tmp_path) == expected
    with house_style():
        figure = returns_figure(suite, in_returns(suite).cells)
        figure.draw_without_rendering()
    assert all(axes.title.get_window_extent().x1 <= figure.bbox.x1 for axes in figure.axes), "a title is cut off"
    whole, hopper = figure.axes[3], figure.axes[1]
    scale = [(900.5 - low) / (high - low) for low, high in map(suite.references, ("hopper-v4", "ant-v4"))]
    assert whole.lines[0].get_ydata()[-1] == pytest.approx(np.mean(scale))  # pyright: ignore
    assert hopper.lines[0].get_ydata()[-1] == pytest.approx(900.5)  # pyright: ignore


def test_both_figures_are_written_and_neither_mixes_the_two(tmp_path: Path, capsys) -> None:
    write_scratch(tmp_path, "hopper-v4", [20.0, 500.0, 900.0], episodes=[10.0, 600.0, 700.0])
    assert main(["--results", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"mujoco_returns.png", "mujoco_training_returns.png", "mujoco_normalised_return.png"} <= names
    assert "open" in capsys.readouterr().out
    words = [(tmp_path / "out" / f"mujoco_{kind}.svg").read_text() for kind in ("returns", "training_returns")]
    assert words[0] != words[1]


def test_points_of_both_figures_are_explained_as_they_are_drawn(tmp_path: Path, capsys) -> None:
    """A panel in the task's own returns, the last one as a mean of normalised returns."""
    for task, episodes in (("hopper-v4", [10.0, 600.0, 700.0]), ("ant-v4", [5.0, 6.0]), ("humanoidstandup-v4", [9.0])):
        for seed in range(2):
            write_scratch(tmp_path, task, [20.0, 500.0, 900.0 + seed], seed, episodes=episodes)
    suite = load_one(tmp_path)
    for kind in ("returns", "training_returns"):
        with house_style():
            cells = training_returns(suite, tmp_path) if kind.startswith("training") else in_returns(suite).cells
            figure = returns_figure(suite, cells, kind.startswith("training"))
        for axes, task in ((figure.axes[1], "hopper-v4"), (figure.axes[3], None)):
            found = explain(tmp_path, f"mujoco_{kind}.pdf", "sac", str(2 * STEP), task)
            assert found.mean == pytest.approx(axes.lines[0].get_ydata()[-1])  # pyright: ignore
            assert found.mean == pytest.approx(np.mean([run.score for run in found.runs]))
            assert len(found.runs) == (2 if task else 4) and not found.without
            assert found.scored_by == (RETURN if task else NORMALISED_RETURN).name
    run = explain(tmp_path, "mujoco_training_returns", "sac", str(2 * STEP), "hopper-v4").runs[0]
    assert (run.score, run.mean_return, run.episodes) == pytest.approx((1310 / 3, 1310 / 3, 3))
    lines = Path(run.file).read_text().splitlines()
    assert [lines[number - 1].split(",")[4] for number in (3, 5, 7)] == ["10.0", "600.0", "700.0"]
    assert run.lines == "3,5,7" and run.episode_seeds is None
    words = ["--results", str(tmp_path), "--curve", "sac", "--step"]
    assert main(["explain", "mujoco_training_returns", *words, str(2 * STEP), "--task", "ant-v4"]) == 0
    assert "return 5.5" in capsys.readouterr().out
    assert main(["explain", "mujoco_training_returns", *words, "0", "--task", "ant-v4"]) == 0
    assert "not in it, since they have not come so far" in capsys.readouterr().out
    assert main(["explain", "mujoco_training_returns", *words, "7", "--task", "ant-v4"]) == 2
    assert "no point of sac at online step 7: the nearest is --step 0 (201 points" in capsys.readouterr().err


def test_success_and_an_offline_phase_have_no_figure_of_returns(tmp_path: Path) -> None:
    write_run(tmp_path / "success", offline=(0.0,), online=(0.2, 0.4))
    write_run(tmp_path / "offline", by_return=True)
    assert not has_returns_figure(load_one(tmp_path / "success"))
    assert not has_returns_figure(load_one(tmp_path / "offline"))


def test_returns_that_equal_published_ones_conform_and_others_do_not(tmp_path: Path) -> None:
    """SAC on Hopper has public seeds of 529.82 at 50k steps and 1103.40 at 100k."""
    for seed in range(10):
        off = -1.0 if seed % 2 else 1.0
        write_scratch(tmp_path, "hopper-v4", [20.0, 529.82 + off, 100.0 + off], seed)
    rows = verdicts(tmp_path)
    same, other = rows["simbav2_release", "hopper-v4", 50_000], rows["simbav2_release", "hopper-v4", 100_000]
    assert same.verdict == CONFORMANT, same.reason
    assert other.verdict == BELOW, other.reason
    low, high = REFERENCE_RETURNS["hopper-v4"]
    assert same.published.mean == pytest.approx((529.82 - low) / (high - low))
    assert other.difference and other.difference.mean == pytest.approx((100.0 - 1103.40) / (high - low))
    assert rows["cleanrl_benchmark", "hopper-v4", 1_000_000].verdict == NOT_COMPARABLE
    assert "episodes: theirs training, ours evaluation" in rows["cleanrl_benchmark", "hopper-v4", 1_000_000].reason


def test_a_budget_before_the_first_published_point_has_no_published_figure(tmp_path: Path) -> None:
    write_scratch(tmp_path / "long", "hopper-v4", [20.0, 500.0])
    write_scratch(tmp_path / "short", "hopper-v4", [20.0, 500.0], budget=20_000)
    (tmp_path / "out").mkdir()
    assert draw_published(load_one(tmp_path / "long"), read_published(), tmp_path / "out")
    assert not draw_published(load_one(tmp_path / "short"), read_published(), tmp_path / "out")


def test_one_seed_has_no_verdict_and_a_task_without_scale_none_at_all(tmp_path: Path) -> None:
    write_scratch(tmp_path, "halfcheetah-v4", [-280.0, 4_000.0, 20_000.0])
    write_scratch(tmp_path, "humanoidstandup-v4", [33_000.0, 90_000.0, 95_000.0])
    rows = verdicts(tmp_path)
    assert rows["simbav2_release", "halfcheetah-v4", 100_000].verdict == NOT_ENOUGH
    assert not any(task == "humanoidstandup-v4" for _, task, _ in rows)


def test_the_published_table_scores_1_where_sac_ends() -> None:
    ends = {
        point.task: point.mean
        for point in read_published()
        if (point.source, point.method, point.step) == ("simbav2_release", "SAC", 1_000_000)
    }
    assert {task: round(mean) for task, mean in ends.items()} == {
        task: one for task, (_, one) in REFERENCE_RETURNS.items()
    }
