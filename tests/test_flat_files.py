"""Flat D4RL-like files: which transitions they hold, which layout they are in, and what is refused."""

import io
import json
import pickle
import resource
import tracemalloc
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.flat_files import columns, reading, writing
from datasets.spec import ACTION_LIMIT, DataError, Dataset, RemoteFile, TaskSpec
from datasets.transitions import Transitions
from datasets.user_files.source import layout_of, register

TASK = TaskSpec("walk", "any", "walk", 1, obs_dim=3, action_dim=2, max_episode_steps=5, dataset="walk-v0")
OTHER = TaskSpec("run", "any", "walk", 2, obs_dim=3, action_dim=2, max_episode_steps=5, dataset="walk-v0")


def write(file: Path, arrays: dict[str, Any], **options: Any) -> Path:
    if file.suffix == ".npz":
        (np.savez_compressed if options.get("compression") else np.savez)(file, **arrays)
    else:
        with h5py.File(file, "w") as out:
            for key, array in arrays.items():
                out.create_dataset(key, data=array, **options)
    return file


def read(file: Path, *tasks: TaskSpec, on_arrival: bool = False) -> Transitions:
    """The file as the store would convert it."""
    return read_with_warnings(file, *tasks, on_arrival=on_arrival)[0]


def read_with_warnings(file: Path, *tasks: TaskSpec, on_arrival: bool = False) -> tuple[Transitions, tuple[str, ...]]:
    dataset = Dataset("walk-v0", "any", "walk", (RemoteFile(file.name),))
    rows = reading.read(dataset, [file], list(tasks) or [TASK], on_arrival=on_arrival)
    blocks = list(rows.blocks)
    name = (tasks or (TASK,))[-1].name
    data = Transitions(
        obs=np.concatenate([block.obs for block in blocks]),
        action=np.concatenate([block.action for block in blocks]),
        reward=np.concatenate([block.reward[name] for block in blocks]),
        terminated=np.concatenate([block.terminated[name] for block in blocks]),
        final=np.concatenate([block.final for block in blocks]),
        name="walk-v0",
        origin="user",
        content_hash="",
    )
    assert rows.num_rows == len(data.obs) == data.num_transitions + data.num_episodes
    return data, tuple(rows.warnings)


def transitions(data: Transitions) -> list[tuple]:
    """(obs, action, reward, terminated, next obs, ends its episode) of each, as plain numbers."""
    return [
        (
            tuple(data.obs[row].tolist()),
            tuple(data.action[row].tolist()),
            float(data.reward[row]),
            bool(data.terminated[row]),
            tuple(data.obs[row + 1].tolist()),
            bool(data.final[row + 1]),
        )
        for row in np.flatnonzero(~data.final)
    ]


def good(num_rows: int = 12) -> dict[str, np.ndarray]:
    """Episodes of four steps in D4RL's arrays."""
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(num_rows, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (num_rows, 2)).astype(np.float32),
        "rewards": rng.normal(size=num_rows).astype(np.float32),
        "terminals": np.arange(num_rows) % 4 == 3,
    }


@dataclass(frozen=True)
class Walk:
    """An episode as it was, and how it ended."""

    obs: np.ndarray  # (T + 1, 3)
    action: np.ndarray  # (T, 2)
    reward: np.ndarray  # (T,)
    end: str  # "terminated", "truncated", or "cut": collection stopped

    def expected(self, knows_next: bool, on_arrival: bool = False) -> list[tuple]:
        """What may be learnt from, by the plainest loop."""
        found = []
        for t in range(len(self.action)):
            is_last = t == len(self.action) - 1
            terminated = is_last and self.end == "terminated"
            if on_arrival and len(self.action) == TASK.max_episode_steps:
                terminated = False  # told by nothing but the number of steps
            next_obs = self.obs[t + 1]
            if is_last and not (knows_next or on_arrival):
                if not terminated:
                    continue
                next_obs = self.obs[t]
            found.append([self.obs[t], self.action[t], self.reward[t], terminated, next_obs, False])
        if found:
            found[-1][-1] = True
        return [
            (tuple(o.tolist()), tuple(a.tolist()), float(r), bool(term), tuple(n.tolist()), end)
            for o, a, r, term, n, end in found
        ]


@st.composite
def walks(draw: st.DrawFn, tells_limits: bool) -> list[Walk]:
    limit = TASK.max_episode_steps
    found = []
    number = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for index in range(number):
        end: str = draw(st.sampled_from(["terminated", "truncated", *(["cut"] if index == number - 1 else [])]))
        length = draw(st.integers(1, limit if end == "terminated" or tells_limits else limit - 1))
        if end == "truncated" and not tells_limits:
            length = limit
        found.append(
            Walk(
                rng.normal(size=(length + 1, 3)).astype(np.float32),
                rng.uniform(0.1, 0.9, (length, 2)).astype(np.float32),
                rng.uniform(1, 2, length).astype(np.float32),
                end,
            )
        )
    return found


def in_layout(episodes: list[Walk], tells_limits: bool, knows_next: bool, as_column: bool) -> dict[str, np.ndarray]:
    """D4RL's arrays: a row per step."""
    ends = [[t == len(walk.action) - 1 for t in range(len(walk.action))] for walk in episodes]
    column = (-1, 1) if as_column else (-1,)

    def flags(kind: str) -> np.ndarray:
        marked = [np.array(end) & (walk.end == kind) for walk, end in zip(episodes, ends, strict=True)]
        return np.concatenate(marked).reshape(column)

    arrays = {
        "observations": np.concatenate([walk.obs[:-1] for walk in episodes]).astype(np.float64),
        "actions": np.concatenate([walk.action for walk in episodes]),
        "rewards": np.concatenate([walk.reward for walk in episodes]).reshape(column),
        "terminals": flags("terminated").astype(np.float32),
    }
    if tells_limits:
        arrays["timeouts"] = flags("truncated")
    if knows_next:
        arrays["next_observations"] = np.concatenate([walk.obs[1:] for walk in episodes])
    return arrays


def on_arrival(episodes: list[Walk]) -> dict[str, np.ndarray]:
    """d4rl-pybullet's arrays: a row per state, with the reward and the end that came with it."""
    rows = []
    for walk in episodes:
        reward = [np.float32(0), *walk.reward]
        for t, obs in enumerate(walk.obs):
            is_last = t == len(walk.action)
            if is_last and walk.end == "cut":
                rows.append((obs, np.full(2, 0.5), reward[t], False))
            else:
                rows.append((obs, np.zeros(2) if is_last else walk.action[t], reward[t], is_last))
    obs, action, reward, terminal = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    return {"observations": obs, "actions": action, "rewards": reward[:, None], "terminals": terminal[:, None]}


@settings(deadline=None, max_examples=150)
@given(st.data(), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([".npz", ".hdf5"]))
def test_every_transition_whose_successor_is_known_is_kept_and_no_other(
    tmp_path_factory, data, tells_limits, knows_next, as_column, suffix
):
    episodes = data.draw(walks(tells_limits or knows_next))
    file = tmp_path_factory.mktemp("flat") / f"walks{suffix}"
    write(file, in_layout(episodes, tells_limits, knows_next, as_column))
    expected = [transition for walk in episodes for transition in walk.expected(knows_next)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_BLOCK_ROWS", data.draw(st.integers(1, 7)))
        assert_read(file, expected)


def assert_read(file: Path, expected: list) -> None:
    """The file's transitions are `expected`; without any it is refused."""
    if expected:
        assert transitions(read(file)) == expected
    else:
        with pytest.raises(DataError, match="holds no transition whose end is known"):
            read(file)


@settings(deadline=None, max_examples=100)
@given(st.data(), st.sampled_from([".npz", ".hdf5"]))
def test_rewards_told_on_arrival_go_to_the_action_that_earned_them(tmp_path_factory, data, suffix):
    episodes = data.draw(walks(tells_limits=False))
    file = write(tmp_path_factory.mktemp("flat") / f"walks{suffix}", on_arrival(episodes))
    if any(walk.end != "cut" for walk in episodes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(columns, "_BLOCK_ROWS", data.draw(st.integers(1, 7)))
            assert reading.is_told_on_arrival(file)
            expected = [transition for walk in episodes for transition in walk.expected(False, on_arrival=True)]
            assert transitions(read(file, on_arrival=True)) == expected


def test_episodes_padded_with_zeros_are_not_told_on_arrival(tmp_path):
    """A sparse reward at the last step, and a row of zeros after it: first rewards and last actions are 0 as well."""
    rng = np.random.default_rng(0)
    num_rows = 8  # two episodes of three steps
    is_padding, is_last = np.arange(num_rows) % 4 == 3, np.arange(num_rows) % 4 == 2
    arrays = {
        "observations": rng.normal(size=(num_rows, 3)).astype(np.float32),
        "actions": rng.uniform(0.1, 0.9, (num_rows, 2)) * ~is_padding[:, None],
        "rewards": is_last.astype(np.float32),
        "terminals": np.zeros(num_rows),
        "timeouts": is_padding,
    }
    file = write(tmp_path / "padded.hdf5", arrays)
    assert not reading.is_told_on_arrival(file)
    data = read(file)
    assert data.reward[~data.final].tolist() == [0, 0, 1] * 2
    np.testing.assert_array_equal(data.obs, arrays["observations"])
    arrived = write(tmp_path / "arrived.hdf5", arrays | {"rewards": is_padding.astype(np.float32)})
    assert reading.is_told_on_arrival(arrived)
    assert transitions(read(arrived, on_arrival=True)) == transitions(data)
    assert read(arrived).reward[~read(arrived).final].tolist() == [0, 0, 0] * 2, "unless the task says so, a row a step"


def test_a_row_left_over_from_a_reset_is_dropped(tmp_path):
    walk = Walk(np.ones((4, 3), np.float32), np.full((3, 2), 0.5, np.float32), np.ones(3, np.float32), "terminated")
    arrays = {key: np.concatenate([array, array[:1]]) for key, array in on_arrival([walk]).items()}
    data = read(write(tmp_path / "cut.hdf5", arrays), on_arrival=True)
    assert (data.num_transitions, data.num_episodes) == (3, 1)


def test_time_limits_told_beside_arrivals_are_no_terminations(tmp_path):
    walk = Walk(np.ones((4, 3), np.float32), np.full((3, 2), 0.5, np.float32), np.ones(3, np.float32), "truncated")
    arrays = on_arrival([walk, walk])
    arrays["timeouts"] = np.array([0, 0, 0, 1, 0, 0, 0, 0])
    data = read(write(tmp_path / "x.npz", arrays), on_arrival=True)
    assert data.terminated.tolist() == [False] * 6 + [True, False]


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
@pytest.mark.parametrize("compressed", [False, True])
def test_both_kinds_of_files_are_read_alike(tmp_path, suffix, compressed):
    arrays = good()
    options = {"compression": "gzip"} if compressed else {}
    data = read(write(tmp_path / f"x{suffix}", arrays, **options))
    assert data.num_transitions == 12
    np.testing.assert_array_equal(data.obs[~data.final], arrays["observations"])
    np.testing.assert_array_equal(data.reward[~data.final], arrays["rewards"])
    assert data.obs[~data.final].dtype == np.float32


def test_arrays_in_fortran_order_are_read_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "_BLOCK_ROWS", 5)
    arrays = {**good(), "observations": np.asfortranarray(good()["observations"])}
    data = read(write(tmp_path / "x.npz", arrays))
    np.testing.assert_array_equal(data.obs[~data.final], arrays["observations"])


@pytest.mark.parametrize("meaning", columns.KEYS)
def test_every_spelling_is_understood(tmp_path, meaning):
    arrays = good()
    ends = arrays["terminals"]
    extra = {
        "next_obs": arrays["observations"] + 7,
        "done": ends,
        "truncated": np.arange(12) == 5,
        "mask": 1 - ends,
        "valid": np.arange(12) % 4 != 0,
        "start": np.arange(12) % 2 == 0,
        "length": np.full(6, 2),
        "end": np.arange(2, 13, 2),
        "index": np.arange(12) // 2,
    }
    if meaning == "valid":
        arrays["terminals"] = np.zeros(12, bool)
    if meaning in extra:
        arrays[columns.KEYS[meaning][0]] = extra[meaning]
    expected = transitions(read(write(tmp_path / "expected.npz", arrays)))
    if meaning not in ("obs", "action", "reward", "terminated", "done", "mask"):  # those do not change what is read
        assert expected != transitions(read(write(tmp_path / "without.npz", good())))
    for number, key in enumerate(columns.KEYS[meaning]):
        renamed = {(key if name == columns.KEYS[meaning][0] else name): array for name, array in arrays.items()}
        file = write(tmp_path / f"{number}.npz", renamed)
        assert layout_of(file) == "flat"
        assert transitions(read(file)) == expected


def test_dones_beside_time_limits_are_not_all_terminations(tmp_path):
    arrays = good()
    arrays["dones"] = arrays.pop("terminals")
    arrays["truncations"] = np.arange(12) == 7
    data = read(write(tmp_path / "x.npz", arrays))
    assert data.episode_ends.tolist() == [4, 7, 11], "the step that ran out of time leads to an unknown state"
    assert np.flatnonzero(data.terminated[~data.final]).tolist() == [3, 10]


def test_next_observations_rounded_differently_do_not_cut_an_episode(tmp_path):
    arrays = good(40)
    arrays["terminals"] = np.arange(40) == 39
    following = np.concatenate([arrays["observations"][1:], arrays["observations"][:1] + 1])
    arrays["next_observations"] = following * (1 + np.float32(3e-7))
    assert read(write(tmp_path / "x.npz", arrays)).num_episodes == 1


def test_all_tasks_of_the_domain_share_the_reward(tmp_path):
    file = write(tmp_path / "x.npz", good())
    assert transitions(read(file, TASK, OTHER)) == transitions(read(file, TASK))


def test_actions_are_kept_inside_the_open_interval(tmp_path):
    arrays = good()
    arrays["actions"][3] = (1.0005, -1)
    data = read(write(tmp_path / "x.npz", arrays))
    np.testing.assert_array_equal(data.action[3], np.array([ACTION_LIMIT, -ACTION_LIMIT], np.float32))


def test_a_large_file_is_not_held_in_memory(tmp_path):
    num_rows = 300_000
    with h5py.File(tmp_path / "large.hdf5", "w") as out:
        for key in ("observations", "next_observations"):
            out.create_dataset(key, (num_rows, 100), np.float32)
        out.create_dataset("actions", (num_rows, 2), np.float32)
        out["rewards"], out["terminals"] = np.zeros(num_rows), np.arange(num_rows) % 1000 == 999
    task = TaskSpec("wide", "any", "wide", 1, obs_dim=100, action_dim=2, max_episode_steps=5, dataset="wide-v0")
    dataset = Dataset("wide-v0", "any", "wide", ())
    tracemalloc.start()
    try:
        rows = reading.read(dataset, [tmp_path / "large.hdf5"], [task])
        assert sum(len(block.obs) for block in rows.blocks) == rows.num_rows == num_rows + 1
        assert tracemalloc.get_traced_memory()[1] < num_rows * 2 * 100 * 4 / 4
    finally:
        tracemalloc.stop()


# Layouts.


def hdf5(file: Path, *keys: str) -> Path:
    with h5py.File(file, "w") as out:
        for key in keys:
            out[key] = np.zeros(3)
    return file


def test_layouts_are_told_from_their_keys(tmp_path):
    zeros = np.zeros((3, 2))
    ogbench: dict[str, Any] = dict.fromkeys(("observations", "actions", "terminals", "qpos", "qvel"), zeros)
    assert layout_of(write(tmp_path / "a.npz", ogbench)) == "ogbench"
    assert layout_of(write(tmp_path / "b.npz", ogbench | {"rewards": zeros})) == "flat"
    assert layout_of(hdf5(tmp_path / "c.hdf5", "data/demo_0/actions", "mask/train")) == "robomimic"
    assert layout_of(hdf5(tmp_path / "d.hdf5", "episode_0/actions", "episode_1/actions")) == "minari"
    assert layout_of(write(tmp_path / "e.hdf5", good())) == "flat"


def test_other_keys_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no known layout has its keys frames, meta; known are observations, actions"):
        layout_of(hdf5(tmp_path / "a.hdf5", "frames", "meta/date"))
    partly = {key: array for key, array in good().items() if key not in ("rewards", "terminals")}
    with pytest.raises(DataError, match="no key for rewards and terminals among its keys actions, observations"):
        layout_of(write(tmp_path / "b.npz", partly))
    with pytest.raises(DataError, match="its keys none;"):
        layout_of(write(tmp_path / "c.npz", {}))


# What is refused, in one line that names file and key.


def changed(key: str, value: Any) -> dict[str, np.ndarray]:
    return {**good(), key: value}


def with_entry(key: str, index: Any, value: float) -> dict[str, np.ndarray]:
    arrays = {name: array.astype(np.float32) for name, array in good().items()}
    arrays[key][index] = value
    return arrays


BAD = {
    "another task": (
        changed("observations", np.zeros((12, 4))),
        r"'observations' is float64 \(12, 4\), task walk needs",
    ),
    "action width": (
        changed("actions", np.zeros((12, 3))),
        r"'actions' is float64 \(12, 3\), task walk needs rows",
    ),
    "images": (
        changed("observations", np.zeros((12, 3, 3))),
        r"'observations' is float64 \(12, 3, 3\), task walk needs",
    ),
    "lengths": (changed("rewards", np.zeros(11)), r"'rewards' is float64 \(11,\), but 'observations' has 12 rows"),
    "reward columns": (changed("rewards", np.zeros((12, 2))), r"'rewards' is float64 \(12, 2\), expected one number"),
    "scalar": (changed("rewards", np.float64(3)), r"'rewards' is float64 \(\), expected at least one row"),
    "text": (changed("rewards", np.array([b"x"] * 12)), r"'rewards' is \|S1 \(12,\), expected numbers"),
    "bool obs": (
        changed("observations", np.ones((12, 3), bool)),
        r"'observations' is bool \(12, 3\), expected numbers",
    ),
    "nan obs": (with_entry("observations", (7, 1), np.nan), "'observations' is not finite in row 7"),
    "inf action": (with_entry("actions", (8, 0), np.inf), "'actions' is not finite in row 8"),
    "nan reward": (with_entry("rewards", 9, np.nan), "'rewards' is not finite in row 9"),
    "too large": (
        changed("rewards", np.full(12, 1e300)),
        "'rewards' is not finite in row 0",
    ),
    "flags": (with_entry("terminals", 4, 2), "'terminals' is 2 in row 4, expected a flag 0 or 1"),
    "half flags": (with_entry("terminals", 4, 0.5), "'terminals' is 0.5 in row 4, expected a flag 0 or 1"),
    "actions in degrees": (with_entry("actions", (6, 1), -1.01), r"'actions' is 1.01 in row 6; .* scaled to \[-1, 1\]"),
    "limits": (changed("timeouts", np.zeros(13)), r"'timeouts' is float64 \(13,\), but 'observations' has 12 rows"),
    "next": (changed("next_observations", np.zeros((12, 2))), r"'next_observations' is .* needs rows of 3 numbers"),
    "empty": (
        {key: array[:0] for key, array in good().items()},
        r"'observations' is float32 \(0, 3\), expected at least",
    ),
}


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
@pytest.mark.parametrize("arrays, message", BAD.values(), ids=BAD)
def test_bad_arrays_are_refused(tmp_path, monkeypatch, arrays, message, suffix):
    monkeypatch.setattr(columns, "_BLOCK_ROWS", 5)
    file = write(tmp_path / f"bad{suffix}", arrays)
    with pytest.raises(DataError, match=rf"^{file}: key {message}") as error:
        read(file)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named(tmp_path):
    arrays = good()
    del arrays["rewards"]
    with pytest.raises(DataError, match=r"key 'rewards' is missing, it has actions, observations, terminals$"):
        read(write(tmp_path / "x.npz", arrays))


def test_objects_are_never_unpickled(tmp_path):
    file = write(tmp_path / "x.npz", changed("rewards", np.array([{"a": 1}] * 12, dtype=object)))
    with pytest.raises(DataError, match=r"'rewards' is object \(12,\), which holds objects .*, expected numbers"):
        read(file)


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path, suffix):
    whole = write(tmp_path / f"whole{suffix}", good(3000)).read_bytes()
    for share in (0.0, 0.001, 0.3, 0.7, 0.999):
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match=rf"^{cut}") as error:
            layout_of(cut)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_flipped_bytes_of_an_npz_are_noticed(tmp_path, compression):
    file = tmp_path / "x.npz"
    with zipfile.ZipFile(file, "w", compression) as archive:
        for key, array in good(3000).items():
            data = io.BytesIO()
            np.save(data, array)
            archive.writestr(f"{key}.npy", data.getvalue())
    data = bytearray(file.read_bytes())
    data[9000] ^= 0x10
    file.write_bytes(data)
    with pytest.raises(DataError, match=rf"^{file}: key 'observations' cannot be read") as error:
        read(file)
    assert "\n" not in str(error.value)


def test_damaged_hdf5_files_are_refused_or_read_but_never_crash(tmp_path):
    """A few bytes overwritten anywhere, most of all in the tables of names, types and sizes."""
    whole = write(tmp_path / "whole.hdf5", good(24) | {"infos": np.zeros(24)}).read_bytes()
    file = tmp_path / "damaged.hdf5"
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            place, length = int(rng.integers(len(whole) - 8)), int(rng.integers(1, 9))
            damaged[place : place + length] = rng.bytes(length)
        file.unlink(missing_ok=True)
        file.write_bytes(damaged)
        try:
            layout_of(file)
            reading.recipe_of(file)
            read(file)
        except DataError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            refused += 1
    assert 50 < refused < 400


def test_links_that_lead_nowhere_are_refused(tmp_path):
    file = write(tmp_path / "x.hdf5", good())
    with h5py.File(file, "a") as content:
        content["extra"] = h5py.SoftLink("/absent")
    with pytest.raises(DataError, match=rf"^{file} cannot be read \('extra' cannot be opened\)"):
        layout_of(file)


def test_an_array_shorter_than_its_header_says_is_noticed(tmp_path):
    file = tmp_path / "x.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for key, array in good().items():
            data = io.BytesIO()
            np.save(data, array)
            archive.writestr(f"{key}.npy", data.getvalue()[: -4 if key == "rewards" else None])
    with pytest.raises(DataError, match=r"'rewards' cannot be read \(it ends after 11 of 12 rows\)"):
        read(file)


def test_other_files_are_refused(tmp_path):
    text = tmp_path / "data.csv"
    text.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"data\.csv is neither an npz nor an HDF5 file"):
        layout_of(text)
    with pytest.raises(DataError, match=r"no data file .*absent"):
        layout_of(tmp_path / "absent.npz")
    with pytest.raises(DataError, match="cannot be read"):
        layout_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        ("x.npy", b"\x93NUMPY", "is a single array or object in NumPy's npy format"),
        ("x.pkl", pickle.dumps([1]), "is a pickle, which may run any code and is never loaded"),
        ("x.parquet", b"PAR1", "is a Parquet file"),
        ("x.gz", b"\x1f\x8b", "is compressed with gzip"),
    ],
)
def test_files_of_other_formats_are_refused_with_what_to_do(tmp_path, name, start, message):
    (tmp_path / name).write_bytes(start + bytes(20))
    with pytest.raises(DataError, match=rf"{name} {message}; save its arrays as a flat npz file: np\.savez"):
        layout_of(tmp_path / name)


def test_zip_files_without_arrays_and_folders_are_refused_by_kind(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"1")
    with pytest.raises(DataError, match=r"'archive/data\.pkl' in it is no NumPy array, so it is a zip file of another"):
        layout_of(tmp_path / "x.pt")
    with pytest.raises(DataError, match=rf"^{tmp_path} is a folder, not a data file; save its arrays"):
        register(tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    with pytest.raises(DataError, match=rf"^{tmp_path} is a LeRobot data set, not a data file; save its arrays"):
        register(tmp_path)


# Files written here.


def test_merged_parts_come_back_and_tell_their_recipe(tmp_path):
    rng = np.random.default_rng(1)
    parts, lengths = [], (3, 1, 5)
    for number, length in enumerate(lengths):
        obs = rng.normal(size=(length + 1, 3))
        steps = [
            writing.Step(obs[t], np.full(2, 0.25 * number), float(t), t == length - 1 and number < 2, False, obs[t + 1])
            for t in range(length)
        ]
        parts.append(tmp_path / f"{number}.npz")
        arrays: dict[str, Any] = writing.episode_arrays(steps)
        np.savez(parts[-1], **arrays)
    file, again = tmp_path / "merged.hdf5", tmp_path / "again.hdf5"
    assert writing.write(parts, file, {"seed": 3}) == sum(lengths)
    writing.write(parts, again, {"seed": 3})
    assert file.read_bytes() == again.read_bytes()
    assert layout_of(file) == "flat"
    assert reading.recipe_of(file) == {"seed": 3}
    data = read(file)
    assert (data.num_transitions, data.episode_ends.tolist()) == (9, [3, 4, 9])
    assert data.terminated.tolist() == [False, False, True, False, True, *[False] * 7]
    with h5py.File(file) as written:
        assert all(len(array) == sum(lengths) for array in written.values()), "readers of D4RL load every array"


def test_a_disk_that_fills_up_is_an_oserror(tmp_path):
    part = tmp_path / "part.npz"
    np.savez(part, observations=np.zeros((100_000, 2), np.float32), rewards=np.zeros(100_000, np.float32))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            writing.write([part], tmp_path / "merged.hdf5", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_origin_is_what_the_file_says_or_whose_it_is(tmp_path, suffix):
    plain = write(tmp_path / f"plain{suffix}", good())
    published, user = Dataset("walk-v0", "any", "walk", ()), Dataset("user-plain-0", "user", "", ())
    assert reading.origin(published, [plain]) == "published"
    assert reading.origin(user, [plain]) == "user"
    assert reading.recipe_of(plain) is None
    notes = {"origin": np.array("generated"), "recipe": np.array(json.dumps([1]))}
    if suffix == ".npz":
        noted = write(tmp_path / "noted.npz", good() | notes)
    else:
        noted = write(tmp_path / "noted.hdf5", good())
        with h5py.File(noted, "a") as file:
            file.attrs["origin"], file.attrs["recipe"] = "generated", json.dumps([1])
    assert reading.origin(published, [noted]) == reading.origin(user, [noted]) == "generated"
    assert reading.recipe_of(noted) == [1]
    assert read(noted).num_transitions == 12
