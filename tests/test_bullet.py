"""d4rl-pybullet: names, files as its authors wrote them, environments that a seed decides, and random data."""

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import datasets
from datasets.bullet import source as bullet
from datasets.bullet.tasks import DIMS, MAX_EPISODE_STEPS
from datasets.spec import DataError
from tests.tiny_runs import provenance_of, python, tiny_config

needs_simulator = pytest.mark.extra("bullet")
DOMAINS = sorted(DIMS)

DIGESTS = """
import hashlib, json, sys
import numpy as np
import datasets

def digest(env, seed, num_steps):
    '''All that an environment says in an episode of waves, which fall later than noise does.'''
    rng = np.random.default_rng(seed)
    num_actions = env.action_space.shape[0]
    speed, phase, strength = (rng.uniform(low, high, num_actions) for low, high in ((0.05, 0.6), (0, 6.28), (0.2, 1)))
    obs, _ = env.reset(seed=seed)
    said = hashlib.sha256(obs.tobytes())
    for t in range(num_steps):
        obs, reward, terminated, truncated, _ = env.step((strength * np.sin(speed * t + phase)).astype(np.float32))
        said.update(obs.tobytes() + np.float64(reward).tobytes() + bytes([terminated, truncated]))
        if terminated or truncated:
            break
    return said.hexdigest()

order = json.loads(sys.argv[2])
envs = {domain: datasets.make_env(domain) for domain in json.loads(sys.argv[1])}
print(json.dumps({domain: {seed: digest(env, seed, steps) for seed, steps in order} for domain, env in envs.items()}))
"""


def digests(order: list[tuple[int, int]], program: Path) -> dict[str, dict[str, str]]:
    """Digest by domain and seed of episodes (seed, at most so many steps), played one after the other in each domain's
    environment, in a process of their own."""
    program.write_text(DIGESTS)
    done = python(str(program), json.dumps(DOMAINS), json.dumps(order), PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, f"only the answer is printed, got {done.stdout}"
    assert "pybullet" not in done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    return tmp_path


# Names.


def test_the_twelve_sets_have_tasks_files_and_official_links(monkeypatch):
    assert len(bullet.PUBLISHED) == len(bullet.TASKS) == 12
    links = set()
    for name, spec in bullet.TASKS.items():
        dataset = bullet.parse(spec.dataset or "")
        assert dataset is not None and dataset.domain == spec.domain and spec.dataset == f"{name}-v0"
        (file,) = dataset.files
        assert file.name == f"{name}-v0.hdf5"
        (url,) = file.urls
        assert url.startswith("https://www.dropbox.com/s/") and url.endswith(f"/{file.name}?dl=1")
        links.add(url.split("/")[4])
        assert dataset.folders == ("~/.d4rl/datasets",)
    assert len(links) == 12
    monkeypatch.setenv("D4RL_DATASET_DIR", "/data/d4rl")
    dataset = bullet.parse("ant-bullet-mixed-v0")
    assert dataset is not None and dataset.folders == ("/data/d4rl",)


def test_a_domain_means_its_medium_task():
    assert datasets.task("hopper-bullet") is datasets.task("hopper-bullet-medium")
    assert datasets.task("walker2d-bullet-mixed").dataset == "walker2d-bullet-mixed-v0"


@pytest.mark.parametrize(
    "name", ["hopper-bullet-medium", "hopper-bullet-expert-v0", "hopper-bullet-play-generated-3ep-seed0", "cube-single"]
)
def test_other_names_are_none_of_this_source(name):
    assert bullet.parse(name) is None


def test_an_absent_set_is_told_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    with pytest.raises(DataError, match=rf"no hopper-bullet-medium-v0\.hdf5 in {tmp_path}; get it: python -m"):
        datasets.load("hopper-bullet-medium")
    with pytest.raises(DataError, match=r"--dataset hopper-bullet-random-generated-500ep-seed0\b"):
        datasets.load("hopper-bullet-random")


# Environments.


@needs_simulator
@pytest.mark.parametrize("domain", DOMAINS)
def test_environments_are_as_their_tasks_say(domain):
    spec = datasets.task(domain)
    env = datasets.make_env(domain)
    obs, info = env.reset(seed=3)
    assert obs.shape == env.observation_space.shape == (spec.obs_dim,) and obs.dtype == np.float32 and info == {}
    assert env.action_space.shape == (spec.action_dim,)
    np.testing.assert_array_equal(env.reset(seed=3)[0], obs)
    assert (env.reset(seed=4)[0] != obs).any()
    obs, reward, terminated, truncated, info = env.step(np.full(spec.action_dim, 7.0))
    assert obs.dtype == np.float32 and type(reward) is float and terminated is False and truncated is False
    assert "success" not in info
    env.reset(seed=4)
    np.testing.assert_array_equal(env.step(np.ones(spec.action_dim))[0], obs, err_msg="actions are clipped")
    for bad in (np.zeros(spec.action_dim + 1), np.full(spec.action_dim, np.nan)):
        with pytest.raises(ValueError, match="finite numbers"):
            env.step(bad)


@needs_simulator
def test_an_episode_ends_after_a_thousand_steps():
    env = datasets.make_env("halfcheetah-bullet")
    env.reset(seed=0)
    ends = [env.step(np.zeros(6))[2:4] for _ in range(MAX_EPISODE_STEPS)]
    assert ends == [(False, False)] * 999 + [(False, True)]


@needs_simulator
def test_a_seed_decides_an_episode_in_every_process_and_after_any_other(tmp_path):
    order = [(0, 400), (1, 150), (2, 400), (3, 20), (4, 400)]
    first = digests(order, tmp_path / "digests.py")
    assert list(first) == DOMAINS
    assert all(len(set(of_domain.values())) == len(order) for of_domain in first.values())
    assert digests(order[::-1], tmp_path / "digests.py") == first
    alone = {domain: {"2": of_domain["2"]} for domain, of_domain in first.items()}
    assert digests(order[2:3], tmp_path / "digests.py") == alone


def serve_episode(prepared, requests, send) -> None:
    """A worker that plays on in the environment it inherited."""
    while True:
        send(play(prepared, requests.get()))


def play(env, seed: int) -> str:
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    said = hashlib.sha256(obs.tobytes())
    for _ in range(100):
        obs, reward, terminated, _, _ = env.step(rng.uniform(-0.3, 0.3, 8))
        said.update(obs.tobytes() + np.float64(reward).tobytes())
        if terminated:
            break
    return said.hexdigest()


def prepare_used(domain: str):
    """An environment in the midst of an episode, which the workers are forked with."""
    env = datasets.make_env(domain)
    env.reset(seed=99)
    for _ in range(30):
        env.step(np.full(8, 0.4))
    return env


@needs_simulator
def test_forked_workers_play_the_same_episodes():
    from bench.training.workers import Template

    template = Template(prepare_used, "ant-bullet")
    try:
        workers = [template.fork(str(number), serve_episode) for number in range(2)]
        for worker in workers:
            for seed in (5, 6):
                worker.send(seed)
        answers = [[worker.receive() for _ in range(2)] for worker in workers]
    finally:
        template.close()
    env = datasets.make_env("ant-bullet")
    assert answers == [[play(env, 5), play(env, 6)]] * 2


@needs_simulator
def test_a_run_stopped_in_mid_episode_goes_on_to_the_same_bytes(own_cache):
    from bench.runs.checkpoint import Checkpoints
    from bench.training.execution import Execution, Preemption
    from bench.training.train import run

    datasets.generate("hopper-bullet", "random", episodes=9)
    config = tiny_config(
        "fql",
        task="hopper-bullet-random",
        dataset="hopper-bullet-random-generated-9ep-seed0",
        offline_updates=7,
        eval_interval_steps=1000,
        eval_episodes=1,
    )
    whole, stopped = own_cache / "whole", own_cache / "stopped"
    execution = Execution(device="cpu", env_workers=0)
    run([config], whole, execution, lambda: False)
    table = config.directory(stopped) / "train.csv"
    with pytest.raises(Preemption):
        run([config], stopped, execution, lambda: table.exists() and "\nonline,11,14," in table.read_text())
    saved = Checkpoints(config.directory(stopped)).load()
    rollouts = saved[max(saved)].rollouts
    assert rollouts is not None and len(rollouts[0].actions) > 1, "in the midst of an episode"
    run([config], stopped, execution, lambda: False)
    for name in ("episodes.csv", "train.csv"):
        assert (config.directory(stopped) / name).read_bytes() == (config.directory(whole) / name).read_bytes()
    assert len(provenance_of(config.directory(stopped))["starts"]) == 2


# Published files.


def collected(file: Path, domain: str, seeds: list[int], limit: int | None = None) -> list[np.ndarray]:
    """Writes a file as d4rl-pybullet's collect.py does, and returns each episode's rewards.

    Its rows are (observation, action, reward and end that came with the observation); the last observation of an
    episode stands beside an action of zeros; a time limit counts as an end; the whole is cut to a number of rows.
    """
    env = datasets.make_env(domain)
    rows, rewards = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        obs, _ = env.reset(seed=seed)
        reward, ended = 0.0, False
        rewards.append([])
        while not ended:
            action = rng.uniform(-0.9, 0.9, env.action_space.shape).astype(np.float32)
            rows.append((obs, action, [reward], [ended]))
            obs, reward, terminated, truncated, _ = env.step(action)
            rewards[-1].append(reward)
            ended = terminated or truncated
        rows.append((obs, np.zeros_like(action), [reward], [ended]))
    with h5py.File(file, "w") as out:
        columns = zip(*rows[:limit], strict=True)
        for key, column in zip(("observations", "actions", "rewards", "terminals"), columns, strict=True):
            out[key] = np.array(column, np.float32)
    return [np.array(of_episode, np.float32) for of_episode in rewards]


def assert_rewards_are_the_environments(task: str, data, seeds: list[int]) -> None:
    """Replays the data's actions: the offline rewards, observations and ends are those of the environment."""
    env = datasets.make_env(task)
    row = 0
    for seed in seeds:
        obs, _ = env.reset(seed=seed)
        while True:
            np.testing.assert_array_equal(data.obs[row], obs)
            if data.final[row]:
                break
            obs, reward, terminated, truncated, _ = env.step(data.action[row])
            assert data.reward[row] == np.float32(reward)
            assert data.terminated[row] == terminated
            assert data.final[row + 1] == (terminated or truncated)
            row += 1
        row += 1
    assert row == len(data.obs)


@needs_simulator
@pytest.mark.parametrize("domain", DOMAINS)
def test_published_rewards_are_those_of_the_environment_on_replayed_actions(domain, own_cache):
    seeds = [0, 1, 2]
    collected(own_cache / f"{domain}-mixed-v0.hdf5", domain, seeds)
    data = datasets.load(f"{domain}-mixed")
    assert data.origin == "published"
    assert_rewards_are_the_environments(domain, data, seeds)


@needs_simulator
def test_a_time_limit_is_no_termination_and_a_cut_end_loses_nothing_known(own_cache):
    rewards = collected(own_cache / "halfcheetah-bullet-medium-v0.hdf5", "halfcheetah-bullet", [0, 1], limit=1001 + 300)
    data = datasets.load("halfcheetah-bullet-medium")
    assert data.episode_ends.tolist() == [1000, 1299]
    assert not data.terminated.any()
    np.testing.assert_array_equal(data.reward[~data.final], np.concatenate([rewards[0], rewards[1][:299]]))


@needs_simulator
def test_a_million_rows_may_end_in_the_midst_of_a_reset(own_cache):
    (rewards, _) = collected(own_cache / "ant-bullet-medium-v0.hdf5", "ant-bullet", [0, 1])
    with h5py.File(own_cache / "ant-bullet-medium-v0.hdf5") as whole:
        cut = {key: array[: len(rewards) + 2] for key, array in whole.items()}
    with h5py.File(own_cache / "ant-bullet-medium-v0.hdf5", "w") as out:
        out.update(cut)
    data = datasets.load("ant-bullet-medium")
    assert (data.num_transitions, data.num_episodes) == (len(rewards), 1)


@needs_simulator
def test_a_published_file_named_by_its_path_is_read_as_one(own_cache):
    file = own_cache / "downloaded.hdf5"
    collected(file, "hopper-bullet", [0, 1, 2])
    data = datasets.load("hopper-bullet-medium", datasets.register(file))
    assert data.origin == "user"
    assert_rewards_are_the_environments("hopper-bullet", data, [0, 1, 2])


def test_a_file_of_another_making_under_a_published_name_is_refused(own_cache):
    rng = np.random.default_rng(0)
    file = own_cache / "hopper-bullet-medium-v0.hdf5"
    with h5py.File(file, "w") as out:
        out["observations"], out["actions"] = rng.normal(size=(20, 15)), rng.uniform(-1, 1, (20, 3))
        out["rewards"], out["terminals"] = rng.normal(size=20), np.arange(20) % 5 == 4
    message = rf"^{file} is not d4rl-pybullet's hopper-bullet-medium-v0, .*; delete it, .* --data FILE$"
    with pytest.raises(DataError, match=message):
        datasets.load("hopper-bullet-medium")
    assert datasets.load("hopper-bullet-medium", datasets.register(file)).num_transitions == 20


def test_data_of_another_robot_are_refused(own_cache):
    file = own_cache / "hopper-bullet-medium-v0.hdf5"
    with h5py.File(file, "w") as out:
        out["observations"], out["actions"] = np.zeros((4, 22)), np.zeros((4, 6))
        out["rewards"], out["terminals"] = np.zeros(4), [0, 0, 0, 1]
    with pytest.raises(DataError, match=r"'observations' is float64 \(4, 22\), task hopper-bullet-\w+ needs rows"):
        datasets.load("hopper-bullet-medium")


# Generated data.


@needs_simulator
def test_generated_data_load_and_their_rewards_are_the_environments(own_cache):
    name = "hopper-bullet-random-generated-6ep-seed2"
    file = datasets.generate("hopper-bullet", "random", episodes=6, seed=2)
    assert file.name == f"{name}.hdf5"
    data = datasets.load("hopper-bullet-medium", name)
    assert (data.origin, data.num_episodes) == ("generated", 6)
    seeds = [int(np.random.default_rng((2, index)).integers(2**31)) for index in range(6)]
    assert_rewards_are_the_environments("hopper-bullet", data, seeds)
    manifest = json.loads(file.with_suffix(".manifest.json").read_text())
    assert manifest["transitions"] == data.num_transitions
    assert manifest["mean_return"] == pytest.approx(data.reward[~data.final].sum() / 6, abs=1e-3)
    assert manifest["recipe"] == bullet.recipe_of(file)
    assert set(manifest["versions"]) == {"python", *bullet.PACKAGES}


@needs_simulator
def test_workers_make_the_same_bytes(own_cache):
    alone = datasets.generate("walker2d-bullet", "random", episodes=5, seed=1, out=own_cache / "a").read_bytes()
    both = datasets.generate("walker2d-bullet", "random", episodes=5, seed=1, out=own_cache / "b", workers=2)
    assert both.read_bytes() == alone


@needs_simulator
def test_generated_data_stay_generated_under_a_published_name(own_cache):
    file = datasets.generate("hopper-bullet", "random", episodes=2)
    file.rename(own_cache / "hopper-bullet-random-v0.hdf5")
    assert datasets.load("hopper-bullet-random").origin == "generated"
