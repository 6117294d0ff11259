"""What torch.compile keeps: jobs of a cluster share it, each works on its own node, and files are whole or absent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.training.compiled import FOLDER, copy_new, files_in, shared_folder
from tests.tiny_runs import ROOT

JOB = """
import os, pathlib, sys
from bench.training import compiled
compiled.use_folder("Agent")
folder = pathlib.Path(os.environ[compiled.FOLDER])
print(folder, sorted(map(str, compiled.files_in(folder))))
for name in sys.argv[1:]:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(name)
compiled.share("Agent")
"""
IMPORTED = (
    """
import torch
torch._dynamo.config.recompile_limit  # imports the compiler, which names a folder in /tmp
from bench.training.engine import set_up_compiler
set_up_compiler("Agent")
"""
    + JOB
)
COPY = """
import pathlib, sys
from bench.training.compiled import copy_new
print("begins", flush=True)
copy_new(*map(pathlib.Path, sys.argv[1:]))
"""


def process(text: str, *arguments: object, **environment: str) -> subprocess.Popen:
    kept = {name: value for name, value in os.environ.items() if name != FOLDER and not name.startswith("SLURM")}
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env={**kept, **environment}, stdout=subprocess.PIPE, text=True)


def said(text: str, *arguments: object, **environment: str) -> str:
    started = process(text, *arguments, **environment)
    answer, _ = started.communicate(timeout=900)
    assert started.returncode == 0
    return answer


def fill(folder: Path, **files: str) -> None:
    for name, content in files.items():
        place = folder / name.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_entries_are_added_and_none_is_replaced(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    fill(source, ab__code="new", cd__kernel="new", fxgraph__xy__key__mine="new", fxgraph__xy__other__mine="new")
    fill(target, ab__code="old", fxgraph__xy__key__theirs="old")
    copy_new(source, target)
    assert contents(target) == {
        "ab/code": b"old",
        "cd/kernel": b"new",
        "fxgraph/xy/key/theirs": b"old",  # any file of a key will do: forty jobs would leave forty
        "fxgraph/xy/other/mine": b"new",
    }


def test_drafts_locks_and_kernels_with_absolute_paths_stay_where_they_are(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    fill(source, triton__0__hash__kernel="", locks__a="", ab__triton="", ab__locks__file="")
    (source / "ab" / ".4711.tmp").write_text("half")
    copy_new(source, target)
    assert sorted(contents(target)) == ["ab/locks/file", "ab/triton"]
    copy_new(tmp_path / "missing", target)
    assert len(contents(target)) == 2


def test_a_full_or_forbidden_folder_is_a_warning_and_no_error(tmp_path, capsys):
    source = tmp_path / "source"
    fill(source, ab__code="new")
    (tmp_path / "target").write_text("no folder")
    copy_new(source, tmp_path / "target")
    assert capsys.readouterr().err.startswith("warning: compiled code is not copied to ")


def test_a_process_that_is_killed_leaves_whole_files_alone(tmp_path):
    source, target, sizes = tmp_path / "source", tmp_path / "target", range(40)
    source.mkdir()
    for number in sizes:
        (source / f"{number:02}").write_bytes(bytes([number]) * 2_000_000)
    copying = process(COPY, source, target)
    while not target.exists() or len(list(target.iterdir())) < 3:
        time.sleep(0.001)
        assert copying.poll() is None or len(list(target.iterdir())) >= 3
    copying.send_signal(signal.SIGKILL)
    copying.communicate()
    there = list(files_in(target))
    assert len(there) >= 2
    for name in there:
        assert (target / name).read_bytes() == (source / name).read_bytes()
    copy_new(source, target)  # the next one goes on
    assert len(list(files_in(target))) == len(sizes)


def test_jobs_that_give_back_the_same_at_the_same_moment_leave_it_whole(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for number in range(30):
        (source / str(number)).write_bytes(bytes([number]) * 300_000)
    copying = [process(COPY, source, target) for _ in range(3)]
    for each in copying:
        each.communicate()
    assert contents(target) == contents(source)


def test_a_job_works_on_its_node_and_gives_back_what_it_has_compiled(tmp_path, monkeypatch):
    data, node = tmp_path / "data", tmp_path / "node"
    node.mkdir()
    environment = {"O2O_BENCH_DATA": str(data), "TMPDIR": str(node), "SLURM_JOB_ID": "7"}
    monkeypatch.setenv("O2O_BENCH_DATA", str(data))
    shared = shared_folder("Agent")
    first = said(JOB, "ab/first", **environment)
    assert first.startswith(f"{node}/") and first.endswith(" []\n")
    assert contents(shared) == {"ab/first": b"ab/first"}
    assert not list(node.iterdir()), "the folder goes with the process"
    second = said(JOB, "ab/second", **environment | {"SLURM_TMPDIR": str(node), "TMPDIR": str(tmp_path)})
    assert second.startswith(f"{node}/") and second.endswith(" ['ab/first']\n")
    assert sorted(contents(shared)) == ["ab/first", "ab/second"]


def test_outside_of_jobs_and_where_the_user_names_a_folder_that_is_used_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "data"))
    shared = shared_folder("Agent")
    assert said(JOB, "ab/code", O2O_BENCH_DATA=str(tmp_path / "data")) == f"{shared} []\n"
    assert contents(shared) == {"ab/code": b"ab/code"}
    own = {"O2O_BENCH_DATA": str(tmp_path / "data"), "SLURM_JOB_ID": "7", FOLDER: str(tmp_path / "own")}
    assert said(JOB, "ab/other", **own) == f"{tmp_path / 'own'} []\n"
    assert contents(shared) == {"ab/code": b"ab/code"}


@pytest.mark.parametrize("job", [{}, {"SLURM_JOB_ID": "7", "TORCHINDUCTOR_COMPILE_THREADS": "7"}])
def test_torch_s_own_choices_of_folder_and_processes_are_no_user_s(job, tmp_path, monkeypatch):
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path))
    environment = {"O2O_BENCH_DATA": str(tmp_path), "TMPDIR": str(tmp_path), **job}
    assert said(IMPORTED, "ab/code", **environment).startswith(str(tmp_path if job else shared_folder("Agent")))
    assert contents(shared_folder("Agent")) == {"ab/code": b"ab/code"}


COMPILED = """
import torch
from torch._dynamo.utils import counters
from tests.test_engine import Setup
setup = Setup("bc", mode="compiled")
setup.engine.update_offline(0, 1)
assert setup.engine.mode == "compiled", setup.engine.warning
traced, compiled = counters["aot_autograd"], counters["inductor"]
print(*(traced[f"autograd_cache_{end}"] for end in ("hit", "miss", "bypass")))
print(*(compiled[f"fxgraph_cache_{end}"] for end in ("hit", "miss", "bypass")))
"""


@pytest.mark.thorough
def test_the_next_job_traces_and_compiles_nothing_again(tmp_path, monkeypatch):
    nodes = [tmp_path / "one", tmp_path / "two"]
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "data"))
    answers = []
    for node in nodes:
        node.mkdir()
        job = {"O2O_BENCH_DATA": str(tmp_path / "data"), "TMPDIR": str(node), "SLURM_JOB_ID": node.name}
        answers.append([[int(count) for count in line.split()] for line in said(COMPILED, **job).splitlines()])
    for (hits, misses, left_out), later in zip(*answers, strict=True):
        assert misses > 0 and hits == left_out == 0
        assert later == [misses, 0, 0]
    assert not any(list(node.glob("o2o-bench-compiled-*")) for node in nodes)
    kinds = {path.suffix for path in shared_folder("BC").rglob("*") if path.is_file()}
    assert ".so" in kinds, "machine code is there, and need not be made again"
