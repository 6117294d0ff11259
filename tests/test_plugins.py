"""Agents and tasks from outside the checkout: in runs, their processes and their files, by the real entry point."""

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import agents
import datasets
from agents.fql import FQL, FQLConfig
from bench.__main__ import main
from bench.grid.launches import Launch
from bench.training.execution import Execution
from datasets.toy import source as toy
from tests.tiny_runs import ROOT, python

PLUGIN = '''
from dataclasses import dataclass, replace

import agents
import datasets
from agents.fql import FQL, FQLConfig
from datasets.spec import Dataset, RemoteFile, parse_generated
from datasets.toy import source as toy


@dataclass(frozen=True)
class MyConfig(FQLConfig):
    chunk_length: int = 2


class MyAgent(FQL):
    pass


class MyTasks:
    """The toy family under other names."""

    SUITE = "mine"
    TASKS = {
        "my-reach": replace(
            toy.TASKS["toy-reach"],
            name="my-reach", suite="mine", domain="my-reach", dataset="my-reach-mixed-generated-8ep-seed0",
        )
    }

    def __getattr__(self, name):
        return getattr(toy, name)

    def task(self, name):
        return self.TASKS.get(name)

    def parse(self, name):
        if generated := parse_generated(name, self.TASKS, toy.KINDS):
            domain, recipe = generated
            return Dataset(name, self.SUITE, domain, (RemoteFile(f"{name}.hdf5"),), recipe=recipe)
        return None


agents.register("my_agent", MyAgent, MyConfig())
datasets.register_source(MyTasks())
'''
SMALL = "--agent-config.policy_hidden_dims 8,8 --agent-config.critic_hidden_dims 8,8 --batch-size 8 --eval-episodes 2"
RUN = f"--task my-reach --agent my_agent --offline-updates 4 --online-steps 6 --warmup-steps 2 {SMALL}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The working directory: the plugin, modules that are none, and a results folder."""
    here = tmp_path_factory.mktemp("mine")
    (here / "my_plugin.py").write_text(PLUGIN)
    (here / "empty.py").write_text("")
    (here / "broken.py").write_text("import nowhere_to_be_found\n")
    (here / "taken.py").write_text(
        "import agents\nfrom agents.fql import FQL, FQLConfig\nagents.register('fql', FQL, FQLConfig())\n"
    )
    return here


def bench(folder: Path, words: str):
    cache = str(folder / "cache")
    return python("-m", "bench", *words.split(), cwd=folder, PYTHONPATH=str(ROOT), O2O_BENCH_DATA=cache)


@pytest.fixture(scope="module")
def run(folder) -> Path:
    """The folder of a complete run of the plugin's agent on the plugin's task."""
    done = bench(folder, f"run --plugin my_plugin {RUN} --name own")
    assert done.returncode == 0, done.stderr
    return folder / "results/own/my-reach/my_agent/seed_000"


def test_a_run_of_a_plugin_trains_in_processes_of_its_own_and_records_it(folder, run):
    assert (run / "complete.json").exists()
    (start,) = json.loads((run / "provenance.json").read_text())["starts"]
    file = folder / "my_plugin.py"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert start["plugins"] == [{"module": "my_plugin", "file": str(file), "sha256": digest}]
    built_on = b"".join(path.read_bytes() for path in sorted((ROOT / "agents/blocks").glob("*.py")))
    assert start["agent_source"] == hashlib.sha256(file.read_bytes() + built_on).hexdigest()[:16]


def test_its_policy_is_evaluated_with_the_plugin_and_refused_without(folder, run, capsys):
    call = f"evaluate {run} --episodes 3"
    done = bench(folder, f"{call} --plugin my_plugin")
    assert done.returncode == 0 and "my_agent, seed 0, on my-reach: success rate" in done.stdout, done.stderr
    assert main(call.split()) == 2
    said = "error: config names the unknown agent 'my_agent'; one of yours comes with --plugin MODULE\n"
    assert capsys.readouterr().err == said


def test_its_names_are_listed(folder, capsys):
    code = "from bench.__main__ import main\nfor what in ('agents', 'tasks', 'settings my_agent'):\n"
    code += "    assert main(['list', *what.split(), '--plugin', 'my_plugin']) == 0"
    done = python("-c", code, cwd=folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "my_agent" in lines and "  my-reach" in lines
    assert any(line.split() == ["chunk_length", "2", "int"] for line in lines)
    assert main(f"plan {RUN}".split()) == 2
    assert "unknown task 'my-reach'" in (said := capsys.readouterr().err)
    assert said.endswith("one of yours comes with --plugin MODULE\n")


@pytest.mark.thorough
def test_data_of_its_tasks_are_listed_and_made_in_processes_that_start_afresh(folder):
    done = bench(folder, "data list --plugin my_plugin")
    assert done.returncode == 0 and "my-reach: " in done.stdout, done.stderr
    done = bench(folder, "data generate --plugin my_plugin --task my-reach --episodes 4 --workers 2")
    assert done.returncode == 0 and "my-reach-mixed-generated-4ep-seed0.hdf5" in done.stdout, done.stderr


@pytest.mark.thorough
def test_jobs_of_a_cluster_get_the_plugin_in_the_copy_of_the_code(folder):
    code = (
        "import sys; from pathlib import Path; from bench.protocol.plugins import load_plugins\n"
        "from bench.grid.snapshot import snapshot_path, take_snapshot\n"
        "plain = snapshot_path(Path('code')); load_plugins(('my_plugin',)); own = snapshot_path(Path('code'))\n"
        "assert plain != own; take_snapshot(own); print(own)"
    )
    done = python("-c", code, cwd=folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    copy = folder / done.stdout.strip()
    assert (copy / "my_plugin.py").read_text() == PLUGIN
    elsewhere = python("-m", "bench", "plan", "--plugin", "my_plugin", *RUN.split(), cwd=copy, PYTHONPATH=str(copy))
    assert elsewhere.returncode == 0, elsewhere.stderr
    done = bench(folder, f"launch --plugin my_plugin --slurm --dry-run --time 1 {RUN}")
    assert done.returncode == 0 and f":{folder}\n" in done.stdout.replace("'", ""), done.stderr


def test_workers_and_records_of_launches_keep_plugins(tmp_path):
    execution = Execution(plugins=("a", "b.c"))
    assert execution.arguments()[-2:] == ["--plugin=a", "--plugin=b.c"]
    launch = Launch("x-1", "x", tmp_path, tmp_path, (), execution, gpus_per_job=0)
    launch.save()
    assert Launch.load(launch.folder) == launch


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--plugin my_plugin.py", "--plugin is 'my_plugin.py'; it takes a module's name"),
        ("--plugin nowhere", "--plugin nowhere: there is no such module in the current directory or on PYTHONPATH"),
        ("--plugin broken", "--plugin broken cannot be imported (ModuleNotFoundError: No module named 'nowhere_to_be"),
        ("--plugin empty", "--plugin empty registers nothing; it must call agents.register"),
        ("--plugin json", "--plugin json registers nothing"),
        ("--plugin taken", "(ValueError: there is an agent 'fql' already; choose another name)"),
    ],
)
def test_a_plugin_that_is_none_is_one_line(words, said, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    before, known = {*os.listdir(folder)}, dict(agents.AGENTS)
    assert main(f"plan {words} {RUN}".split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error, error
    assert {*os.listdir(folder)} - {"__pycache__"} == before - {"__pycache__"} and known == agents.AGENTS


class Family:
    """A source whose names can be chosen."""

    def __init__(self, suite: str, name: str, domain: str, extra: str | None = None):
        self.SUITE, self.EXTRA = suite, extra
        self.TASKS = {name: replace(toy.TASKS["toy-reach"], name=name, suite=suite, domain=domain)}


@pytest.mark.parametrize(
    ("family", "said"),
    [
        (Family("toy", "a", "a"), "there is a suite 'toy' already"),
        (Family("mine", "toy-reach", "a"), "there is a task 'toy-reach' already"),
        (Family("mine", "a", "cube-double"), "there is a domain 'cube-double' already"),
        (Family("mine", "a", "a", extra="x"), "mine: EXTRA is 'x'; it must be None or one of "),
    ],
)
def test_names_of_tasks_that_are_taken_are_refused(family: Any, said):
    known = dict(datasets.TASKS)
    with pytest.raises(ValueError, match=said):
        datasets.register_source(family)
    assert known == datasets.TASKS


@pytest.mark.parametrize(
    ("name", "agent_class", "config", "said"),
    [
        ("fql", FQL, FQLConfig(), "there is an agent 'fql' already"),
        ("my agent", FQL, FQLConfig(), "an agent cannot be called 'my agent'"),
        ("mine", dict, FQLConfig(), "is no subclass of agents.blocks.base.Agent"),
        ("mine", FQL, FQLConfig, "its config must be an object of a dataclass with a field chunk_length"),
    ],
)
def test_what_is_no_agent_is_refused(name, agent_class, config, said):
    known = dict(agents.AGENTS)
    with pytest.raises((ValueError, TypeError), match=said):
        agents.register(name, agent_class, config)
    assert known == agents.AGENTS


@pytest.mark.slurm
def test_a_job_of_a_cluster_trains_with_the_copy_that_was_submitted(cluster, tmp_path):
    (tmp_path / "my_plugin.py").write_text(PLUGIN)
    words = f"launch --plugin my_plugin --slurm --time 5 --cpus-per-task 2 --mem 3000M {RUN} --name grid --device cpu"
    environment = {"PYTHONPATH": str(ROOT), "SLURM_CONF": str(cluster.conf)}
    done = python("-m", "bench", *words.split(), cwd=tmp_path, timeout=900, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "my_plugin.py").write_text("raise SystemExit('edited since')\n")
    directory = tmp_path / "results/grid/my-reach/my_agent/seed_000"
    cluster.drain()
    assert (directory / "complete.json").exists(), next(iter(tmp_path.rglob("*.out"))).read_text()
    (start,) = json.loads((directory / "provenance.json").read_text())["starts"]
    (record,) = start["plugins"]
    assert record["sha256"] == hashlib.sha256(PLUGIN.encode()).hexdigest()
    assert record["file"].startswith(str(tmp_path / "results/grids/code"))
