"""Which keys of a flat file tell where episodes end: any of them gives the same transitions, contradictions none."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import datasets
from bench.tools.data import few_chunks
from bench.tools.export import write_flat
from datasets.flat_files import columns
from datasets.spec import DataError
from datasets.transitions import Transitions
from datasets.user_files.source import layout_of
from tests.test_flat_files import TASK, Walk, assert_read, read, read_with_warnings, transitions, write

WHOLE = ("dones", "dones_float", "traj_lengths", "episode_ends", "episode_index", "episode_starts")  # tell every end


@dataclass(frozen=True)
class Known:
    """Episodes as they were: where each ended and why, and where the task was solved before that."""

    walks: list[Walk]
    solved: np.ndarray  # (N,) bool: the task ends, also inside a trajectory

    @property
    def last(self) -> np.ndarray:
        """(N,) bool: the last row of each episode."""
        return np.concatenate([np.arange(len(walk.action)) == len(walk.action) - 1 for walk in self.walks])

    @property
    def at_limit(self) -> np.ndarray:
        return self.last & ~self.solved & ~self.was_cut

    @property
    def was_cut(self) -> np.ndarray:
        return np.concatenate([np.full(len(walk.action), walk.end == "cut") for walk in self.walks])

    def key(self, name: str) -> np.ndarray:
        """The array that a file has under a key."""
        lengths = np.array([len(walk.action) for walk in self.walks])
        done = self.last & ~self.was_cut
        return {
            "terminals": self.solved,
            "terminated": self.solved.astype(np.uint8),
            "masks": 1 - self.solved.astype(np.float32),
            "timeouts": self.at_limit,
            "dones": done,
            "dones_float": done.astype(np.float32),
            "traj_lengths": lengths,
            "episode_ends": np.cumsum(lengths),
            "episode_index": np.repeat(np.arange(len(lengths)) * 3 + 7, lengths),
            "episode_starts": np.append(True, self.last[:-1]),
        }[name]

    def arrays(self, keys: set[str], knows_next: bool) -> dict[str, Any]:
        arrays: dict[str, Any] = {
            "observations": np.concatenate([walk.obs[:-1] for walk in self.walks]),
            "actions": np.concatenate([walk.action for walk in self.walks]),
            "rewards": np.concatenate([walk.reward for walk in self.walks]),
            **{name: self.key(name) for name in keys},
        }
        if knows_next:
            arrays["next_observations"] = np.concatenate([walk.obs[1:] for walk in self.walks])
        return arrays

    def expected(self, knows_next: bool) -> list[tuple]:
        found, start = [], 0
        for walk in self.walks:
            steps = walk.expected(knows_next)
            for t, step in enumerate(steps):
                solved = bool(self.solved[start + t])
                found.append((*step[:3], solved, *step[4:]))
            start += len(walk.action)
        return found


@st.composite
def known(draw: st.DrawFn, solved_inside: bool) -> Known:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    walks = []
    number = draw(st.integers(1, 6))
    for index in range(number):
        end: str = draw(st.sampled_from(["terminated", "truncated", *(["cut"] if index == number - 1 else [])]))
        length = draw(st.integers(1, TASK.max_episode_steps))
        obs, action = rng.normal(size=(length + 1, 3)), rng.uniform(0.1, 0.9, (length, 2))
        walks.append(
            Walk(obs.astype(np.float32), action.astype(np.float32), rng.uniform(1, 2, length).astype(np.float32), end)
        )
    last = np.concatenate([np.arange(len(walk.action)) == len(walk.action) - 1 for walk in walks])
    ended = np.concatenate([np.full(len(walk.action), walk.end == "terminated") for walk in walks])
    solved = last & ended
    if solved_inside:
        solved |= (rng.random(len(last)) < 0.3) & ~last
    return Known(walks, solved)


def check_read(folder: Path, episodes: Known, arrays: dict[str, Any], knows_next: bool, suffix: str) -> None:
    assert_read(write(folder / f"walks{suffix}", arrays), episodes.expected(knows_next))


@settings(deadline=None, max_examples=100)
@given(
    st.data(),
    st.sets(st.sampled_from(["terminals", "terminated", "masks"]), min_size=1),
    st.sets(st.sampled_from(["timeouts", *WHOLE]), min_size=1),
    st.booleans(),
    st.sampled_from([".npz", ".hdf5"]),
)
def test_any_keys_that_agree_tell_the_same_transitions(tmp_path_factory, data, task_ends, ends, knows_next, suffix):
    episodes = data.draw(known(solved_inside=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_BLOCK_ROWS", data.draw(st.integers(1, 7)))
        arrays = episodes.arrays(task_ends | ends, knows_next)
        check_read(tmp_path_factory.mktemp("flat"), episodes, arrays, knows_next, suffix)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sets(st.sampled_from(["terminals", *WHOLE]), min_size=1), st.booleans(), st.booleans())
def test_masks_end_the_task_and_other_keys_the_trajectory(tmp_path_factory, data, ends, tells_limits, knows_next):
    """As OGBench's loader has it: `terminals` beside `masks` are ends of trajectories, in which the task is solved."""
    episodes = data.draw(known(solved_inside=True))
    arrays = episodes.arrays({"masks", *ends, *(["timeouts"] if tells_limits else [])}, knows_next)
    if "terminals" in ends:
        arrays["terminals"] = episodes.key("dones")
    # A key that only repeats `masks` is one of the task's ends, which no time limit has to be beside.
    assume((arrays.get("dones", arrays.get("terminals")) != episodes.solved).any() or ends & set(WHOLE[2:]))
    assume(not episodes.solved.any() or all(arrays[key].any() for key in ends & {"terminals", "dones", "dones_float"}))
    check_read(tmp_path_factory.mktemp("flat"), episodes, arrays, knows_next, ".npz")


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from(WHOLE[2:]), st.booleans())
def test_terminals_inside_a_trajectory_that_goes_on_are_kept(tmp_path_factory, data, key, tells_limits):
    episodes = data.draw(known(solved_inside=True))
    arrays = episodes.arrays({"terminals", key, *(["timeouts"] if tells_limits else [])}, knows_next=True)
    check_read(tmp_path_factory.mktemp("flat"), episodes, arrays, True, ".hdf5")


@settings(deadline=None, max_examples=100)
@given(st.data(), st.booleans())
def test_valids_are_rows_with_nothing_but_the_last_observation(tmp_path_factory, data, doubled):
    """OGBench's compact form: a row more per episode, `terminals` in its row and in the one before."""
    episodes = data.draw(known(solved_inside=True))
    parts: dict[str, list[np.ndarray]] = {
        key: [] for key in ("obs", "action", "reward", "terminals", "masks", "valids")
    }
    start = 0
    for walk in episodes.walks:
        length = len(walk.action)
        is_final = np.arange(length + 1) == length
        solved = np.append(episodes.solved[start : start + length], data.draw(st.booleans()))
        parts["obs"].append(walk.obs)
        parts["action"].append(np.append(walk.action, walk.action[-1:], axis=0))
        parts["reward"].append(np.append(walk.reward, 5))
        parts["terminals"].append(is_final | (np.append(is_final[1:], True) & doubled))
        parts["masks"].append(1.0 - solved)
        parts["valids"].append(~is_final)
        start += length
    arrays = {key: np.concatenate(values) for key, values in parts.items()}
    check_read(tmp_path_factory.mktemp("flat"), episodes, arrays, True, ".npz")


# Contradictions.


def misplaced(name: str, array: np.ndarray, last: np.ndarray, row: int) -> np.ndarray:
    """The key's array, had the episode that ends in `row` ended one row earlier or later, where none does."""
    moved = last.copy()
    moved[row] = False
    moved[row - 1 if not last[row - 1] and row > 0 else row + 1] = True
    return {
        "traj_lengths": lambda: np.diff(np.flatnonzero(moved), prepend=-1),
        "episode_ends": lambda: np.flatnonzero(moved) + 1,
        "episode_index": lambda: np.cumsum(np.append(0, moved[:-1])),
        "episode_starts": lambda: np.append(True, moved[:-1]),
    }.get(name, lambda: np.where(moved == last, array, moved).astype(array.dtype))()


@settings(deadline=None, max_examples=100)
@given(
    st.data(),
    st.sets(st.sampled_from(["terminals", "masks"]), min_size=1),
    st.sampled_from(WHOLE),
    st.sets(st.sampled_from(["timeouts", *WHOLE])),
    st.booleans(),
)
def test_a_key_that_contradicts_another_is_named(tmp_path_factory, data, task_ends, wrong, others, knows_next):
    episodes = data.draw(known(solved_inside=False))
    last = episodes.last
    rows = [row for row in np.flatnonzero(last)[:-1] if not last[row + 1] or (row > 0 and not last[row - 1])]
    rows = [row for row in rows if row + 1 < len(last) - 1 or (row > 0 and not last[row - 1])]
    assume(rows and episodes.at_limit.any())
    others = (others - {wrong}) or {"timeouts"}
    arrays = episodes.arrays({*task_ends, *others, wrong}, knows_next)
    arrays[wrong] = misplaced(wrong, arrays[wrong], last, int(data.draw(st.sampled_from(rows))))
    file = write(tmp_path_factory.mktemp("flat") / "walks.hdf5", arrays)
    with pytest.raises(DataError, match=rf"^{file}: keys '.*' and '.*' contradict in row \d+: .*") as error:
        read(file)
    assert f"'{wrong}'" in str(error.value) and "\n" not in str(error.value)


def by_hundreds(*lengths: int) -> dict[str, np.ndarray]:
    """Rows of episodes whose first number is 100 x episode + step, so that a step is 1 and another episode is far."""
    rng = np.random.default_rng(0)
    obs = rng.normal(0, 0.1, (sum(lengths), 3)).astype(np.float32)
    obs[:, 0] = np.concatenate([100 * number + np.arange(length) for number, length in enumerate(lengths)])
    last = np.concatenate([np.arange(length) == length - 1 for length in lengths])
    following = np.roll(obs, -1, axis=0)
    following[last] = obs[last] + np.array([1, 0, 0], np.float32)
    return {
        "observations": obs,
        "actions": rng.uniform(-0.9, 0.9, (len(obs), 2)).astype(np.float32),
        "rewards": np.full(len(obs), -1, np.float32),
        "next_observations": following,
        "last": last,
    }


def flat(*lengths: int, without: Any = "", **keys: Any) -> dict[str, Any]:
    arrays = by_hundreds(*lengths)
    del arrays["last"]
    return {key: array for key, array in {**arrays, **keys}.items() if key != without}


LAST = by_hundreds(6, 6)["last"]
NONE = np.zeros(12, bool)
SOLVED = np.arange(12) == 3

UNDECIDED = {
    "terminals and terminated": (
        {"terminals": NONE, "terminated": LAST},
        r"keys 'terminals' and 'terminated' contradict in row 5: 0 and 1; mend or leave out the wrong one",
    ),
    "timeouts alone": (
        {"timeouts": LAST},
        r"no key for terminals .*; 'timeouts' tells where episodes end, which may be .* add 'terminals' .* or 'masks'",
    ),
    "lengths alone": ({"traj_lengths": [6, 6]}, "no key for terminals .*; 'traj_lengths' tells where episodes end"),
    "masks alone": ({"masks": 1 - LAST}, "'masks' tells where the task ends, no key where trajectories do; add 'termi"),
    "masks and terminals that are never 1": (
        {"masks": 1 - SOLVED, "terminals": NONE},
        "keys 'masks' and 'terminals' contradict in row 3: 'masks' ends the task, 'terminals' never",
    ),
    "valids and terminals without masks": (
        {"valids": ~LAST, "terminals": LAST},
        "'terminals' is 1 in row 5, where 'valids' is 0: it tells ends of trajectories, not of the task; add 'masks'",
    ),
    "a terminal inside an episode by lengths": (
        {"terminals": SOLVED, "traj_lengths": [6, 6], "without": "next_observations"},
        "keys 'terminals' and 'traj_lengths' contradict in row 3: 'terminals' ends an episode, 'traj_lengths' does not",
    ),
    "a terminal that is not done": (
        {"terminals": SOLVED, "dones": LAST},
        "keys 'terminals' and 'dones' contradict in row 3: 'terminals' ends an episode, 'dones' does not",
    ),
    "a time limit inside an episode": (
        {"terminals": NONE, "timeouts": SOLVED, "episode_id": np.repeat([0, 1], 6)},
        "keys 'timeouts' and 'episode_id' contradict in row 3",
    ),
    "an end that is neither": (
        {"terminals": SOLVED, "timeouts": np.arange(12) == 11, "dones": LAST | SOLVED},
        "keys 'dones' and 'timeouts' contradict in row 5: 'dones' ends an episode, 'timeouts' does not",
    ),
    "lengths against next observations": (
        {"terminals": NONE, "traj_lengths": [12]},
        "keys 'traj_lengths' and 'next_observations' contradict in row 5",
    ),
    "lengths that do not fill the file": (
        {"terminals": NONE, "traj_lengths": [6, 5]},
        "'traj_lengths' sums to 11, .* 12",
    ),
    "a length of 0": ({"terminals": NONE, "episode_lengths": [6, 0, 6]}, "'episode_lengths' is 0 for episode 1"),
    "half a length": ({"terminals": NONE, "traj_lengths": [5.5, 6.5]}, "'traj_lengths' has 5.5, no whole number"),
    "ends that fall": (
        {"terminals": NONE, "episode_ends": [6, 4, 12]},
        "'episode_ends' does not increase at episode 1",
    ),
    "ends that stop short": ({"terminals": NONE, "episode_ends": [5, 11]}, "'episode_ends' ends at 11, .* has 12 rows"),
    "an index that comes back": (
        {"terminals": NONE, "episode_index": np.arange(12) % 2},
        "'episode_index' comes back to 0 in row 2; the rows of an episode must lie together",
    ),
    "no first start": ({"terminals": NONE, "episode_starts": NONE}, "'episode_starts' is 0 in row 0, where an episode"),
}


@pytest.mark.parametrize("keys, message", UNDECIDED.values(), ids=UNDECIDED)
def test_what_cannot_be_decided_is_refused_by_name(tmp_path, keys, message):
    file = write(tmp_path / "x.npz", flat(6, 6, **keys))
    with pytest.raises(DataError, match=message) as error:
        layout_of(file)
        read(file)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


# What the observations say.


def test_time_limits_flagged_a_row_late_are_moved_back_with_a_warning(tmp_path):
    late = np.arange(18)[:, None] == np.array([6, 12])
    for without in ("next_observations", ""):
        arrays = flat(6, 6, 6, without=without, terminals=np.zeros(18), timeouts=late.any(1))
        data, (line,) = read_with_warnings(write(tmp_path / f"x{without}.npz", arrays))
        assert np.diff(data.episode_ends, prepend=0).tolist() == ([5, 5, 5] if without else [6, 6, 6])
        assert "'timeouts' comes a row late: its 2 flags are read as of the row before" in line


def test_time_limits_of_episodes_of_one_step_are_not_late(tmp_path):
    timeouts = np.isin(np.arange(14), (6, 13))  # of the longer episodes it is missing
    arrays = flat(6, 1, 6, 1, terminals=np.zeros(14), timeouts=timeouts)
    data, warnings = read_with_warnings(write(tmp_path / "x.npz", arrays))
    assert np.diff(data.episode_ends, prepend=0).tolist() == [6, 1, 6, 1]
    assert warnings == ()


def test_a_jump_inside_an_episode_is_a_warning(tmp_path):
    timeouts = np.isin(np.arange(24), (5, 15, 23))  # in the second and third episode it comes too early, or not
    arrays = flat(6, 6, 6, 6, without="next_observations", terminals=np.zeros(24), timeouts=timeouts)
    (line,) = read_with_warnings(write(tmp_path / "x.npz", arrays))[1]
    assert "2 of 24 rows jump by more than 20 times the median step inside an episode, the first is row 11" in line
    right = arrays | {"timeouts": np.isin(np.arange(24), (5, 11, 17, 23))}
    assert read_with_warnings(write(tmp_path / "right.npz", right))[1] == ()


@pytest.mark.parametrize("key", ["terminals", "timeouts", "dones"])
def test_an_observation_after_the_reset_is_not_bootstrapped_from(tmp_path, key):
    """The next row's observation follows each end: no next observation is known there."""
    arrays = flat(6, 6, 6, **{"terminals": np.zeros(18, bool), key: by_hundreds(6, 6, 6)["last"]})
    arrays["next_observations"] = np.roll(arrays["observations"], -1, axis=0)
    arrays["next_observations"][-1] = (206, 0, 0)
    data, (line,) = read_with_warnings(write(tmp_path / "x.npz", arrays))
    assert "'next_observations' of 2 of 18 rows that end episodes is the observation after the reset" in line
    episode = data.obs[:, 0] // 100
    assert (episode[:-1] == episode[1:])[~data.final[:-1]].all(), "no transition leads into another episode"
    is_terminal = key == "terminals"
    assert np.diff(data.episode_ends, prepend=0).tolist() == ([6, 6, 6] if is_terminal else [5, 5, 6])
    assert data.terminated.sum() == (3 if is_terminal else 0)


def test_ends_in_other_rows_than_next_observations_break_off_are_refused(tmp_path):
    early = np.isin(np.arange(18), (4, 10))
    file = write(tmp_path / "x.npz", flat(6, 6, 6, terminals=np.zeros(18), timeouts=early))
    with pytest.raises(DataError, match=r"keys 'timeouts' and 'next_observations' contradict in row 5"):
        read(file)


def test_terminals_that_go_on_without_a_jump_cut_no_episode(tmp_path):
    arrays = flat(6, 6, terminals=SOLVED | LAST)
    data, (line,) = read_with_warnings(write(tmp_path / "x.npz", arrays))
    assert data.episode_ends.tolist() == [6, 12]
    assert np.flatnonzero(data.terminated[~data.final]).tolist() == [3, 5, 11]
    assert "1 of 12 rows end the task inside a trajectory that goes on in 'next_observations'" in line


def test_next_observations_of_a_file_written_here_are_never_those_after_a_reset(tmp_path):
    arrays = flat(6, 6, terminals=LAST, recipe=np.array("{}"))
    arrays["next_observations"] = np.roll(arrays["observations"], -1, axis=0)
    data, warnings = read_with_warnings(write(tmp_path / "x.npz", arrays))
    assert (data.episode_ends.tolist(), warnings) == ([12], ())


def test_environments_stepped_side_by_side_are_a_warning(tmp_path):
    arrays = flat(6, 6, 6, 6, terminals=np.zeros(24), timeouts=by_hundreds(6, 6, 6, 6)["last"])
    order = np.arange(24).reshape(4, 6).T.reshape(-1)
    file = write(tmp_path / "x.npz", {key: array[order] for key, array in arrays.items()})
    data, (line,) = read_with_warnings(file)
    assert data.num_episodes == 24
    assert "20 of 24 rows do not lead to the next row" in line and "no chunk of several steps fits" in line


def test_ends_flagged_both_ways_are_a_warning(tmp_path):
    arrays = flat(6, 6, terminals=LAST, timeouts=LAST)
    data, (line,) = read_with_warnings(write(tmp_path / "x.npz", arrays))
    assert data.terminated.sum() == 2
    assert "2 of 12 rows are flagged both in 'terminals' and in 'timeouts': read as ends of the task" in line


def test_dones_alone_are_read_as_ends_of_the_task_with_a_warning(tmp_path):
    data, (line,) = read_with_warnings(write(tmp_path / "x.npz", flat(6, 6, dones=LAST)))
    assert data.terminated.sum() == 2
    assert "'dones' alone tells no time limits apart: 2 of 12 rows are read as ends of the task" in line
    arrays = flat(6, 6, dones=LAST & (np.arange(12) > 5), traj_lengths=[6, 6])
    data, warnings = read_with_warnings(write(tmp_path / "told.npz", arrays))
    assert (data.num_episodes, data.terminated.sum(), warnings) == (2, 1, ())


def test_masks_upside_down_are_a_warning(tmp_path):
    arrays = flat(6, 6, terminals=LAST, masks=LAST)
    (line,) = read_with_warnings(write(tmp_path / "x.npz", arrays))[1]
    assert "'masks' is 0 in 10 of 12 rows, where the task ends: is it upside down?" in line


def test_an_array_that_may_tell_ends_and_is_not_understood_is_named(tmp_path):
    unknown = {"is_last": LAST, "run": np.repeat([0, 1], 6)[:, None], "sizes": [6, 6], "pose": np.zeros((12, 2))}
    warnings = read_with_warnings(
        write(tmp_path / "x.npz", flat(6, 6, terminals=LAST, version=np.array(1), **unknown))
    )[1]
    assert warnings == (f"{tmp_path / 'x.npz'}: not understood and left out: is_last, run, sizes",)


def test_a_second_array_of_one_meaning_is_named(tmp_path):
    second = {"states": np.zeros((12, 21)), "action": np.zeros((12, 2)), "reward": NONE, "next_obs": np.zeros((12, 3))}
    warnings = read_with_warnings(write(tmp_path / "x.npz", flat(6, 6, terminals=LAST, **second)))[1]
    for key, line in zip(second, warnings, strict=True):
        assert f"'{key}' is left out beside '" in line


@pytest.mark.parametrize("without", ["", "next_observations"])
def test_ends_of_the_task_flagged_a_row_late_are_refused(tmp_path, without):
    late = np.isin(np.arange(18), (6, 12))
    file = write(tmp_path / "x.npz", flat(6, 6, 6, without=without, terminals=late, timeouts=np.zeros(18)))
    with pytest.raises(
        DataError, match="'terminals' ends the task a row late in 2 of 18 rows: the first is row 6, but"
    ):
        read(file)


def test_an_end_of_the_task_in_the_last_row_alone_is_not_taken_for_a_late_one(tmp_path):
    """Episodes of one row each: the first breaks off, as no key tells, and the second ends the task."""
    file = write(tmp_path / "x.npz", flat(1, 1, terminals=np.array([False, True])))
    assert read(file).terminated.tolist() == [False, False, True, False]  # a row of each is its final observation


@pytest.mark.parametrize("number", [2, 5, 8])
def test_environments_stepped_side_by_side_are_told_without_next_observations(tmp_path, number):
    lengths = [12] * number
    arrays = flat(*lengths, without="next_observations", terminals=by_hundreds(*lengths)["last"])
    order = np.arange(12 * number).reshape(number, 12).T.reshape(-1)
    file = write(tmp_path / "x.npz", {key: array[order] for key, array in arrays.items()})
    (line,) = read_with_warnings(file)[1]
    assert f"nearer to that {number} rows on than to the next one" in line and "put the rows of each episode" in line
    assert read_with_warnings(write(tmp_path / "right.npz", arrays))[1] == ()


def test_shuffled_rows_are_told_without_next_observations(tmp_path):
    lengths = [20] * 6
    arrays = flat(*lengths, without="next_observations", terminals=by_hundreds(*lengths)["last"])
    order = np.random.default_rng(0).permutation(120)
    file = write(tmp_path / "x.npz", {key: array[order] for key, array in arrays.items()})
    (line,) = read_with_warnings(file)[1]
    assert "'observations' of the next row is as far as that of any other row: are rows shuffled?" in line


def test_padded_episodes_are_refused_with_what_to_do(tmp_path):
    padded = {key: array.reshape(2, 6, -1) for key, array in flat(6, 6, terminals=LAST).items()}
    with pytest.raises(DataError, match="put the steps of each episode, without its padding, one after the other"):
        read(write(tmp_path / "x.npz", padded))


def test_sparse_demonstrations_that_come_to_rest_are_rows_of_a_step_each(tmp_path):
    """D4rl-pybullet's files look alike; only data of its tasks are read so."""
    last = by_hundreds(4, 4)["last"]
    arrays = flat(4, 4, terminals=last, rewards=last.astype(np.float32), without="next_observations")
    arrays["actions"][last] = 0
    data = read(write(tmp_path / "x.npz", arrays))
    assert np.flatnonzero(data.terminated[~data.final]).tolist() == [3, 7]
    assert np.flatnonzero(data.reward[~data.final]).tolist() == [3, 7]


# Own exports.


@pytest.mark.parametrize("task", ["toy-reach", "cube-single-task1", "lift-mh", "hopper-bullet-medium"])
@pytest.mark.parametrize("earlier", [False, True], ids=["", "without episode_id"])
def test_an_export_comes_back_with_terminals_inside_its_trajectories(tmp_path_factory, task, earlier):
    """Also one that was written before exports had `episode_id`."""
    spec = datasets.task(task)

    @settings(deadline=None, max_examples=15)
    @given(
        st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 2**32 - 1), st.sampled_from([0, 0.3, 1.0])
    )
    def comes_back(lengths: list[int], seed: int, share: float) -> None:
        rng = np.random.default_rng(seed)
        final = np.concatenate([np.arange(length + 1) == length for length in lengths])
        terminated = (rng.random(len(final)) < share) & ~final
        original = Transitions(
            obs=rng.normal(size=(len(final), spec.obs_dim)).astype(np.float32),
            action=rng.uniform(-0.9, 0.9, (len(final), spec.action_dim)).astype(np.float32),
            reward=np.where(final, 0, -rng.integers(0, 2, len(final))).astype(np.float32),
            terminated=terminated,
            final=final,
            name="walks",
            origin="user",
            content_hash="0" * 64,
        )
        folder = tmp_path_factory.mktemp("export")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("O2O_BENCH_DATA", str(folder / "cache"))
            write_flat(task, original, folder / "export.hdf5")
            if earlier:
                with h5py.File(folder / "export.hdf5", "a") as file:
                    del file["episode_id"]
            back = datasets.load(task, datasets.register(folder / "export.hdf5"))
        assert transitions(back) == transitions(original)

    comes_back()


def test_warnings_are_shown_at_every_use_of_the_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))
    spec = datasets.task("toy-reach")
    arrays = flat(6, 6, terminals=NONE, is_last=LAST)
    arrays["observations"] = np.zeros((12, spec.obs_dim))
    arrays["actions"] = np.zeros((12, spec.action_dim))
    del arrays["next_observations"]
    name = datasets.register(write(tmp_path / "x.npz", arrays))
    for _ in range(2):  # converted, then found
        datasets.load("toy-reach", name)
        line = f"warning: {tmp_path / 'x.npz'}: not understood and left out: is_last\n"
        assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("lengths", "chunk_length", "line"),
    [
        ((1,) * 24, 5, "only 0 of 24 transitions begin 5 steps in one episode, as agents with chunks of 5 learn from"),
        ((1,) * 24, 1, None),
        ((5,) * 4, 5, "only 4 of 20 transitions begin 5 steps"),
        ((20, 3), 5, None),
    ],
)
def test_data_that_hold_few_chunks_are_a_warning(lengths, chunk_length, line):
    final = np.concatenate([np.arange(length + 1) == length for length in lengths])
    rows, column = np.zeros((len(final), 2), np.float32), np.zeros(len(final), np.float32)
    data = Transitions(rows, rows, column, np.zeros(len(final), bool), final, "walks", "user", "")
    found = few_chunks(data, chunk_length)
    assert found is None if line is None else line in (found or "")
