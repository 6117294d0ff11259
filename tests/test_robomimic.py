"""Robomimic's tasks: names, the reader of its files and what it refuses, and environments that a seed decides."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import datasets
from datasets.robomimic import source
from datasets.robomimic.tasks import ENV_KWARGS, ENV_NAMES, OBS_KEYS, TASKS
from datasets.source import Block
from datasets.spec import ACTION_LIMIT, DataError, Dataset, FileOptions, RemoteFile
from datasets.transitions import Transitions

ROOT = Path(__file__).parents[1]
HUMAN_LIFT = Path(__file__).parent / "fixtures" / "lift_human3_low_dim.hdf5"
USER_SET = Dataset("user-file-0123456789", "user", "", (RemoteFile("file.hdf5"),))
CLIPPED = replace(USER_SET, options=FileOptions(accept=("actions",)))
OBJECT_DIM = {"lift": 10, "can": 14, "square": 14}

simulated = pytest.mark.extra("robomimic")


# Names


def test_tasks_are_those_of_the_papers() -> None:
    assert set(TASKS) == {"lift-mh", "lift-ph", "can-mh", "can-ph", "square-mh", "square-ph"}
    shapes = {name: (spec.obs_dim, spec.action_dim, spec.max_episode_steps) for name, spec in TASKS.items()}
    assert shapes["lift-mh"] == shapes["lift-ph"] == (19, 7, 300)
    assert shapes["can-mh"] == shapes["can-ph"] == (23, 7, 300)
    assert shapes["square-mh"] == shapes["square-ph"] == (23, 7, 400)
    assert source.task("lift") is TASKS["lift-mh"]
    assert source.task("square-ph") is TASKS["square-ph"]
    assert source.task("transport") is None


def test_published_files_lie_where_other_projects_expect_them() -> None:
    for name in source.PUBLISHED:
        dataset = source.parse(name)
        assert dataset is not None
        (file,) = dataset.files
        domain, proficiency, _ = name.split("-")
        assert f"{dataset.folders[0]}/{file.name}" == f"~/.robomimic/{domain}/{proficiency}/low_dim_v15.hdf5"
        assert file.urls[0] == (
            "https://huggingface.co/datasets/robomimic/robomimic_datasets/resolve/main/"
            f"v1.5/{domain}/{proficiency}/low_dim_v15.hdf5"
        )
        assert len(set(file.urls)) == 2
        substitute = source.parse(dataset.substitute or "")
        assert substitute is not None
        assert substitute.recipe is not None
        assert substitute.domain == domain


@pytest.mark.parametrize("name", ["lift-mh-v14", "lift-v15", "lift-play-generated-3ep-seed0", "lift-task1-mixed", ""])
def test_other_names_are_not_of_this_source(name: str) -> None:
    assert source.parse(name) is None


def test_names_of_generated_sets() -> None:
    dataset = source.parse("can-mixed-generated-60ep-seed3")
    assert dataset is not None
    assert dataset.recipe is not None
    assert (dataset.domain, dataset.recipe.kind, dataset.recipe.episodes, dataset.recipe.seed) == (
        "can",
        "mixed",
        60,
        3,
    )
    assert dataset.files[0].name == "can-mixed-generated-60ep-seed3.hdf5"


# Reader


def demonstration(domain: str, dones: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    """A demonstration of random numbers with these flags; reward 1 where done."""
    rng = np.random.default_rng(seed)
    widths = dict(zip(OBS_KEYS, (3, 4, 2, OBJECT_DIM[domain]), strict=True))
    obs = {key: rng.normal(size=(len(dones) + 1, width)) for key, width in widths.items()}
    return {
        "actions": rng.uniform(-1, 1, (len(dones), 7)),
        "rewards": np.array(dones, np.float64),
        "dones": np.array(dones, np.int64),
        **{f"obs/{key}": array[:-1] for key, array in obs.items()},
        **{f"next_obs/{key}": array[1:] for key, array in obs.items()},
    }


def env_args(domain: str, **changes: Any) -> str:
    return json.dumps(
        {"env_name": ENV_NAMES[domain], "env_version": "1.5.1", "type": 1, "env_kwargs": ENV_KWARGS} | changes
    )


def write(file: Path, domain: str, demos: dict[str, dict[str, np.ndarray]], **attributes: Any) -> Path:
    with h5py.File(file, "w") as content:
        data = content.create_group("data")
        for key, value in ({"env_args": env_args(domain)} | attributes).items():
            data.attrs[key] = value
        for name, arrays in demos.items():
            for key, array in arrays.items():
                data[f"{name}/{key}"] = array
    return file


def read_blocks(file: Path, task: str = "lift-mh", dataset: Dataset = USER_SET) -> list[Block]:
    rows = source.read(dataset, [file], [TASKS[task]])
    blocks = list(rows.blocks)
    assert rows.num_rows == sum(len(block.final) for block in blocks)
    return blocks


def transitions(file: Path, task: str = "lift-mh", dataset: Dataset = USER_SET) -> Transitions:
    blocks = read_blocks(file, task, dataset)
    return Transitions(
        obs=np.concatenate([block.obs for block in blocks]),
        action=np.concatenate([block.action for block in blocks]),
        reward=np.concatenate([block.reward[task] for block in blocks]),
        terminated=np.concatenate([block.terminated[task] for block in blocks]),
        final=np.concatenate([block.final for block in blocks]),
        name="test",
        origin="user",
        content_hash="",
    )


@cache
def human_lift() -> Transitions:
    return transitions(HUMAN_LIFT, dataset=CLIPPED)


def human_arrays(key: str) -> np.ndarray:
    with h5py.File(HUMAN_LIFT) as content:
        return np.concatenate([content[f"data/demo_{number}/{key}"][()] for number in range(3)])  # type: ignore[index]


def test_human_demonstrations_are_read_row_by_row() -> None:
    data = human_lift()
    rows = np.flatnonzero(~data.final)
    assert data.num_transitions == len(rows) == 481 + 509 + 391
    obs = np.concatenate([human_arrays(f"obs/{key}") for key in OBS_KEYS], axis=1).astype(np.float32)
    next_obs = np.concatenate([human_arrays(f"next_obs/{key}") for key in OBS_KEYS], axis=1).astype(np.float32)
    assert (data.obs[rows] == obs).all()
    assert (data.obs[rows + 1] == next_obs).all()
    assert (data.reward[rows] == human_arrays("rewards") - 1).all()
    assert set(data.reward[rows]) == {-1.0, 0.0}
    assert (data.terminated[rows] == human_arrays("dones").astype(bool)).all()


def test_actions_are_clipped_as_the_controller_does() -> None:
    action = human_lift().action[~human_lift().final]
    raw = human_arrays("actions").astype(np.float32)
    assert np.abs(raw).max() > 3  # of a device that goes beyond
    assert np.abs(action).max() == np.float32(ACTION_LIMIT)
    inside = np.abs(raw) < ACTION_LIMIT
    assert (action[inside] == raw[inside]).all()
    assert (np.sign(action) == np.sign(raw)).all()


def test_each_step_after_the_success_is_an_episode_of_its_own() -> None:
    ends = human_lift().episode_ends
    lengths = np.diff(ends, prepend=0)
    assert lengths.tolist() == [471, *[1] * 10, 499, *[1] * 10, 381, *[1] * 10]


def test_the_end_of_a_demonstration_ends_its_episode_without_being_terminal(tmp_path: Path) -> None:
    file = write(tmp_path / "file.hdf5", "lift", {"demo_0": demonstration("lift", [0, 0, 0])})
    data = transitions(file)
    assert data.final.tolist() == [False, False, False, True]
    assert not data.terminated.any()
    assert data.reward.tolist() == [-1, -1, -1, 0]  # of the final row nothing


def test_demonstrations_come_in_order_of_their_numbers(tmp_path: Path) -> None:
    demos = {f"demo_{number}": demonstration("can", [0, 1], seed=number) for number in (0, 10, 2)}
    blocks = read_blocks(write(tmp_path / "file.hdf5", "can", demos), "can-mh")
    expected = [demos[f"demo_{number}"]["actions"][0].astype(np.float32) for number in (0, 2, 10)]
    assert [block.action[0].tolist() for block in blocks] == [action.tolist() for action in expected]


def test_a_number_written_in_two_ways_is_two_demonstrations(tmp_path: Path) -> None:
    demos = {
        f"demo_{number}": demonstration("can", [0, 1], seed=seed) for seed, number in enumerate(("1", "01", "007"))
    }
    blocks = read_blocks(write(tmp_path / "file.hdf5", "can", demos), "can-mh")
    expected = [demos[f"demo_{number}"]["actions"][0].astype(np.float32) for number in ("01", "1", "007")]
    assert [block.action[0].tolist() for block in blocks] == [action.tolist() for action in expected]


def test_what_lies_beside_the_demonstrations_is_left_out_by_name(tmp_path: Path) -> None:
    demos = {name: demonstration("lift", [0, 1]) for name in ("demo_0", "demo_1_relabeled", "episode_2")}
    file = write(tmp_path / "file.hdf5", "lift", demos)
    assert transitions(file).num_episodes == 1
    (line,) = warnings_of(file)
    assert "2 of 3 groups in 'data' are left out, which are no demo_<number>: demo_1_relabeled, episode_2" in line


def test_steps_that_num_samples_does_not_count_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "file.hdf5", "lift", {"demo_0": demonstration("lift", [0, 0, 1])})
    with h5py.File(file, "a") as content:
        content["data/demo_0"].attrs["num_samples"] = 2
    refused(file, "attribute 'num_samples' of 'data/demo_0' is 2, but its arrays have 3 steps")


def test_filter_keys_are_ignored(tmp_path: Path) -> None:
    demos = {f"demo_{number}": demonstration("square", [0, 1], seed=number) for number in range(3)}
    file = write(tmp_path / "file.hdf5", "square", demos)
    whole = transitions(file, "square-ph")
    with h5py.File(file, "a") as content:
        content["mask/train"] = np.array([b"demo_0"])
    assert (transitions(file, "square-ph").obs == whole.obs).all()
    assert whole.num_episodes == 3


def test_origin_is_what_the_file_says(tmp_path: Path) -> None:
    demos = {"demo_0": demonstration("lift", [0, 1])}
    plain, made = (
        write(tmp_path / "plain.hdf5", "lift", demos),
        write(tmp_path / "made.hdf5", "lift", demos, origin="generated"),
    )
    published, generated = source.parse("lift-mh-v15"), source.parse("lift-mixed-generated-1ep-seed0")
    assert published is not None
    assert generated is not None
    assert source.origin(published, [plain]) == "published"
    assert source.origin(published, [made]) == "generated"
    assert source.origin(generated, [plain]) == "generated"
    assert source.origin(USER_SET, [plain]) == "user"


def test_only_the_published_data_go_by_the_published_name(tmp_path: Path) -> None:
    published = source.parse("lift-mh-v15")
    assert published is not None
    with pytest.raises(DataError, match=r"holds 1,381 transitions, the published lift-mh-v15 has 31,127; delete it"):
        read_blocks(HUMAN_LIFT, dataset=published)
    made = write(tmp_path / "made.hdf5", "lift", {"demo_0": demonstration("lift", [0, 1])}, origin="generated")
    assert len(read_blocks(made, dataset=published)) == 1


def test_spellings_of_the_same_environment(tmp_path: Path) -> None:
    kwargs = {key: value for key, value in ENV_KWARGS.items() if key != "reward_shaping"} | {"robots": "Panda"}
    args = env_args("lift", env_version="1.5.0", env_kwargs=kwargs)
    file = write(tmp_path / "file.hdf5", "lift", {"demo_0": demonstration("lift", [1])}, env_args=args)
    assert len(read_blocks(file)) == 1


def with_demos(file: Path, count: int = 3, **changes: Any) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    """Demonstrations of four steps, the last of which succeeds; `changes` replace arrays, None leaves one out."""
    demos = {f"demo_{number}": demonstration("lift", [0, 0, 0, 1], seed=number) for number in range(count)}
    for demo in demos.values():
        for key, array in changes.items():
            demo |= {key: array}
        for key in [key for key in demo if changes.get(key.split("/")[0], demo) is None]:
            del demo[key]
    return write(file, "lift", demos), demos


def warnings_of(file: Path, dataset: Dataset = USER_SET) -> list[str]:
    rows = source.read(dataset, [file], [TASKS["lift-mh"]])
    list(rows.blocks)
    return list(rows.warnings)


def test_without_next_obs_the_next_row_is_what_a_step_led_to(tmp_path: Path) -> None:
    whole = transitions(with_demos(tmp_path / "whole.hdf5")[0])
    file, _ = with_demos(tmp_path / "file.hdf5", next_obs=None)
    data = transitions(file)
    rows = np.flatnonzero(~data.final)
    assert data.num_transitions == 12 and data.terminated[rows].tolist() == [False, False, False, True] * 3
    assert (data.obs[rows] == whole.obs[np.flatnonzero(~whole.final)]).all()
    (line,) = warnings_of(file)
    assert "3 of 3 demonstrations have no 'next_obs': read as the next row's 'obs', without 0 last steps" in line
    file, demos = with_demos(tmp_path / "failed.hdf5", next_obs=None, rewards=np.zeros(4), dones=np.zeros(4, np.int64))
    data = transitions(file)
    assert data.episode_ends.tolist() == [3, 6, 9] and not data.terminated.any()
    last = np.concatenate([demos["demo_2"][f"obs/{key}"][-1] for key in OBS_KEYS]).astype(np.float32)
    assert (data.obs[-1] == last).all()
    assert "without 3 last steps that do not succeed" in warnings_of(file)[0]


def test_demonstrations_of_one_open_step_without_next_obs_hold_nothing(tmp_path: Path) -> None:
    demo = {key: array[:1] for key, array in demonstration("lift", [0, 0]).items() if "next_obs" not in key}
    refused(write(tmp_path / "file.hdf5", "lift", {"demo_0": demo}), "no transition's next observation is known")
    long = {key: array for key, array in demonstration("lift", [0, 0, 1]).items() if "next_obs" not in key}
    assert transitions(write(tmp_path / "two.hdf5", "lift", {"demo_0": demo, "demo_1": long})).num_transitions == 3


def test_success_ends_the_task_where_dones_do_not_tell(tmp_path: Path) -> None:
    file, _ = with_demos(tmp_path / "zero.hdf5", dones=np.zeros(4, np.int64))
    assert transitions(file).terminated.sum() == 3
    (line,) = warnings_of(file)
    assert "'dones' is 0 in 3 of 12 rows (25%) that succeed: read as ends of the task" in line


def test_the_end_of_a_recording_without_success_is_no_end_of_the_task(tmp_path: Path) -> None:
    file, _ = with_demos(tmp_path / "fail.hdf5", rewards=np.zeros(4))
    data = transitions(file)
    assert data.episode_ends.tolist() == [4, 8, 12] and not data.terminated.any()
    (line,) = warnings_of(file)
    assert "'dones' is 1 in 3 of 12 rows (25%) without success: episodes end there, the task does not" in line


def test_a_filter_key_chooses_demonstrations_and_makes_another_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))
    file, demos = with_demos(tmp_path / "file.hdf5")
    with h5py.File(file, "a") as content:
        content["mask/20_percent"] = np.array([b"demo_2", b"demo_0"])
        content["mask/text"] = np.array(["demo_1"], h5py.string_dtype())
        content["mask/none"] = np.array([], "S8")
        content["mask/wrong"] = np.array([b"demo_9"])

    def chosen(key: str) -> Transitions:
        name = datasets.register(file, options=FileOptions(filter_key=key))
        assert name != datasets.register(file) and "-key-" in name
        return datasets.load("lift-mh", name)

    firsts = [demos[f"demo_{number}"]["actions"][0].astype(np.float32).tolist() for number in range(3)]
    data = chosen("20_percent")
    assert data.num_episodes == 2 and [data.action[0].tolist(), data.action[5].tolist()] == [firsts[0], firsts[2]]
    assert chosen("text").action[0].tolist() == firsts[1]
    for key, said in {
        "30_percent": r"no filter key '30_percent' \(did you mean '20_percent'\?\); it has 20_percent, none, text",
        "none": "filter key 'none' names no demonstration",
        "wrong": "filter key 'wrong' names demo_9, which is not in group 'data'",
    }.items():
        with pytest.raises(DataError, match=said):
            chosen(key)
    file, _ = with_demos(tmp_path / "other.hdf5")
    with pytest.raises(DataError, match=r"no filter key 'train'; it has none \(no group 'mask'\)"):
        chosen("train")


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_absolute_poses_are_refused_with_share_and_largest(share: float, tmp_path: Path) -> None:
    actions = np.zeros((4, 7))
    actions[: int(4 * share), 2] = -7.5
    file, _ = with_demos(tmp_path / "file.hdf5", actions=actions)
    said = f"key 'data/demo_0/actions' is 7.5 in row 0; that is the largest in size, and {int(12 * share)} of 12 rows"
    refused(file, said)
    (line,) = warnings_of(file, CLIPPED)
    assert said in line and line.endswith("they are clipped")


# Files that are refused


def controller(**changes: Any) -> dict[str, Any]:
    arm = ENV_KWARGS["controller_configs"]["body_parts"]["right"] | changes
    return ENV_KWARGS | {"controller_configs": {"type": "BASIC", "body_parts": {"right": arm}}}


REFUSED_ENVIRONMENTS = {
    "PickPlaceCan, the task is Lift": env_args("can"),
    "made with robosuite 1.4.1, the task is that of 1.5": env_args("lift", env_version="1.4.1"),
    "made with robosuite before 1.4": env_args("lift", env_version=None),
    "has robots ['Sawyer'], the task's has ['Panda']": env_args("lift", env_kwargs=ENV_KWARGS | {"robots": ["Sawyer"]}),
    "has control_freq 10, the task's has 20": env_args("lift", env_kwargs=ENV_KWARGS | {"control_freq": 10}),
    "has reward_shaping True": env_args("lift", env_kwargs=ENV_KWARGS | {"reward_shaping": True}),
    "has controller type JOINT_POSITION, the task's has OSC_POSE": env_args(
        "lift", env_kwargs=controller(type="JOINT_POSITION")
    ),
    "has controller kp 100": env_args("lift", env_kwargs=controller(kp=100)),
    "has controller control_delta False, the task's has True": env_args(
        "lift", env_kwargs=controller(control_delta=False)
    ),
    "its 'env_args' have no env_version": json.dumps({"env_name": "Lift", "env_kwargs": ENV_KWARGS}),
    "has controller input_type absolute": env_args("lift", env_kwargs=controller(input_type="absolute")),
    "has controller None": env_args("lift", env_kwargs={"robots": ["Panda"]}),
    "is no JSON object": "{'env_name': 'Lift'}",
    "is no JSON object with env_name and env_kwargs ('env_kwargs')": json.dumps({"env_name": "Lift"}),
    "is no JSON object with env_name and env_kwargs ('NoneType'": env_args("lift", env_kwargs=None),
}


@pytest.mark.parametrize("reason", REFUSED_ENVIRONMENTS)
def test_data_of_another_environment_are_refused(reason: str, tmp_path: Path) -> None:
    demos = {"demo_0": demonstration("lift", [0, 1])}
    file = write(tmp_path / "file.hdf5", "lift", demos, env_args=REFUSED_ENVIRONMENTS[reason])
    refused(file, reason)


def refused(file: Path, reason: str, task: str = "lift-mh") -> None:
    """Fails unless the file is refused in one line that names it and holds the reason."""
    with pytest.raises(DataError) as error:
        read_blocks(file, task)
    line = str(error.value)
    assert reason in line
    assert str(file) in line
    assert "\n" not in line


def nan_in(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[1, 0] = np.nan
    return array


ALTERED_ARRAYS: dict[str, tuple[str, Callable[[np.ndarray], Any]]] = {
    "'data/demo_0/actions' is float64 (3, 6), expected floats (3, 7)": ("actions", lambda a: a[:, :6]),
    "'data/demo_0/actions' is float64 (2, 7), expected floats (3, 7)": ("actions", lambda a: a[:2]),
    "'data/demo_0/actions' is int64": ("actions", lambda a: a.astype(np.int64)),
    "'data/demo_0/actions' is not finite in row 1": ("actions", nan_in),
    "'data/demo_0/obs/object' is float64 (3, 14), expected floats (3, 10)": ("obs/object", lambda a: np.ones((3, 14))),
    "'data/demo_0/next_obs/robot0_eef_pos' is not finite in row 1": ("next_obs/robot0_eef_pos", nan_in),
    "'data/demo_0/dones' is float64 (3,), expected a 0 or 1 per step": ("dones", lambda a: a * 0.5),
    "'data/demo_0/dones' is int64 (3, 1)": ("dones", lambda a: a[:, None]),
    "'data/demo_0/dones' is int64 (0,)": ("dones", lambda a: a[:0]),
    "'data/demo_0/rewards' is float64 (3,), expected a 0 or 1 per step": ("rewards", lambda a: a - 0.25),
    "next_obs' of row 0 is not 'demo_0/obs' of row 1": ("obs/robot0_eef_pos", lambda a: a + 0.01),
}


@pytest.mark.parametrize("reason", ALTERED_ARRAYS)
def test_wrong_arrays_are_refused(reason: str, tmp_path: Path) -> None:
    key, change = ALTERED_ARRAYS[reason]
    demo = demonstration("lift", [0, 1, 1])
    demo[key] = change(demo[key])
    refused(write(tmp_path / "file.hdf5", "lift", {"demo_0": demo}), reason)


def test_rewards_of_another_length_are_refused(tmp_path: Path) -> None:
    demo = demonstration("lift", [0, 1, 1])
    demo["rewards"] = demo["rewards"][:2]
    refused(write(tmp_path / "file.hdf5", "lift", {"demo_0": demo}), "'data/demo_0/rewards' is float64 (2,)")


@pytest.mark.parametrize("key", ["actions", "dones", "rewards", "obs/object", "next_obs/robot0_gripper_qpos"])
def test_missing_arrays_are_refused(key: str, tmp_path: Path) -> None:
    demo = demonstration("lift", [0, 1])
    del demo[key]
    refused(write(tmp_path / "file.hdf5", "lift", {"demo_0": demo}), f"key 'data/demo_0/{key}' is missing")


def test_raw_recordings_are_refused_with_what_converts_them(tmp_path: Path) -> None:
    states = {"states": np.zeros((3, 32)), "actions": np.zeros((3, 7))}
    file = write(tmp_path / "demo.hdf5", "lift", {"demo_1": states})
    refused(file, f"python -m robomimic.scripts.dataset_states_to_obs --dataset {file}")
    with h5py.File(file, "a") as content:
        del content["data"].attrs["env_args"]
    refused(file, f"python -m robomimic.scripts.conversion.convert_robosuite --dataset {file}, then python -m")


def test_a_group_where_an_array_is_wanted_is_told(tmp_path: Path) -> None:
    file, _ = with_demos(tmp_path / "file.hdf5", 1, actions=None)
    with h5py.File(file, "a") as content:
        content["data/demo_0/actions/arm"] = np.zeros((4, 6))
    refused(file, "key 'data/demo_0/actions' is a group of arm, expected one array")


def test_shaped_rewards_are_refused_with_a_value(tmp_path: Path) -> None:
    file, _ = with_demos(tmp_path / "file.hdf5", rewards=np.linspace(0, 1, 4))
    refused(file, "'data/demo_0/rewards' is float64 (4,), expected a 0 or 1 per step, but it is 0.333333 in row 1")


def test_files_without_demonstrations_are_refused(tmp_path: Path) -> None:
    refused(write(tmp_path / "none.hdf5", "lift", {}), "no demonstration (demo_0, demo_1, …)")
    with h5py.File(tmp_path / "other.hdf5", "w") as content:
        content["episode_0/actions"] = np.zeros((2, 7))
    refused(tmp_path / "other.hdf5", "group 'data' is missing, it has episode_0")
    with h5py.File(tmp_path / "latin.hdf5", "w") as content:
        content["dat\xe4".encode("latin-1")] = np.zeros(2)
    refused(tmp_path / "latin.hdf5", "group 'data' is missing, it has b'dat\\xe4'")
    with h5py.File(write(tmp_path / "unnamed.hdf5", "lift", {}), "a") as content:
        content["data/demo_\xe4".encode("latin-1")] = np.zeros(2)
    refused(tmp_path / "unnamed.hdf5", "no demonstration (demo_0, demo_1, …)")
    with h5py.File(tmp_path / "untold.hdf5", "w") as content:
        content["data/demo_0/actions"] = np.zeros((2, 7))
    refused(tmp_path / "untold.hdf5", "attribute 'env_args' of group 'data' is missing")


def test_files_cut_anywhere_are_refused(tmp_path: Path) -> None:
    whole = HUMAN_LIFT.read_bytes()
    file = tmp_path / "file.hdf5"
    for share in (0.0, 0.001, 0.1, 0.5, 0.9, 0.999):
        file.write_bytes(whole[: int(len(whole) * share)])
        refused(file, "is not a whole HDF5 file")
    file.write_text("<html>not found</html>")
    refused(file, "is not a whole HDF5 file")


def test_damage_inside_a_file_is_never_read_as_data(tmp_path: Path) -> None:
    """Bytes of the file's tables overwritten: it is refused in one line, or nothing that is read has changed."""
    whole, file = HUMAN_LIFT.read_bytes(), tmp_path / "file.hdf5"
    expected = [block.obs.tobytes() for block in read_blocks(HUMAN_LIFT, dataset=CLIPPED)]
    rng = np.random.default_rng(0)
    tables = [match for match in range(0, len(whole) - 8, 8) if whole[match : match + 4] in (b"TREE", b"SNOD", b"HEAP")]
    reasons = 0
    for place in rng.choice(tables, 25, replace=False).tolist():
        file.write_bytes(whole[:place] + bytes(rng.integers(0, 256, 64, np.uint8)) + whole[place + 64 :])
        try:
            assert [block.obs.tobytes() for block in read_blocks(file, dataset=CLIPPED)] == expected
        except DataError as error:
            assert str(file) in str(error)
            assert "\n" not in str(error)
            reasons += 1
    assert reasons > 0


# Environments


@cache
def env(task: str = "lift-mh") -> Any:
    return source.make_env(TASKS[task], "post")


def episode(env: Any, seed: int, length: int = 12) -> bytes:
    """All that an episode of random actions tells, and the state it ends in."""
    rng = np.random.default_rng(seed)
    told = [env.reset(seed=seed)[0].tobytes()]
    for _ in range(length):
        obs, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, 7))
        told.append(obs.tobytes() + repr((reward, terminated, truncated, info)).encode())
    state = env.robosuite.sim.get_state().flatten()
    return b"".join([*told, state.tobytes()])


def test_this_module_needs_no_simulator_before_an_environment_is_made() -> None:
    code = (
        "import sys, datasets.robomimic.source; print({'robosuite', 'mujoco', 'h5py', 'gymnasium'} & set(sys.modules))"
    )
    assert run_python(code) == "set()\n"


def run_python(code: str, **environment: str) -> str:
    """What a fresh process prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


EPISODES_OF_A_PROCESS = """
import hashlib, os, sys
sys.path.insert(0, "tests")
from test_robomimic import TASKS, env, episode
for task in ("lift-mh", "can-mh", "square-mh"):
    for seed in {seeds}:
        told = episode(env(task), seed)
    print(task, hashlib.sha256(told).hexdigest())
print(os.environ["MUJOCO_GL"])
"""


@simulated
def test_a_seed_decides_an_episode_in_any_process_and_after_any_other() -> None:
    """Nothing is printed but what is asked for, and robosuite does not choose the process' renderer."""
    first = run_python(EPISODES_OF_A_PROCESS.format(seeds=[3]), PYTHONHASHSEED="1")
    again = run_python(EPISODES_OF_A_PROCESS.format(seeds=[8, 3]), PYTHONHASHSEED="2")
    assert first == again
    assert first.splitlines()[-1] == os.environ["MUJOCO_GL"] == "disable"
    assert f"lift-mh {hashlib.sha256(episode(env('lift-mh'), 3)).hexdigest()}" == first.splitlines()[0]
    assert f"lift-mh {hashlib.sha256(episode(env('lift-mh'), 4)).hexdigest()}" != first.splitlines()[0]


@simulated
def test_workers_forked_from_a_process_with_an_environment_see_the_same_episodes() -> None:
    import multiprocessing

    task_env = env("can-mh")
    task_env.reset(seed=0)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    worker = context.Process(target=lambda: send.send(episode(task_env, 5)))
    worker.start()
    assert receive.poll(60)
    told = receive.recv()
    worker.join(60)
    assert worker.exitcode == 0
    assert told == episode(task_env, 5)


@simulated
@pytest.mark.parametrize("task", ["lift-mh", "square-mh"])
def test_an_episode_is_restored_by_replaying_its_actions(task: str) -> None:
    rng = np.random.default_rng(1)
    actions = rng.uniform(-1, 1, (20, 7)).astype(np.float32)
    task_env = env(task)
    task_env.reset(seed=21)
    expected = [task_env.step(action)[0].tobytes() for action in actions]
    episode(task_env, 22)
    task_env.reset(seed=21)
    for action in actions[:10]:
        task_env.step(action)
    assert [task_env.step(action)[0].tobytes() for action in actions[10:]] == expected[10:]


@simulated
def test_resets_without_a_seed_go_on_from_the_last_one() -> None:
    task_env = env()
    starts = []
    for _ in range(2):
        task_env.reset(seed=5)
        starts.append([task_env.reset()[0].tobytes() for _ in range(2)])
    assert starts[0] == starts[1]
    assert starts[0][0] != starts[0][1]


@simulated
def test_numpy_s_generator_stays_as_it_was() -> None:
    np.random.seed(99)
    expected = np.random.random(3)
    np.random.seed(99)
    task_env = source.make_env(TASKS["lift-mh"], "post")
    drawn = [np.random.random()]
    task_env.reset(seed=1)
    drawn.append(np.random.random())
    task_env.reset()
    task_env.step(np.zeros(7))
    drawn.append(np.random.random())
    assert drawn == expected.tolist()


@simulated
@pytest.mark.parametrize("domain", ENV_NAMES)
def test_observations_are_the_published_ones(domain: str) -> None:
    """Of robosuite's own environment, reset and observed once more as in the published protocol."""
    from datasets.numpy_seed import seeded_numpy
    from datasets.robomimic.env import observation

    spec = TASKS[f"{domain}-mh"]
    task_env = env(spec.name)
    assert task_env.observation_space.shape == (spec.obs_dim,)
    package = package_env(domain)
    obs, info = task_env.reset(seed=4)
    with seeded_numpy(4):
        stale = package.reset()
    first = package._get_observations(force_update=True)
    assert obs.dtype == np.float32
    assert info == {}
    assert obs in task_env.observation_space
    flat = np.concatenate([first[key] for key in (*OBS_KEYS[:3], "object-state")])
    assert (obs == flat.astype(np.float32)).all()
    if domain != "lift":
        relative = slice(9, 16)  # of the object to the hand: position and quaternion
        assert not np.concatenate([stale["object-state"]])[:7].any()
        assert np.abs(obs[relative]).max() > 0.1
    action = np.full(7, 0.3)
    stepped, reward, _, _ = package.step(action)
    obs, shifted, *_ = task_env.step(action)
    assert (obs == observation(stepped)).all()
    assert shifted == reward - 1 == -1


@cache
def package_env(domain: str) -> Any:
    from datasets.robomimic.env import robosuite_env

    return robosuite_env(ENV_NAMES[domain], package=True)


@simulated
def test_actions_are_clipped() -> None:
    task_env = env()
    results = []
    for action in (np.ones(7), np.full(7, 40.0, np.float32), np.full(7, 0.9)):
        task_env.reset(seed=2)
        results.append(task_env.step(action)[0].tobytes())
    assert results[0] == results[1] != results[2]


@simulated
@pytest.mark.parametrize(
    "action", [np.zeros(6), np.zeros(8), np.zeros((1, 7)), np.full(7, np.nan), [np.inf] + [0.0] * 6, 0.0]
)
def test_actions_that_are_none_are_refused(action: Any) -> None:
    task_env = env()
    task_env.reset(seed=2)
    before = task_env.robosuite.sim.get_state().flatten()
    with pytest.raises(ValueError, match="an action is 7 finite numbers"):
        task_env.step(action)
    assert (task_env.robosuite.sim.get_state().flatten() == before).all()


@simulated
def test_episodes_are_truncated_at_the_published_limit() -> None:
    task_env = env()
    task_env.reset(seed=0)
    ends = [task_env.step(np.zeros(7))[2:4] for _ in range(300)]
    assert ends == [(False, False)] * 299 + [(False, True)]


@simulated
def test_success_terminates_with_reward_zero() -> None:
    task_env = env()
    task_env.reset(seed=0)
    lifted = task_env.robosuite.sim.data.get_joint_qpos("cube_joint0").copy()
    lifted[2] += 0.2
    task_env.robosuite.sim.data.set_joint_qpos("cube_joint0", lifted)
    _, reward, terminated, truncated, info = task_env.step(np.zeros(7))
    assert (reward, terminated, truncated, info) == (0.0, True, False, {"success": True})
    assert [type(value) for value in (reward, terminated, truncated, info["success"])] == [float, bool, bool, bool]


# Files and environments together


@simulated
def test_the_file_of_the_humans_was_made_in_this_environment() -> None:
    with h5py.File(HUMAN_LIFT) as content:
        args = json.loads(content["data"].attrs["env_args"])  # type: ignore[arg-type]
    assert args["env_kwargs"] == ENV_KWARGS


@simulated
@pytest.mark.parametrize("number", range(3))
def test_offline_rewards_and_observations_are_those_of_replayed_states(number: int) -> None:
    from datasets.robomimic.env import observation

    (block,) = read_blocks(HUMAN_LIFT, dataset=CLIPPED)[number : number + 1]
    task_env = env()
    task_env.reset(seed=0)
    suite = task_env.robosuite
    with h5py.File(HUMAN_LIFT) as content:
        states: np.ndarray = content[f"data/demo_{number}/states"][()]  # type: ignore[index,assignment]
    rows = np.flatnonzero(~block.final)
    obs, rewards = [], []
    for state in states:
        suite.sim.set_state_from_flattened(state)
        suite.sim.forward()
        obs.append(observation(suite._get_observations(force_update=True)))
        rewards.append(suite.reward(None) - 1)
    np.testing.assert_allclose(np.array(obs), block.obs[rows], rtol=0, atol=1e-6)
    # The reward of a transition is that of the state it leads to.
    assert rewards[1:] == block.reward["lift-mh"][rows[:-1]].tolist()
    assert 0 in rewards


@simulated
@pytest.mark.parametrize("number", range(3))
def test_actions_of_the_humans_solve_the_task_again(number: int) -> None:
    """Clipped as they are read, from the first state of their demonstration."""
    (block,) = read_blocks(HUMAN_LIFT, dataset=CLIPPED)[number : number + 1]
    task_env = env()
    task_env.reset(seed=0)
    with h5py.File(HUMAN_LIFT) as content:
        states: np.ndarray = content[f"data/demo_{number}/states"][()]  # type: ignore[index,assignment]
    task_env.robosuite.sim.set_state_from_flattened(states[0])
    task_env.robosuite.sim.forward()
    task_env._max_episode_steps = len(states)
    try:
        for length, action in enumerate(block.action[~block.final], start=1):  # noqa: B007  it is told below
            _, reward, terminated, truncated, info = task_env.step(action)
            if terminated or truncated:
                break
    finally:
        task_env._max_episode_steps = TASKS["lift-mh"].max_episode_steps
    assert info["success"]
    assert reward == 0
    first_success = int(np.flatnonzero(block.terminated["lift-mh"])[0]) + 1
    assert abs(length - first_success) < 10


@simulated
def test_another_generation_of_robosuite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.robomimic import env as robomimic_env

    monkeypatch.setattr(robomimic_env.robosuite, "__version__", "1.4.1")
    with pytest.raises(DataError, match=r"robosuite 1\.4\.1 is installed, the tasks are those of 1\.5"):
        source.make_env(TASKS["lift-mh"], "post")


def test_a_file_is_read_wherever_it_lies(tmp_path: Path) -> None:
    copy = tmp_path / "some folder" / "demonstrations.h5"
    copy.parent.mkdir()
    shutil.copyfile(HUMAN_LIFT, copy)
    assert (transitions(copy, dataset=CLIPPED).obs == human_lift().obs).all()
