"""The contract of a run's folder: names, finding runs, files that are replaced whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.runs import contract
from bench.runs.contract import (
    CONFIG,
    RunName,
    StorageError,
    broken_links,
    find_runs,
    flat,
    named_run,
    nearest,
    read_json,
    replacing,
    write_atomically,
    write_json,
)

PART = st.text("abcXYZ019_.-", min_size=1, max_size=12).filter(lambda text: not text.startswith("."))
NAMES = st.builds(
    RunName, suite=PART, task=PART, agent=PART, variant=st.text("ab0_.,=+-", max_size=8), seed=st.integers(0, 99_999)
)


@given(NAMES)
def test_a_runs_name_comes_back_from_its_text_its_path_and_its_config(name):
    assert RunName.parse(str(name)) == name
    assert RunName.parse(str(name.directory(Path("/some/results")))) == name
    config = {"suite": name.suite, "task": name.task, "agent": name.agent, "variant": name.variant, "seed": name.seed}
    assert RunName.of_config(config) == name


@pytest.mark.parametrize("text", ["", "quick", "a/b/c", "a/b/c/seed_", "a/b/c/seed_1", "a/b/c/seed_001/x"])
def test_other_text_is_no_runs_name(text):
    assert RunName.parse(text) is None


def test_variants_of_an_agent_are_other_runs():
    own = RunName("s", "t", "fql", "", 3)
    variant = RunName("s", "t", "fql", "k8", 3)
    assert (own.label, variant.label) == ("fql", "fql@k8") and own.group != variant.group
    assert str(variant) == "s/t/fql@k8/seed_003"


def make_run(results: Path, name: str, *files: str) -> Path:
    directory = results / name
    directory.mkdir(parents=True)
    for file in files:
        (directory / file).write_text("{}")
    return directory


def test_runs_are_found_at_and_below_any_folder(tmp_path):
    names = ["a/t/fql/seed_000", "a/t/fql@k8/seed_000", "a/u/qc/seed_001", "b/t/fql/seed_000"]
    runs = [make_run(tmp_path, name, CONFIG) for name in names]
    make_run(tmp_path, "offline/0123/t/fql/seed_000", CONFIG)  # a shared offline phase belongs to no suite
    make_run(tmp_path, ".trash/t/fql/seed_000", CONFIG)
    unborn = make_run(tmp_path, "b/t/qc/seed_000")
    assert find_runs(tmp_path) == sorted(runs)
    assert find_runs(tmp_path, holding=None) == sorted([*runs, unborn])
    assert find_runs(tmp_path / "a") == runs[:3]
    assert find_runs(tmp_path / "a" / "t") == runs[:2]
    assert find_runs(tmp_path / "a" / "t" / "fql@k8") == [runs[1]] == find_runs(runs[1])
    assert find_runs(tmp_path, label="fql") == [runs[0], runs[3]]
    assert find_runs(tmp_path / "nothing") == []


def test_links_that_lead_nowhere_are_found_where_runs_belong(tmp_path):
    run = make_run(tmp_path, "a/t/fql/seed_000", CONFIG)
    lost = [tmp_path / name for name in ("a/t/fql/seed_001", "a/t/qc", "a/u", "b")]
    for link in lost:
        link.symlink_to(tmp_path / "gone" / link.name)
    (run.parent / "seed_002").symlink_to(run)
    for other in ("grids/x/job", "offline/k/t/fql", ".cache/x", "a/t/fql/notes"):  # no places of runs
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).symlink_to(tmp_path / "gone")
    assert broken_links(tmp_path) == sorted(lost)
    assert broken_links(tmp_path / "nothing") == []


def test_a_run_is_named_by_path_or_name(tmp_path):
    run = make_run(tmp_path, "a/t/fql@k8/seed_000", CONFIG)
    assert named_run("a/t/fql@k8/seed_000", tmp_path) == run == named_run(str(run), Path("elsewhere"))
    with pytest.raises(contract.ConfigError, match="there is no run 'a/t/fql/seed_000'"):
        named_run("a/t/fql/seed_000", tmp_path)


def test_flat_names_inner_fields_by_dots():
    assert flat({"a": 1, "b": {"c": [1, 2], "d": {"e": None}}}) == {"a": 1, "b.c": [1, 2], "b.d.e": None}


def test_nearest_guesses_only_what_is_near():
    assert nearest("sac_flw_g", ["sac_flow_g", "fql"]) == " (did you mean 'sac_flow_g'?)"
    assert nearest("zzz", ["sac_flow_g", "fql"]) == ""


def test_json_comes_back_and_what_is_none_is_refused_in_one_line(tmp_path):
    path = tmp_path / "x.json"
    assert read_json(path) is None
    write_json(path, {"b": 1, "a": "ü"})
    assert read_json(path) == {"a": "ü", "b": 1} and list(json.loads(path.read_text())) == ["a", "b"]
    path.write_text(path.read_text(), encoding="utf-8-sig")  # with a mark, as Windows' editors save it
    assert read_json(path) == {"a": "ü", "b": 1}
    for text in ('{"a": ', "[1, 2]", "3"):
        path.write_text(text)
        with pytest.raises(StorageError, match=r"x\.json") as error:
            read_json(path)
        assert "\n" not in str(error.value)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(ZeroDivisionError), replacing(path) as draft:
        draft.write_bytes(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match="cannot write"):
        write_atomically(tmp_path / "missing" / "file", b"new")


def test_the_contract_imports_the_standard_library_alone():
    code = "import sys; import bench.runs.contract; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    root = Path(__file__).resolve().parents[1]
    loaded = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    foreign = set(loaded.split()) - sys.stdlib_module_names - {"bench"}
    assert not {name for name in foreign if not name.startswith("_")}, foreign
