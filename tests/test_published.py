"""Published numbers: reading them, taking them for runs, and the verdict on ours. All data are made here."""

import gzip
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import published
from analysis.imported import import_as_results
from analysis.load import load_results
from analysis.published import (
    COMPACT,
    COMPARED_STEPS,
    CURVES_HEADER,
    SEEDS_HEADER,
    SOURCES,
    PublishedError,
    agent_of,
    compact_text,
    differences,
    protocol_of,
    read_file,
    read_published,
)

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
    points = read_file(write_curves(tmp_path / "curves.csv"))
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
    assert {point.step for point in points.values()} == set(COMPARED_STEPS)
    for source, _, method, _ in points:
        assert method in SOURCES[source].methods


def test_compact_table_says_where_it_is_from():
    comments = [line for line in COMPACT.read_text().splitlines() if line.startswith("#")]
    for source in {point.source for point in read_published()}:
        (line,) = [line for line in comments if line.startswith(f"# {source}:")]
        assert SOURCES[source].citation in line
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
    assert published.main(["compact", str(write_curves(tmp_path / "in.csv", rows)), "--out", str(out)]) == 0
    assert [(point.task, point.method, point.step) for point in read_file(out)] == [
        ("cube-double-task1", "FQL", 0),
        ("cube-double-task1", "FQL", 200_000),
    ]
    assert published.main(["compact", str(write_curves(tmp_path / "in.csv")), "--out", str(tmp_path / "no.csv")]) == 2
    assert "no known method" in capsys.readouterr().err
    assert not (tmp_path / "no.csv").exists()


def test_methods_of_sources_are_our_agents():
    assert agent_of("qc_plot_data", "QC-FQL") == "qc_fql"
    assert agent_of("qc_plot_data", "FQL") == "fql"
    # In the QAM release every agent acts in chunks of 5: its FQL is QC-FQL here.
    assert agent_of("qam_cube_success_by_seed", "FQL") == "qc_fql"
    assert agent_of("cfp_paper_table5", "QCFQL-nstep-O2O") == "flow_mlp"
    assert agent_of("somebody", "My Method-2") == "my_method_2"


def test_protocols_tell_what_forbids_a_comparison():
    ours = protocol_of("qc_plot_data", "QC-FQL")
    assert differences(ours, ours) == ([], [])
    forbidding, remarks = differences(ours, protocol_of("qam_cube_success_by_seed", "FQL"))
    assert forbidding == ["critics: published 10, ours 2"]
    assert "online steps: published 500k, ours 1M" in remarks
    assert "success timing not known" in remarks
    forbidding, _ = differences(ours, protocol_of("qc_plot_data", "FQL"))
    assert forbidding == ["steps per chunk: published 1, ours 5"]


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


def test_imported_runs_say_where_they_are_from(tmp_path: Path):
    path = write_seeds(tmp_path / "qam_cube_success_by_seed.csv")
    import_as_results(path, tmp_path / "results")
    folder = tmp_path / "results/qam-cube-double/cube-double-task1/qc_fql/seed_002"
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["dataset"]["origin"] == "published"
    assert provenance["imported"]["file"] == path.name
    assert "2601.14234" in provenance["imported"]["source"]
    assert "return and length are 0" in provenance["imported"]["note"]
    config = json.loads((folder / "config.json").read_text())
    assert config["agent_config"] == {"num_critics": 10, "chunk_length": 5}
    assert (config["offline_updates"], config["online_steps"]) == (100, 40)


def test_methods_without_an_offline_phase_are_left_out_by_name(tmp_path: Path):
    rows = [*seed_rows(), *(f"RLPD,cube-double-task1,0,{k},{s},0.5" for k in (20, 40) for s in range(4))]
    lines = import_as_results(write_seeds(tmp_path / "mine.csv", rows), tmp_path / "results")
    assert "left out: RLPD, it has no offline phase" in lines[0]
    assert load_results(tmp_path / "results")[0].agents == ("fql", "qam_e")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows[:-1], rows[-1].rsplit(",", 1)[0] + ",0.25"], "expected a multiple of 1/50"),
        (lambda rows: rows[:-1], "has no row at offline_updates 100, online_steps 40"),
        (lambda rows: [row for row in rows if ",100,0," not in row], "no row at the end of its offline phase (100, 0)"),
        (lambda rows: rows + [row.replace("FQL", "fql") for row in rows if "FQL" in row], "cannot be told from"),
        (lambda rows: [row for row in rows if row.startswith("None")], "no method has an offline phase"),
    ],
)
def test_import_refuses_what_is_no_results_folder(tmp_path: Path, change: Callable, message: str):
    path = write_seeds(tmp_path / "mine.csv", change(seed_rows()))
    with pytest.raises(PublishedError) as error:
        import_as_results(path, tmp_path / "results")
    assert message in str(error.value)
    assert not list((tmp_path / "results").glob("*"))


def test_import_command_does_not_touch_a_suite_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture):
    arguments = ["import", str(write_seeds(tmp_path / "mine.csv")), "--results", str(tmp_path / "results")]
    assert published.main(arguments) == 0
    assert f"wrote {tmp_path / 'results/mine-cube-double'}: 16 runs" in capsys.readouterr().out
    before = sorted(path for path in (tmp_path / "results").rglob("*"))
    assert published.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "exists" in error
    assert error.count("\n") == 1
    assert sorted(path for path in (tmp_path / "results").rglob("*")) == before
