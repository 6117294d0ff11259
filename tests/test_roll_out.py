"""Data recorded from a finished run's policy: what evaluations play, whatever the workers, ready to train on."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch

import datasets
from agents.blocks.streams import SeedStreams, stream_key
from bench.protocol.config import ConfigError, RunConfig
from bench.tools.roll_out import POLICY, Recorder, roll_out
from bench.training.evaluate import FIXED_SEED, episode_seeds, run_episode
from bench.training.execution import Execution
from bench.training.policies import build_agent
from bench.training.train import run
from datasets.flat_files.reading import recipe_of
from datasets.spec import DataError
from tests.tiny_runs import python, tiny_config

EPISODES = 3
SEEDS = [stream_key("recorded episode", 0, index) % 2**31 for index in range(EPISODES)]


def finish(config: RunConfig, results: Path) -> Path:
    run([config], results, Execution(device="cpu", env_workers=0), lambda: False)
    return config.directory(results)


def few_updates(**changes) -> RunConfig:
    """Enough for a policy of its own, and no more."""
    return tiny_config("fql", **{"offline_updates": 3, "online_steps": 0, "eval_episodes": 1, **changes})


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory) -> Path:
    """The directory of a complete run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("O2O_BENCH_DATA", str(tiny_data))
        return finish(few_updates(), tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def recorded(finished, tmp_path_factory) -> Path:
    return roll_out(finished, EPISODES, tmp_path_factory.mktemp("recorded") / "data.hdf5")


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """Of the finished run, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def arrays(file: Path) -> dict[str, np.ndarray]:
    with h5py.File(file) as content:
        return {key: array[:] for key, array in content.items()}


def test_recorded_episodes_are_those_that_an_evaluation_plays(finished, recorded):
    config = RunConfig.from_json(json.loads((finished / "config.json").read_text()))
    agent = build_agent(config, SeedStreams([0], "cpu", "init"))
    agent.load_state_dict(safetensors.torch.load_file(finished / POLICY), strict=False)
    env = datasets.make_env(config.task)
    rows = [run_episode(env, agent, seed) for seed in SEEDS]
    data = arrays(recorded)
    ends = np.flatnonzero(data["terminals"] | data["timeouts"])
    assert np.diff(ends, prepend=-1).tolist() == [row["length"] for row in rows]
    returns = np.add.reduceat(data["rewards"], np.append(0, ends[:-1] + 1), dtype=np.float64)
    assert returns.tolist() == [row["return"] for row in rows]


def test_they_meet_no_seed_of_an_evaluation(recorded):
    evaluated = {*range(FIXED_SEED, FIXED_SEED + 10_000)}
    for updates in (0, 3):
        evaluated |= {*episode_seeds(few_updates(eval_episodes=10_000), "offline", updates, 0)}
    assert not {*SEEDS} & evaluated


def test_recorded_rewards_are_the_environments_on_replayed_actions(finished, recorded, own_cache):
    data = datasets.load("toy-reach", datasets.register(recorded))
    assert (data.origin, data.num_episodes) == ("generated", EPISODES)
    env = datasets.make_env("toy-reach")
    file_actions, row = arrays(recorded)["actions"], 0
    for seed, first, last in zip(SEEDS, np.append(0, data.episode_ends[:-1]), data.episode_ends, strict=True):
        obs, _ = env.reset(seed=seed)
        for action in file_actions[first:last]:
            np.testing.assert_array_equal(data.obs[row], obs)
            np.testing.assert_allclose(data.action[row], action, atol=1.1e-5)
            obs, reward, terminated, _, _ = env.step(action)
            assert (data.reward[row], data.terminated[row]) == (np.float32(reward), terminated)
            row += 1
        np.testing.assert_array_equal(data.obs[row], obs)
        assert data.final[row]
        row += 1
    assert row == len(data.obs)


def test_the_number_of_workers_changes_no_byte_and_progress_is_told(finished, recorded, tmp_path):
    told = []
    file = roll_out(
        finished, EPISODES, tmp_path / "data.hdf5", workers=2, progress=lambda *numbers: told.append(numbers)
    )
    assert file.read_bytes() == recorded.read_bytes()
    assert told[0] == (0, EPISODES) and told[-1] == (EPISODES, EPISODES) and told == sorted(told)
    assert [path.name for path in tmp_path.iterdir()] == ["data.hdf5"], "nothing else is left"


def test_the_file_tells_its_recipe(finished, recorded):
    recipe = recipe_of(recorded)
    assert isinstance(recipe, dict)
    config = json.loads((finished / "config.json").read_text())
    assert recipe["config_hash"] == config["config_hash"]
    told = {key: recipe[key] for key in ("task", "agent", "run_seed", "episodes", "seed", "noise")}
    assert told == {
        "task": "toy-reach",
        "agent": "fql",
        "run_seed": 0,
        "episodes": EPISODES,
        "seed": 0,
        "noise": 0.0,
    }


def test_recorded_rewards_are_those_of_one_task(recorded, own_cache):
    message = rf"^{recorded} was exported from task toy-reach; its rewards are not those of cube-single-task2$"
    with pytest.raises(DataError, match=message):
        datasets.load("cube-single-task2", datasets.register(recorded))


def test_noise_has_the_asked_spread_and_stays_within_bounds():
    env = Recorder(datasets.make_env("toy-reach"), noise=0.2, noise_seed=3)
    for wanted in (0.3, 1.0):
        env.reset(seed=0)
        for _ in range(250):
            env.step(np.full(2, wanted, np.float32))
        moved = np.array([step.action for step in env.steps]) - wanted
        if wanted == 1.0:
            assert moved.max() == 0 and moved.min() < -0.2, "clipped"
        else:
            assert abs(moved.mean()) < 0.03 and abs(moved.std() - 0.2) < 0.02


def test_noise_is_the_same_each_time(finished, recorded, tmp_path):
    noisy = arrays(roll_out(finished, 1, tmp_path / "noisy.hdf5", noise=0.4))
    again = arrays(roll_out(finished, 1, tmp_path / "again.h5", noise=0.4))
    for key, array in noisy.items():
        np.testing.assert_array_equal(again[key], array)
    plain = arrays(recorded)
    np.testing.assert_array_equal(noisy["observations"][0], plain["observations"][0], "the same first state")
    assert (noisy["actions"][0] != plain["actions"][0]).any()


def test_another_seed_gives_other_episodes(finished, recorded, tmp_path):
    other = arrays(roll_out(finished, 1, tmp_path / "other.hdf5", seed=1))
    assert (other["observations"][0] != arrays(recorded)["observations"][0]).any()


def test_a_file_that_is_there_is_kept_and_never_replaced_by_another(finished, recorded, tmp_path):
    before = recorded.stat().st_mtime_ns
    assert roll_out(finished, EPISODES, recorded) == recorded
    assert recorded.stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=rf"^{recorded} is there already and holds other data"):
        roll_out(finished, EPISODES, recorded, seed=1)
    (tmp_path / "notes.hdf5").write_text("mine")
    with pytest.raises(ConfigError, match="is there already and holds other data"):
        roll_out(finished, EPISODES, tmp_path / "notes.hdf5")
    assert (tmp_path / "notes.hdf5").read_text() == "mine"


def test_without_a_file_the_cache_takes_it(finished, recorded, own_cache):
    file = roll_out(finished, EPISODES)
    assert file.parent == own_cache / "recorded"
    assert file.name.startswith("toy-reach-fql-") and file.name.endswith("-3ep-noise0-seed0.hdf5")
    assert file.read_bytes() == recorded.read_bytes()


# Runs that have no policy to record, and requests that make no sense.


def test_only_complete_runs_are_recorded(copy, tmp_path):
    status = json.loads((copy / "status.json").read_text())
    (copy / "status.json").write_text(json.dumps(status | {"state": "preempted"}))
    with pytest.raises(ConfigError, match=rf"^the run in {copy} is preempted; its policy is written when it is comp"):
        roll_out(copy, 1, tmp_path / "x.hdf5")
    with pytest.raises(ConfigError, match=r"is no run: it holds no config\.json"):
        roll_out(tmp_path, 1, tmp_path / "x.hdf5")


def test_a_policy_that_is_missing_damaged_or_of_another_agent_is_refused(copy, tmp_path):
    policy = copy / POLICY
    tensors = safetensors.torch.load_file(policy)
    name = next(iter(tensors))
    safetensors.torch.save_file({**tensors, name: tensors[name][..., :1].contiguous()}, policy)
    with pytest.raises(ConfigError, match=r"policy\.safetensors holds other networks than this checkout's fql$"):
        roll_out(copy, 1, tmp_path / "x.hdf5")
    policy.write_bytes(policy.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"policy\.safetensors cannot be read") as error:
        roll_out(copy, 1, tmp_path / "x.hdf5")
    assert "\n" not in str(error.value)
    policy.unlink()
    with pytest.raises(ConfigError, match=r"holds no checkpoint/policy\.safetensors$"):
        roll_out(copy, 1, tmp_path / "x.hdf5")
    assert not (tmp_path / "x.hdf5").exists()


@pytest.mark.parametrize(
    "request_", [{"episodes": 0}, {"workers": 0}, {"seed": -1}, {"noise": -0.1}, {"noise": float("nan")}]
)
def test_senseless_numbers_are_refused(finished, tmp_path, request_):
    with pytest.raises(ConfigError, match="episodes and workers must be at least 1, seed and noise at least 0"):
        roll_out(finished, **{"episodes": 1, "out": tmp_path / "x.hdf5", **request_})


def test_the_file_must_be_named_as_hdf5(finished, tmp_path):
    with pytest.raises(ConfigError, match=r"x\.npz must be named as an HDF5 file: x\.hdf5$"):
        roll_out(finished, 1, tmp_path / "x.npz")


# Any suite, and the command.


@pytest.mark.extra("bullet")
def test_a_walker_is_recorded_and_trained_on(own_cache, tmp_path):
    datasets.generate("hopper-bullet", "random", episodes=20)
    walker = few_updates(task="hopper-bullet-random", dataset="hopper-bullet-random-generated-20ep-seed0")
    file = roll_out(finish(walker, tmp_path / "results"), 10, tmp_path / "hopper.hdf5", noise=0.1)
    name = datasets.register(file)
    data = datasets.load("hopper-bullet-medium", name)
    assert (data.origin, data.num_episodes) == ("generated", 10)
    second = few_updates(task="hopper-bullet-medium", dataset=name, online_steps=20, warmup_steps=10)
    status = json.loads((finish(second, tmp_path / "results") / "status.json").read_text())
    assert (status["state"], status["success_rate"]) == ("complete", None)
    assert np.isfinite(status["mean_return"])


def test_the_command_records_a_run(finished, recorded, tmp_path):
    file = tmp_path / "data.hdf5"
    arguments = ["--run", str(finished), "--episodes", str(EPISODES), "--workers", "2", "--out", str(file)]
    done = python("-m", "bench", "data", "generate", *arguments)
    assert done.returncode == 0, done.stderr
    assert f"--data {file}" in done.stdout
    assert file.read_bytes() == recorded.read_bytes()
