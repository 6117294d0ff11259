"""Tables and figures that say who is better: what is bold, which pairs differ, and what is not said."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis import output
from analysis.figures import comparisons as comparison_figures
from analysis.figures import curves as figures
from analysis.figures import overview
from analysis.labels.style import styles_of
from analysis.loading.load import Suite, load_results
from analysis.statistics.pairs import pairs_of
from analysis.statistics.scores import ALL_TASKS
from analysis.tables import comparisons as comparison_tables
from analysis.tables import paper as paper_tables
from analysis.tables import success as tables
from analysis.tables.success import suite_rows
from tests.test_analysis import edit_json, load_one, write_run

GOOD, FAIR, POOR = (1.0, 0.8, 1.0), (0.8, 1.0, 0.8), (0.2, 0.0, 0.2)


def write_three(root: Path, seeds: int = 5, tasks: int = 2) -> Path:
    """Two good agents that cannot be told apart and a poor one; seeds differ a little."""
    for task in range(1, tasks + 1):
        for agent, online in (("fql", GOOD), ("qc_fql", FAIR), ("sac_flow_g", POOR)):
            for seed in range(seeds):
                last = online[2] if seed % 2 else online[1]
                write_run(root, f"cube-double-task{task}", agent, seed, offline=(0.0, 0.2), online=(*online[:2], last))
    return root


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_best_and_its_ties_are_bold_everywhere(tmp_path: Path):
    suite = load_one(write_three(tmp_path / "results"))
    for row in suite_rows(suite):
        assert ("final" in row.bold) == (row.agent != "sac_flow_g"), row
        assert "offline_end" not in row.bold, "all end the offline phase alike: nobody is best"
    tables.write_tables(suite, tmp_path)
    paper_tables.write_paper_table(suite, tmp_path)
    for name in ("quick_table.md", "quick_offline_to_online.md"):
        text = (tmp_path / name).read_text()
        assert "**" in text and tables.BOLD_RULE in text
    assert len(re.findall(r"\\textbf", (tmp_path / "quick_table.tex").read_text())) == 4  # two agents; final, AUC
    rows = read_csv(tmp_path / "quick_offline_to_online.csv")
    assert {(row["agent"], row["final_bold"]) for row in rows} == {
        ("fql", "true"),
        ("qc_fql", "true"),
        ("sac_flow_g", "false"),
    }


def test_an_agent_without_runs_on_some_task_is_not_bold_over_all_tasks(tmp_path: Path):
    write_three(tmp_path)
    for seed in range(5):
        write_run(tmp_path, "cube-double-task1", "flow_mlp", seed, offline=(0.0, 0.2), online=(1.0, 1.0, 1.0))
    rows = {(row.task, row.agent): row for row in suite_rows(load_one(tmp_path))}
    assert rows[ALL_TASKS, "flow_mlp"].bold == frozenset()
    assert "final" in rows["cube-double-task1", "flow_mlp"].bold


def test_numbers_of_the_papers_table_are_those_of_the_main_one(tmp_path: Path):
    suite = load_one(write_three(tmp_path / "results"))
    paper_tables.write_paper_table(suite, tmp_path)
    rows = {(row.task, row.agent): row for row in suite_rows(suite)}
    written = read_csv(tmp_path / "quick_offline_to_online.csv")
    assert len(written) == len(rows) == 9
    for line in written:
        estimates = rows[line["task"], line["agent"]].estimates
        assert float(line["offline_end"]) == pytest.approx(estimates["offline_end"].mean, abs=1e-6)
        assert float(line["final_high"]) == pytest.approx(estimates["final"].high, abs=1e-6)
    text = (tmp_path / "quick_offline_to_online.md").read_text()
    assert re.search(r"\| all tasks +\| 20 \[6, 51\]† → 9 \[7, 12\]", text), "percent, end of offline → end of online"


def test_papers_table_is_a_well_formed_tabular(tmp_path: Path):
    suite = load_one(write_three(tmp_path / "results"))
    paper_tables.write_paper_table(suite, tmp_path)
    lines = (tmp_path / "quick_offline_to_online.tex").read_text().splitlines()
    body = [line for line in lines if line.endswith((r"\\", r"\\[2pt]")) and "multicolumn" not in line]
    assert {line.count("&") for line in body} == {3}
    assert lines[1] == r"\begin{tabular}{lccc}" and lines[-1] == r"\end{tabular}"
    text = "\n".join(lines)
    assert text.isascii() and text.count("{") == text.count("}")


def test_pairs_are_compared_over_tasks_and_corrected_together(tmp_path: Path):
    suite = load_one(write_three(tmp_path))
    pairs = {(pair.first, pair.second): pair for pair in pairs_of(suite, styles_of(suite.agents))}
    assert set(pairs) == {("sac_flow_g", "fql"), ("sac_flow_g", "qc_fql"), ("fql", "qc_fql")}
    poor = pairs["sac_flow_g", "fql"]
    assert poor.significant and poor.result.difference.high < 0 and poor.result.probability.mean == 0.0
    assert (poor.num_tasks, poor.seeds, poor.paired, poor.head_to_head) == (2, (5, 5), False, False)
    assert not pairs["fql", "qc_fql"].significant
    assert all(pair.p_holm >= pair.result.p_value for pair in pairs.values())


def test_pairs_that_share_offline_phases_are_compared_phase_by_phase(tmp_path: Path):
    write_three(tmp_path, tasks=1)
    for agent in ("fql", "qc_fql"):
        for seed in range(5):
            phase = {"config_hash": "same", "seed": seed}
            folder = tmp_path / f"quick/cube-double-task1/{agent}/seed_{seed:03d}"
            edit_json(folder / "provenance.json", lambda content, phase=phase: content.update(offline_phase=phase))
    suite = load_one(tmp_path)
    pairs = {(pair.first, pair.second): pair for pair in pairs_of(suite, styles_of(suite.agents))}
    assert pairs["fql", "qc_fql"].paired
    assert not pairs["sac_flow_g", "fql"].paired


def test_few_seeds_are_said_to_be_too_few_for_a_claim(tmp_path: Path):
    few, enough = load_one(write_three(tmp_path / "few")), load_one(write_three(tmp_path / "enough", seeds=10, tasks=1))
    for suite, is_said in ((few, True), (enough, False)):
        comparison_tables.write_comparisons(suite, tmp_path)
        assert ("too few for a claim" in (tmp_path / "quick_comparisons.md").read_text()) == is_said


def test_further_scalars_are_those_of_the_runs(tmp_path: Path):
    for seed, online in enumerate([(0.0, 0.6, 1.0), (0.4, 0.4, 0.4)]):
        folder = write_run(tmp_path / "results", seed=seed, offline=(0.0, 0.2), online=online)
        rows = [f"online,{100 + k},{k},behaviour_success,{int(k < 3 + seed)}" for k in range(10)]
        (folder / "train.csv").write_text("\n".join(["phase,updates,env_steps,name,value", *rows]) + "\n")
    comparison_tables.write_comparisons(load_one(tmp_path / "results"), tmp_path)
    (row,) = [row for row in read_csv(tmp_path / "quick_metrics.csv") if row["task"] == ALL_TASKS]
    assert float(row["worst_dip"]) == pytest.approx((0.2 + 0.0) / 2)
    assert float(row["training_regret"]) == pytest.approx((0.7 + 0.6) / 2)
    assert float(row["steps_to_50"]) == pytest.approx((20 + 30) / 2), "who never gets there counts with the budget"
    assert float(row["reached_50"]) == 0.5
    assert not (tmp_path / "quick_comparisons.csv").exists(), "one agent has nobody to be compared with"


def test_runs_that_are_not_at_their_end_are_in_no_comparison(tmp_path: Path):
    write_three(tmp_path, tasks=1)
    folder = write_run(tmp_path, "cube-double-task1", "fql", 5, offline=(0.0, 0.2), online=(0.0, 0.0, 0.0))
    edit_json(folder / "status.json", lambda status: status.update(state="running"))
    (folder / "episodes.csv").write_text("".join((folder / "episodes.csv").read_text().splitlines(True)[:-5]))
    suite = load_one(tmp_path, allow_incomplete=True)
    pairs = pairs_of(suite, styles_of(suite.agents))
    assert {pair.seeds for pair in pairs if "fql" in (pair.first, pair.second)} == {(5, 5)}


def all_figures(suite: Suite, more: Suite) -> list[Figure]:
    return [
        comparison_figures.profile_figure(suite),
        comparison_figures.matrix_figure(suite, pairs_of(suite, styles_of(suite.agents))),
        overview.overview_figure([suite, more]),
    ]


@pytest.mark.parametrize("agents", [2, 17])
def test_all_words_of_the_figures_lie_inside_them(tmp_path: Path, agents: int):
    rng = np.random.default_rng(0)
    for suite in ("ogbench-cube-quadruple", "robomimic"):
        for number in range(agents):
            for seed in range(3):
                rates = tuple(rng.integers(0, 6, 4) / 5)
                write_run(tmp_path, "cube-double-task1", f"agent_{number}", seed, suite, rates[:2], rates[2:])
    suites = load_results(tmp_path)
    with figures.house_style():
        for figure in all_figures(suites[0], suites[1]):
            figure.draw_without_rendering()
            outer = figure.bbox.padded(1)
            parts = [box for axes in figure.axes if axes.axison and (box := axes.get_tightbbox())]
            parts += [legend.get_window_extent() for legend in figure.legends]
            title = figure._suptitle  # pyright: ignore[reportAttributeAccessIssue]
            parts += [title.get_window_extent()] if title else []
            for index, box in enumerate(parts):
                assert outer.x0 <= box.x0 and box.x1 <= outer.x1
                assert outer.y0 <= box.y0 and box.y1 <= outer.y1
                assert not any(box.padded(-1).overlaps(other.padded(-1)) for other in parts[index + 1 :])


def test_profile_shows_the_share_of_runs_above_a_level(tmp_path: Path):
    suite = load_one(write_three(tmp_path))
    with figures.house_style():
        figure = comparison_figures.profile_figure(suite)
    lines = {line.get_marker(): np.asarray(line.get_ydata()) for line in figure.axes[0].get_lines()}
    poor = lines["o"]  # sac_flow_g
    assert poor[0] == 1.0 and poor[50] == 0.0


def test_matrix_is_its_own_mirror_image(tmp_path: Path):
    suite = load_one(write_three(tmp_path))
    with figures.house_style():
        figure = comparison_figures.matrix_figure(suite, pairs_of(suite, styles_of(suite.agents)))
    numbers = [text.get_text() for text in figure.axes[0].texts]
    assert numbers == ["0.00*", "0.00*", "1.00*", "0.40", "1.00*", "0.60"]


def test_overview_orders_domains_by_their_size(tmp_path: Path):
    for suite in ("ogbench-cube-quadruple", "ogbench-cube-double", "ogbench-cube-triple"):
        write_run(tmp_path / "results", suite=suite)
    (tmp_path / "out").mkdir()
    suites = load_results(tmp_path / "results")
    assert len(overview.draw_overview(suites, tmp_path / "out")) == 3
    svg = tmp_path / "out/offline_to_online.svg"
    first = svg.read_bytes()
    overview.draw_overview(suites, tmp_path / "out")
    assert svg.read_bytes() == first
    assert overview.draw_overview(suites[:1], tmp_path / "out") == [], "one domain has a figure of its own"


def test_suite_scored_by_raw_returns_has_no_profile_and_no_matrix_over_tasks(tmp_path: Path):
    for task in (1, 2):
        for agent in ("fql", "qc_fql"):
            write_run(tmp_path / "results", f"cube-double-task{task}", agent, by_return=True)
    suite = load_one(tmp_path / "results")
    assert comparison_figures.draw_comparisons(suite, tmp_path) == []
    comparison_tables.write_comparisons(suite, tmp_path)
    tasks = {row["task"] for row in read_csv(tmp_path / "quick_comparisons.csv")}
    assert tasks == {"cube-double-task1", "cube-double-task2"}


def test_suites_written_by_several_processes_have_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for suite in ("ogbench-cube-double", "robomimic"):
        write_run(tmp_path / "results", suite=suite)
    monkeypatch.setattr(output, "draw_overview", lambda suites, out: [])  # it is drawn by this process in either case
    written = {}
    for runs in (10_000, 1):
        monkeypatch.setattr(output, "PARALLEL_RUNS", runs)
        out = tmp_path / str(runs)
        out.mkdir()
        suites = load_results(tmp_path / "results")
        paths, texts = output.write_all(suites, {s.name: {} for s in suites}, {}, [], out)
        written[runs] = {path.name: path.read_bytes() for path in paths}, texts
    assert written[1] == written[10_000]
    assert "robomimic_profile.svg" in written[1][0], "a measure is known in another process, too"
