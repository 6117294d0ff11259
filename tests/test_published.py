"""Published numbers: reading them, taking them for runs, and the verdict on ours. All data are made here."""

import csv
import dataclasses
import gzip
import io
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from scipy import stats

from agents import AGENTS
from agents.blocks.config import settings_of
from analysis.__main__ import main
from analysis.loading.load import Suite, load_results
from analysis.published import equality, overlay, verdict_tables, verdicts
from analysis.published.compact import compact_text
from analysis.published.equality import Sample, published_sample
from analysis.published.points import (
    COMPACT,
    COMPARED_STEPS,
    CURVES_HEADER,
    RETURNS,
    SEEDS_HEADER,
    PublishedError,
    PublishedPoint,
    SeedRate,
    read_file,
    read_published,
)
from analysis.published.sources import agent_of, differences, known_sources, protocol_of
from analysis.published.verdicts import ABOVE, BELOW, CONFORMANT, NOT_COMPARABLE, NOT_ENOUGH, compare, judge
from analysis.statistics.comparisons import holm
from bench.runs.contract import SCHEMA_VERSION, config_hash
from tests.imported_runs import import_as_results, write_run
from tests.test_analysis import seal

CURVES = [
    "mine,ogbench-cube-double,cube-double-task1,FQL,-500000,0.1000,,4",
    "mine,ogbench-cube-double,cube-double-task1,FQL,0,0.5000,ci95:[0.4000;0.6000],4",
    "mine,ogbench-cube-double,cube-double-task1,FQL,1000000,0.9000,std:0.0500,8",
]


def write_curves(path: Path, rows: list[str] = CURVES) -> Path:
    path.write_text("\n".join([",".join(CURVES_HEADER), *rows]) + "\n")
    return path


def seed_rows(
    methods: tuple[str, ...] = ("FQL", "QAM-E"),
    tasks: tuple[str, ...] = ("cube-double-play-singletask-task1-v0", "cube-double-play-singletask-task2-v0"),
    seeds: int = 4,
) -> list[str]:
    """Rates k / 50 at offline updates 50 and 100, and online steps 20 and 40; always the same."""
    rng = np.random.default_rng(0)
    rows = []
    for method, task, seed in itertools.product(methods, tasks, range(seeds)):
        for updates, steps in ((50, 0), (100, 0), (100, 20), (100, 40)):
            rows.append(f"{method},{task},{updates},{steps},{seed},{rng.integers(51) / 50}")
    return rows


def write_seeds(path: Path, rows: list[str] | None = None) -> Path:
    text = "\n".join([",".join(SEEDS_HEADER), *(seed_rows() if rows is None else rows)]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


# ------------------------------------------------------------------------------------------------------- reading


def test_curves_are_read_with_their_spread(tmp_path: Path):
    file = write_curves(tmp_path / "curves.csv")
    points = read_file(file)
    file.write_text(file.read_text(), encoding="utf-8-sig")  # with a mark, as spreadsheets save it
    assert read_file(file) == points
    assert [(point.step, point.mean, point.num_seeds) for point in points] == [
        (-500_000, 0.1, 4),
        (0, 0.5, 4),
        (1_000_000, 0.9, 8),
    ]
    assert math.isnan(points[0].interval[0])
    assert points[1].interval == (0.4, 0.6)
    # Student's interval of 8 runs: t(0.975, 7) = 2.36462.
    assert points[2].interval == pytest.approx((0.9 - 2.36462 * 0.05 / math.sqrt(8), 0.9 + 2.36462 * 0.05 / 8**0.5))


def test_rates_per_seed_become_points_with_values(tmp_path: Path):
    points = read_file(write_seeds(tmp_path / "mine.csv.gz"))
    assert {point.source for point in points} == {"mine"}
    assert {point.task for point in points} == {"cube-double-task1", "cube-double-task2"}
    assert sorted({point.step for point in points}) == [-50, 0, 20, 40]
    for point in points:
        assert point.num_seeds == len(point.values) == 4
        assert point.mean == pytest.approx(np.mean(point.values))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("mine,s,t,FQL,0,0.5,4", "line 3: 7 fields, expected 8"),
        (",s,t,FQL,0,0.5,,4", "line 3: source is '', expected a name"),
        ("mine,s,t,FQL,1e6,0.5,,4", "line 3: env_step is '1e6', expected a whole number"),
        ("mine,s,t,FQL,0,50,,4", "line 3: mean is '50', expected a success rate from 0 to 1"),
        ("mine,s,t,FQL,0,nan,,4", "line 3: mean is 'nan', expected a success rate from 0 to 1"),
        ("mine,s,t,FQL,0,0.5,0.1,4", "line 3: std_or_ci is '0.1', expected ci95:"),
        ("mine,s,t,FQL,0,0.5,std:1.5,4", "line 3: std_or_ci is 'std:1.5', expected ci95:"),
        ("mine,s,t,FQL,0,0.5,ci95:[0.6;0.9],4", "line 3: std_or_ci is 'ci95:[0.6;0.9]', expected ci95:"),
        ("mine,s,t,FQL,0,0.5,,0", "line 3: n_seeds is '0', expected a whole number of at least 1"),
        (CURVES[0], "line 3: mine cube-double-task1 FQL -500000 stands in line 2 already"),
    ],
)
def test_bad_row_of_curves_is_refused_by_line_and_column(tmp_path: Path, row: str, message: str):
    with pytest.raises(PublishedError) as error:
        read_file(write_curves(tmp_path / "curves.csv", [CURVES[0], row]))
    assert f"{tmp_path / 'curves.csv'}, {message}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("FQL,t,100,0,0", "5 fields, expected 6"),
        ("FQL,t,100,0,x,0.5", "seed_index is 'x', expected a whole number of at least 0"),
        ("FQL,t,-1,0,0,0.5", "offline_updates is '-1', expected a whole number of at least 0"),
        ("FQL,t,100,0,0,1.02", "success_rate is '1.02', expected a success rate from 0 to 1"),
        ("FQL,cube-double-task1,50,0,0,0.5", "FQL cube-double-task1 50 0 0 stands in line 2 already"),
        ("FQL,cube-double-task1,50,20,9,0.5", "offline_updates is 50, expected 100 (end of the offline phase)"),
    ],
)
def test_bad_row_of_seeds_is_refused_by_line_and_column(tmp_path: Path, row: str, message: str):
    rows = [*seed_rows(), row]
    with pytest.raises(PublishedError) as error:
        read_file(write_seeds(tmp_path / "mine.csv", rows))
    assert f"{tmp_path / 'mine.csv'}, line {len(rows) + 1}: {message}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"step,success\n1,2\n", "line 1: header 'step,success', expected source,suite,"),
        ("a.csv", b"", "line 1: header '', expected source,suite,"),
        ("a.csv.gz", b"source,suite\n", "cannot be read as gzipped CSV"),
        ("a.csv", b"\xff\xfe", "cannot be read as CSV"),
        ("a.txt", b"", "no .csv and no .csv.gz file in"),
    ],
)
def test_file_of_another_kind_is_refused(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PublishedError) as error:
        read_published(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_path_without_a_file_is_refused(tmp_path: Path):
    with pytest.raises(PublishedError, match="no file or folder at"):
        read_published(tmp_path / "absent")


def test_rates_per_seed_take_the_place_of_their_summary(tmp_path: Path):
    name = "qam_cube_success_by_seed"
    rows = [f"QAM,cube-double-play-singletask-task1-v0,1000000,{k},{s},1.0" for k in (0, 500_000) for s in range(3)]
    write_seeds(tmp_path / f"{name}.csv", rows)
    key = (name, "cube-double-task1", "QAM", 500_000)
    (summary,) = [point for point in read_published() if point.key == key]
    (given,) = [point for point in read_published(tmp_path) if point.key == key]
    assert (summary.num_seeds, summary.values) == (12, ())
    assert (given.num_seeds, given.values) == (3, (1.0, 1.0, 1.0))


# --------------------------------------------------------------------------------- the table that comes along


def test_compact_table_has_the_anchors_of_every_task():
    points = {point.key: point for point in read_published()}
    tasks = [f"cube-{size}-task{k}" for size in ("double", "triple", "quadruple") for k in range(1, 6)]
    for task in (*tasks, "lift-mh", "can-mh", "square-mh"):
        for method in ("FQL", "QC-FQL"):
            for step in COMPARED_STEPS:
                assert ("qc_plot_data", task, method, step) in points
    for task in tasks:
        for step in (0, 200_000, 500_000):
            assert points["qam_cube_success_by_seed", task, "QAM", step].num_seeds == 12
    # QC-FQL after 1M steps, as the Q-chunking release plots it.
    triple = points["qc_plot_data", "cube-triple-task3", "QC-FQL", 1_000_000]
    assert (round(triple.mean, 2), round(triple.low, 2), round(triple.high, 2)) == (0.52, 0.29, 0.70)
    assert {point.step for point in read_file(COMPACT)} == set(COMPARED_STEPS)
    for source, _, method, _ in points:
        assert method in known_sources()[source].methods


def test_compact_table_says_where_it_is_from():
    comments = [line for table in (COMPACT, RETURNS) for line in table.read_text().splitlines() if line[0] == "#"]
    for source in {point.source for point in read_published()}:
        (line,) = [line for line in comments if line.startswith(f"# {source}:")]
        assert known_sources()[source].citation in line
        assert "Licence:" in line
    assert sum("SHA-256" in line for line in comments) == 2


def test_compact_table_is_what_its_command_makes():
    def rows(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("#")]

    assert rows(compact_text([COMPACT])) == rows(COMPACT.read_text())


def test_compact_command_carries_over_end_points_of_known_methods(tmp_path: Path, capsys: pytest.CaptureFixture):
    row = "qc_plot_data,ogbench-cube-double,cube-double-{},{},{},0.5,ci95:[0.4;0.6],4"
    rows = [row.format("task1", "FQL", step) for step in (-100_000, 0, 100_000, 200_000)]
    rows += [row.format("task1", "SUPE-GT", 0), row.format("agg5tasks", "FQL", 0)]
    out = tmp_path / "out.csv"
    words = ["published", "compact"]
    assert main([*words, str(write_curves(tmp_path / "in.csv", rows)), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert [(point.task, point.method, point.step) for point in read_file(out)] == [
        ("cube-double-task1", "FQL", 0),
        ("cube-double-task1", "FQL", 200_000),
    ]
    assert main([*words, str(write_curves(tmp_path / "in.csv")), "--out", str(tmp_path / "no.csv")]) == 2
    assert re.fullmatch(r"error: nothing to carry over .* no known method of a source\n", capsys.readouterr().err)
    assert main([*words, str(tmp_path / "nowhere")]) == 2
    assert re.fullmatch(r"error: no file or folder at .*\n", capsys.readouterr().err)
    assert {path.name for path in tmp_path.iterdir()} == {"in.csv", "out.csv"}


def test_compact_command_names_the_nearest_word(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["published", "compactt", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown command 'published compactt' (did you mean 'published compact'?); see ")
    assert main(["publish", "compact", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command 'publish' (did you mean 'published'?); see ")


def test_methods_of_sources_are_our_agents():
    assert agent_of("qc_plot_data", "QC-FQL") == "qc_fql"
    assert agent_of("qc_plot_data", "FQL") == "fql"
    # In the QAM release every agent acts in chunks of 5: its FQL is QC-FQL here.
    assert agent_of("qam_cube_success_by_seed", "FQL") == "qc_fql"
    assert agent_of("cfp_paper_table5", "QCFQL-nstep-O2O") == "flow_mlp"
    assert agent_of("qc_plot_data", "RLPD-AC") == agent_of("qam_cube_success_by_seed", "RLPD") == "rlpd_ac"
    assert agent_of("qc_plot_data", "RLPD") == "rlpd"
    assert agent_of("qam_cube_success_by_seed", "FAWAC") == "fawac"
    listed = {method.agent for source in known_sources().values() for method in source.methods.values()}
    assert listed - AGENTS.keys() == {"fedit"}, "of these nothing can be run here"


def test_methods_that_no_table_lists_are_agents_of_their_own_name():
    assert agent_of("somebody", "My Method-2") == "my_method_2"
    assert agent_of("qc_plot_data", "My Method-2") == "my_method_2"
    assert protocol_of("qc_plot_data", "My Method-2") == known_sources()["qc_plot_data"].protocol
    assert set(vars(protocol_of("somebody", "My Method-2")).values()) == {None}


def test_protocols_tell_what_forbids_a_comparison():
    ours = protocol_of("qc_plot_data", "QC-FQL")
    assert differences(ours, ours) == ([], [])
    forbidding, remarks = differences(ours, protocol_of("qam_cube_success_by_seed", "FQL"))
    assert forbidding == ["critics: theirs 10, ours 2"]
    assert "online steps: theirs 500k, ours 1M" in remarks
    assert "success timing not known" in remarks
    forbidding, _ = differences(ours, protocol_of("qc_plot_data", "FQL"))
    assert forbidding == ["steps per chunk: theirs 1, ours 5"]


def test_a_learning_rate_and_a_warm_up_are_told_where_the_source_is_known_to_have_others():
    theirs = protocol_of("simbav2_release", "SAC")
    ours = dataclasses.replace(theirs, learning_rate=3e-4, warmup_steps=10_000)
    told = ["learning rate: theirs 0.001, ours 0.0003", "steps before the first update: theirs 5k, ours 10k"]
    assert differences(ours, theirs) == ([], told)
    wide = dataclasses.replace(ours, critic_layers="512, 512")
    assert differences(wide, theirs)[0] == ["layers of the critics: theirs 256, 256, ours 512, 512"]
    silent = protocol_of("cleanrl_benchmark", "SAC")
    assert not [remark for remark in differences(ours, silent)[1] if remark.startswith(("learning", "steps before"))]


# --------------------------------------------------------------------------------------------------- importing


def test_imported_rates_have_the_means_of_the_file(tmp_path: Path):
    tasks = tuple(f"cube-{size}-play-singletask-task{k}-v0" for size in ("double", "triple") for k in (1, 2, 3))
    path = write_seeds(tmp_path / "mine.csv.gz", seed_rows(("FQL", "QAM-E", "BAM"), tasks, seeds=5))
    import_as_results(path, tmp_path / "results")
    table: Any = pd.read_csv(path)
    suites = load_results(tmp_path / "results")
    assert [suite.name for suite in suites] == ["mine-cube-double", "mine-cube-triple"]
    for suite in suites:
        assert (suite.origin, suite.eval_episodes, suite.success_timing) == ("published", 50, "unknown")
        assert suite.agents == ("bam", "fql", "qam_e")
        rows = table[table.task.str.startswith(suite.name.removeprefix("mine-"))]
        for method, agent in (("FQL", "fql"), ("QAM-E", "qam_e"), ("BAM", "bam")):
            plain = rows[rows.method == method].groupby(["offline_updates", "online_steps"]).success_rate.mean()
            cells = suite.cells_of(agent)
            assert len(cells) == 3
            offline = np.mean([cell.offline_score.mean(axis=0) for cell in cells], axis=0)
            online = np.mean([cell.online_score.mean(axis=0) for cell in cells], axis=0)
            assert offline == pytest.approx([plain[50, 0], plain[100, 0]], abs=1e-12)
            assert online == pytest.approx([plain[100, 0], plain[100, 20], plain[100, 40]], abs=1e-12)


# ---------------------------------------------------------------------------------------- the permutation test


def sample(values: Any) -> Sample:
    values = np.asarray(values, dtype=np.float64)
    return Sample(float(values.mean()), values, 50)


def point(mean: float, n: int, low: float = math.nan, high: float = math.nan, std: float = math.nan) -> PublishedPoint:
    return PublishedPoint("qc_plot_data", "s", "cube-double-task1", "QC-FQL", 0, mean, low, high, std, n)


def adjusted(tests: list[equality.Splits]) -> list[float]:
    return holm([test.p for test in tests], [test.reachable for test in tests]).tolist()


def test_splits_are_those_of_scipys_exact_permutation_test():
    rng = np.random.default_rng(0)
    for n, m in ((3, 4), (5, 5), (4, 7)):
        ours, theirs = rng.integers(51, size=n) / 50, rng.integers(20, 51, size=m) / 50
        exact = stats.permutation_test(
            (ours, theirs),
            lambda a, b, axis: abs(a.mean(axis) - b.mean(axis)),
            alternative="greater",
            n_resamples=10**6,
        )
        assert equality.equality_test([(sample(ours), sample(theirs))]).p == pytest.approx(float(exact.pvalue))


def test_splits_of_all_or_nothing_runs_are_hypergeometric():
    # 6 of 6 solved against 1 of 6: two-sided 2 * C(7, 6) / C(12, 6).
    p = equality.equality_test([(sample(np.ones(6)), sample([1, 0, 0, 0, 0, 0]))]).p
    assert p == pytest.approx(2 * 7 / 924)


def test_splits_of_two_tasks_are_those_of_an_enumeration():
    rng = np.random.default_rng(1)
    pools = [rng.integers(51, size=6) / 50, rng.integers(51, size=5) / 50]
    sizes = (3, 2)

    def difference(pool: np.ndarray, taken: tuple[int, ...]) -> float:
        return pool[list(taken)].mean() - np.delete(pool, taken).mean()

    every = [
        [difference(pool, taken) for taken in itertools.combinations(range(len(pool)), size)]
        for pool, size in zip(pools, sizes, strict=True)
    ]
    sums = np.array([abs(a + b) / 2 for a, b in itertools.product(*every)])
    observed = abs(sum(difference(pool, tuple(range(size))) for pool, size in zip(pools, sizes, strict=True))) / 2
    pairs = [(sample(pool[:size]), sample(pool[size:])) for pool, size in zip(pools, sizes, strict=True)]
    # Sums over tasks are counted in steps of 0.002 per task.
    p = equality.equality_test(pairs).p
    assert (sums >= observed + 0.003).mean() - 1e-9 <= p <= (sums >= observed - 0.003).mean() + 1e-9


def test_adjustment_is_holms_where_every_task_can_reach_every_p():
    fine = np.linspace(0.0005, 1.0, 2000)
    tests = [equality.Splits(1 - fine, fine, int(np.argmin(abs(fine - p)))) for p in (0.01, 0.04, 0.03)]
    assert adjusted(tests) == pytest.approx([0.03, 0.06, 0.06], abs=0.003)


def test_tasks_on_which_all_runs_agree_cost_the_others_nothing():
    apart = (sample(np.ones(5)), sample(np.zeros(5)))
    same = (sample(np.ones(5)), sample(np.ones(5)))
    alone = adjusted([equality.equality_test([apart])])[0]
    among = adjusted([equality.equality_test([pair]) for pair in (apart, same, same, same, same)])
    assert alone == pytest.approx(2 / 252)
    assert among == pytest.approx([alone, 1, 1, 1, 1])


# ------------------------------------------------------------------------------- runs that stand for published ones


@pytest.mark.parametrize(
    ("mean", "spread", "n"),
    [(0.5, 0.2, 4), (0.5, 0.2, 5), (0.97, 0.04, 4), (0.03, 0.05, 8), (0.9, 0.2, 5), (0.4, 0.0, 4)],
)
def test_runs_that_stand_for_others_have_their_mean_and_spread(mean: float, spread: float, n: int):
    values = equality.spread_out(mean, spread, n)
    assert values.mean() == pytest.approx(mean)
    assert values.std(ddof=1) == pytest.approx(spread)
    assert values.min() >= 0
    assert values.max() <= 1


def test_spread_of_a_bootstrap_interval_is_that_of_the_runs():
    rng = np.random.default_rng(2)
    ratios = []
    for _ in range(200):
        runs = rng.beta(4, 3, size=4)
        low, high = np.quantile(runs[rng.integers(4, size=(2000, 4))].mean(axis=1), [0.025, 0.975])
        stand_in = published_sample(point(float(runs.mean()), 4, float(low), float(high)))
        ratios.append(stand_in.values.std(ddof=1) / runs.std(ddof=1))
    assert np.median(ratios) == pytest.approx(1.0, abs=0.1)


def test_published_deviation_is_taken_for_the_smaller_kind():
    runs = np.array([0.2, 0.4, 0.5, 0.9])
    stand_in = published_sample(point(0.5, 4, std=float(runs.std())))
    assert stand_in.values.std(ddof=1) == pytest.approx(runs.std(ddof=1))


def test_without_a_spread_runs_are_all_or_nothing():
    assert published_sample(point(0.56, 5)).values == pytest.approx([1, 1, 0.8, 0, 0])
    assert published_sample(point(1.0, 5)).values == pytest.approx(np.ones(5))


# ---------------------------------------------------------------------------------------------------- the rule


def verdict_of(ours: Any, theirs: Any) -> str:
    return compare([(sample(ours), sample(theirs))])[0][2]


def test_verdicts_of_plain_cases():
    low, high = np.full(8, 0.2) + np.linspace(-0.1, 0.1, 8), np.full(8, 0.8) + np.linspace(-0.1, 0.1, 8)
    assert verdict_of(low, high) == BELOW
    assert verdict_of(high, low) == ABOVE
    assert verdict_of(high, high) == CONFORMANT
    assert verdict_of(np.tile([0.0, 1.0], 4), np.tile([1.0, 0.0], 4)) == NOT_ENOUGH


def test_tiny_difference_on_a_saturated_task_is_conformant():
    (gap, p, verdict, _) = compare([(sample(np.full(12, 0.98)), sample(np.ones(12)))])[0]
    assert p < 1e-4
    assert gap.high < 0
    assert verdict == CONFORMANT


def test_interval_of_runs_without_spread_is_that_of_their_episodes():
    gap = verdicts.difference([(sample(np.ones(5)), sample(np.ones(5)))])
    likely = 251 / 252
    error = math.sqrt(2 * likely * (1 - likely) / 50 / 5)
    assert gap.high == pytest.approx(2.306004 * error)  # t(0.975, 8)
    assert gap.low == -gap.high


def test_interval_of_the_difference_is_welchs():
    rng = np.random.default_rng(3)
    ours, theirs = rng.uniform(size=5), rng.uniform(0.2, 0.6, size=9)
    gap = verdicts.difference([(sample(ours), sample(theirs))])
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert (gap.low, gap.high) == pytest.approx((expected.low, expected.high))


def test_three_seeds_are_too_few_for_conformant_and_for_an_alarm_against_three():
    assert verdict_of(np.ones(3), np.ones(12)) == NOT_ENOUGH
    assert verdict_of(np.zeros(3), np.ones(3)) == NOT_ENOUGH  # one split in ten is as extreme
    assert verdict_of(np.zeros(3), np.ones(12)) == BELOW
    assert verdict_of([0.5], np.full(12, 0.5)) == NOT_ENOUGH


def test_seeds_that_cannot_help_are_said_to_be_theirs():
    theirs = [0.0, 1.0, 1.0, 0.0]
    reason = compare([(sample(np.full(50, 0.5)), sample(theirs))])[0][3]
    assert "published seeds alone leave" in reason


# ------------------------------------------------------------------------------------------------- error rates


@pytest.mark.parametrize(
    "pool",
    [
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 1],
        [0, 0.9, 0.92, 0.94, 0.96, 0.98, 1, 1, 1, 1],
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1],
    ],
)
@pytest.mark.parametrize("ours", [3, 5, 7])
def test_no_more_than_one_split_in_twenty_is_a_false_alarm(pool: list[float], ours: int):
    runs = np.array(pool)
    splits = list(itertools.combinations(range(10), ours))
    alarms = sum(verdict_of(runs[list(taken)], np.delete(runs, taken)) in (BELOW, ABOVE) for taken in splits)
    assert alarms / len(splits) <= 0.05


def draw_suite(rng: np.random.Generator, seeds: int, learned: float) -> list[np.ndarray]:
    """Rates on five tasks: a run has learned, with another probability on each, or collapsed; one is saturated."""
    tasks = []
    for share in (0.3, 0.6, 0.8, 0.95, 1.0):
        level = 1.0 if share == 1.0 else learned
        rate = np.where(rng.random(seeds) < share, level, 0.05) + rng.normal(0, 0.05, size=seeds) * (share < 1)
        tasks.append(rng.binomial(50, np.clip(rate, 0, 1)) / 50)
    return tasks


def alarm_in_suite(ours: list[np.ndarray], theirs: list[Sample]) -> bool:
    found = compare([(sample(a), b) for a, b in zip(ours, theirs, strict=True)])
    return any(verdict in (BELOW, ABOVE) for _, _, verdict, _ in found)


@pytest.mark.parametrize("form", ["per seed", "interval", "deviation"])
def test_equal_method_is_called_different_in_one_suite_of_twenty_at_most(form: str):
    rng = np.random.default_rng(4)
    trials, alarms = 200, 0

    def as_published(runs: np.ndarray) -> Sample:
        if form == "per seed":
            return sample(runs)
        if form == "deviation":
            return published_sample(point(float(runs.mean()), len(runs), std=float(runs.std())))
        low, high = np.quantile(runs[rng.integers(len(runs), size=(500, len(runs)))].mean(axis=1), [0.025, 0.975])
        return published_sample(point(float(runs.mean()), len(runs), float(low), float(high)))

    for _ in range(trials):
        alarms += alarm_in_suite(draw_suite(rng, 6, 0.8), [as_published(runs) for runs in draw_suite(rng, 6, 0.8)])
    # 5 % of them with two standard errors of the count itself.
    assert alarms <= 0.05 * trials + 2 * math.sqrt(0.05 * 0.95 * trials)


def test_worse_method_is_caught_with_twelve_seeds():
    rng = np.random.default_rng(5)
    caught = [
        alarm_in_suite(draw_suite(rng, 12, 0.3), [sample(runs) for runs in draw_suite(rng, 12, 0.8)]) for _ in range(40)
    ]
    assert all(caught)


# --------------------------------------------------------------------------------------- a suite of our own runs


def write_suite(
    root: Path,
    rates: dict[str, float],
    seeds: int = 8,
    agent: str = "qc_fql",
    suite: str = "ogbench-cube-triple",
    origin: str = "published",
    settings: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Runs at the published protocol, evaluated at the steps of the compact table, with these rates after 1M steps."""
    rng = np.random.default_rng(6)
    for (task, rate), seed in itertools.product(rates.items(), range(seeds)):
        points = [SeedRate(0, "", task, 500_000, 0, seed, 0.0)]
        for step in COMPARED_STEPS:
            solved = rng.binomial(50, rate * step / 1_000_000) / 50
            points.append(SeedRate(0, "", task, 1_000_000, step, seed, solved))
        content = {
            "schema_version": SCHEMA_VERSION,
            "suite": suite,
            "task": task,
            "agent": agent,
            "seed": seed,
            "dataset": "cube-triple-play-v0",
            "success_timing": "post",
            "offline_updates": 1_000_000,
            "online_steps": 1_000_000,
            "eval_episodes": 50,
            "utd_ratio": 1,
            "agent_config": {"num_critics": 2, "chunk_length": 5, "critic_updates_per_offline_step": 1}
            | (settings or {}),
        }
        folder = root / suite / task / agent / f"seed_{seed:03d}"
        content |= config
        write_run(folder, content | {"config_hash": config_hash(content)}, {}, points)
        provenance = json.loads((folder / "provenance.json").read_text())
        provenance["dataset"]["origin"] = origin
        (folder / "provenance.json").write_text(json.dumps(provenance))
    return root


def load_one(root: Path) -> Suite:
    (suite,) = load_results(root)
    return suite


def rows_of(root: Path, source: str = "qc_plot_data", step: int = 1_000_000) -> dict[str, verdicts.Verdict]:
    rows = judge(load_one(root), read_published())
    return {row.task: row for row in rows if row.source == source and row.step == step}


TRIPLE = {"cube-triple-task1": 1.0, "cube-triple-task2": 0.4, "cube-triple-task3": 0.5, "cube-triple-task5": 0.0}


def test_runs_get_a_verdict_by_task_and_one_over_all(tmp_path: Path):
    # QC-FQL is published with 1.00, 0.89, 0.52 [0.29, 0.70] and 0.00 on these tasks.
    rows = rows_of(write_suite(tmp_path, TRIPLE))
    assert {task: row.verdict for task, row in rows.items()} == {
        "cube-triple-task1": CONFORMANT,
        "cube-triple-task2": BELOW,
        "cube-triple-task3": NOT_ENOUGH,
        "cube-triple-task5": CONFORMANT,
        "all tasks": BELOW,
    }
    low = rows["cube-triple-task2"]
    assert low.ours is not None and low.difference is not None
    assert low.ours.seeds == (8, 8)
    assert low.published.mean == pytest.approx(0.89, abs=0.005)
    assert low.difference.mean == pytest.approx(low.ours.mean - low.published.mean)
    assert rows["all tasks"].num_tasks == 4


def test_steps_that_get_a_verdict_are_fixed_in_advance(tmp_path: Path):
    rows = judge(load_one(write_suite(tmp_path, TRIPLE)), read_published())
    assert {row.step for row in rows if row.source == "qc_plot_data"} == set(COMPARED_STEPS)


def test_step_that_one_task_has_not_reached_gets_a_verdict_on_the_others(tmp_path: Path):
    root = write_suite(tmp_path, TRIPLE, seeds=5)
    for folder in (root / "ogbench-cube-triple/cube-triple-task1/qc_fql").iterdir():
        (folder / "complete.json").unlink()
        status = json.loads((folder / "status.json").read_text())
        (folder / "status.json").write_text(json.dumps(status | {"state": "running"}))
        kept = [row for row in (folder / "episodes.csv").read_text().splitlines() if ",1000000," not in row[8:]]
        (folder / "episodes.csv").write_text("\n".join(kept) + "\n")
    (suite,) = load_results(root, allow_incomplete=True)
    rows = [row for row in judge(suite, read_published()) if (row.source, row.step) == ("qc_plot_data", 10**6)]
    assert sorted(row.task for row in rows) == ["all tasks", *sorted(TRIPLE)[1:]]
    assert rows[-1].num_tasks == 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"settings": {"num_critics": 10}}, "critics: theirs 2, ours 10"),
        ({"settings": {"chunk_length": 1}}, "steps per chunk: theirs 5, ours 1"),
        ({"settings": {"critic_updates_per_offline_step": 2}}, "critic updates per offline step: theirs 1, ours 2"),
        ({"origin": "generated"}, "data: theirs published, ours generated"),
        ({"success_timing": "pre"}, "success timing: theirs post, ours pre"),
        ({"utd_ratio": 2}, "updates per online step: theirs 1, ours 2"),
    ],
)
def test_other_protocol_is_not_comparable_and_says_why(tmp_path: Path, changes: dict[str, Any], reason: str):
    rows = rows_of(write_suite(tmp_path, TRIPLE, seeds=2, **changes))
    assert {row.verdict for row in rows.values()} == {NOT_COMPARABLE}
    assert all(reason in row.reason for row in rows.values())
    assert "all tasks" not in rows


def test_source_that_may_be_the_best_checkpoint_is_not_comparable(tmp_path: Path):
    rows = rows_of(write_suite(tmp_path, TRIPLE, seeds=2), source="cfp_paper_table5")
    assert rows
    assert all(row.reason == "may be the best checkpoint of each curve" for row in rows.values())


def test_ten_critics_are_compared_with_ten(tmp_path: Path):
    root = write_suite(tmp_path, TRIPLE, settings={"num_critics": 10})
    rows = rows_of(root, source="qam_cube_success_by_seed", step=500_000)
    assert rows["cube-triple-task3"].verdict == BELOW  # published 0.81
    assert rows["cube-triple-task5"].verdict == CONFORMANT
    assert "success timing not known" in rows["cube-triple-task5"].reason


def test_method_with_our_chunks_is_chosen_where_a_source_has_two(tmp_path: Path):
    settings = {"chunk_length": 5}
    root = write_suite(tmp_path, {"cube-double-task1": 0.5}, seeds=2, agent="ifql", suite="s", settings=settings)
    assert {row.method for row in rows_of(root).values()} == {"QC-IFQL"}


QAM_RELEASE = ("fbrac", "fawac", "dac", "qsm", "ifql", "dsrl", "qam", "qam_e", "qam_f", "rebrac")


@pytest.mark.parametrize("agent", [*QAM_RELEASE, "qc_fql", "rlpd_ac"])
def test_agents_at_the_protocol_of_the_qam_release_are_compared(tmp_path: Path, agent: str):
    settings = json.loads(json.dumps(settings_of(AGENTS[agent][1])))
    if agent in ("qc_fql", "rlpd_ac"):
        settings |= {"num_critics": 10, "q_aggregation": "pessimistic"}
    scratch: dict[str, Any] = {"offline_updates": 0} if agent == "rlpd_ac" else {}
    root = write_suite(tmp_path, TRIPLE, agent=agent, suite="baselines-cube", settings=settings, **scratch)
    if scratch:
        for file in root.glob("*/*/*/*/episodes.csv"):
            rows = [line for line in file.read_text().splitlines(True) if not line.startswith("offline,500000")]
            file.write_text("".join(rows).replace("offline,1000000,0,", "offline,0,0,"))
            seal(file.parent)
    rows = rows_of(root, source="qam_cube_success_by_seed", step=500_000)
    assert {*TRIPLE, "all tasks"} == rows.keys()
    assert NOT_COMPARABLE not in {row.verdict for row in rows.values()}, rows["cube-triple-task5"].reason
    assert rows["cube-triple-task5"].verdict == CONFORMANT  # published as 0 of every method
    assert "value of the critics not known" not in rows["cube-triple-task5"].reason


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"q_aggregation": "mean"}, "value of the critics: theirs pessimistic, ours mean"),
        ({"q_aggregation": "pessimistic", "pessimism": 1.0}, "pessimism of the critics: theirs 0.5, ours 1.0"),
    ],
)
def test_other_value_of_as_many_critics_is_not_comparable(tmp_path: Path, settings: dict[str, Any], reason: str):
    root = write_suite(tmp_path, TRIPLE, seeds=2, agent="qam", settings={"num_critics": 10} | settings)
    rows = rows_of(root, source="qam_cube_success_by_seed", step=500_000)
    assert {row.verdict for row in rows.values()} == {NOT_COMPARABLE}
    assert all(row.reason == reason for row in rows.values())


def test_two_critics_and_their_mean_are_those_of_the_qc_release(tmp_path: Path):
    mean = {"q_aggregation": "mean", "pessimism": 0.5}  # the pessimism of a mean is not used
    assert rows_of(write_suite(tmp_path / "a", TRIPLE, settings=mean))["cube-triple-task1"].verdict == CONFORMANT
    rows = rows_of(write_suite(tmp_path / "b", TRIPLE, settings={"q_aggregation": "min"}))
    assert {row.reason for row in rows.values()} == {"value of the critics: theirs mean, ours min"}


def test_agent_that_nobody_has_heard_of_is_judged_by_its_name_and_its_variants_are_not(tmp_path: Path):
    for agent in ("my_agent", "my_agent@deep"):
        folder = write_suite(tmp_path / "results", TRIPLE, seeds=5, agent=agent)
        if "@" in agent:
            for path in folder.glob("*/*/my_agent@deep/*/config.json"):
                config = json.loads(path.read_text()) | {"agent": "my_agent", "variant": "deep"}
                config["config_hash"] = config_hash(config)
                path.write_text(json.dumps(config))
    rows = [f"theirs,s,cube-triple-task1,My Agent,{step},0.9,std:0.1,6" for step in COMPARED_STEPS]
    points = read_published(write_curves(tmp_path / "theirs.csv", rows))
    suite = load_one(tmp_path / "results")
    assert suite.agents == ("my_agent", "my_agent@deep")
    assert {(row.agent, row.method) for row in judge(suite, points)} == {("my_agent", "My Agent")}
    assert len(overlay.draw_published(suite, points, tmp_path)) == 3


def test_suite_without_published_tasks_has_no_verdict(tmp_path: Path):
    root = write_suite(tmp_path, {"cube-single-task1": 0.5}, seeds=2)
    assert judge(load_one(root), read_published()) == []


# ------------------------------------------------------------------------------------------ tables and figure


def test_command_writes_verdicts_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture):
    root = write_suite(tmp_path / "results", TRIPLE, seeds=6)
    out = tmp_path / "out"
    assert main(["--results", str(root), "--out", str(out)]) == 0
    again = overlay.draw_published(load_one(root), read_published(), tmp_path)
    assert [path.name for path in again] == [f"ogbench-cube-triple_published.{kind}" for kind in ("pdf", "svg", "png")]
    for path in again:
        assert path.read_bytes() == (out / path.name).read_bytes()
    table = pd.read_csv(out / "ogbench-cube-triple_verdicts.csv")
    row = table[(table.source == "qc_plot_data") & (table.step == 10**6) & (table.task == "cube-triple-task2")].iloc[0]
    assert row.verdict == BELOW
    assert row.difference == pytest.approx(row.ours - row.published, abs=2e-6)
    assert row.difference_low < row.difference < row.difference_high < 0
    assert (row.ours_seeds_min, row.published_seeds_min) == (6, 4)
    text = (out / "ogbench-cube-triple_verdicts.md").read_text()
    assert "| cube-triple-task2 | +1M " in text
    assert "### QC-FQL against QC-FQL, Q-chunking release" in text
    assert "| QC-FQL |" in capsys.readouterr().out.split("against published numbers")[1]
    image = imread(out / "ogbench-cube-triple_published.png")[..., :3]
    colours = (np.array(to_rgb("#E69F00")), np.array(to_rgb(overlay.GREYS[0].color)))
    for colour in colours:
        assert (np.abs(image - colour).max(axis=-1) < 0.05).sum() > 100


def test_command_refuses_a_bad_published_file(tmp_path: Path, capsys: pytest.CaptureFixture):
    root = write_suite(tmp_path / "results", TRIPLE, seeds=2)
    bad = write_curves(tmp_path / "bad.csv", [CURVES[0], "x"])
    assert main(["--results", str(root), "--published", str(bad)]) == 2
    assert capsys.readouterr().err == f"error: {bad}, line 3: 1 fields, expected 8\n"
    assert not (root / "figures").exists()


def test_given_curves_are_drawn_and_judged(tmp_path: Path):
    root = write_suite(tmp_path / "results", TRIPLE, seeds=5)
    steps = range(-1_000_000, 1_000_001, 100_000)
    rows = [f"mine,s,cube-triple-task1,QC FQL,{step},0.5,std:0.1,6" for step in steps]
    points = read_published(write_curves(tmp_path / "mine.csv", rows))
    suite = load_one(root)
    judged = [row for row in judge(suite, points) if row.source == "mine"]
    assert [row.step for row in judged] == list(COMPARED_STEPS)
    assert judged[-1].verdict == ABOVE
    assert "critics not known" in judged[-1].reason
    figure = overlay.published_figure(suite, verdicts.counterparts(suite, points))
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "mine, 6 seeds" in entries, "how protocols differ is long, and for the verdicts to say"
    assert any(entry.startswith("Q-chunking release, 4 seeds") for entry in entries)
    curve = [line for line in figure.axes[0].lines if np.size(line.get_xdata()) == 21 and line.get_linestyle() != "-"]
    assert any(np.allclose(line.get_ydata(), 0.5) for line in curve)


def test_published_points_beyond_our_budget_are_left_out(tmp_path: Path):
    root = write_suite(tmp_path, TRIPLE, seeds=2)
    suite = load_one(root)
    assert overlay.published_position(suite, 0) == 0.0
    assert overlay.published_position(suite, 500_000) == pytest.approx(overlay.phase_widths(suite)[1] / 2)
    assert overlay.published_position(suite, -1_000_000) == pytest.approx(-overlay.phase_widths(suite)[0])
    assert overlay.published_position(suite, 1_100_000) is None


def test_verdict_table_has_one_header_and_no_loose_commas(tmp_path: Path):
    suite = load_one(write_suite(tmp_path, TRIPLE, seeds=2))
    text = verdict_tables.numbers_table(suite, judge(suite, read_published())).csv()
    assert len({len(row) for row in csv.reader(io.StringIO(text))}) == 1
