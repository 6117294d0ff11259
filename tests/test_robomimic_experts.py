"""Scripted experts of Lift, Can and Square, and the files in robomimic's format that their episodes become."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from datasets.robomimic.source import parse, read
from datasets.robomimic.tasks import ENV_NAMES, OBS_KEYS, TASKS
from datasets.spec import Dataset

pytestmark = pytest.mark.extra("robomimic")
ROOT = Path(__file__).parents[1]
DOMAINS = tuple(ENV_NAMES)
FAILING = ("misses, leaves", "misses, pretends", "drops", "dawdles")
EPISODES = 4


def dataset_of(domain: str, kind: str = "expert", seed: int = 0) -> Dataset:
    dataset = parse(f"{domain}-{kind}-generated-{EPISODES}ep-seed{seed}")
    assert dataset is not None
    return dataset


@cache
def episode_of(domain: str, kind: str, index: int, seed: int = 0) -> dict[str, np.ndarray]:
    from datasets.robomimic.episodes import make_episode

    return make_episode(dataset_of(domain, kind, seed), index)


def index_of(domain: str, quality: str) -> int:
    """The first episode of that quality in mixed sets."""
    from datasets.robomimic.experts import behaviour_of

    return next(index for index in range(1000) if behaviour_of(domain, "mixed", index)[1].name == quality)


def digest(episode: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(key.encode() + episode[key].tobytes() for key in sorted(episode))).hexdigest()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, np.ndarray]], dict[str, Any]]:
    """A file, the episodes in it, a failure among them, and what was said of them."""
    from datasets.robomimic.episodes import recipe
    from datasets.robomimic.files import write_set

    folder = tmp_path_factory.mktemp("parts")
    indices = [*range(EPISODES - 1), index_of("lift", "misses, leaves")]
    episodes = [episode_of("lift", "mixed", index) for index in indices]
    for number, episode in enumerate[dict[str, Any]](episodes):
        np.savez(folder / f"{number}.npz", **episode)
    parts = [folder / f"{number}.npz" for number in range(EPISODES)]
    dataset = dataset_of("lift", "mixed")
    facts = write_set(dataset, parts, folder / "set.hdf5", recipe(dataset))
    write_set(dataset, parts, folder / "again.hdf5", recipe(dataset))
    return folder / "set.hdf5", episodes, facts


# Episodes


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("index", range(EPISODES))
def test_expert_succeeds_with_every_strategy(domain: str, index: int) -> None:
    from datasets.robomimic.episodes import LINGER, max_steps
    from datasets.robomimic.experts import STRATEGIES

    episode = episode_of(domain, "expert", index)
    assert episode["success"], episode["strategy"]
    names = {episode_of(domain, "expert", i)["strategy"].item().decode() for i in range(EPISODES)}
    assert names == {strategy.name for strategy in STRATEGIES[domain]}
    first = int(episode["rewards"].argmax())
    assert len(episode["actions"]) == first + 1 + LINGER <= max_steps(domain)
    np.testing.assert_array_equal(episode["dones"], episode["rewards"])


@pytest.mark.parametrize("domain", DOMAINS)
def test_episode_depends_on_seed_and_index_alone(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.robomimic.episodes import make_episode

    monkeypatch.setattr("datasets.robomimic.episodes.max_steps", lambda domain: 60)
    first = digest(make_episode(dataset_of(domain, "mixed"), 1))
    make_episode(dataset_of(domain, "expert", seed=8), 3)
    np.random.uniform()
    assert digest(make_episode(dataset_of(domain, "mixed"), 1)) == first
    assert digest(make_episode(dataset_of(domain, "mixed", seed=1), 1)) != first
    state = np.random.get_state()
    make_episode(dataset_of(domain), 0)
    np.testing.assert_equal(np.random.get_state(), state)


def test_episode_is_the_same_in_a_fresh_process() -> None:
    code = "from tests.test_robomimic_experts import *; print(digest(episode_of('square', 'expert', 2)))"
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True
    )
    assert made.stdout.split()[-1] == digest(episode_of("square", "expert", 2))


@pytest.mark.parametrize(
    ("domain", "quality"), [*(("lift", quality) for quality in FAILING), ("can", "drops"), ("square", "drops")]
)
def test_failed_attempts_are_kept_and_labelled(domain: str, quality: str) -> None:
    from datasets.robomimic.episodes import max_steps

    episode = episode_of(domain, "mixed", index_of(domain, quality))
    assert episode["quality"].item().decode() == quality
    assert not episode["success"]
    assert not episode["rewards"].any() and not episode["dones"].any()
    assert (len(episode["actions"]) == max_steps(domain)) is (quality == "dawdles")


def test_expert_recovers_from_a_missed_grasp() -> None:
    episode = episode_of("lift", "mixed", index_of("lift", "misses, recovers"))
    assert episode["success"]
    gripper = episode["actions"][:, -1]
    assert np.count_nonzero((gripper[1:] > 0) & (gripper[:-1] < 0)) == 2  # it closed twice


@pytest.mark.parametrize("domain", DOMAINS)
def test_mixture_has_all_shares_in_any_stretch(domain: str) -> None:
    from datasets.robomimic.experts import QUALITIES, STRATEGIES, behaviour_of

    for start in (0, 77, 1234):
        pairs = [behaviour_of(domain, "mixed", index) for index in range(start, start + 100)]
        strategies = Counter(strategy.name for strategy, _ in pairs)
        assert strategies.keys() == {strategy.name for strategy in STRATEGIES[domain]}
        assert max(strategies.values()) - min(strategies.values()) <= 4
        for quality in QUALITIES["mixed"]:
            count = sum(each is quality for _, each in pairs)
            assert abs(count - 100 * quality.share) <= 3, (quality.name, count)
        clean = Counter(strategy.name for strategy, quality in pairs if quality.name == "clean")
        assert min(clean.values()) >= 6  # of 35 in four strategies: quality does not go by strategy
    assert sum(quality.share for quality in QUALITIES["mixed"]) == pytest.approx(1)


# States and observations


@pytest.mark.parametrize("domain", DOMAINS)
def test_states_give_the_observations_and_rewards_in_robosuite(domain: str) -> None:
    """As robomimic replays them: the scene from XML, states put back one after the other, in the package's own env."""
    from datasets.robomimic.env import robosuite_env

    episode = episode_of(domain, "expert", 1)
    env = robosuite_env(ENV_NAMES[domain], package=True)
    env.reset()
    env.reset_from_xml_string(env.edit_model_xml(episode["model_file"].item().decode()))
    env.sim.reset()
    observed, rewards = [], []
    for state in episode["states"][[0, *range(len(episode["states"]))]]:
        env.sim.set_state_from_flattened(state)
        env.sim.forward()
        observed.append(env._get_observations(force_update=True))
        rewards.append(env.reward(None))
    env.close()
    np.testing.assert_array_equal(episode["rewards"][:-1], rewards[2:])
    for key in OBS_KEYS:
        replayed = np.stack([each["object-state" if key == "object" else key] for each in observed[1:]])
        np.testing.assert_allclose(episode[f"obs/{key}"], replayed, rtol=0, atol=1e-9, err_msg=key)
        np.testing.assert_array_equal(episode[f"obs/{key}"][1:], episode[f"next_obs/{key}"][:-1])


@pytest.mark.parametrize("domain", DOMAINS)
def test_actions_lead_through_the_states(domain: str) -> None:
    """Of the package's own environment, too: what is recorded is what was done, in the scene of the seed."""
    from datasets.numpy_seed import seeded_numpy
    from datasets.robomimic.env import robosuite_env

    episode = episode_of(domain, "expert", 0)
    env = robosuite_env(ENV_NAMES[domain], package=True)
    with seeded_numpy(int(np.random.default_rng((0, 0)).integers(2**32))):
        env.reset()
    for state, action in zip(episode["states"][:40], episode["actions"], strict=False):
        np.testing.assert_array_equal(env.sim.get_state().flatten(), state)
        assert np.abs(action).max() <= 1
        env.step(action)
    env.close()


# Files


def test_file_holds_what_the_experts_did(written: tuple) -> None:
    file, episodes, _ = written
    with h5py.File(file) as content:
        data: Any = content["data"]
        assert set(data) == {f"demo_{index}" for index in range(len(episodes))}
        assert data.attrs["total"] == sum(len(episode["actions"]) for episode in episodes)
        for index, episode in enumerate(episodes):
            demo = data[f"demo_{index}"]
            assert demo.attrs["num_samples"] == len(episode["actions"])
            assert demo.attrs["success"] == episode["success"]
            for key, values in episode.items():
                if key in ("strategy", "quality", "model_file"):
                    assert demo.attrs[key] == values.item().decode()
                elif key != "success":
                    assert demo[key].dtype == (np.int64 if key == "dones" else np.float64)
                    np.testing.assert_array_equal(demo[key][()], values)
        env_args = json.loads(data.attrs["env_args"])
        assert (env_args["env_name"], env_args["env_version"], env_args["type"]) == ("Lift", "1.5.1", 1)
        train, valid = (set(content[f"mask/{name}"].asstr()[()]) for name in ("train", "valid"))  # type: ignore[union-attr]
        assert train | valid == set(data) and not train & valid


def test_equal_episodes_give_equal_files(written: tuple) -> None:
    file, _, _ = written
    assert file.read_bytes() == file.with_name("again.hdf5").read_bytes()


def test_file_names_no_folder_of_this_machine(written: tuple) -> None:
    file, _, _ = written
    assert str(ROOT).encode() not in file.read_bytes()
    assert b"site-packages" not in file.read_bytes()


def test_file_tells_origin_and_recipe(written: tuple, tmp_path: Path) -> None:
    from datasets.robomimic.episodes import recipe
    from datasets.robomimic.files import recipe_of

    file, _, _ = written
    assert recipe_of(file) == recipe(dataset_of("lift", "mixed")) != recipe(dataset_of("lift", "expert"))
    with h5py.File(file) as content:
        assert content["data"].attrs["origin"] == "generated"
    (tmp_path / "cut.hdf5").write_bytes(file.read_bytes()[:1000])
    assert recipe_of(tmp_path / "cut.hdf5") is None
    assert recipe_of(tmp_path / "missing.hdf5") is None


def test_summary_counts_successes(written: tuple) -> None:
    _, episodes, facts = written
    assert facts["transitions"] == sum(len(episode["actions"]) for episode in episodes)
    assert facts["success_share"] == np.mean([episode["success"] for episode in episodes])
    assert facts["success_share_by_quality"]["misses, leaves"] == {"episodes": 1, "success_share": 0.0}
    assert sum(group["episodes"] for group in facts["success_share_by_strategy"].values()) == EPISODES


def test_reader_gets_back_the_episodes(written: tuple) -> None:
    file, episodes, _ = written
    rows = read(dataset_of("lift", "mixed"), [file], [TASKS["lift-mh"]])
    blocks = list(rows.blocks)
    assert rows.num_rows == sum(len(block.obs) for block in blocks)
    for block, episode in zip(blocks, episodes, strict=True):
        kept = ~block.final
        obs = np.concatenate([episode[f"obs/{key}"] for key in OBS_KEYS], axis=1)
        np.testing.assert_array_equal(block.obs[kept], obs.astype(np.float32))
        np.testing.assert_allclose(block.action[kept], episode["actions"], atol=2e-5)
        np.testing.assert_array_equal(block.reward["lift-mh"][kept], episode["rewards"] - 1)
        np.testing.assert_array_equal(block.terminated["lift-mh"][kept], episode["dones"] == 1)
    failed = blocks[-1]  # its end is a truncation
    assert failed.final.sum() == 1 and not failed.terminated["lift-mh"].any()
    np.testing.assert_allclose(
        failed.obs[-1, :3], episodes[-1]["next_obs/robot0_eef_pos"][-1].astype(np.float32), atol=0
    )
