"""The commands as a user types them: plans, a suite from start to figure, and one clear line for each mistake."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import datasets
from agents import AGENTS
from bench.__main__ import main
from bench.command_line import parse
from bench.grid.cost import Cost
from bench.grid.options import selected_configs
from bench.grid.plan import Pack
from bench.grid.progress import Display
from bench.grid.run import RunOptions
from bench.grid.status import view_of
from bench.grid.survey import GridStatus, Queue, RunStatus, estimate_left, survey
from bench.protocol.suites import SUITES
from bench.runs.claims import Owner
from bench.runs.contract import RunName, read_json, write_json
from bench.runs.quantities import counted
from bench.training.engine import COMPILE_FROM
from bench.training.pack import prepare_directory
from tests.conftest import TINY_DATASET
from tests.tiny_runs import ROOT, python, small_disk, status_of, tiny_config

TINY = [
    *("--task", "toy-reach", "--offline-updates", "20", "--online-steps", "20", "--warmup-steps", "5"),
    *("--eval-interval-updates", "10", "--eval-interval-steps", "10", "--eval-episodes", "2", "--log-interval", "10"),
    *("--batch-size", "8", "--agent-config.policy_hidden_dims", "16,16", "--agent-config.critic_hidden_dims", "16,16"),
]
CUBE = ["--task", "cube-single-task1", *TINY[2:]]
RUN = ["run", *TINY, "--agent", "qc_fql", "--dataset", TINY_DATASET]


def fails(capsys, *arguments: str) -> str:
    """The one line that a mistake prints; exit code 2."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: "), error
    return error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run --suite quik", "unknown suite 'quik' (did you mean 'quick'?)"),
        ("run --suite quick --agents sac_flow_h", "no agent 'sac_flow_h' (did you mean 'sac_flow_g'?)"),
        ("run --suite quick --tasks cube-double", "suite quick has no task 'cube-double-task2'"),
        ("run --suite quick --tasks cube-duoble", "unknown task 'cube-duoble' (did you mean"),
        ("run --task cube-single --agent qc-fql", "unknown agent 'qc-fql' (did you mean 'qc_fql'?)"),
        ("run --task cube-singel --agent fql", "unknown task 'cube-singel' (did you mean"),
        ("run --suite quick --batchsize 3", "unknown option '--batchsize' (did you mean '--batch-size'?)"),
        ("run --suite quick --batch-size three", "--batch-size: 'three' is not a whole number"),
        ("run --suite quick --agent-config.bc_coeff 3", "no option 'bc_coeff' (did you mean 'bc_coef'?)"),
        ("run --suite quick --agent-config.bc_coef", "--agent-config.bc_coef needs a value"),
        ("run --suite quick --dataset cube-single-play-v1", "unknown data set 'cube-single-play-v1' (did you mean"),
        ("run --suite quick --device tpu", "--device: 'tpu' is none of auto, cpu, cuda (did you mean 'cpu'?)"),
        ("run --suite quick --pack 0", "--pack is 0; it must be at least 1"),
        ("run --suite quick --jobs -1", "--jobs is -1; it must be at least 1"),
        ("run --suite quick --engine fast", "--engine: 'fast' is none of auto, eager, compiled, graph, compiled-graph"),
        ("run --suite quick --device cpu --engine graph", "engine graph needs a GPU; use --engine compiled or eager"),
        ("run --suite quick --threads 0", "--threads is 0; it must be at least 1"),
        ("run --suite quick --env-workers -2", "--env-workers is -2; it must be at least 0"),
        ("run --suite quick --env-workers some", "--env-workers: 'some' is not a whole number"),
        ("run --suite quick --task cube-single", "--suite and --task/--agent exclude each other"),
        ("run --suite quick --seed 1", "--seed is for a single run"),
        ("run --suite quick --name x", "--name is the folder of single runs"),
        ("run --task toy-reach --agent fql --agents fql", "--agents chooses from a suite"),
        ("run --task toy-reach --agent fql --tasks toy-reach", "--tasks chooses from a suite"),
        ("run --task toy-reach --agent fql --seed 1 --seeds 2", "--seed and --seeds exclude each other"),
        ("run --suite quick --variant x", "--variant x is for runs with changed settings, and qc_fql has none changed"),
        ("run --task toy-reach --agent fql --variant x", "change some, as in --agent-config.chunk_length VALUE"),
        ("run --suite sac-flow-ablations --variant x --batch-size 3", "would put different runs into one folder"),
        ("launch quick --local --gres gpu:1", "--gres is for --slurm"),
        ("launch quick --slurm --gres gpu:1 --gpus-per-node 1", "--gres and --gpus-per-node exclude each other"),
        ("launch quick --local --seed 1", "--seed is for a single run"),
        ("run", "name a suite"),
        ("rnu", "unknown command 'rnu' (did you mean 'run'?)"),
        ("data generate --task cube-double --kind plya", "unknown kind 'plya' of cube-double (did you mean 'play'?)"),
        ("data generate --task cube-double --episodes 0", "--episodes is 0; it must be at least 1"),
    ],
)
def test_a_mistake_gets_one_line_that_says_what_would_be_right(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *arguments.split())
    assert list(tmp_path.iterdir()) == []


def test_missing_published_data_are_named_with_how_to_get_or_replace_them(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    error = fails(capsys, "run", "--task", "cube-double", "--agent", "fql", "--results", str(tmp_path / "results"))
    for part in ("cube-double-play-v0.npz", "https://", "python -m bench data generate --task cube-double"):
        assert part in error


def published_file(folder: Path, **changes) -> None:
    """A small cube-single set under its published name, with arrays replaced."""
    rows = 21
    arrays = {
        "observations": np.zeros((rows, 28), np.float32),
        "actions": np.zeros((rows, 5), np.float32),
        "terminals": np.arange(rows) == rows - 1,
        "qpos": np.zeros((rows, 21), np.float32),
        "qvel": np.zeros((rows, 20), np.float32),
    }
    np.savez(folder / "cube-single-play-v0.npz", **{**arrays, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros((21, 27), np.float32)}, "observations"),
        ({"actions": np.full((21, 5), np.nan, np.float32)}, "actions"),
        ({"terminals": np.zeros(21, bool)}, "terminals"),
    ],
)
def test_wrong_data_are_named_by_file_and_key(changes, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))
    published_file(tmp_path, **changes)
    run = ["run", *CUBE, "--agent", "qc_fql", "--results", str(tmp_path / "results"), "--data-dir", str(tmp_path)]
    error = fails(capsys, *run)
    assert "cube-single-play-v0.npz" in error and message in error
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("damage", ["truncated", "corrupted"])
def test_a_damaged_file_is_refused_before_anything_runs(damage, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))
    published_file(tmp_path)
    path = tmp_path / "cube-single-play-v0.npz"
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    else:
        data[400] ^= 0xFF
    path.write_bytes(data)
    run = ["run", *CUBE, "--agent", "qc_fql", "--results", str(tmp_path / "results"), "--data-dir", str(tmp_path)]
    assert "cube-single-play-v0.npz" in fails(capsys, *run)
    assert not (tmp_path / "results").exists()


def test_results_of_another_config_are_refused_by_field(capsys, data_cache, tmp_path):
    folder = tmp_path / "single/toy-reach/qc_fql/seed_000"
    folder.mkdir(parents=True)
    assert main([*RUN, "--results", str(tmp_path), "--dry-run"]) == 0
    capsys.readouterr()
    small = [number for number, word in enumerate(RUN) if word.startswith("--agent-config.")]
    words = [word for number, word in enumerate(RUN) if number not in small and number - 1 not in small]
    options = parse(RunOptions, words[1:], "run")
    prepare_directory(selected_configs(options)[0], tmp_path)  # full-size networks
    error = fails(capsys, *RUN, "--results", str(tmp_path))
    assert "was written by another config" in error and "agent_config.critic_hidden_dims" in error


def test_plan_and_dry_run_print_the_cost_and_start_nothing(capsys, data_cache, tmp_path):
    for command in (["plan", *RUN[1:]], [*RUN, "--dry-run"]):
        assert main([*command, "--results", str(tmp_path)]) == 0
        printed = capsys.readouterr().out
        assert "1 run: 0 complete, 1 to do" in printed
        assert re.search(r"about .* of disk on this machine", printed)
        assert re.search(r"evaluation in \d+ processes while it trains, environments", printed)
        assert "generated" in printed and "never compare it with published numbers" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("engine", "expected"),
    [("auto", f"updates eager (auto: compiled from {COMPILE_FROM:,} on); "), ("compiled", "updates compiled; ")],
)
def test_the_plan_says_how_updates_are_executed_and_by_what_rule(engine, expected, capsys, data_cache, tmp_path):
    assert main(["plan", *RUN[1:], "--device", "cpu", "--engine", engine, "--results", str(tmp_path)]) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("0", "environments in its own process"),
        ("2", "environments ahead in 2 processes"),
        ("auto", "environments ahead in a process for each"),
    ],
)
def test_the_plan_says_where_environments_step(asked, expected, capsys, data_cache, tmp_path):
    assert main(["plan", *RUN[1:], "--env-workers", asked, "--results", str(tmp_path)]) == 0
    assert expected in capsys.readouterr().out


def test_a_suite_goes_from_data_to_figure_and_is_complete_the_second_time(data_cache, tmp_path):
    arguments = [
        "--suite",
        "toy",
        "--seeds",
        "0",
        "1",
        *TINY[2:],
        "--dataset",
        TINY_DATASET,
        "--results",
        str(tmp_path),
    ]
    first = python("-m", "bench", "run", *arguments)
    assert first.returncode == 0, first.stderr
    assert "4 runs: 0 complete, 4 to do" in first.stdout
    states = {
        p.parent.name + p.parent.parent.name: status_of(p.parent)["state"]
        for p in tmp_path.glob("toy/*/*/*/status.json")
    }
    assert len(states) == 4 and set(states.values()) == {"complete"}
    second = python("-m", "bench", "run", *arguments)
    assert "4 runs: 4 complete, 0 to do" in second.stdout and second.returncode == 0

    figures = python("-m", "analysis", "--results", str(tmp_path))
    assert figures.returncode == 0, figures.stderr
    assert "generated" in figures.stdout
    assert list(tmp_path.glob("figures/**/*.png")) and list(tmp_path.glob("figures/**/*.pdf"))


def test_ctrl_c_leaves_runs_preempted_and_the_same_command_finishes_them(data_cache, tmp_path):
    arguments = [*RUN, "--results", str(tmp_path), "--offline-updates", "100000", "--eval-interval-updates", "100000"]
    arguments += ["--engine", "eager"]  # a run of this length would be compiled first
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    status = tmp_path / "single/toy-reach/qc_fql/seed_000/status.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (read_json(status) or {}).get("updates", 0) == 0:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75
    assert error == "stopped: runs are checkpointed and marked preempted; the same command goes on\n"
    assert status_of(status.parent)["state"] == "preempted"
    plan = python("-m", "bench", "plan", *arguments[1:])
    assert "0 complete, 1 to do" in plan.stdout


@pytest.mark.thorough
def test_a_full_results_disk_is_named_and_the_run_goes_on_after_space_is_made(data_cache, tmp_path):
    ballast = tmp_path / "ballast"
    with small_disk(tmp_path, "400k"):
        ballast.write_bytes(bytes(330_000))
        arguments = [*RUN, "--results", str(tmp_path / "results")]
        full = python("-m", "bench", *arguments)
        assert full.returncode == 1
        assert "No space left on device" in full.stderr
        rows = (tmp_path / "results/single/toy-reach/qc_fql/seed_000/episodes.csv").read_text()
        ballast.unlink()
        again = python("-m", "bench", *arguments)
        assert again.returncode == 0, again.stderr
        finished = (tmp_path / "results/single/toy-reach/qc_fql/seed_000/episodes.csv").read_text()
        assert finished.startswith(rows)


def test_packages_that_resolve_elsewhere_are_refused(tmp_path):
    shutil.copytree(ROOT / "bench", tmp_path / "bench")
    outcome = python("-m", "bench", "plan", "--suite", "quick", cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert outcome.returncode == 2
    assert "resolves to" in outcome.stderr and outcome.stderr.count("\n") == 1


def test_no_expert_is_known_for_a_task_of_minari(capsys, monkeypatch):
    spec = replace(datasets.task("lift"), name="minari.D4RL.door.human-v2", suite="minari", domain="door-0123ab")
    monkeypatch.setattr(datasets, "task", lambda name: spec)
    assert "no expert is known for minari:D4RL/door/human-v2" in fails(
        capsys, "data", "generate", "--task", "minari:D4RL/door/human-v2"
    )


@pytest.mark.parametrize(
    ("scores", "shown"),
    [
        ([{"success_rate": 0.5, "mean_return": -20.0}, {}], "success 0.50 -"),
        ([{"success_rate": None, "mean_return": 312.5}, {"mean_return": 290.0}], "return 312.5 290"),
        ([{}, {}], "success - -"),
        ([{"success_rate": 0.5, "score_updates": 2000, "score_env_steps": 0}, {}], "success 0.50 - at 2k updates"),
        ([{"success_rate": 0.5, "score_updates": 5900, "score_env_steps": 3900}, {}], "success 0.50 - at 3.9k steps"),
    ],
)
def test_progress_says_what_kind_of_score_it_shows(scores, shown, capsys, tmp_path):
    configs = tuple(tiny_config("fql", seed=seed) for seed in range(2))
    for config, score in zip(configs, scores, strict=True):
        config.directory(tmp_path).mkdir(parents=True)
        write_json(config.directory(tmp_path) / "status.json", {"state": "running", **score})
    work = Pack(configs, tmp_path).work
    display = Display({work: Cost(0.1, 0.1, 0.1, 1.0, 1000, configs[0])}, jobs=1)
    display.started(work)
    display.ended(work)
    assert capsys.readouterr().out.endswith(f", {shown}\n")


def test_the_status_of_a_grid_says_where_a_score_was_measured(tmp_path):
    of_seeds = [
        ("complete", 0.88, 30, 40),
        ("running", 0.5, 33, 3),
        ("running", 0.25, 33, 3),
        ("running", 0.0, 15, 0),
        ("planned", None, None, None),
    ]
    for seed, (state, rate, updates, env_steps) in enumerate(of_seeds):
        config = tiny_config("fql", seed=seed)
        folder = config.directory(tmp_path)
        folder.mkdir(parents=True)
        write_json(folder / "config.json", config.to_json())
        status = {"state": state, "updates": 33, "env_steps": 3, "success_rate": rate, "mean_return": rate}
        write_json(folder / "status.json", status | {"score_updates": updates, "score_env_steps": env_steps})
    grid = survey(tmp_path, None, Queue())
    grid.runs[0] = replace(grid.runs[0], state="complete")
    Console(width=120, file=(written := io.StringIO())).print(view_of(grid, False, 120))
    assert "0.88, 0.50 0.25 at 3 steps, 0.00 at 15 updates, -" in written.getvalue()


@pytest.fixture
def long_names(tmp_path):
    """Packs of four seeds of one task under names as long as people's: one is complete, two train, one waits."""
    changes = ({"variant": "ten-pessimistic-critics"}, {"variant": "ten-pessimistic-actors"}, {}, {"variant": "late"})
    states = ("running", "running", "complete", "planned")
    works = {}
    for change, state in zip(changes, states, strict=True):
        configs = tuple(tiny_config("sac_flow_t", seed=seed).replace(**change) for seed in range(4))
        for config in configs:
            folder = config.directory(tmp_path)
            folder.mkdir(parents=True)
            write_json(folder / "config.json", config.to_json())
            rates = {"updates_per_second": 123.4, "env_steps_per_second": 88.1}
            status = {"state": state, "updates": 1, "env_steps": 0, "success_rate": config.seed / 4, **rates}
            write_json(folder / "status.json", status)
        works[Pack(configs, tmp_path).work] = Cost(10.0, 10.0, 0.0, 1.0, 1000, configs[0])
    return works


def read_down(text: str, title: str, next_title: str) -> str:
    """The cells of a column, whose letters may go on in the next line, without blanks."""
    header = next(line for line in text.splitlines() if title in line)
    begin, end = header.index(title), header.index(next_title)
    return "".join(line[begin:end] for line in text.splitlines()).replace(" ", "")


@pytest.mark.parametrize("width", [80, 200])
def test_screens_cut_no_name_score_or_time_and_let_rates_go_first(width, long_names, tmp_path):
    display = Display(long_names, jobs=2)
    for work in list(long_names)[:3]:
        display.started(work)
    display._console = Console(width=width, file=io.StringIO())
    grid = survey(tmp_path, None, Queue())
    for run in grid.runs:
        grid.left_of[run.directory] = 7200.0
    views = {"toy-reach": (display._table(), "offline"), "agent": (view_of(grid, False, width), "runs")}
    for title, (view, next_title) in views.items():
        Console(width=width, file=(written := io.StringIO())).print(view)
        text = written.getvalue()
        assert max(map(len, text.splitlines())) <= width and "…" not in text
        names = read_down(text, title, next_title)
        assert "sac_flow_t@ten-pessimistic-critics" in names and "sac_flow_t@ten-pessimistic-actors" in names
        assert all(text.count(score) >= 3 for score in ("0.00", "0.25", "0.50", "0.75"))
        assert ("updates/s" in text) == (width == 200 and title == "toy-reach")  # nobody trains in this survey


def test_time_left_counts_a_pack_once_and_packs_that_train_side_by_side(tmp_path):
    """One pack of three seeds took an hour; two more train at half way; one waits, and is of the first one's kind."""
    runs, own = [], {"agent": "fql", "task": "toy-reach", "suite": "toy"}
    packs = [
        ("a", "complete", None),
        ("a", "running", 1),
        ("a", "running", 2),
        ("b", "planned", None),
        ("a", "planned", None),
    ]
    for number, (variant, state, pid) in enumerate(packs):
        owner = Owner(1, "", "here", None, pid, 1, None, 0, 60.0, "") if pid else None
        for seed in range(3):
            name = RunName(**own, variant=variant, seed=3 * number + seed)
            progress = {"complete": 100, "running": 50, "planned": 0}[state]
            runs.append(
                RunStatus(
                    directory=tmp_path / str(name), name=name, state=state, why="", offline_updates=100, online_steps=0,
                    updates=progress, env_steps=0, success_rate=None, mean_return=None,
                    score_updates=None, score_env_steps=None, rates={}, owner=owner,
                    queued=None, job=None, gpu_hours=0.0, hours=1 / 3 if state == "complete" else 0.0, updated_at=None,
                )
            )  # fmt: skip
    of_a = GridStatus(tmp_path, [run for run in runs if run.name.variant == "a"])
    estimate_left(of_a)
    assert of_a.left_seconds == pytest.approx((1800 + 1800 + 3600) / 2)
    every = GridStatus(tmp_path, runs)
    estimate_left(every)
    assert every.left_seconds is None and len(every.left_of) == 9  # nothing is known of b


@pytest.mark.parametrize(("what", "names"), [("suites", SUITES), ("agents", AGENTS), ("tasks", datasets.TASKS)])
def test_a_list_names_what_there_is(what, names, capsys):
    assert main(["list", what]) == 0
    first = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert [name for name in first if name in names] == list(names)


def test_a_list_of_settings_has_the_values_of_a_task_beside_the_defaults(capsys):
    assert main(["list", "settings", "qam", "--task", "antmaze-large-task1"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["chunk_length"] == ["5", "here", "1", "int"] and rows["flow_steps"] == ["10", "int"]
    assert rows["q_aggregation"] == ["pessimistic", "mean", "|", "min", "|", "pessimistic"]
    assert "did you mean 'qam'" in fails(capsys, "list", "settings", "qamm")


def test_help_names_every_suite_and_target():
    text = python("-m", "bench", "run", "--help").stdout
    text = "".join(text.split())  # argparse breaks lines at hyphens
    assert all(suite in text for suite in SUITES)
    targets = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("bench", "test", "figures", "parity", "help"):
        assert re.search(rf"^{target}\s", targets, re.MULTILINE), target


def test_a_seed_agent_or_task_that_is_there_twice_counts_once(capsys):
    twice = "--suite quick --seeds 0 0 1 --agents qc_fql,qc_fql --tasks cube-single-task1 cube-single-task1"
    once = "--suite quick --seeds 0..1 --agents qc_fql --tasks cube-single-task1"
    found = selected_configs(parse(RunOptions, twice.split(), "run"))
    assert capsys.readouterr().out.splitlines() == [
        "--seeds: 0 more than once, counted once",
        "--agents: qc_fql more than once, counted once",
        "--tasks: cube-single-task1 more than once, counted once",
    ]
    assert found == selected_configs(parse(RunOptions, once.split(), "run"))
    single = selected_configs(parse(RunOptions, ["--task", "toy-reach", "--agent", "fql", "--seeds", "3", "3"], "run"))
    assert [config.seed for config in single] == [3]


def test_a_setting_that_some_agents_do_not_read_is_said(capsys):
    words = "--suite baselines-quick --seeds 0 --agents dppo fql reinflow --utd-ratio 2 --warmup-steps 9"
    configs = selected_configs(parse(RunOptions, words.split(), "run"))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("--warmup-steps and --utd-ratio: nothing for dppo, reinflow, on-policy agents")
    assert len(configs) == 3
    selected_configs(parse(RunOptions, [*words.split()[:5], "fql", "--utd-ratio", "2"], "run"))
    assert not capsys.readouterr().out


def test_what_a_suite_is_for_is_a_whole_sentence(capsys):
    assert main(["list", "suites"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(SUITES) and not [line for line in lines if not line.endswith(".")]


@pytest.mark.parametrize(
    ("count", "what", "said"),
    [(1, "run", "1 run"), (0, "run", "0 runs"), (1, "process", "1 process"), (2, "process", "2 processes")],
)
def test_things_are_counted_in_english(count, what, said):
    assert counted(count, what) == said


MAKE = {  # a wrong variable, and what is said of it
    "bench SEED=3": "make bench does not read SEED (did you mean SEEDS?)",
    "bench AGENT=fql": "make bench does not read AGENT (did you mean AGENTS?)",
    "plan suite=quick": "make plan does not read suite (did you mean SUITE?)",
    "status SUITES=toy": "make status does not read SUITES (did you mean SUITE?)",
    "figures SEEDS=1": "make figures does not read SEEDS; it reads",
    "report TASKS=toy-reach": "make report does not read TASKS; it reads",
    "test SUITE=toy": "make test does not read SUITE; it reads PYTHON ARGS",
    "bench MUJOCO_GL=egl": "make bench does not read MUJOCO_GL",
    "setup EXTRAS=vidoe": "EXTRAS has 'vidoe'; the extras are robomimic minari bullet",
    "bench EXTRAS=video,minari": "EXTRAS has 'video,minari'",
    "setup TORCH=cuda": "TORCH is 'cuda'; it may be cpu, for a torch without CUDA",
    "test TORCH=cpu": "make test does not read TORCH",
}


@pytest.mark.parametrize("line", MAKE)
def test_a_variable_that_make_would_ignore_is_an_error(line):
    outcome = make(line)
    assert outcome.returncode == 2 and not outcome.stdout
    assert MAKE[line] in outcome.stderr and outcome.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bench SEEDS=0..2 TASKS=a,b", "--tasks a,b --seeds 0..2 --results results"),
        ("bench SLURM=1", "launch quick --slurm"),
        ("bench SLURM=0", "launch quick --local"),
        ("figures", "-m analysis --results results"),
        ("figures SUITE=toy ARGS=--allow-incomplete", "-m analysis --results results --suite toy --allow-incomplete"),
        ("report SUITE=toy ARGS=--out=x", "-m analysis report --results results --suite toy --out=x"),
        ("status", "-m bench status  --results results"),
        ("status SUITE=toy", "-m bench status toy --results results"),
        (
            "bench SUITE=toy",
            "-m bench status toy --running --results results || MUJOCO_GL=disable .venv/bin/python -m analysis",
        ),
        ("parity PARITY_DIR=x O2O_BENCH_DATA=y", "tests/test_parity.py"),
    ],
)
def test_make_passes_on_what_it_reads(line, said):
    outcome = make(line)
    assert outcome.returncode == 0, outcome.stderr
    command = next(words for words in outcome.stdout.splitlines() if said in words)
    assert command.count("--suite") == (line.count("SUITE=") if "analysis" in said else 0)


def make(line, folder=ROOT, options=("-n",)):
    environment = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        ["make", *options, *line.split()], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def bare(tmp_path):
    """A checkout without an environment."""
    for path in (ROOT / "Makefile", *ROOT.glob("requirements*.lock")):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_the_set_up_says_each_step_and_its_size(bare):
    lines = make("setup EXTRAS=video", bare).stdout.splitlines()
    said = [line for line in lines if line.startswith("echo")]
    assert [found for line in said for found in re.findall(r"step \d of \d|extra \w+", line)] == [
        *("step 1 of 3", "step 2 of 3", "step 3 of 3"),
        "extra video",
    ]
    assert all(re.search(r"\d [MG]B", line) for line in said[1:])
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 3 and all("test -t 1 || echo --quiet" in line for line in installs)
    assert not any("--index-url" in line for line in installs)


def test_a_torch_without_cuda_is_asked_for_by_one_word(bare, monkeypatch):
    (bare / "uname").write_text("#!/bin/sh\necho Linux\n")
    (bare / "uname").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bare}:{os.environ['PATH']}")
    linux = make("setup TORCH=cpu", bare).stdout
    assert "torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu\n" in linux and "torch-cpu" in linux
    (bare / "uname").write_text("#!/bin/sh\necho Darwin\n")
    assert "--index-url" not in make("setup TORCH=cpu", bare).stdout
    (bare / ".venv").mkdir()
    (bare / ".venv" / ".complete").touch()
    refused = make("setup TORCH=cpu", bare)
    assert refused.returncode == 2 and "was installed without TORCH=cpu; remove it first: make clean" in refused.stderr


@pytest.mark.parametrize(("version", "supported"), [("3.10", False), ("3.11", True), ("3.13", True), ("3.14", False)])
def test_a_python_that_is_not_supported_is_one_line_before_anything_is_installed(version, supported, bare):
    """Asked by a Python that gives itself out for that version, and can make no environment."""
    pretended = f"import sys; sys.version_info = {(*map(int, version.split('.')), 0)}; exec(sys.argv.pop(2))"
    (bare / "pretended").write_text(
        f'#!/bin/sh\n[ "$1" = -c ] || exit 9\nexec {sys.executable} -c "{pretended}" "$@"\n'
    )
    (bare / "pretended").chmod(0o755)
    asked = make(f"setup PYTHON={bare / 'pretended'}", bare, options=("-s",))
    assert asked.returncode == 2 and not (bare / ".venv").exists()
    assert ("3.11 to 3.13 are supported" in asked.stderr) != supported
    assert (f"is Python {version};" in asked.stderr) != supported and ("step 1 of 3" in asked.stdout) == supported


def test_generated_data_are_made_where_they_are_asked_for(tmp_path, monkeypatch):
    arguments = [
        "data",
        "generate",
        "--task",
        "toy-reach",
        "--kind",
        "mixed",
        "--episodes",
        "1",
        "--workers",
        "1",
        "--seed",
        "5",
        "--out",
    ]
    outcome = python("-m", "bench", *arguments, str(tmp_path), O2O_BENCH_DATA=str(tmp_path / "cache"))
    assert outcome.returncode == 0, outcome.stderr
    (written,) = tmp_path.glob("*.hdf5")
    assert outcome.stdout.endswith(f"--dataset {written.stem} --data-dir {tmp_path}\n")
    assert written.stem == "toy-reach-mixed-generated-1ep-seed5"
    (manifest,) = tmp_path.glob("*manifest.json")
    assert json.loads(manifest.read_text())["origin"] == "generated"
