"""A finished run's policy outside the harness, and evaluated again by it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import agents
import bench.__main__
from agents.blocks.config import settings_of
from bench.protocol.config import RunConfig
from bench.runs.contract import CONFIG, EPISODES, POLICY
from bench.tools.data import ProgressLine
from bench.tools.evaluation import described
from bench.training.evaluate import prepare_worker, run_episode
from bench.training.execution import Execution
from bench.training.policies import load_policy, policy_file
from bench.training.train import run
from tests.tiny_runs import once_per_class, python, tiny_config


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory) -> Path:
    """The folder of a complete run of an agent with chunks."""
    config = tiny_config("qc_fql", offline_updates=3, online_steps=0, eval_episodes=3)
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("O2O_BENCH_DATA", str(tiny_data))
        run([config], results, Execution(device="cpu", env_workers=0), lambda: False)
    return config.directory(results)


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """Of the finished run, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def config_of(directory: Path) -> RunConfig:
    return RunConfig.from_json(json.loads((directory / CONFIG).read_text()))


def without_metadata(directory: Path) -> Path:
    """The policy as older versions wrote it."""
    file = directory / POLICY
    safetensors.torch.save_file(safetensors.torch.load_file(file), file)
    return file


# In a plain script.


@pytest.mark.parametrize("agent", once_per_class())
def test_a_policy_acts_bit_by_bit_as_the_evaluator(agent, tmp_path):
    config = tiny_config(agent)
    env, built = prepare_worker(config)
    (tmp_path / "policy.safetensors").write_bytes(data := policy_file(config, built, 0))
    load_policy(built, data)
    policy = agents.load_policy(tmp_path / "policy.safetensors")
    torch.set_num_threads(1)
    for seed in (7, 8):
        row = run_episode(env, built, seed)
        policy.reset(seed=seed)
        obs, _ = env.reset(seed=seed)
        total, length, ended = 0.0, 0, False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(policy.act(obs))
            total, length, ended = total + float(reward), length + 1, terminated or truncated
        assert (total, length) == (row["return"], row["length"])


def test_the_file_says_what_it_is_in_the_same_bytes_each_time(finished):
    with safetensors.safe_open(finished / POLICY, "pt") as file:
        said = file.metadata()
    config = config_of(finished)
    settings = json.loads(json.dumps(settings_of(config.agent_config)))
    assert json.loads(said.pop("agent_config")) == settings
    assert said == {
        "schema_version": "1",
        "agent": "qc_fql",
        "task": "toy-reach",
        "obs_dim": "2",
        "action_dim": "2",
        "chunk_length": "5",
    }
    _, agent = prepare_worker(config)
    load_policy(agent, (finished / POLICY).read_bytes())
    assert {policy_file(config, agent, 0) for _ in range(8)} == {(finished / POLICY).read_bytes()}


def test_each_environment_of_a_batch_has_a_chunk_of_its_own(finished):
    policy = agents.load_policy(finished)
    obs = np.random.default_rng(0).uniform(-1, 1, (3, 2))
    before = [policy.act(obs) for _ in range(3)]
    assert before[0].shape == (3, 2) and before[0].dtype == np.float32
    unmoved = policy._chunks[[0, 2]].copy()
    policy.reset(np.array([False, True, False]))
    second = policy.act(-obs)
    assert np.array_equal(second[[0, 2]], unmoved[:, 3]) and np.array_equal(second[1], policy._chunks[1, 0])
    policy.reset(seed=0)
    assert np.array_equal(policy.act(obs), before[0])
    policy.reset()
    assert (policy.act(obs) != before[0]).any(), "the noise goes on"


def test_obs_that_do_not_fit_are_refused(finished):
    policy = agents.load_policy(finished)
    with pytest.raises(ValueError, match=r"^obs have the shape \(3,\); this policy takes \(2,\) or \(n, 2\)$"):
        policy.act(np.zeros(3))
    policy.act(np.zeros(2))
    with pytest.raises(ValueError, match=r"^obs of 4 environments, before of 1; call reset\(\) in between$"):
        policy.act(np.zeros((4, 2)))


def test_ended_environments_are_flags_and_never_numbers(finished):
    policy, flags = agents.load_policy(finished), agents.load_policy(finished)
    obs = np.random.default_rng(1).uniform(-1, 1, (3, 2))
    for each, ended in ((policy, np.array([0, 1, 0])), (flags, np.array([False, True, False]))):
        each.act(obs)
        each.reset(ended)
    assert np.array_equal(policy.act(-obs), flags.act(-obs))
    with pytest.raises(ValueError, match=r"^ended has the shape \(2,\); the batch has 3 environments$"):
        policy.reset(np.array([True, False]))


def test_dimensions_that_contradict_the_file_are_refused(finished):
    agents.load_policy(finished, obs_dim=2, action_dim=2)
    with pytest.raises(ValueError, match=r"says that its action_dim is 2, not 4; leave action_dim out$"):
        agents.load_policy(finished, obs_dim=2, action_dim=4)


def test_a_plain_script_needs_torch_numpy_and_safetensors_alone(finished, tmp_path):
    script = tmp_path / "plain.py"
    script.write_text(
        "import sys\n"
        "import numpy, safetensors.torch, torch\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        "import agents\n"
        f"policy = agents.load_policy({str(finished / POLICY)!r})\n"
        "assert policy.act(numpy.zeros(policy.facts['obs_dim'])).shape == (policy.facts['action_dim'],)\n"
        "print(*{name.partition('.')[0] for name in sys.modules} - before - set(sys.stdlib_module_names))\n"
        "print(*(name for name in sys.modules if name.startswith('bench')))\n"
    )
    done = python(str(script), cwd=tmp_path, PYTHONPATH=str(Path(agents.__file__).parents[1]))
    assert done.returncode == 0, done.stderr
    packages, ours = done.stdout.splitlines()
    assert set(packages.split()) <= {"agents", "bench", "datasets", "filelock"}
    assert ours.split() == ["bench", "bench.runs", "bench.runs.contract"], "the standard library alone"


def test_a_policy_of_an_older_version_takes_its_agent_from_the_config_beside(copy):
    before = agents.load_policy(copy).act(np.zeros(2))
    file = without_metadata(copy)
    with pytest.raises(ValueError, match=r"does not say its dimensions .*obs_dim=…, action_dim=….* of toy-reach$"):
        agents.load_policy(file)
    assert np.array_equal(agents.load_policy(file, obs_dim=2, action_dim=2).act(np.zeros(2)), before)
    with pytest.raises(ValueError, match=r"does not fit this checkout's qc_fql: .* the state has shape"):
        agents.load_policy(file, obs_dim=3, action_dim=2)
    (copy / CONFIG).unlink()
    with pytest.raises(ValueError, match=r"does not say which agent it is of .*: put the run's config\.json beside$"):
        agents.load_policy(file)


def test_a_file_that_is_no_policy_is_one_line(copy):
    file = copy / POLICY
    data = file.read_bytes()
    for old, new, said in (
        (b'"agent":"qc_fql"', b'"agent":"qc_fqx"', r"unknown agent 'qc_fqx' \(did you mean 'qc_fql'\?\); import"),
        (b'"schema_version":"1"', b'"schema_version":"9"', "is of schema 9, this checkout reads 1"),
        (b"bc_coef", b"bc_xoef", "does not fit this checkout's qc_fql: "),
        (b'"obs_dim"', b'"obs_dix"', r"is damaged: its metadata cannot be read \(KeyError: 'obs_dim'\)$"),
        (b'"obs_dim":"2"', b'"obs_dim":"x"', r"is damaged: its metadata cannot be read \(ValueError: "),
    ):
        file.write_bytes(data.replace(old, new))
        with pytest.raises(ValueError, match=said) as error:
            agents.load_policy(file)
        assert "\n" not in str(error.value)
    file.write_bytes(data[:100])
    with pytest.raises(ValueError, match=r"policy\.safetensors is damaged, or no safetensors file"):
        agents.load_policy(file)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        agents.load_policy(file)


# Evaluated again.


def evaluate(*words: object) -> int:
    return bench.__main__.main(["evaluate", *map(str, words)])


def test_the_episodes_of_training_are_played_again_as_they_were(copy, capsys):
    before = (copy / EPISODES).read_text()
    assert evaluate(copy, "--again", "--workers", 2) == 0
    header, *rows = before.splitlines()
    file = copy / "evaluations" / f"toy-reach_3ep_seed{rows[-3].split(',')[3]}.csv"
    assert file.read_text().splitlines() == [header, *rows[-3:]]
    assert (copy / EPISODES).read_text() == before
    said = capsys.readouterr().out
    assert re.fullmatch(rf"qc_fql, seed 0, on toy-reach: success rate .* of 3 episodes \(95 % .*\); {file}\n", said)


def test_the_same_call_gives_the_same_bytes_for_each_run_of_an_agent(finished, tmp_path):
    out = tmp_path / "out"
    call = (finished.parent, "--episodes", 4, "--out", out)
    assert evaluate(*call) == 0
    (file,) = [path for path in out.rglob("*") if path.is_file()]
    assert file == out / "tiny/toy-reach/qc_fql/seed_000/toy-reach_4ep_seed2000000.csv"
    before = file.read_bytes()
    assert before.count(b"\n") == 5
    assert evaluate(*call, "--workers", 1) == 0 and file.read_bytes() == before
    assert not (finished / "evaluations").exists()


def test_what_cannot_be_evaluated_is_one_line(copy, capsys, tmp_path, monkeypatch):
    def refusal(*words: object) -> str:
        assert evaluate(*words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    assert "cube-single-task2 has observations of 28 numbers and actions of 5" in refusal(copy, "--task", "cube-single")
    assert "unknown task 'toy-raech'" in refusal(copy, "--task", "toy-raech")
    assert "--base-seed is 2147483647 and --episodes 200; the seed of an" in refusal(copy, "--base-seed", 2**31 - 1)
    for option in ("--episodes", "--base-seed"):
        assert "--again plays the last evaluation's episodes" in refusal(copy, "--again", option, 3)
    assert "there is no run" in refusal(tmp_path / "nothing")
    assert "unknown task ''" in refusal(copy, "--task", "")
    results = copy.parent / "results"
    shutil.copytree(copy, config_of(copy).directory(results))
    before = sorted(results.rglob("*"))
    assert "qc_fql/seed_000 there is a run's folder; leave --out out" in refusal(copy, "--out", results)
    assert sorted(results.rglob("*")) == before
    monkeypatch.chdir(copy)
    assert "there is no run ''" in refusal("")
    policy = copy / POLICY
    policy.write_bytes(policy.read_bytes()[:100])
    assert "policy.safetensors cannot be read" in refusal(copy)
    policy.unlink()
    assert "holds no checkpoint/policy.safetensors" in refusal(copy)
    assert not (copy / "evaluations").exists()


def test_progress_leaves_nothing_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    progress = ProgressLine(lambda done, total: f"{done}/{total} episodes", lambda rate: f"{rate:.1f}/s")
    progress(0, 9)
    progress.clear()
    assert capsys.readouterr().out.endswith("\r\x1b[K")


def test_success_is_told_with_wilsons_interval():
    rows = [{"episode_seed": i, "success": int(i < 9), "return": 0.0, "length": 1.0} for i in range(10)]
    z2, rate, n = 1.959964**2, 0.9, 10
    centre, half = rate + z2 / 2 / n, (z2 * (rate * (1 - rate) / n + z2 / 4 / n**2)) ** 0.5
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    assert described(rows) == f"success rate 0.900, 9 of 10 episodes (95 % interval {low:.3f} to {high:.3f})"


def test_a_task_without_success_is_told_by_its_return():
    rows = [{"episode_seed": i, "success": None, "return": float(i), "length": 1.0} for i in range(5)]
    assert described(rows) == "mean return 2 of 5 episodes (95 % interval 0.6141 to 3.386)"
    assert described(rows[1:2]) == "return 1 in 1 episode"
