"""What was read of complete runs is kept, and never stands for something else."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from analysis.loading import cache, load, read
from analysis.loading.load import Suite, load_results
from analysis.loading.read import ResultsError
from tests.test_analysis import edit_json, seal, write_run


@pytest.fixture(autouse=True)
def small_folders_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LEAST_RUNS", 1)


@pytest.fixture(autouse=True)
def files_settle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SETTLED_SECONDS", 0.01)


def settle() -> None:
    time.sleep(0.02)


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    original = load.read_run

    def reading(root: Path, name: str):
        read.append(name)
        return original(root, name)

    monkeypatch.setattr(load, "read_run", reading)
    return read


def write_some(root: Path) -> None:
    for seed in range(3):
        write_run(root, seed=seed)
    write_run(root, task="cube-single-task2", by_return=True, reference_returns=[0.0, 2.0])
    settle()


def same(ours: list[Suite], theirs: list[Suite]) -> bool:
    for one, other in zip(ours, theirs, strict=True):
        assert (one.name, one.tasks, one.measures, one.notes) == (other.name, other.tasks, other.measures, other.notes)
        for mine, yours in zip(one.runs, other.runs, strict=True):
            assert (mine.name, mine.config, mine.provenance) == (yours.name, yours.config, yours.provenance)
            assert np.array_equal(mine.evaluations.score, yours.evaluations.score)
            assert np.array_equal(mine.evaluations.online, yours.evaluations.online)
        for key, cell in one.cells.items():
            assert np.array_equal(cell.online_score, other.cells[key].online_score)
    return True


def test_second_look_reads_nothing_and_sees_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_some(tmp_path)
    first = load_results(tmp_path)
    read = counted_reads(monkeypatch)
    assert same(first, load_results(tmp_path)) and read == []


def test_changed_run_is_read_anew_and_the_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_some(tmp_path)
    load_results(tmp_path)
    path = tmp_path / "quick/cube-single-task1/fql/seed_001/episodes.csv"
    stat = path.stat()
    path.write_text(path.read_text().replace("online,240,40,1000,1", "online,240,40,1000,0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size and time of change, as a careless copy has
    read = counted_reads(monkeypatch)
    (suite,) = load_results(tmp_path)
    assert read == ["quick/cube-single-task1/fql/seed_001"]
    assert suite.cells["cube-single-task1", "fql"].online_score[1, -1] == 0.8


def test_fault_that_comes_later_is_refused(tmp_path: Path):
    write_some(tmp_path)
    load_results(tmp_path)
    edit_json(tmp_path / "quick/cube-single-task1/fql/seed_001/config.json", lambda config: config.update(seed=7))
    with pytest.raises(ResultsError, match="belongs to"):
        load_results(tmp_path)


def test_sums_are_checked_once_and_again_where_a_file_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = "phase,updates,env_steps,name,value\noffline,50,0,critic_loss,1.5\n"
    for folder in (write_run(tmp_path, seed=0), write_run(tmp_path, seed=1)):
        (folder / "train.csv").write_text(rows)
        seal(folder)
    settle()
    first = load_results(tmp_path)
    assert "equal bytes in train.csv" in first[0].notes[0]
    checked: list[Path] = []
    original = read.check_files
    monkeypatch.setattr(read, "check_files", lambda path, *rest: checked.append(path) or original(path, *rest))
    assert same(first, load_results(tmp_path)) and checked == []
    last = tmp_path / "quick/cube-single-task1/fql/seed_001"
    (last / "train.csv").write_text(rows.replace("1.5", "2.5"))
    with pytest.raises(ResultsError, match=r"seed_001: train.csv is not what the run wrote"):
        load_results(tmp_path)
    assert checked == [last]


def test_run_that_goes_on_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_some(tmp_path)
    write_run(tmp_path, seed=3, state="running")
    settle()
    load_results(tmp_path, allow_incomplete=True)
    read = counted_reads(monkeypatch)
    load_results(tmp_path, allow_incomplete=True)
    assert read == ["quick/cube-single-task1/fql/seed_003"]


def test_file_that_changed_a_moment_ago_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "SETTLED_SECONDS", 60.0)
    write_some(tmp_path)
    load_results(tmp_path)
    read = counted_reads(monkeypatch)
    load_results(tmp_path)
    assert len(read) == 4


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_damaged_or_foreign_cache_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
):
    write_some(tmp_path)
    first = load_results(tmp_path)
    path = tmp_path / ".cache/analysis.npz"
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    read = counted_reads(monkeypatch)
    assert same(first, load_results(tmp_path)) and len(read) == 4


def test_cache_of_other_code_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_some(tmp_path)
    load_results(tmp_path)
    monkeypatch.setattr(cache, "code_version", lambda: "of tomorrow")
    read = counted_reads(monkeypatch)
    load_results(tmp_path)
    assert len(read) == 4


def test_suites_looked_at_apart_keep_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_some(tmp_path)
    load_results(tmp_path)
    write_run(tmp_path, suite="other")
    settle()
    load_results(tmp_path, ["other"])
    read = counted_reads(monkeypatch)
    load_results(tmp_path)
    assert read == []


def test_training_episodes_are_counted_apart_from_evaluations(tmp_path: Path):
    folder = write_run(tmp_path)
    rows = ["offline,50,0,q_mean,1.5", *(f"online,{200 + k},{k},behaviour_success,{int(k > 2)}" for k in range(5))]
    (folder / "train.csv").write_text("\n".join(["phase,updates,env_steps,name,value", *rows]) + "\nonline,2")
    (suite,) = load_results(tmp_path)
    assert suite.cells["cube-single-task1", "fql"].behaviour_success.tolist() == [0.4]


def test_faulty_training_row_is_named(tmp_path: Path):
    folder = write_run(tmp_path)
    (folder / "train.csv").write_text("phase,updates,env_steps,name,value\nonline,1,1,behaviour_success,0.5\n")
    with pytest.raises(ResultsError, match=r"train.csv, line 2: 'online,1,1,behaviour_success,0.5'"):
        load_results(tmp_path)
    (folder / "train.csv").write_text("phase,updates,steps,name,value\n")
    with pytest.raises(ResultsError, match=r"train.csv: header 'phase,updates,steps,name,value', expected"):
        load_results(tmp_path)
