"""Rewards and actions of users' files that are not on the task's scale: refused, or taken because the user says so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datasets
from bench.__main__ import main
from datasets.scale import ActionScale, RewardScale
from datasets.spec import ACTION_LIMIT, DataError, Dataset, FileOptions, RemoteFile

ROWS = 12
MINE = Dataset("user-x-0123456789", "user", "", (RemoteFile("x.npz"),))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))


def toy_file(path: Path, **changes: Any) -> Path:
    """Two episodes of six steps for toy-reach, the second of which is solved."""
    rng, steps = np.random.default_rng(0), np.arange(ROWS)
    obs = np.repeat(0.01 * steps + 0.5 * (steps > 5), 2).reshape(ROWS, 2)
    arrays = {
        "observations": obs,
        "next_observations": obs + 0.01,
        "actions": rng.uniform(-0.9, 0.9, (ROWS, 2)),
        "rewards": np.where(steps == ROWS - 1, 0.0, -1.0),
        "terminals": steps == ROWS - 1,
        "timeouts": steps == 5,
    }
    np.savez(path, **{key: array for key, array in {**arrays, **changes}.items() if array is not None})
    return path


def loaded(file: Path, *accept: str) -> datasets.Transitions:
    return datasets.load("toy-reach", datasets.register(file, options=FileOptions(accept)), quiet=True)


SOLVED_LAST = np.where(np.arange(ROWS) == ROWS - 1, 1.0, 0.0)
FOREIGN_REWARDS = {  # and how many are none of the task's, and what the line says of them
    "0 until solved, then 1": (SOLVED_LAST, "1 of 12 rows (8.33%): they reach from 0 to 1", "subtract 1 from every"),
    "0 to 100": (100 * SOLVED_LAST, "1 of 12 rows (8.33%): they reach from 0 to 100", "give it the task's"),
    "ten times": (10 * SOLVED_LAST - 10, "11 of 12 rows (91.7%): they reach from -10 to 0", "give it the task's"),
    "shaped": (SOLVED_LAST - 0.5, "12 of 12 rows (100%): they reach from -0.5 to 0.5", "give it the task's"),
}


@pytest.mark.parametrize("kind", FOREIGN_REWARDS)
def test_rewards_that_the_task_cannot_give_are_refused_or_accepted(kind: str, tmp_path: Path) -> None:
    rewards, share, hint = FOREIGN_REWARDS[kind]
    file = toy_file(tmp_path / "mine.npz", rewards=rewards)
    with pytest.raises(DataError) as error:
        loaded(file)
    said = str(error.value)
    assert said.startswith(
        f"{file}: rewards are none of toy-reach's in {share}, the task's are -1 until solved, then 0"
    )
    assert hint in said and said.endswith("--accept rewards") and "\n" not in said
    data = loaded(file, "rewards")
    assert sorted(set(data.reward[~data.final])) == sorted(set(rewards.astype(np.float32)))
    assert data.name != datasets.register(file) and "-accept-rewards-" in data.name
    assert share in data.warnings[0] and data.warnings[0].endswith("taken as they are")


def test_rewards_of_the_task_pass_and_need_no_acceptance(tmp_path: Path) -> None:
    file = toy_file(tmp_path / "mine.npz")
    assert loaded(file).warnings == ()
    with pytest.raises(DataError, match=r"its rewards are those that toy-reach gives; leave out --accept rewards"):
        loaded(file, "rewards")


def test_rewards_that_are_all_zero_though_nothing_is_solved_are_a_warning(tmp_path: Path) -> None:
    data = loaded(toy_file(tmp_path / "mine.npz", rewards=np.zeros(ROWS), terminals=np.zeros(ROWS, bool)))
    (line,) = data.warnings
    assert "every reward is 0, which toy-reach gives only where it is solved" in line


@pytest.mark.parametrize("going_on, unsolved", [(11, 1), (1, 0), (0, 1)])
def test_rewards_that_tell_another_end_than_the_flags_are_a_warning(
    going_on: int, unsolved: int, tmp_path: Path
) -> None:
    last = np.arange(ROWS) == ROWS - 1
    rewards, ends = {
        (11, 1): (np.where(last, -1.0, 0.0), last),  # the sign is turned
        (1, 0): (np.where(last, 0.0, -1.0), last & False),
        (0, 1): (np.full(ROWS, -1.0), last),
    }[going_on, unsolved]
    (line,) = loaded(toy_file(tmp_path / "mine.npz", rewards=rewards, terminals=ends)).warnings
    assert "toy-reach ends where its reward is 0" in line
    assert f" {going_on} of 12 rows (" in line and f", and {unsolved} end it with another reward" in line


def test_sparse_rewards_of_a_task_that_counts_are_a_warning() -> None:
    scale = RewardScale(MINE, Path("x.npz"), datasets.task("cube-double-task1"))
    scale.add(np.array([-1, -1, 0], np.float32), np.array([False, False, True]))
    assert scale.lines() == [
        "x.npz: no reward is below -1, though cube-double-task1 gives down to -2: are they of a sparse task?"
    ]


def test_actions_of_other_units_are_a_warning(tmp_path: Path) -> None:
    actions = np.random.default_rng(0).uniform(-0.05, 0.05, (ROWS, 2))
    actions[3, 0] = 0.0625
    (line,) = loaded(toy_file(tmp_path / "mine.npz", actions=actions)).warnings
    assert "no action is beyond 0.0625 in size, though the task takes them in [-1, 1]: are they in other units?" in line


def test_tasks_know_their_rewards() -> None:
    least = {name: datasets.task(name).least_reward for name in ("cube-quadruple-task1", "scene-task2", "lift-mh")}
    assert least == {"cube-quadruple-task1": -4, "scene-task2": -1, "lift-mh": -1}
    assert datasets.task("antmaze-giant-task1").least_reward == datasets.task("toy-reach").least_reward == -1
    assert datasets.task("hopper-bullet-medium").least_reward is None
    for rewards, is_known in ((range(-4, 1), True), ((-5, -1), False), ((-0.99999, 0), True)):
        scale = RewardScale(MINE, Path("x.npz"), datasets.task("cube-quadruple-task1"))
        scale.add(np.array(rewards, np.float32), np.array(rewards) == 0)
        if is_known:
            assert scale.lines() == []
        else:
            with pytest.raises(DataError, match=r"in 1 of 2 rows \(50%\).*whole numbers from -4 to 0, which is solved"):
                scale.lines()
    dense = RewardScale(MINE, Path("x.npz"), datasets.task("hopper-bullet-medium"))
    dense.add(np.array([3.7, -88], np.float32), np.zeros(2, bool))
    assert dense.lines() == []


@pytest.mark.parametrize("largest", [7.5, -255.0, 1.5])
def test_actions_far_beyond_are_refused_with_share_and_largest_or_clipped(largest: float, tmp_path: Path) -> None:
    actions = np.zeros((ROWS, 2))
    actions[3, 1], actions[7, 0] = largest, np.sign(largest) * 1.2
    file = toy_file(tmp_path / "mine.npz", actions=actions)
    share = f"key 'actions' is {abs(largest):g} in row 3; that is the largest in size, and 2 of 12 rows (16.7%) lie"
    with pytest.raises(DataError) as error:
        loaded(file)
    assert share in str(error.value) and str(error.value).endswith("clipped with --accept actions")
    data = loaded(file, "actions")
    assert np.abs(data.action).max() == np.float32(ACTION_LIMIT)
    (line,) = data.warnings
    assert share in line and line.endswith("they are clipped")


def test_actions_a_little_beyond_are_clipped_and_counted(tmp_path: Path) -> None:
    actions = np.zeros((ROWS, 2))
    actions[:3] = -1.0001
    data = loaded(toy_file(tmp_path / "mine.npz", actions=actions))
    assert np.abs(data.action).max() == np.float32(ACTION_LIMIT)
    (line,) = data.warnings
    assert "is 1.0001 in row 0" in line and "3 of 12 rows (25%) lie beyond [-1, 1]; they are clipped" in line
    with pytest.raises(DataError, match=r"its actions lie in \[-1, 1\]; leave out --accept actions"):
        loaded(tmp_path / "mine.npz", "actions")


def test_both_can_be_accepted_at_once_in_any_order(tmp_path: Path) -> None:
    file = toy_file(tmp_path / "mine.npz", actions=np.full((ROWS, 2), 3.0), rewards=SOLVED_LAST)
    names = {
        datasets.register(file, options=FileOptions(order))
        for order in (("rewards", "actions"), ("actions", "rewards"))
    }
    assert len(names) == 1 and len(loaded(file, "rewards", "actions").warnings) == 2
    with pytest.raises(DataError, match="--accept actions"):
        loaded(file, "rewards")
    with pytest.raises(DataError, match=r"unknown --accept 'reward' \(did you mean 'rewards'\?\); it takes"):
        FileOptions(("reward",))


def test_a_published_set_is_clipped_as_it_is_and_counted() -> None:
    published = Dataset("lift-mh-v15", "robomimic", "lift", (RemoteFile("x.hdf5"),))
    scale = ActionScale(published, Path("x.hdf5"), refuses=False)
    scale.clipped(np.array([[0.5, 3.75], [0, 0]], np.float32), "data/demo_0/actions")
    (line,) = scale.lines()
    assert line.endswith("1 of 2 rows (50%) lie beyond [-1, 1]; they are clipped")


def test_what_means_nothing_is_not_counted(tmp_path: Path) -> None:
    actions = np.zeros((ROWS, 2))
    actions[5] = 99.0  # of the last step before a time limit, whose next observation the file does not have
    assert loaded(toy_file(tmp_path / "mine.npz", actions=actions, next_observations=None)).warnings == ()


def test_a_run_says_a_warning_once_and_keeps_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    actions = np.full((ROWS, 2), 1.0005)
    file = toy_file(tmp_path / "mine.npz", actions=actions)
    sizes = "--agent-config.policy_hidden_dims 8,8 --agent-config.critic_hidden_dims 8,8 --agent-config.chunk_length 1"
    budget = "--offline-updates 2 --online-steps 0 --batch-size 4 --eval-episodes 1 --engine eager --env-workers 0"
    line = f"run --task toy-reach --agent qc_fql --data {file} {sizes} {budget} --results {tmp_path / 'results'}"
    assert main(line.split()) == 0
    assert capfd.readouterr().err.count("they are clipped") == 1
    (written,) = tmp_path.glob("results/single/toy-reach/*/*/provenance.json")
    (kept,) = json.loads(written.read_text())["data_warnings"]
    assert kept.startswith(str(file)) and "12 of 12 rows (100%) lie beyond [-1, 1]; they are clipped" in kept
