"""The archive of runs: what goes into it, what is drawn of it, and whether its runs come out the same again."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import analysis.__main__
import bench.__main__
from bench.runs.contract import EPISODES, TRAIN, read_json, sums_of, write_json
from bench.tools.archive import ArchiveOptions, selected_runs
from bench.training.execution import Execution
from bench.training.train import run
from tests.tiny_runs import ROOT, tiny_config

CELL = "tiny/toy-reach/qc_fql"
EXECUTION = ("--eval-workers", "1", "--env-workers", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def results(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two complete runs of one cell."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("O2O_BENCH_DATA", str(tiny_data))
        configs = [tiny_config("qc_fql", seed) for seed in range(2)]
        run(configs, folder, Execution(device="cpu", eval_workers=1, env_workers=0), lambda: False)
    return folder


@pytest.fixture
def own(results: Path, tmp_path: Path) -> Path:
    """A copy of the runs that a test may change."""
    return shutil.copytree(results, tmp_path / "own")


@pytest.fixture
def archive(results: Path, tmp_path: Path) -> Path:
    assert archived(results, tmp_path / "archive") == 0
    return tmp_path / "archive"


def archived(results: Path, out: Path, *options: str) -> int:
    return bench.__main__.main(["archive", "tiny", "--results", str(results), "--out", str(out), *options])


def verified(archive: Path, repeated: Path, cell: str = CELL) -> int:
    return analysis.__main__.main(["verify", cell, "--reference", str(archive), "--results", str(repeated)])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: "), error
    return error


def run_folders(root: Path) -> Iterator[Path]:
    yield from sorted((root / CELL).iterdir())


# --- what goes in


def test_an_archive_gives_the_figures_and_tables_of_its_runs_and_names_no_machine(results, archive, tmp_path):
    for name, root in (("before", results), ("after", archive)):
        assert analysis.__main__.main(["--results", str(root), "--out", str(tmp_path / name)]) == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "before").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "after").iterdir()} and len(files) > 10
    host = json.loads((results / CELL / "seed_000" / "provenance.json").read_text())["starts"][0]["host"]
    for folder in run_folders(archive):
        names = {path.name for path in folder.iterdir()}
        assert names == {"config.json", "provenance.json", "episodes.csv", "train.csv", "complete.json"}
        start = json.loads((folder / "provenance.json").read_text())["starts"][0]
        assert start["device"] and not {"host", "slurm_job", "visible_gpus"} & start.keys()
        assert "owner" not in json.loads((folder / "complete.json").read_text()) and host


def test_a_run_is_archived_once_and_another_one_never_replaces_it(results, own, archive, capsys):
    assert archived(results, archive) == 0
    assert "2 runs of tiny" in (said := capsys.readouterr().out) and "2 of them were there already" in said
    folder = archive / CELL / "seed_001"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    changed = (own / CELL / "seed_001" / TRAIN).read_bytes().replace(b"1", b"2")
    edit(own / CELL / "seed_001", TRAIN, changed, with_sum=True)
    assert archived(own, archive) == 2
    assert "seed_001 holds another run (train.csv differs)" in error_of(capsys)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def edit(folder: Path, file: str, content: bytes, with_sum: bool = False) -> None:
    """Changes a file of rows, and what complete.json says of it."""
    (folder / file).write_bytes(content)
    marker = read_json(folder / "complete.json")
    if with_sum and marker:
        marker["files"][file] = sums_of(content)
        write_json(folder / "complete.json", marker)


def test_what_is_altered_or_not_complete_is_refused_before_anything_is_written(own, tmp_path, capsys):
    folder, out = own / CELL / "seed_001", tmp_path / "out"
    rows = (folder / EPISODES).read_bytes()
    edit(folder, EPISODES, rows + b"\n")
    assert archived(own, out) == 2 and "episodes.csv is not what the run wrote" in error_of(capsys)
    edit(folder, EPISODES, rows)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"batch_size": 16', '"batch_size": 17'))
    assert archived(own, out) == 2 and "config.json was edited" in error_of(capsys)
    (folder / "config.json").write_text(config)
    (folder / "complete.json").unlink()
    assert archived(own, out) == 2 and "seed_001 is not complete" in error_of(capsys)
    provenance = (own / CELL / "seed_000" / "provenance.json").read_text()
    write_json(own / CELL / "seed_000" / "provenance.json", {"starts": 3})
    assert archived(own, out, "--seeds", "0") == 2 and "provenance.json has no list of starts" in error_of(capsys)
    (own / CELL / "seed_000" / "provenance.json").write_text(provenance)
    marker = (own / CELL / "seed_000" / "complete.json").read_text()
    for files, said in ((5, "complete.json has no sums of files"), ({EPISODES: 5}, "episodes.csv is not what the run")):
        write_json(own / CELL / "seed_000" / "complete.json", {**json.loads(marker), "files": files})
        assert archived(own, out, "--seeds", "0") == 2 and said in error_of(capsys)
    (own / CELL / "seed_000" / "complete.json").write_text(marker)
    (own / CELL / "seed_002").symlink_to(tmp_path / "gone")
    assert archived(own, out, "--seeds", "0") == 2 and "seed_002 is a link that leads nowhere" in error_of(capsys)
    (own / CELL / "seed_002").unlink()
    assert archived(own, own / "tiny", "--seeds", "0") == 2 and "name another folder" in error_of(capsys)
    assert not out.exists()
    assert archived(own, out, "--seeds", "0") == 0
    assert [path.name for path in run_folders(out)] == ["seed_000"]


def test_a_name_of_an_agent_stands_for_its_variants_too_and_with_an_at_for_none(tmp_path):
    labels = ["qc_fql", "qc_fql@narrow", "fql@narrow"]
    for label in labels:
        (tmp_path / "tiny" / "toy-reach" / label / "seed_000").mkdir(parents=True)
    expected = {
        ("qc_fql",): labels[:2],
        ("qc_fql@narrow",): labels[1:2],
        ("qc_fql@",): labels[:1],
        ("fql", "qc_fql@narrow"): labels[:0:-1],
    }
    for agents, selected in expected.items():
        runs = selected_runs(ArchiveOptions("tiny", agents=agents, results=tmp_path))
        assert [run.label for run in runs] == selected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["archive", "tinny"], "no runs of 'tinny' under"),
        (["archive", "tiny", "--agents", "qcfql"], "no run of tiny has the agent 'qcfql' (did you mean 'qc_fql'?)"),
        (["archive", "tiny", "--tasks", "toy"], "no run of tiny has the task 'toy'"),
        (["archive", "tiny", "--seeds", "7"], "no run of tiny has the seed 7; there are 0, 1"),
    ],
)
def test_runs_that_are_not_there_are_not_archived(options, message, results, tmp_path, capsys):
    assert bench.__main__.main([*options, "--results", str(results), "--out", str(tmp_path / "out")]) == 2
    assert message in error_of(capsys)


# --- what is drawn


def test_one_changed_byte_of_a_record_is_noticed(archive, capsys):
    call = ["reference", "--results", str(archive)]
    assert analysis.__main__.main(call) == 2 and "has no drawn.json" in error_of(capsys)
    assert analysis.__main__.main([*call, "--write"]) == 0
    assert analysis.__main__.main(call) == 0 and "byte for byte" in capsys.readouterr().out
    drawn = read_json(archive / "drawn.json")
    assert drawn
    name, versions = "tiny_success.png", drawn["drawn_with"]
    old = drawn["files"][name]
    drawn["files"][name] = old.replace(old[0], "0" if old[0] != "0" else "1", 1)
    write_json(archive / "drawn.json", drawn)
    assert analysis.__main__.main(call) == 1
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last == [f"{name}: other bytes", last[1]] and last[1].startswith("drawn with the same versions")
    for key in ("files", "drawn_with"):
        write_json(archive / "drawn.json", {**drawn, key: 3})
        assert analysis.__main__.main(call) == 2 and f"drawn.json: {key} is 3, expected an object" in error_of(capsys)
    write_json(archive / "drawn.json", {**drawn, "drawn_with": {**versions, "matplotlib": "1.0"}})
    assert analysis.__main__.main(call) == 1
    assert f"matplotlib 1.0 then, {versions['matplotlib']} now" in capsys.readouterr().out


def test_drawing_in_a_process_of_its_own_says_and_returns_the_same(archive, monkeypatch, capsys):
    call = ["reference", "--results", str(archive)]
    assert analysis.__main__.main([*call, "--write"]) == 0 == analysis.__main__.main(call)
    here = capsys.readouterr()
    monkeypatch.setattr("analysis.report.reference.narrower_arithmetic", lambda: {"MUJOCO_GL": "disable"})
    assert analysis.__main__.main([*call, "--write"]) == 0 == analysis.__main__.main(call)
    assert capsys.readouterr() == here and "byte for byte" in here.out
    assert analysis.__main__.main([*call[:-1], str(archive / "gone")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_archive_that_is_not_there_is_refused(tmp_path, capsys):
    gone = str(tmp_path / "gone")
    assert analysis.__main__.main(["reference", "--results", gone]) == 2
    assert "has no drawn.json" in error_of(capsys)
    assert bench.__main__.main(["repeat", CELL, "--reference", gone]) == 2
    assert "there are: none" in error_of(capsys)


# --- whether it comes out the same again


def test_a_run_that_is_trained_again_has_the_same_bytes(archive, data_cache, tmp_path, capsys):
    again = tmp_path / "again"
    assert verified(archive, again) == 2 and "train them first: make verify-reference" in error_of(capsys)
    repeat = ["repeat", CELL, "--seeds", "1", "--reference", str(archive), "--results", str(again)]
    assert bench.__main__.main([*repeat, *EXECUTION]) == 0
    capsys.readouterr()
    assert verified(archive, again) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{CELL}/seed_001: same bytes"
    assert said[-1] == f"{CELL}: agrees, same bytes; 1 of 2 seeds trained again"


@pytest.mark.parametrize(("successes", "agree"), [("01", True), ("11", False)])
def test_other_bytes_differ_here_and_on_another_machine_the_interval_decides(successes, agree, archive, own, capsys):
    """The two runs of the archive never succeed."""
    for success, folder in zip(successes, run_folders(own), strict=True):
        rows = (folder / EPISODES).read_text()
        edit(folder, EPISODES, re.sub(r"(?m)^(o.*),0,(.*,.*)$", rf"\1,{success},\2", rows).encode(), with_sum=True)
    assert verified(archive, own) == 1
    said = capsys.readouterr().out
    assert "seed_001: differs on the same type of machine: episodes.csv, line 2: " in said
    assert said.splitlines()[-1].startswith(f"{CELL}: differs, mean success rate ")
    for folder in run_folders(own):
        with_fact(folder, "device", "Another CPU")
    assert verified(archive, own) == (0 if agree else 1)
    said = capsys.readouterr().out
    assert "device: " in said and f"{CELL}: {'agrees' if agree else 'differs'}, mean success rate " in said
    shutil.rmtree(own / CELL / "seed_000")
    assert verified(archive, own) == 2 and "without an interval, as of one seed" in error_of(capsys)


@pytest.mark.parametrize(("then", "said"), [("AVX0", "AVX0"), (None, "unknown")])
def test_other_vector_instructions_are_another_machine_whatever_its_name(then, said, archive, own, capsys):
    """None: of a run before they were put down."""
    for folder in run_folders(own):
        edit(folder, TRAIN, (folder / TRAIN).read_bytes() + b"online,0,0,x,0\n", with_sum=True)
    for folder in run_folders(archive):
        with_fact(folder, "vectors", then)
    assert verified(archive, own) == 0
    assert f"(vectors: {said} then, {torch.backends.cpu.get_cpu_capability()} now)" in capsys.readouterr().out


def with_fact(folder: Path, key: str, value: str | None) -> None:
    """Writes what the run's start says of its machine; None: nothing."""
    provenance = read_json(folder / "provenance.json")
    assert provenance
    del provenance["starts"][0][key]
    provenance["starts"][0] |= {key: value} if value else {}
    write_json(folder / "provenance.json", provenance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("tiny/toy-reach/qc_fq", "(did you mean 'tiny/toy-reach/qc_fql'?)"),
        (f"{CELL} --seeds 5", f"{CELL} has no seed 5; it has 0, 1"),
        (f"{CELL} --results ARCHIVE/again", "is in the archive"),
    ],
)
def test_what_the_archive_lacks_is_not_trained_again(options, message, archive, capsys):
    words = options.replace("ARCHIVE", str(archive)).split()
    assert bench.__main__.main(["repeat", *words, "--reference", str(archive)]) == 2
    assert message in error_of(capsys)


def test_the_archive_that_comes_along_is_whole():
    """Every run of it is read, and the cell that is verified by default is there."""
    from analysis.loading.load import load_results

    reference = ROOT / "results" / "reference"
    assert all(run.complete for suite in load_results(reference) for run in suite.runs)
    cell = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("CELL "))
    assert (reference / cell.split()[-1]).is_dir()


def test_the_claim_of_the_page_is_refuted_by_seeds_of_the_archive():
    from analysis.report.claim import judge

    judgement = judge(ROOT / "results" / "reference", "qc_fql > sac_flow_g on toy", first_seed=6)
    assert (judgement.outcome, judgement.decided_at) == ("refuted", 12)
    assert round(judgement.difference or 0.0, 2) == -0.22 and round(judgement.high, 2) == -0.01
