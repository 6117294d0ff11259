"""Inputs that make no sense, of every kind that a user has typed: one line, exit code 2, and nothing is written."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analysis.__main__
import bench.__main__
import datasets
from bench.grid import slurm
from bench.protocol.config import default_agent_config
from bench.protocol.grids import run_config
from bench.runs.contract import NO_SUITES, ConfigError
from tests.tiny_runs import ROOT, tiny_config

LONG = "x" * 300
PLAN = "bench plan --task toy-reach --agent fql"
SCRATCH = "bench plan --suite mujoco --agents sac --tasks hopper-v4"
DATA = "bench plan --task toy-reach --agent fql --eval-episodes 2 --data"
SLURM = "bench launch toy --slurm --dry-run"
WRONG = [  # a command, and what its line must say
    # options that do nothing with the others
    ("bench run --suite toy --seed 1", "--seeds"),
    ("bench plan --suite toy --seed=0", "the seeds of a suite are chosen with --seeds"),
    ("bench run --suite toy --name x", "--results puts it elsewhere"),
    ("bench launch toy --local --seed 3", "--seeds"),
    (f"{PLAN} --agents fql", "a single run has one --agent"),
    (f"{PLAN} --tasks toy-reach", "a single run has one --task"),
    (f"{PLAN} --seed 1 --seeds 2 3", "--seed and --seeds exclude each other"),
    ("bench plan --agents fql --tasks toy-reach", "name a suite"),
    ("bench plan --suite toy --variant x", "has none changed"),
    (f"{PLAN} --variant x", "has none changed"),
    (f"{PLAN} --variant x --batch-size 256", "has none changed"),
    ("bench plan --suite sac-flow-ablations --variant x --batch-size 8", "different runs into one folder"),
    ("bench launch toy --local --partition gpu", "--partition is for --slurm"),
    ("bench launch toy --local --gpus-per-node 1", "--gpus-per-node is for --slurm"),
    ("bench launch toy --slurm --jobs 2", "--jobs is for --local"),
    ("bench launch toy --slurm --local", "--slurm (jobs of this cluster) or --local"),
    (f"{SLURM} --gres gpu:1 --gpus-per-node 1", "exclude each other"),
    ("bench run --suite toy --online-steps 3000 --extend", "qc_fql/seed_000 holds no run that could go on"),
    ("bench launch toy --slurm --extend", "leave --extend out to start one"),
    ("bench launch toy --local --extend --dry-run", "leave --extend out to start one"),
    (f"{PLAN} --extend", "fql/seed_000 holds no run that could go on"),
    (f"{SLURM} --cores-per-gpu 8 --cpus-per-task 4", "exclude each other"),
    (f"{SLURM} --gpus-per-node 1 --cores-per-gpu 8 --env-workers 4", "exclude each other"),
    (f"{SLURM} --device cuda", "--device cuda needs jobs with a GPU: --gpus-per-node 1"),
    (f"{SLURM} --matmul tf32", "--matmul tf32 needs jobs with a GPU: --gpus-per-node 1"),
    (f"{PLAN} --device cpu --matmul tf32", "matmul tf32 needs a GPU (Ampere or newer); use --matmul fp32"),
    (f"{PLAN} --matmul fp16", "'fp16' is none of fp32, tf32, bf16"),
    (
        "bench plan --task toy-reach --agent reinflow --utd-ratio 2",
        "--utd-ratio: nothing for reinflow, on-policy agents",
    ),
    ("bench plan --suite baselines-quick --agents dppo reinflow --warmup-steps 9", "--warmup-steps: nothing for dppo"),
    (
        f"{SCRATCH} --eval-interval-updates 7",
        "--eval-interval-updates does nothing for these runs of sac: they have no",
    ),
    (f"{SCRATCH} --success-rule any", "--success-rule does nothing for these runs of sac: their tasks are scored by"),
    (
        f"{SCRATCH} --success-timing post",
        "--success-timing does nothing for these runs of sac: their tasks are scored by",
    ),
    (f"{SCRATCH} --gradient-norm-interval 100", "does nothing for these runs of sac: their policies' losses run back"),
    (
        f"{PLAN} --online-steps 0 --eval-interval-steps 7",
        "does nothing for these runs of fql: they have no online phase",
    ),
    (f"{SCRATCH} --online-steps 300", "warmup_steps is 10000 and online_steps 300: sac would make no update"),
    (
        "bench plan --suite mujoco --agents ppo --online-steps 300",
        "a rollout is 32768 and online_steps 300: ppo would make no",
    ),
    ("bench status --running --json", "--running answers with its exit code"),
    ("bench status --json --runs", "--json has every run already: leave out --runs"),
    ("bench launch toy --local --array-size 9", "--array-size is for --slurm"),
    # seeds
    ("bench plan --suite toy --seeds", "--seeds: it needs a value"),
    ("bench plan --suite toy --seeds ,", "--seeds: it needs a value"),
    ("bench plan --suite toy --seeds a", "'a' is not a whole number; several are 0 1 2 or 0..2"),
    ("bench plan --suite toy --seeds 1.5", "'1.5' is not a whole number"),
    ("bench plan --suite toy --seeds 7..0", "0..7 would not"),
    ("bench plan --suite toy --seeds 0..99999999", "at most 10000"),
    ("bench plan --suite toy --seeds -1", "seed is -1; it must be an integer of at least 0"),
    (f"{PLAN} --seed {2**63}", f"it must be at most {2**63 - 1}"),
    # names of the field
    ("bench plan --task visual-cube-single-task1 --agent fql", "unsupported task"),
    ("bench plan --task cube-octuple-play-singletask-v0 --agent fql", "cube-octuple is not supported"),
    ("bench plan --task antmaze-large-diverse-v2 --agent fql", "minari:D4RL/antmaze/large-diverse-v1"),
    ("bench plan --task toy-raech --agent fql", "did you mean 'toy-reach'?"),
    (f"{PLAN} --dataset visual-scene-play-v0", "unsupported data set"),
    # folders and files
    ("bench plan --suite toy --results file.txt", "file.txt is a file; name a folder"),
    ("bench run --suite toy --results file.txt/below/it", "file.txt is a file; name a folder"),
    ("bench launch toy --slurm --results file.txt", "file.txt is a file; name a folder"),
    ("bench retry --results file.txt", "file.txt is a file; name a folder"),
    ("bench status --results file.txt", "file.txt is a file; name a folder"),
    ("bench cancel toy --results file.txt", "file.txt is a file; name a folder"),
    ("bench logs toy --results file.txt", "file.txt is a file; name a folder"),
    ("bench mirror . --to tensorboard --results file.txt", "file.txt is a file; name a folder"),
    ("bench video toy --results file.txt", "file.txt is a file; name a folder"),
    ("analysis --results file.txt", "file.txt is a file; name a folder"),
    ("analysis report --results file.txt", "file.txt is a file; name a folder"),
    ("analysis explain x --curve fql --step 0 --results file.txt", "file.txt is a file; name a folder"),
    ("bench plan --suite toy --results ''", "--results: it needs a path"),
    ("bench plan --suite toy --results=", "--results: it needs a path"),
    ("analysis --results ''", "--results: it needs a path"),
    ("analysis report --out ''", "--out: it needs a path"),
    (f"{PLAN} --data ''", "--data: it needs a path"),
    ("bench data import ''", "FILE: it needs a path"),
    ("bench data get ''", "error: NAMES: it needs a value"),
    ("bench status ''", "the suite's name is empty; leave it out for all suites"),
    (f"bench plan --suite toy --results {LONG}", "File name too long"),
    (f"analysis --results {LONG}", "File name too long"),
    (f"{PLAN} --data {LONG}", "File name too long"),
    (f"{PLAN} --data-dir {LONG} --dataset toy-reach-mixed-generated-1ep-seed0", "File name too long"),
    # names of suites, runs and variants
    (f"{PLAN} --name {LONG}", "has 300 bytes; a folder's name may have 200"),
    (f"{PLAN} --variant {LONG} --batch-size 8", "bytes; a folder's name may have 200"),
    (f"{PLAN} --name offline", "results keep the folders offline, grids, figures"),
    (f"{PLAN} --name grids", "use another name, such as my-grids"),
    (f"{PLAN} --name Figures", "use another name, such as my-figures"),
    (f"{PLAN} --name 'a\\b'", "cannot be a folder's name"),
    (f"{PLAN} --name 'a\nb'", "cannot be a folder's name"),
    (f"{PLAN} --name 'a b'", "cannot be a folder's name"),
    (f"{PLAN} --name ..", "cannot be a folder's name"),
    (f"{PLAN} --name a/b", "cannot be a folder's name"),
    (f"{PLAN} --name=-x", "cannot be a folder's name"),
    (f"{PLAN} --name ''", "cannot be a folder's name"),
    (f"{PLAN} --variant 'a b' --batch-size 8", "variant 'a b' may have letters"),
    (f"bench plan --suite {LONG}", "unknown suite"),
    (f"bench status {LONG}", "File name too long"),
    (f"bench logs {LONG}", "File name too long"),
    (f"bench video {LONG}", "File name too long"),
    (f"bench mirror {LONG} --to tensorboard", "File name too long"),
    (f"bench data import {LONG}", "File name too long"),
    (f"bench data generate --run {LONG}", "File name too long"),
    # numbers
    ("analysis report --embed-videos nan", "--embed-videos: 'nan' is not a finite number"),
    ("analysis report --embed-videos inf", "--embed-videos: 'inf' is not a finite number"),
    ("analysis report --embed-videos -1", "--embed-videos is -1"),
    (f"{SLURM} --gpus-per-node -1", "--gpus-per-node is -1; it must be at least 0"),
    (f"{SLURM} --cpus-per-task 0", "--cpus-per-task is 0; it must be at least 1"),
    (f"{SLURM} --mem much", "--mem is 'much'; Slurm takes a whole number"),
    (f"{SLURM} --mem 16GB", "--mem is '16GB'; Slurm takes a whole number"),
    (f"{SLURM} --mem 1.5G", "--mem is '1.5G'; Slurm takes a whole number"),
    (f"{SLURM} --mem=-1G", "--mem is '-1G'; Slurm takes a whole number"),
    (f"{SLURM} --mem ''", "--mem is ''; Slurm takes a whole number"),
    (f"{SLURM} --time=-5", "--time is '-5'; Slurm takes minutes"),
    (f"{SLURM} --time 0", "--time is '0'; Slurm takes minutes"),
    (f"{SLURM} --max-parallel 0", "--max-parallel is 0; it must be at least 1"),
    (f"{SLURM} --array-size 0", "--array-size is 0; it must be at least 1"),
    (f"{SLURM} --cores-per-gpu 0", "--cores-per-gpu is 0; it must be at least 1"),
    (f"{SLURM} --packs-per-job -1", "--packs-per-job is -1; it must be at least 1"),
    (f"{SLURM} --gres ''", "--gres is ''; it must be a word of Slurm's"),
    (f"{SLURM} --gres gpu:h100:0", "--gres is 'gpu:h100:0'; it must ask for something, as in gpu:h100:1"),
    (f"{SLURM} --partition ''", "--partition is ''; it must be a word of Slurm's"),
    (f"{SLURM} --account 'a b'", "--account is 'a b'; it must be a word of Slurm's"),
    (f"{SLURM} --exclude n1,,n2", "--exclude is 'n1,,n2'; it must be nodes with commas between them"),
    (f"{SLURM} --time soon", "--time is 'soon'; Slurm takes minutes"),
    ("bench plan --suite toy --checkpoint-seconds -5", "--checkpoint-seconds is -5.0; it must be at least 0"),
    ("bench plan --suite toy --checkpoint-seconds nan", "--checkpoint-seconds: 'nan' is not a finite number"),
    ("bench plan --suite toy --lease-seconds 0", "--lease-seconds is 0; it must be a number above 0"),
    ("bench evaluate toy --episodes 99999999999", "and --episodes 99999999999; the seed of an episode is at most"),
    ("bench logs toy --lines 0", "--lines is 0; it must be at least 1"),
    (f"{PLAN} --success-rule first", "'first' is none of auto, any, last"),
    (f"{PLAN} --discount nan", "--discount: 'nan' is not a finite number"),
    ("bench plan --suite toy --agent-config.bc_coef nan", "bc_coef is 'nan'"),
    (f"{PLAN} --agent-config.chunk_length 21", "an episode of toy-reach has at most 20 steps"),
    ("bench plan --suite toy --agents qc_fql --agent-config.chunk_length 500", "at most 20 steps"),
    (f"{PLAN} --online-dataset-rows 0", "online_dataset_rows is 0; it must be at least one chunk"),
    # data, of which a plan opens the arrays, and batches beyond the memory
    (f"{DATA} nan.npz", "nan.npz"),
    (f"{DATA} short.npz --agent-config.chunk_length 5", "3 transitions, fewer than one chunk of fql (chunk_length 5)"),
    (f"{DATA} wide.npz", "wide.npz"),
    (f"{DATA} file.txt", "file.txt"),
    (f"{DATA} folder", "folder is a folder, not a data file"),
    (f"{DATA} empty.npz", "empty.npz is empty"),
    (f"{DATA} degrees.npz", "in row 0; that is the largest in size, and 40 of 40 rows (100%) lie beyond [-1, 1]"),
    (f"{DATA} ones.npz", "they reach from 1 to 1, the task's are -1 until solved, then 0"),
    (f"{DATA} ones.npz --accept actions", "its actions lie in [-1, 1]; leave out --accept actions"),
    (f"{DATA} good.npz --accept rewards", "its rewards are those that toy-reach gives; leave out --accept rewards"),
    (f"{DATA} good.npz --accept reward", "unknown --accept 'reward' (did you mean 'rewards'?)"),
    (f"{DATA} good.npz --accept", "--accept: it needs a value"),
    (f"{DATA} good.npz --filter-key train", "--filter-key is for files in robomimic's layout"),
    (f"{DATA} good.npz --filter-key ''", "--filter-key: it needs the name of a filter key"),
    (f"{PLAN} --accept-change devise", "unknown --accept-change 'devise' (did you mean 'device'?); it takes"),
    (f"{PLAN} --accept rewards", "--accept is for a file of yours: name it with --data FILE"),
    (f"{PLAN} --filter-key train", "--filter-key is for a file of yours: name it with --data FILE"),
    ("bench data import degrees.npz --task toy-reach", "have them clipped with --accept actions"),
    ("bench data import ones.npz --task toy-reach --accept actions", "leave out --accept actions"),
    (
        f"{PLAN} --replay-capacity 10000000000000 --online-steps 10000000000000",
        "collects online takes 280.0 TB for 1 seed, beside",
    ),
    (f"{SLURM} --mem 1K", "replay and batches of a job of toy-reach qc_fql alone take"),
    (f"{SLURM} --mem 30M --online-steps 1000000 --replay-capacity 1000000", "alone take"),
    (f"{DATA} good.npz --batch-size 1000000000000", "batch_size is 1000000000000: one batch of fql takes at least"),
]


def toy_file(
    path: Path, rows: int = 40, width: int = 2, value: float = 0.5, action: float = 0.0, reward: float = -1.0
) -> None:
    np.savez(
        path,
        observations=np.full((rows, width), value, np.float32),
        next_observations=np.full((rows, width), value, np.float32),
        actions=np.full((rows, 2), action, np.float32),
        rewards=np.full(rows, reward, np.float32),
        terminals=np.zeros(rows, bool),
        timeouts=np.arange(rows) == rows - 1,
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: files that are no data, or bad data, and runs of nobody."""
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))
    here = tmp_path / "here"
    (here / "results" / "toy").mkdir(parents=True)
    (here / "folder").mkdir()
    (here / "file.txt").write_text("no folder\n")
    toy_file(here / "good.npz")
    toy_file(here / "nan.npz", value=np.nan)
    toy_file(here / "wide.npz", width=3)
    toy_file(here / "short.npz", rows=3)
    toy_file(here / "degrees.npz", action=-90.0)
    toy_file(here / "ones.npz", reward=1.0)
    (here / "empty.npz").touch()
    monkeypatch.chdir(here)
    return here


def parameters() -> list[Any]:
    """A mirror asks first whether its tracker is installed."""
    return [
        pytest.param(
            *(line, said),
            marks=[pytest.mark.extra("tensorboard")] if "--to tensorboard" in line else [],
            id=line.replace(LONG, "xxx…"),
        )
        for line, said in WRONG
    ]


@pytest.mark.parametrize(("line", "said"), parameters())
def test_a_wrong_input_is_one_line_and_nothing_is_written(line, said, folder, capsys, monkeypatch):
    monkeypatch.setattr(slurm, "exists", lambda command: False)  # a plan for a cluster is made anywhere
    before = contents(folder)
    program, *words = shlex.split(line)
    main = {"bench": bench.__main__.main, "analysis": analysis.__main__.main}[program]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error, error
    assert contents(folder) == before


def test_a_plan_says_how_much_a_users_file_holds(folder, capsys):
    before = contents(folder)
    small = "--agent-config.policy_hidden_dims 8,8 --agent-config.critic_hidden_dims 8,8 --batch-size 8"
    assert bench.__main__.main(f"{PLAN} --data good.npz {small}".removeprefix("bench ").split()) == 0
    assert "good.npz (40 transitions in 1 episode)" in capsys.readouterr().out
    assert contents(folder) == before


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_there_are_at_least_sixty_wrong_inputs():
    assert len({line for line, _ in WRONG}) == len(WRONG) >= 60


# From Python, where other names come along than a shell passes on.
NAMES = [LONG, "a\nb", "a\0b", "a\\b", "a b", "a/b", "..", ".x", "-x", "", "offline", "grids", "figures", "OFFLINE"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:9]))
def test_what_no_suite_may_be_called_is_refused(name):
    with pytest.raises(ConfigError) as error:
        run_config(name, datasets.task("toy-reach"), "fql", seed=0)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250
    if name.lower() not in NO_SUITES:
        with pytest.raises(ConfigError):
            tiny_config(dataset=name)


@pytest.mark.parametrize("name", ["ü", "x" * 200, "my-suite_2", "a.b", "2024"], ids=lambda name: name[:9])
def test_other_names_of_suites_are_taken(name):
    assert run_config(name, datasets.task("toy-reach"), "fql", seed=0).suite == name


def test_a_chunk_is_no_longer_than_an_episode():
    config = tiny_config("fql")
    longest = datasets.task(config.task).max_episode_steps
    fits = default_agent_config("fql", {"chunk_length": str(longest)}, config.agent_config)
    assert config.replace(agent_config=fits).agent_config.chunk_length == longest
    with pytest.raises(ConfigError, match=f"chunk_length is {longest + 1}; .* at most {longest} steps"):
        config.replace(agent_config=default_agent_config("fql", {"chunk_length": str(longest + 1)}))


# Of the process: signals, encodings, interpreters.


@pytest.mark.parametrize("module", [bench.__main__, analysis.__main__])
def test_ctrl_c_is_one_line(module, capsys, monkeypatch):
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_verb", interrupted)
    assert module.main([]) == 130
    assert capsys.readouterr().err == "stopped; start again to go on\n"


@pytest.mark.parametrize("words", ["bench run --help", "bench data list", "analysis --help"])
def test_an_output_without_unicode_gets_question_marks(words, tmp_path):
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = started(words, sys.executable, environment, tmp_path)
    assert "Traceback" not in done.stderr and done.stdout.isascii(), done.stderr


@pytest.mark.parametrize("program", ["bench", "analysis"])
def test_a_python_without_the_packages_says_which_one_has_them(program, tmp_path):
    done = started(f"{program} --help", sys.executable, {"PYTHONPATH": str(ROOT)}, tmp_path, "-S")
    assert done.returncode == 2 and not done.stdout
    assert f"lacks the packages; use .venv/bin/python -m {program} (make setup)" in done.stderr
    assert done.stderr.count("\n") == 1


def started(words: str, python: str, environment: dict[str, str], folder: Path, *options: str):
    command = [python, *options, "-m", *words.split()]
    environment = {"PATH": os.environ["PATH"], "O2O_BENCH_OFFLINE": "1", **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")
