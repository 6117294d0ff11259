"""Norms of gradients along the rollout: read from train.csv, refused by name where damaged, drawn."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.figures import curves as figures
from analysis.figures import gradients as gradient_figures
from analysis.loading.gradients import RolloutNorms, load_norms
from analysis.loading.load import load_results
from analysis.loading.read import ResultsError
from analysis.statistics.growth import growth_pairs, growths_of
from analysis.tables.gradients import write_growth
from tests.test_analysis import load_one, write_run
from tests.test_comparison_tables import read_csv

DRAWN = {f"quick_{kind}.{suffix}" for kind in ("gradients", "gradient_growth") for suffix in ("pdf", "svg", "png")}
AGENTS = {"sac_flow_g": (4, 1.0), "naive_sac_flow": (10, 1.25)}  # name -> K, factor of a step


def rows_at(phase: str, updates: int, env_steps: int, flow_steps: int, factor: float, end: float = 2.0) -> list[str]:
    """Norms of a rollout whose every step multiplies the gradient by `factor`; `end` is the norm at x_K."""
    norms = {f"x_{k}": end * factor ** (flow_steps - k) for k in range(flow_steps + 1)}
    norms |= {f"parameters_{k}": 0.1 * end * factor ** (flow_steps - 1 - k) for k in range(flow_steps)}
    return [f"{phase},{updates},{env_steps},gradient_norm_{name},{norm:.9g}" for name, norm in norms.items()]


def write_norms(folder: Path, flow_steps: int = 4, factor: float = 1.0, scale: float = 1.0) -> list[str]:
    """train.csv of a run of `write_run`: two points in each phase, between losses; the second has 4 times the norms."""
    rows = ["offline,50,0,policy_loss,-1.5"]
    for point, (phase, updates, env_steps) in enumerate(
        [("offline", 100, 0), ("offline", 200, 0), ("online", 220, 20), ("online", 240, 40)]
    ):
        rows += rows_at(phase, updates, env_steps, flow_steps, factor, end=scale * 4.0 ** (point % 2))
        rows += [f"{phase},{updates},{env_steps},policy_loss,nan"]
    write_rows(folder, rows)
    return rows


def write_rows(folder: Path, rows: list[str]) -> None:
    (folder / "train.csv").write_text("\n".join(["phase,updates,env_steps,name,value", *rows]) + "\n")


def write_grid(root: Path, tasks: int = 1, seeds: int = 3) -> Path:
    """Runs with norms of AGENTS, and of one that has no rollout; the scale differs by seed."""
    for task in range(1, tasks + 1):
        for seed in range(seeds):
            for agent, (flow_steps, factor) in AGENTS.items():
                folder = write_run(root, f"cube-double-task{task}", agent, seed)
                write_norms(folder, flow_steps, factor, scale=float(10**seed))
            write_rows(write_run(root, f"cube-double-task{task}", "fql", seed), ["offline,100,0,policy_loss,0.1"])
    return root


def norms_of(root: Path) -> dict[tuple[str, str], RolloutNorms]:
    return load_norms(load_one(root), root)


def test_norms_are_read_by_agent_and_phase(tmp_path: Path) -> None:
    norms = norms_of(write_grid(tmp_path, tasks=2))
    assert list(norms) == [
        (agent, phase) for agent in ("naive_sac_flow", "sac_flow_g") for phase in ("offline", "online")
    ]
    online = norms["naive_sac_flow", "online"]
    assert (online.flow_steps, online.progress.tolist()) == (10, [20, 40])
    assert [values.shape for values in online.by_kind["x"]] == [(3, 2, 11)] * 2
    assert [values.shape for values in online.by_kind["parameters"]] == [(3, 2, 10)] * 2
    assert online.by_kind["x"][1][2, 1] == pytest.approx(100 * 4 * 1.25 ** np.arange(10, -1, -1))
    assert norms["sac_flow_g", "offline"].progress.tolist() == [100, 200]


def test_a_mean_norm_is_geometric_over_training_and_runs(tmp_path: Path) -> None:
    suite = load_one(write_grid(tmp_path, tasks=2))
    norms = load_norms(suite, tmp_path)
    with figures.house_style():
        figure = gradient_figures.rollout_figure(suite, norms)
    above, below = figure.axes[0], figure.axes[2]
    # Points of training 1 and 4, seeds 1, 10 and 100: their geometric means are 2 and 10.
    g, naive = (np.asarray(line.get_ydata()) for line in above.lines)
    assert g == pytest.approx(np.full(5, 20.0))
    assert naive == pytest.approx(20.0 * 1.25 ** np.arange(10, -1, -1))
    assert np.asarray(above.lines[1].get_xdata()) == pytest.approx(np.arange(11) / 10)
    assert np.asarray(below.lines[0].get_ydata()) == pytest.approx(np.full(4, 2.0))
    assert np.asarray(below.lines[0].get_xdata()).tolist() == [0, 0.25, 0.5, 0.75]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["offline phase", "online phase"]


def test_growth_is_the_norm_at_the_noise_over_that_at_the_end(tmp_path: Path) -> None:
    suite = load_one(write_grid(tmp_path))
    with figures.house_style():
        (axes,) = gradient_figures.growth_figure(suite, load_norms(suite, tmp_path)).axes
    lines = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == 2 and line.get_marker() != "None"]
    assert [np.asarray(line.get_ydata()) for line in lines] == [
        pytest.approx(np.full(2, growth)) for growth in (1.0, 1.0, 1.25**10, 1.25**10)
    ]
    # Offline updates 100 and 200 of 200, online steps 20 and 40 of 40.
    assert np.asarray(lines[0].get_xdata()) == pytest.approx([-0.2, 0.0])
    assert np.asarray(lines[1].get_xdata()) == pytest.approx([0.3, 0.6])


@pytest.mark.parametrize("draw", [gradient_figures.rollout_figure, gradient_figures.growth_figure])
@pytest.mark.parametrize("seeds", [1, 3])
def test_all_words_of_a_figure_lie_inside_it_and_apart(tmp_path: Path, draw: Any, seeds: int) -> None:
    suite = load_one(write_grid(tmp_path, tasks=2, seeds=seeds))
    with figures.house_style():
        figure = draw(suite, load_norms(suite, tmp_path))
        figure.draw_without_rendering()
        words = figure.get_suptitle()
        for fact in ("mean over 2 tasks", "generated data", f"{seeds} seed", "95 % t" if seeds > 1 else "no band"):
            assert fact in words
        title = figure._suptitle
        (legend,) = figure.legends
        parts = [title.get_window_extent(), legend.get_window_extent(), *(axes.get_tightbbox() for axes in figure.axes)]
        outer = figure.bbox.padded(1)
        for index, one in enumerate(parts):
            assert outer.x0 <= one.x0 and one.x1 <= outer.x1 and outer.y0 <= one.y0 and one.y1 <= outer.y1
            for other in parts[index + 1 :]:
                assert not one.padded(-1).overlaps(other.padded(-1))


def test_command_draws_norms_where_there_are_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_grid(tmp_path / "with")
    write_run(tmp_path / "without")
    for name in ("with", "without"):
        assert main(["--results", str(tmp_path / name)]) == 0
    assert "quick_gradients.{pdf,svg,png}" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "with/figures").iterdir()} >= DRAWN
    assert not {path.name for path in (tmp_path / "without/figures").iterdir()} & DRAWN


def test_same_norms_give_the_same_bytes(tmp_path: Path) -> None:
    suite = load_one(write_grid(tmp_path))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        paths = gradient_figures.draw_gradients(suite, load_norms(suite, tmp_path), tmp_path / name)
        assert {path.name for path in paths} == DRAWN
    for name in sorted(DRAWN):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_norms_of_a_stopped_run_end_where_it_stopped(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=2)
    folder = write_run(tmp_path, "cube-double-task1", "sac_flow_g", 2, online=(0.2,) * 4, state="failed")
    rows = write_norms(folder)
    # The second point was exploding, the third being written, its last row half.
    at = next(index for index, row in enumerate(rows) if row.startswith("offline,200,0,gradient_norm_x_0"))
    rows[at] = "offline,200,0,gradient_norm_x_0,inf"
    end = next(index for index, row in enumerate(rows) if row.startswith("online,220,20,gradient_norm_x_3"))
    write_rows(folder, rows[:end])
    with (folder / "train.csv").open("a") as file:
        file.write("online,220,20,gradient_no")
    (suite,) = load_results(tmp_path, allow_incomplete=True)
    norms = load_norms(suite, tmp_path)
    offline, online = (norms["sac_flow_g", phase].by_kind["x"][0][2] for phase in ("offline", "online"))
    assert np.isnan(online).all() and not np.isnan(norms["sac_flow_g", "online"].by_kind["x"][0][:2]).any()
    assert np.isnan(offline[1, 0]) and offline[0].tolist() == [1.0] * 5
    for draw in (gradient_figures.rollout_figure, gradient_figures.growth_figure):
        with figures.house_style():
            draw(suite, norms).draw_without_rendering()


FAULTS = [
    ("offline,100,0,gradient_norm_x_0,1", "offline,100,0,gradient_norm_x_0,-1", "line 3: gradient_norm_x_0 is '-1'"),
    (
        "offline,100,0,gradient_norm_x_0,1",
        "offline,100,0,gradient_norm_x_0,inf",
        "line 3: .* is 'inf', expected a finite",
    ),
    (
        "offline,100,0,gradient_norm_x_1,1",
        "offline,100,0,gradient_norm_x_0,1",
        "line 4: .*x_0 stands twice at offline update 100",
    ),
    (
        "online,220,20,gradient_norm_x_2,1",
        "online,220,20,something,1",
        "gradient_norm_x_2 is missing at online step 20",
    ),
    ("online,220,20,gradient_norm_x_4,1", "online,220,20,gradient_norm_x_5,1", "gradient_norm_.* is missing"),
    ("offline,50,0,policy_loss,-1.5", "offline,50,0,policy_loss,-1.5,3", "line 2: 6 fields, expected 5"),
    (
        "offline,50,0,policy_loss,-1.5",
        "offlin,50,0,policy_loss,-1.5",
        "line 2: phase is 'offlin', expected offline or online",
    ),
    (
        "offline,50,0,policy_loss,-1.5",
        "offline,5.5,0,policy_loss,-1.5",
        "line 2: updates is '5.5', expected a whole number",
    ),
    (
        "offline,50,0,policy_loss,-1.5",
        "offline,50,-1,policy_loss,-1.5",
        "line 2: env_steps is '-1', expected a whole number",
    ),
    ("offline,50,0,policy_loss,-1.5", "offline,50,0,policy_loss,x", "line 2: value is 'x', expected a number"),
    ("phase,updates,env_steps,name,value", "phase,updates,name,value", "header 'phase,updates,name,value', expected"),
]


@pytest.mark.parametrize(("right", "wrong", "message"), FAULTS)
def test_faulty_rows_of_a_complete_run_are_one_line(
    tmp_path: Path, right: str, wrong: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path, agent="sac_flow_g")
    write_norms(folder)
    text = (folder / "train.csv").read_text()
    assert text.count(f"{right}\n") == 1
    (folder / "train.csv").write_text(text.replace(f"{right}\n", f"{wrong}\n"))
    assert main(["--results", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"seed_000/train.csv.*{message}", line), line
    assert not (tmp_path / "figures").exists()


def test_complete_run_with_a_cut_row_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path, agent="sac_flow_g")
    write_norms(folder)
    with (folder / "train.csv").open("a") as file:
        file.write("online,240,40,policy")
    with pytest.raises(ResultsError, match=r"seed_000/train.csv: the last row is cut off"):
        norms_of(tmp_path)


def test_runs_that_do_not_belong_together_are_refused_by_name(tmp_path: Path) -> None:
    folders = [write_run(tmp_path, agent="sac_flow_g", seed=seed) for seed in (0, 1)]
    rows = write_norms(folders[0])
    write_norms(folders[1], flow_steps=5)
    with pytest.raises(ResultsError, match=r"of 4 flow steps in .*seed_000 but of 5 in .*seed_001"):
        norms_of(tmp_path)
    write_rows(folders[1], [row for row in rows if not row.startswith("online,220")])
    with pytest.raises(ResultsError, match=r"seed_001 has no gradient norms at online step 20, which others have"):
        norms_of(tmp_path)


def test_growth_is_a_factor_with_limits_and_agents_are_compared_by_it(tmp_path: Path) -> None:
    suite = load_one(write_grid(tmp_path, tasks=2))
    norms = load_norms(suite, tmp_path)
    paths = write_growth(suite, norms, tmp_path)
    assert {path.name for path in paths} == {
        f"quick_{name}.{kind}" for name in ("gradient_growth", "growth_comparisons") for kind in ("csv", "md")
    }
    rows = {(row["agent"], row["phase"]): row for row in read_csv(tmp_path / "quick_gradient_growth.csv")}
    assert set(rows) == {(agent, phase) for agent in AGENTS for phase in ("offline", "online")}
    naive = rows["naive_sac_flow", "online"]
    assert [float(naive[name]) for name in ("growth", "growth_low", "growth_high")] == pytest.approx([1.25**10] * 3)
    assert (naive["runs"], naive["exploding"], naive["vanishing"]) == ("6", "0", "0")
    assert float(rows["sac_flow_g", "offline"]["largest"]) == pytest.approx(1.0)
    pairs = read_csv(tmp_path / "quick_growth_comparisons.csv")
    assert [pair["phase"] for pair in pairs] == ["offline", "online"]
    for pair in pairs:
        assert {pair["first"], pair["second"]} == set(AGENTS)
        ratio = float(pair["ratio"])
        assert (ratio if pair["first"] == "naive_sac_flow" else 1 / ratio) == pytest.approx(1.25**10, rel=1e-5)
    assert "ratio of growths" in (tmp_path / "quick_growth_comparisons.md").read_text()


def test_explosions_are_counted_by_run_and_the_worst_point_is_told(tmp_path: Path) -> None:
    for seed, (first, second) in enumerate([(1.0, 1.0), (10.0, 90.0), (0.1, 0.01)]):
        rows = rows_at("online", 220, 20, 1, first) + rows_at("online", 240, 40, 1, second)
        write_rows(write_run(tmp_path, "cube-double-task1", "sac_flow_g", seed), rows)
    suite = load_one(tmp_path)
    (growth,) = growths_of(suite, load_norms(suite, tmp_path))
    assert growth.by_task["cube-double-task1"] == pytest.approx(np.log10([1.0, 30.0, 0.1**1.5]))
    assert (growth.exploding, growth.vanishing) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert growth.largest == pytest.approx(90.0)
    assert float(growth.mean.mean) == pytest.approx((30.0 * 0.1**1.5) ** (1 / 3))
    assert growth_pairs([growth]) == []
