"""Minari data sets as tasks, and data and replay of ours as Minari data sets that Minari itself loads."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import datasets
from bench.protocol.config import ConfigError, RunConfig
from bench.tools.export import ExportOptions, collected, export, export_run, write_flat
from bench.training.execution import Execution
from bench.training.train import run
from datasets.minari import source as minari_source
from datasets.minari.metadata import canonical_name, dataset_id, flatten, root
from datasets.source import Block
from datasets.spec import ACTION_LIMIT, DataError, Dataset, FileOptions, RemoteFile, TaskSpec
from datasets.transitions import Transitions
from tests.conftest import CUBE_DATASET
from tests.tiny_runs import python, status_of, tiny_config

REASON = "the extra 'minari' is not installed (make setup EXTRAS=minari)"
minari = pytest.importorskip("minari", reason=REASON)
h5py = pytest.importorskip("h5py", reason=REASON)
gymnasium = pytest.importorskip("gymnasium")

CUBE_TASK = "cube-single-task1"
SET = Dataset("minari.mine.toy-v0", "minari", "toy", (RemoteFile("main_data.hdf5"),))
USERS = Dataset("user-alone-0123456789", "user", "", (RemoteFile("alone.hdf5"),))

pytestmark = [
    pytest.mark.extra("minari"),
    pytest.mark.filterwarnings("ignore:.*is set to None", "ignore:env_spec is None"),
]


@pytest.fixture(autouse=True)
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for Minari's data sets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache."""
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))


def episode(length: int, seed: int = 0, **changes: Any) -> Any:
    """Random numbers as one episode of two observations and actions between -2 and 2, which ends by truncation."""
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {
        "observations": rng.normal(size=(length + 1, 2)),
        "actions": rng.uniform(-2, 2, (length, 2)).astype(np.float32),
        "rewards": rng.normal(size=length),
        "terminations": np.zeros(length, bool),
        "truncations": np.arange(length) == length - 1,
    }
    return EpisodeBuffer(**{**arrays, **changes})


def create(own: str, episodes: list, obs_space=None, action_space=None, **about: Any) -> Path:
    """A set made by Minari alone, as users make theirs; its folder of files."""
    minari.create_dataset_from_buffers(
        own,
        episodes,
        observation_space=obs_space or gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64),
        action_space=action_space or gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32),
        **about,
    )
    return root() / own / "data"


def train(config: RunConfig, results: Path) -> None:
    run([config], results, Execution(device="cpu", checkpoint_seconds=1e9), should_stop=lambda: False)


def spec_of(obs_dim: int, action_dim: int) -> TaskSpec:
    return TaskSpec("other", "other", "other", 1, obs_dim, action_dim, 10, "other-data")


def rows_of(folder: Path, obs_dim: int = 2, action_dim: int = 2) -> Block:
    """All rows of a set as one block, with the rewards of a task 'other'."""
    rows = minari_source.read(SET, [folder / "metadata.json"], [spec_of(obs_dim, action_dim)])
    blocks = list(rows.blocks)
    assert sum(len(block.final) for block in blocks) == rows.num_rows
    reward, terminated = (
        {"other": np.concatenate([getattr(block, key)["other"] for block in blocks])}
        for key in ("reward", "terminated")
    )
    obs, action, final = (np.concatenate([getattr(block, key) for block in blocks]) for key in Block._fields[:3])
    return Block(obs, action, final, reward, terminated)


def assert_minari_loads(own: str, transitions: Transitions) -> None:
    """`minari.load_dataset` gives the very transitions."""
    loaded = minari.load_dataset(own)
    assert loaded.total_episodes == transitions.num_episodes
    assert loaded.total_steps == transitions.num_transitions
    obs = np.concatenate([episode.observations for episode in loaded])
    np.testing.assert_array_equal(obs, transitions.obs)
    steps = ~transitions.final
    for key, expected in (
        ("actions", transitions.action[steps]),
        ("rewards", transitions.reward[steps]),
        ("terminations", transitions.terminated[steps]),
    ):
        found = np.concatenate([getattr(episode, key) for episode in loaded])
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    for episode in loaded:
        assert episode.truncations[-1] != episode.terminations[-1] and not episode.truncations[:-1].any()


def assert_same_content(one: Transitions, other: Transitions) -> None:
    np.testing.assert_array_equal(one.final, other.final)
    np.testing.assert_array_equal(one.obs, other.obs)
    steps = ~one.final
    for key in ("action", "reward", "terminated"):
        np.testing.assert_array_equal(getattr(one, key)[steps], getattr(other, key)[steps])


# Out, and in again.


def test_exported_cube_data_load_in_minari_and_come_back_the_same(cube_cache: Path) -> None:
    from datasets.export import export_data

    original = datasets.load(CUBE_TASK, CUBE_DATASET)
    exported = export_data(CUBE_TASK, original, "o2o/cube-v0")
    assert_minari_loads("o2o/cube-v0", original)
    assert exported.environment == "cube-single-singletask-task1-v0"
    assert "o2o/cube-v0" in minari.list_local_datasets()
    assert minari_source.local_ids() == ["o2o/cube-v0"]

    back = datasets.load("minari:o2o/cube-v0")
    assert_same_content(original, back)
    assert back.origin == "generated"
    assert back.name == exported.task == "minari.o2o.cube-v0"
    metadata = json.loads((exported.folder / "data" / "metadata.json").read_text())
    assert metadata["author"] == ["o2o-bench"]
    assert metadata["o2o_bench"]["content_hash"] == original.content_hash


def test_environment_of_exported_cube_data_is_the_task_s(cube_cache: Path) -> None:
    from datasets.export import export_data

    export_data(CUBE_TASK, datasets.load(CUBE_TASK, CUBE_DATASET), "o2o/cube-v0")
    loaded = minari.load_dataset("o2o/cube-v0")
    # Rewards of OGBench's data describe the state before the action, evaluation the one after it.
    timings = [loaded.recover_environment(eval_env=is_eval).spec.kwargs["success_timing"] for is_eval in (False, True)]
    assert timings == ["pre", "post"]

    spec = datasets.task("minari:o2o/cube-v0")
    assert (spec.obs_dim, spec.action_dim, spec.max_episode_steps) == (28, 5, 200)
    own, recovered = datasets.make_env(CUBE_TASK), datasets.make_env("minari:o2o/cube-v0")
    for seed in (3, 4):
        np.testing.assert_array_equal(own.reset(seed=seed)[0], recovered.reset(seed=seed)[0])
        for action in np.random.default_rng(seed).uniform(-1.2, 1.2, (20, 5)).astype(np.float32):
            one, other = own.step(action), recovered.step(action)
            np.testing.assert_allclose(one[0], other[0], atol=1e-6)
            assert one[1:] == other[1:]


def test_replay_of_a_run_exports_and_comes_back(cube_cache: Path, tmp_path: Path) -> None:
    config = tiny_config(task=CUBE_TASK, dataset=CUBE_DATASET)
    train(config, tmp_path / "results")
    directory = config.directory(tmp_path / "results")
    exported = export_run(directory, "o2o/replay-v1")
    _, replay = collected(directory)
    assert replay.num_transitions == 40
    assert_minari_loads("o2o/replay-v1", replay)
    loaded = minari.load_dataset("o2o/replay-v1")
    assert loaded.recover_environment().spec.kwargs["success_timing"] == "post"
    assert loaded.storage.metadata["algorithm_name"] == "sac_flow_g"

    back = datasets.load(exported.task)
    assert_same_content(replay, back)
    assert back.origin == "generated"

    # The environment, replayed from the seeds of training, gives what has been stored.
    env = datasets.make_env(config.task)
    from agents.blocks.streams import stream_key

    obs, _ = env.reset(seed=stream_key(config.seed, "training episode", 0) % 2**31)
    for row in range(replay.num_transitions):
        np.testing.assert_array_equal(obs, replay.obs[row])
        obs, reward, *_ = env.step(replay.action[row])
        assert reward == replay.reward[row]


def test_existing_set_is_replaced_only_when_told(cube_cache: Path) -> None:
    from datasets.export import export_data

    original = datasets.load(CUBE_TASK, CUBE_DATASET)
    folder = export_data(CUBE_TASK, original, "o2o/cube-v0").folder
    before = (folder / "data" / "main_data.hdf5").stat().st_mtime_ns
    with pytest.raises(DataError, match=r"'o2o/cube-v0' exists .* --replace"):
        export_data(CUBE_TASK, original, "o2o/cube-v0")
    assert (folder / "data" / "main_data.hdf5").stat().st_mtime_ns == before
    export_data(CUBE_TASK, original, "o2o/cube-v0", replace=True)
    assert (folder / "data" / "main_data.hdf5").stat().st_mtime_ns > before
    with pytest.raises(DataError, match="lies inside the Minari data set"):
        export_data(CUBE_TASK, original, "o2o/cube-v0/inner-v0")
    with pytest.raises(DataError, match="end in a version"):
        export_data(CUBE_TASK, original, "o2o/cube")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["cube-v0", "namespace_metadata.json"]


def test_the_old_set_stays_where_the_new_one_cannot_be_put(cube_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.export import export_data

    original = datasets.load(CUBE_TASK, CUBE_DATASET)
    folder = export_data(CUBE_TASK, original, "o2o/cube-v0").folder
    before = (folder / "data" / "main_data.hdf5").stat().st_mtime_ns
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise PermissionError("not today")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(DataError, match=r"cannot write .*cube-v0: not today"):
        export_data(CUBE_TASK, original, "o2o/cube-v0", replace=True)
    assert (folder / "data" / "main_data.hdf5").stat().st_mtime_ns == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["cube-v0", "namespace_metadata.json"]


def test_sets_exported_again_name_the_task_that_is_played(own_cache: None) -> None:
    """Gymnasium cannot make the environment: actions of the data are scaled, and none is named in the first export."""
    from datasets.export import export_data

    recorded("Pendulum-v1", "mine/pendulum-v0", 5, (0,))
    data = datasets.load("minari:mine/pendulum-v0")
    for own, source in (("o2o/first-v0", "mine/pendulum-v0"), ("o2o/second-v0", "o2o/first-v0")):
        exported = export_data(f"minari:{source}", data, own)
        assert exported.environment is None
        note = minari_source._local(own).note
        assert note["task"] == "minari.mine.pendulum-v0"
    export_data("minari:o2o/second-v0", data, "o2o/second-v0", replace=True)
    assert datasets.make_env("minari:o2o/second-v0").reset(seed=0)[0].shape == (3,)
    with pytest.raises(DataError, match=r"'mine/pendulum-v0' itself tells the environment .* another id"):
        export_data("minari:o2o/first-v0", data, "mine/pendulum-v0", replace=True)
    assert datasets.task("minari:o2o/first-v0").max_episode_steps == 200


def test_a_flat_export_fits_every_set_of_the_environment_and_no_other(own_cache: None, tmp_path: Path) -> None:
    from datasets.export import export_data

    recorded("Pendulum-v1", "mine/pendulum-v0", 5, (0,))
    recorded("Pendulum-v1", "mine/more-v0", 5, (1,))
    recorded("Pendulum-v1", "mine/heavy-v0", 5, (0,), g=20.0)
    data = datasets.load("minari:mine/pendulum-v0")
    export_data("minari:mine/pendulum-v0", data, "o2o/again-v0")
    for source in ("mine/pendulum-v0", "o2o/again-v0"):
        write_flat(f"minari:{source}", data, tmp_path / "flat.hdf5", replace=True)
        name = datasets.register(tmp_path / "flat.hdf5")
        for task in ("mine/pendulum-v0", "o2o/again-v0", "mine/more-v0"):
            assert datasets.load(f"minari:{task}", name).num_transitions == 5
        with pytest.raises(DataError, match=r"exported from task minari\..*; its rewards .* minari\.mine\.heavy-v0"):
            datasets.load("minari:mine/heavy-v0", name)
    shutil.rmtree(root() / "o2o")  # nothing is known of that task any more
    assert datasets.load("minari:mine/heavy-v0", name).num_transitions == 5


def test_exported_file_alone_keeps_its_origin_and_task(cube_cache: Path, tmp_path: Path) -> None:
    from datasets.export import export_data

    original = datasets.load(CUBE_TASK, CUBE_DATASET)
    folder = export_data(CUBE_TASK, original, "o2o/cube-v0").folder
    alone = tmp_path / "cube.hdf5"
    shutil.copyfile(folder / "data" / "main_data.hdf5", alone)
    task = datasets.task(CUBE_TASK)
    (block,) = minari_source.read(USERS, [alone], [task]).blocks
    np.testing.assert_array_equal(block.obs, original.obs)
    np.testing.assert_array_equal(block.reward[task.name][~block.final], original.reward[~original.final])
    dataset = minari_source.parse("minari:o2o/cube-v0")
    assert dataset is not None
    assert minari_source.origin(dataset, [alone]) == "generated"
    with pytest.raises(DataError, match="exported from task cube-single-task1"):
        minari_source.read(USERS, [alone], [datasets.task("cube-single-task2")])


def test_flat_export_is_what_the_flat_reader_reads(cube_cache: Path, tmp_path: Path) -> None:
    original = datasets.load(CUBE_TASK, CUBE_DATASET)
    out = tmp_path / "flat.hdf5"
    options = ExportOptions(task=CUBE_TASK, dataset=CUBE_DATASET, out=out)
    assert str(out) in export(options)
    name = datasets.register(out)
    back = datasets.load(CUBE_TASK, name)
    assert back.origin == "generated"
    assert back.num_transitions == original.num_transitions
    for key in ("obs", "action", "reward", "terminated"):
        np.testing.assert_array_equal(getattr(back, key)[~back.final], getattr(original, key)[~original.final])
    np.testing.assert_array_equal(
        back.obs[np.flatnonzero(~back.final) + 1], original.obs[np.flatnonzero(~original.final) + 1]
    )
    with pytest.raises(ConfigError, match="--replace"):
        export(options)
    export(replace(options, replace=True))


# In: sets as others make them.


def test_names_of_both_forms_are_one_task() -> None:
    assert dataset_id("minari:D4RL/door/human-v2") == dataset_id("minari.D4RL.door.human-v2") == "D4RL/door/human-v2"
    assert canonical_name("D4RL/door/human-v2") == "minari.D4RL.door.human-v2"
    assert minari_source.task("cube-single-task1") is None and minari_source.parse("cube-single-play-v0") is None
    for name in minari_source.PUBLISHED:
        dataset = minari_source.parse(name)
        assert dataset is not None and dataset.name == name
    for wrong in ("minari:door/human", "minari:../door-v0", "minari:", "minari:a//b-v1"):
        with pytest.raises(DataError, match="no Minari data set"):
            minari_source.task(wrong)


def test_absent_set_is_told_with_the_commands_that_fetch_it() -> None:
    with pytest.raises(DataError) as caught:
        minari_source.task("minari:D4RL/door/human-v2")
    assert "python -m bench data get --task minari:D4RL/door/human-v2" in str(caught.value)
    assert "minari download D4RL/door/human-v2" in str(caught.value)


def test_offline_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub", reason=REASON)
    monkeypatch.setenv("MINARI_REMOTE", "hf://nobody")
    from huggingface_hub import HfApi

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("[Errno -2] Name or\nservice not known")  # what remains after its half minute of retries

    monkeypatch.setattr(HfApi, "list_datasets", unreachable)
    with pytest.raises(
        DataError, match=r"cannot get Minari data set 'D4RL/door/human-v2': ConnectionError: .* not known"
    ) as caught:
        minari_source.get("minari:D4RL/door/human-v2")
    assert "\n" not in str(caught.value)


class Hub:
    """What Hugging Face's client answers about one repository `farama-minari/hub`, whose files lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list_datasets(self, **_: Any) -> list[SimpleNamespace]:
        return [SimpleNamespace(id="farama-minari/hub")]

    def hf_hub_download(self, repo_id: str, filename: str, local_dir: Path | None = None, **_: Any) -> str:
        assert repo_id == "farama-minari/hub"
        if local_dir is not None:
            local_dir.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / filename, local_dir / filename)
        return str(self.folder / filename)

    def snapshot_download(self, repo_id: str, allow_patterns: str, local_dir: Path, **_: Any) -> None:
        assert repo_id == "farama-minari/hub" and allow_patterns == "toy-v2/*"
        shutil.copytree(self.folder / "toy-v2", local_dir / "toy-v2", dirs_exist_ok=True)


def test_download_is_minari_s_and_completes_one_that_was_cut(
    minari_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub", reason=REASON)
    create("hub/toy-v2", [episode(3)], env="Pendulum-v1")
    (minari_root / "hub").rename(tmp_path / "remote")
    (tmp_path / "remote" / "namespace_metadata.json").write_text(json.dumps({"datasets": ["hub/toy-v2"]}))
    hub = Hub(tmp_path / "remote")
    for name in ("list_datasets", "hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(
            huggingface_hub.HfApi, name, lambda _, *args, _name=name, **kw: getattr(hub, _name)(*args, **kw)
        )
    folder = minari_source.get("minari:hub/toy-v2")
    assert folder == minari_root / "hub" / "toy-v2" / "data"
    np.testing.assert_array_equal(minari.load_dataset("hub/toy-v2")[0].observations, episode(3).observations)
    (folder / "main_data.hdf5").unlink()
    assert minari_source.get("minari.hub.toy-v2") == folder
    assert (folder / "main_data.hdf5").is_file()
    assert capsys.readouterr().out == ""
    with pytest.raises(
        DataError, match=r"cannot get Minari data set 'hub/other-v1': ValueError: Couldn't find any version"
    ):
        minari_source.get("minari:hub/other-v1")


def test_rows_are_scaled_cast_and_cut_at_truncations() -> None:
    truncated = np.array([False, False, True, False, False])  # as of a set that goes on after a change of goal
    terminated = np.array([False, True, False, False, True])
    first = episode(5, truncations=truncated, terminations=terminated)
    second = episode(3, seed=1)
    rows = rows_of(create("mine/toy-v0", [first, second]))
    ends = [3, 6, 10]
    assert np.flatnonzero(rows.final).tolist() == ends
    expected = np.concatenate([first.observations[:4], first.observations[3:], second.observations]).astype(np.float32)
    np.testing.assert_array_equal(rows.obs, expected)
    actions = np.concatenate([first.actions, second.actions]) / 2
    np.testing.assert_allclose(rows.action[~rows.final], actions.clip(-ACTION_LIMIT, ACTION_LIMIT), rtol=1e-6)
    rewards = np.concatenate([first.rewards, second.rewards]).astype(np.float32)
    np.testing.assert_array_equal(rows.reward["other"][~rows.final], rewards)
    assert np.flatnonzero(rows.terminated["other"]).tolist() == [1, 5]


def test_actions_of_any_finite_bounds_are_scaled_there_and_back() -> None:
    box = gymnasium.spaces.Box(np.array([0.0, -5.0]), np.array([10.0, -1.0]), dtype=np.float64)
    own = np.array([[0.0, -5.0], [10.0, -1.0], [5.0, -3.0], [2.5, -2.0], [99.0, -3.0]])
    folder = create("mine/toy-v0", [episode(5, actions=own)], action_space=box)
    scaled = rows_of(folder).action[:-1]
    limit = ACTION_LIMIT
    np.testing.assert_allclose(scaled, [[-limit] * 2, [limit] * 2, [0, 0], [-0.5, 0.5], [limit, 0]], atol=1e-7)
    metadata = minari_source._local("mine/toy-v0")
    for unit, action in zip(scaled, own.clip(box.low, box.high), strict=True):
        np.testing.assert_allclose(metadata.action_box.unscaled(unit), action, atol=1e-4)


def test_nested_observations_are_flattened_as_gymnasium_does() -> None:
    spaces = gymnasium.spaces
    space = spaces.Dict(
        {
            "observation": spaces.Box(-1, 1, (2, 2), np.float32),
            "desired": spaces.Tuple((spaces.Box(-9, 9, (), np.float64), spaces.Discrete(3, start=5))),
            "bits": spaces.MultiBinary(2),
        }
    )
    space.seed(0)
    sampled = [space.sample() for _ in range(4)]
    observations = {
        "observation": np.stack([obs["observation"] for obs in sampled]),
        "desired": tuple(np.stack([obs["desired"][part] for obs in sampled]) for part in (0, 1)),
        "bits": np.stack([obs["bits"] for obs in sampled]),
    }
    folder = create("mine/nested-v0", [episode(3, observations=observations)], obs_space=space)
    expected = np.stack([spaces.flatten(space, obs) for obs in sampled]).astype(np.float32)
    rows = rows_of(folder, obs_dim=10)
    np.testing.assert_array_equal(rows.obs, expected)
    metadata = minari_source._local("mine/nested-v0")
    for obs, flat in zip(sampled, expected, strict=True):
        np.testing.assert_array_equal(flatten(metadata.obs_space, obs, 1)[0], flat)


def test_a_lone_file_has_the_bounds_of_the_minari_task_that_it_is_for(tmp_path: Path) -> None:
    folder = create("mine/toy-v0", [episode(4)], env="Pendulum-v1")
    task = minari_source.task("minari:mine/toy-v0")
    assert task is not None
    shutil.copyfile(folder / "main_data.hdf5", tmp_path / "alone.hdf5")
    (block,) = minari_source.read(USERS, [tmp_path / "alone.hdf5"], [task]).blocks
    np.testing.assert_array_equal(block.action, rows_of(folder).action)


def test_spaces_that_metadata_leave_out_are_the_environment_s(own_cache: None) -> None:
    recorded("Pendulum-v1", "mine/pendulum-v0", 3, (0,))
    file = root() / "mine/pendulum-v0/data/metadata.json"
    expected = minari_source.task("minari:mine/pendulum-v0")
    metadata = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in metadata.items() if not key.endswith("_space")}))
    assert minari_source.task("minari:mine/pendulum-v0") == expected


def test_metadata_decides_scores_limit_and_origin(minari_root: Path) -> None:
    pytest.importorskip("gymnasium_robotics", reason=REASON)
    folder = create("D4RL/toy-v0", [episode(4)], env="Pendulum-v1", algorithm_name="x")
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata |= {"ref_min_score": -1200.0, "ref_max_score": -150.0}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    spec = minari_source.task("minari:D4RL/toy-v0")
    assert spec is not None
    assert spec.reference_returns == (-1200.0, -150.0)
    assert spec.max_episode_steps == 200
    dataset = minari_source.parse("minari:D4RL/toy-v0")
    assert dataset is not None and dataset.domain == spec.domain
    files = [minari_root / file.name for file in dataset.files]
    assert all(file.is_file() for file in files)
    assert minari_source.origin(dataset, files) == "published"

    own = create("mine/toy-v0", [episode(4), episode(7)], env="Pendulum-v1")
    metadata = json.loads((own / "metadata.json").read_text())
    metadata["env_spec"] = json.dumps({**json.loads(metadata["env_spec"]), "max_episode_steps": None})
    (own / "metadata.json").write_text(json.dumps(metadata))
    spec = minari_source.task("minari:mine/toy-v0")
    assert spec is not None and spec.max_episode_steps == 7 and spec.reference_returns is None
    assert minari_source.origin(dataset, [own / "metadata.json"]) == "user"
    # What Hugging Face's downloader leaves beside a file that it has fetched.
    trace = minari_root / "mine" / ".cache" / "huggingface" / "download" / "toy-v0" / "data" / "metadata.json.metadata"
    trace.parent.mkdir(parents=True)
    trace.touch()
    assert minari_source.origin(dataset, [own / "metadata.json"]) == "published"


# In: what is refused.


def test_spaces_are_refused_by_name_also_where_no_environment_is_given() -> None:
    spaces = gymnasium.spaces
    box, wide = spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-np.inf, np.inf, (40,), np.float32)
    pairs = (np.zeros((3, 2), np.float32), np.zeros(3, np.int64))
    many = np.zeros((3, 40), np.float32)
    for name, space, actions, said in (
        ("discrete", spaces.Discrete(3), np.zeros(3, np.int64), "the action space is of kind Discrete; agents"),
        ("many", spaces.MultiDiscrete([3, 4]), np.zeros((3, 2), np.int64), "the action space is of kind MultiDiscrete"),
        ("tuple", spaces.Tuple((box, spaces.Discrete(2))), pairs, "the action space is of kind Tuple"),
        ("dict", spaces.Dict({"arm": box}), {"arm": pairs[0]}, "the action space is of kind Dict"),
        ("wide", wide, many, "the action space is a Box with bounds from -inf to inf; they must be finite"),
    ):
        create(f"mine/{name}-v0", [episode(3, actions=actions)], action_space=space)
        with pytest.raises(DataError, match=said) as error:
            minari_source.task(f"minari:mine/{name}-v0")
        assert "\n" not in str(error.value)
    digits = episode(3, observations=np.zeros((4, 2), np.int64))
    create("mine/digits-v0", [digits], obs_space=spaces.MultiDiscrete([3, 4]))
    with pytest.raises(DataError, match="the observation space is a MultiDiscrete"):
        minari_source.task("minari:mine/digits-v0")


def test_a_byte_order_mark_before_the_metadata_is_no_damage() -> None:
    folder = create("mine/nowhere-v0", [episode(3)])
    text = (folder / "metadata.json").read_text()
    (folder / "metadata.json").write_text(text, encoding="utf-8-sig")
    with pytest.raises(DataError, match="no environment is given"):
        minari_source.task("minari:mine/nowhere-v0")


def test_actions_beyond_the_bounds_of_a_users_file_are_refused_with_share(tmp_path: Path) -> None:
    folder = create("mine/toy-v0", [episode(3), episode(3, actions=np.full((3, 2), 2.5, np.float32))])
    said = "key 'episode_1/actions' is 1.25 in row 0; that is the largest in size, and 3 of 6 rows"
    with pytest.raises(DataError, match=said):
        list(minari_source.read(USERS, [folder / "main_data.hdf5"], [spec_of(2, 2)]).blocks)
    for dataset in (SET, replace(USERS, options=FileOptions(("actions",)))):
        rows = minari_source.read(dataset, [folder / "main_data.hdf5"], [spec_of(2, 2)])
        assert np.abs(np.concatenate([block.action for block in rows.blocks])).max() == np.float32(ACTION_LIMIT)
        assert said in rows.warnings[0]


def test_a_group_where_an_array_is_wanted_is_told() -> None:
    folder = create("mine/toy-v0", [episode(3)])
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        del file["episode_0/actions"]
        file["episode_0/actions/arm"] = np.zeros((3, 2))
    with pytest.raises(DataError, match="'episode_0/actions' is a group of arm, expected one array"):
        rows_of(folder)


def test_spaces_that_no_agent_here_can_use_are_refused() -> None:
    spaces = gymnasium.spaces
    discrete = episode(3, actions=np.zeros(3, np.int64))
    create("mine/discrete-v0", [discrete], action_space=spaces.Discrete(4), env="CartPole-v1")
    with pytest.raises(DataError, match="action space is of kind Discrete; agents here act in a Box"):
        minari_source.task("minari:mine/discrete-v0")
    create("mine/unbounded-v0", [episode(3)], action_space=spaces.Box(-np.inf, np.inf, (2,)), env="Pendulum-v1")
    with pytest.raises(DataError, match="must be finite"):
        minari_source.task("minari:mine/unbounded-v0")
    images = spaces.Box(0, 255, (48, 48, 3), np.uint8)
    frames = np.zeros((4, 48, 48, 3), np.uint8)
    create("mine/images-v0", [episode(3, observations=frames)], obs_space=images, env="Pendulum-v1")
    with pytest.raises(DataError, match="images"):
        minari_source.task("minari:mine/images-v0")
    create("mine/nowhere-v0", [episode(3)])
    with pytest.raises(DataError, match="no environment is given"):
        minari_source.task("minari:mine/nowhere-v0")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"observations": np.zeros((4, 3))}, "observations: the array is float64 \\(4, 3\\), expected 4 x 2"),
        ({"observations": np.zeros((3, 2))}, "observations: the array is float64 \\(3, 2\\), expected 4 x 2"),
        ({"actions": np.zeros((3, 4))}, "actions has shape \\(3, 4\\), expected 3 x 2"),
        ({"rewards": np.array([0.0, np.nan, 0.0])}, "rewards is not finite in row 1"),
        ({"rewards": np.array([0.0, 0.0, 1e300])}, "rewards is not finite in row 2"),
        ({"observations": np.full((4, 2), np.inf)}, "observations is not finite in row 0"),
        ({"terminations": np.zeros(2, bool)}, "terminations is bool \\(2,\\)"),
        ({"truncations": np.zeros(2, bool)}, "truncations has shape \\(2,\\), expected \\(3,\\)"),
    ],
)
def test_wrong_arrays_are_named(changes: dict[str, Any], complaint: str) -> None:
    folder = create("mine/toy-v0", [episode(3), episode(3, **changes)])
    with pytest.raises(DataError, match=f"main_data.hdf5: episode_1/{complaint}"):
        rows_of(folder)


def test_damaged_and_ill_fitting_sets_are_refused(tmp_path: Path) -> None:
    folder = create("mine/toy-v0", [episode(3)])
    with pytest.raises(DataError, match="observations are 2 numbers, task other has 5"):
        rows_of(folder, obs_dim=5)
    with pytest.raises(DataError, match="actions are 2 numbers, task other takes 1"):
        rows_of(folder, action_dim=1)
    alone = tmp_path / "alone.hdf5"
    shutil.copyfile(folder / "main_data.hdf5", alone)
    with pytest.raises(DataError, match=r"no metadata.json lies beside"):
        list(minari_source.read(USERS, [alone], [spec_of(2, 2)]).blocks)
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        del file["episode_0/rewards"]
    with pytest.raises(DataError, match="'episode_0/rewards' is missing"):
        rows_of(folder)
    whole = (folder / "main_data.hdf5").read_bytes()
    (folder / "main_data.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is not a whole HDF5 file"):
        rows_of(folder)
    (folder / "metadata.json").write_text("{")
    with pytest.raises(DataError, match=r"metadata.json cannot be read"):
        minari_source.task("minari:mine/toy-v0")


def test_missing_package_of_an_environment_is_named() -> None:
    folder = create("mine/toy-v0", [episode(3)], env="Pendulum-v1")
    metadata = json.loads((folder / "metadata.json").read_text())
    env_spec = {**json.loads(metadata["env_spec"]), "entry_point": "absent_package.envs:Env"}
    metadata["env_spec"] = json.dumps(env_spec)
    (folder / "metadata.json").write_text(json.dumps(metadata))
    spec = minari_source.task("minari:mine/toy-v0")
    assert spec is not None
    with pytest.raises(DataError, match=r"needs a package that is missing .*pip install 'absent-package'"):
        minari_source.make_env(spec, "post")
    metadata["env_spec"] = json.dumps(
        {**env_spec, "entry_point": "gymnasium.envs.classic_control.pendulum:PendulumEnv"}
    )
    (folder / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(DataError, match=r"the environment observes 3 numbers .* its data hold 2"):
        minari_source.make_env(spec, "post")


def test_arrow_files_hold_the_same_rows() -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install 'minari[arrow]')")
    episodes = [episode(5), episode(3, seed=1)]
    expected = rows_of(create("mine/hdf5-v0", episodes))
    folder = create("mine/arrow-v0", episodes, data_format="arrow")
    rows = rows_of(folder)
    for key in ("obs", "action", "final"):
        np.testing.assert_array_equal(getattr(rows, key), getattr(expected, key))
    np.testing.assert_array_equal(rows.reward["other"], expected.reward["other"])
    dataset = minari_source.parse("minari:mine/arrow-v0")
    assert dataset is not None
    assert [Path(file.name).name for file in dataset.files] == ["metadata.json", "part-0.arrow", "part-0.arrow"]


def test_arrow_files_without_pyarrow_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    file = create("mine/arrow-v0", [episode(3)], env="Pendulum-v1") / "metadata.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "data_format": "arrow"}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "minari.dataset._storages.arrow_storage", raising=False)
    with pytest.raises(DataError, match=r"in the arrow format, which needs .* pip install 'minari\[arrow\]'"):
        rows_of(file.parent)


# Environments.


def recorded(env_id: str, own: str, length: int, seeds: tuple[int, ...], **kwargs: Any) -> list[list[float]]:
    """A set of random actions in an environment, episode i from seed i; the rewards as the environment gave them."""
    env = gymnasium.make(env_id, **kwargs)
    env.action_space.seed(0)
    episodes, rewards = [], []
    for seed in seeds:
        obs, _ = env.reset(seed=seed)
        steps, all_obs = [], [obs]
        for _ in range(length):
            action = env.action_space.sample()
            obs, reward, terminated, truncated, _ = env.step(action)
            all_obs.append(obs)
            steps.append((action, reward, terminated, truncated))
        actions, step_rewards, terminations, truncations = map(np.array, zip(*steps, strict=True))
        nested = all_obs if not isinstance(obs, dict) else {key: np.array([o[key] for o in all_obs]) for key in obs}
        episodes.append(
            episode(
                length,
                observations=np.array(nested) if isinstance(nested, list) else nested,
                actions=actions,
                rewards=step_rewards,
                terminations=terminations,
                truncations=truncations,
            )
        )
        rewards.append(step_rewards.tolist())
    create(own, episodes, env.observation_space, env.action_space, env=env)
    return rewards


@pytest.mark.parametrize(
    ("env_id", "obs_dim", "action_dim", "limit", "has_success", "kwargs"),
    [
        ("AdroitHandDoor-v1", 39, 28, 200, True, {}),
        ("PointMaze_UMaze-v3", 8, 2, 300, True, {"continuing_task": False}),
        ("Pendulum-v1", 3, 1, 200, False, {}),  # actions from -2 to 2
    ],
)
def test_offline_rewards_are_the_recovered_environment_s(
    env_id: str, obs_dim: int, action_dim: int, limit: int, has_success: bool, kwargs: dict[str, Any], own_cache: None
) -> None:
    gymnasium_robotics = pytest.importorskip("gymnasium_robotics", reason=REASON)
    gymnasium.register_envs(gymnasium_robotics)
    seeds = (7, 8)
    rewards = recorded(env_id, "hub/toy-v2", 30, seeds, **kwargs)
    spec = datasets.task("minari:hub/toy-v2")
    assert (spec.obs_dim, spec.action_dim, spec.max_episode_steps) == (obs_dim, action_dim, limit)
    data = datasets.load("minari:hub/toy-v2")
    assert data.origin == "user"
    env = datasets.make_env("minari:hub/toy-v2")
    row = 0
    for index, seed in enumerate(seeds):
        obs, info = env.reset(seed=seed)
        assert obs.dtype == np.float32 and env.observation_space.contains(obs)
        for step in range(30):
            np.testing.assert_allclose(obs, data.obs[row], rtol=1e-4, atol=1e-5)
            obs, reward, terminated, truncated, info = env.step(data.action[row])
            assert not truncated
            # Actions at a bound are 1e-5 away from it in the data.
            np.testing.assert_allclose(float(reward), data.reward[row], rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(data.reward[row], rewards[index][step], rtol=1e-6)
            assert terminated == data.terminated[row]
            assert ("success" in info) == has_success
            row += 1
        assert data.final[row]
        row += 1

    from datasets.export import export_data

    exported = export_data("minari:hub/toy-v2", data, "o2o/again-v0")
    is_alike = env_id == "AdroitHandDoor-v1"  # flat, and from -1 to 1: so are the data
    assert exported.environment == (env_id if is_alike else None)
    assert_minari_loads("o2o/again-v0", data)
    assert datasets.load(exported.task).origin == "user"
    np.testing.assert_array_equal(datasets.make_env(exported.task).reset(seed=7)[0], env.reset(seed=7)[0])


def test_a_seed_decides_the_episode_and_the_limit_ends_it(own_cache: None) -> None:
    gymnasium_robotics = pytest.importorskip("gymnasium_robotics", reason=REASON)
    gymnasium.register_envs(gymnasium_robotics)
    recorded("AdroitHandDoor-v1", "hub/toy-v2", 5, (0,))
    actions = np.random.default_rng(0).uniform(-1, 1, (200, 28)).astype(np.float32)

    def play(env, seed: int) -> tuple[np.ndarray, list[float], list[bool]]:
        obs, _ = env.reset(seed=seed)
        steps = [env.step(action) for action in actions]
        return obs, [step[1] for step in steps], [step[3] for step in steps]

    used = datasets.make_env("minari:hub/toy-v2")
    first = play(used, 1)
    other = play(used, 2)
    again = play(used, 1)
    fresh = play(datasets.make_env("minari:hub/toy-v2"), 1)
    assert first[1] == again[1] == fresh[1] != other[1]
    np.testing.assert_array_equal(first[0], fresh[0])
    assert first[2] == [False] * 199 + [True]
    with pytest.raises(ValueError, match="28 finite numbers"):
        used.step(np.full(28, np.nan))


def test_a_run_trains_on_a_minari_task(own_cache: None, tmp_path: Path) -> None:
    recorded("Pendulum-v1", "mine/pendulum-v0", 60, (0, 1))
    options = "--agent qc_fql --offline-updates 20 --online-steps 20 --warmup-steps 5 --batch-size 8 --eval-episodes 1"
    small = "--agent-config.policy_hidden_dims 16,16 --agent-config.critic_hidden_dims 16,16 --device cpu"
    arguments = [*options.split(), *small.split(), "--name", "own", "--results", str(tmp_path / "results")]
    result = python("-m", "bench", "run", "--task", "minari:mine/pendulum-v0", *arguments)
    assert result.returncode == 0, result.stderr
    (directory,) = (tmp_path / "results").glob("own/minari.mine.pendulum-v0/qc_fql/seed_*")
    assert status_of(directory)["state"] == "complete"
    header, *rows = (directory / "episodes.csv").read_text().splitlines()
    successes = {row.split(",")[header.split(",").index("success")] for row in rows}
    assert len(rows) == 3 and successes == {""}  # a pendulum has no notion of it

    exported = export_run(directory, "mine/pendulum-replay-v0")
    assert exported.environment is None  # its own actions go from -2 to 2, those of the replay from -1 to 1
    replay = datasets.load(exported.task)
    assert replay.num_transitions == 20
    spec = datasets.task(exported.task)
    assert (spec.max_episode_steps, spec.action_dim) == (200, 1)
    assert datasets.make_env(exported.task).reset(seed=0)[0].shape == (3,)
