"""Where data are looked for, their conversion, and what happens to bad ones."""

import errno
import fcntl
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bench.runs.contract import replacing
from datasets import DataError, Transitions, describe, get, load, register, store
from datasets.cache import cache_root
from datasets.download.checksums import LOCK
from datasets.download.fetch import MIRROR
from datasets.generate import will_fetch
from datasets.ogbench.source import NUM_SHARDS
from datasets.registry import parse_name
from datasets.spec import Recipe

NAME = "cube-single-play-v0"
HUMAN_LIFT = Path(__file__).parent / "fixtures" / "lift_human3_low_dim.hdf5"
SHARDED = "cube-quadruple-play-100m-v0"
GOALS = {1: (0.425, -0.1, 0.02), 4: (0.50, 0.2, 0.02)}  # of cube-single


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, so that no test sees the user's data."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))
    return tmp_path / "home"


def source_arrays(lengths: tuple[int, ...] = (3, 2), num_cubes: int = 1, seed: int = 0) -> dict[str, Any]:
    """Random data in the published format; episodes have `lengths` transitions."""
    rng = np.random.default_rng(seed)
    rows = sum(lengths) + len(lengths)
    return {
        "observations": rng.normal(size=(rows, 19 + 9 * num_cubes)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 5)).astype(np.float32),
        "terminals": np.concatenate([np.arange(length + 1) == length for length in lengths]),
        "qpos": rng.normal(size=(rows, 14 + 7 * num_cubes)).astype(np.float32),
    }


def write(file: Path, **arrays: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays)
    return file


def flat_folders() -> list[Path]:
    return sorted((cache_root() / "flat").glob("*")) if cache_root().exists() else []


def test_published_file_becomes_rows_with_rewards_of_the_task(tmp_path: Path) -> None:
    arrays = source_arrays()
    arrays["actions"][0] = [-1, 1, 0, 0.5, -0.5]
    arrays["qpos"][1, 14:17] = GOALS[4]
    write(tmp_path / f"{NAME}.npz", **arrays)
    data = load("cube-single-task4", NAME, tmp_path)
    assert (data.name, data.origin, data.num_transitions, data.num_episodes) == (NAME, "published", 5, 2)
    np.testing.assert_array_equal(data.obs, arrays["observations"])
    np.testing.assert_array_equal(data.final, arrays["terminals"])
    np.testing.assert_array_equal(data.terminated, np.arange(7) == 1)
    np.testing.assert_array_equal(data.reward, np.where(np.arange(7) == 1, 0, -1))
    limit = np.float32(1 - 1e-5)
    np.testing.assert_array_equal(data.action, arrays["actions"].clip(-limit, limit))
    assert isinstance(data.obs, np.memmap)


def test_file_in_the_folder_of_ogbench_is_found(home: Path) -> None:
    write(home / ".ogbench" / "data" / f"{NAME}.npz", **source_arrays())
    assert load("cube-single-task1").num_transitions == 5


def test_folder_asked_for_goes_before_that_of_ogbench(home: Path, tmp_path: Path) -> None:
    write(home / ".ogbench" / "data" / f"{NAME}.npz", **source_arrays())
    write(tmp_path / f"{NAME}.npz", **source_arrays((1, 1)))
    assert load("cube-single-task1", data_dir=tmp_path).num_transitions == 2


def test_five_tasks_share_one_conversion(tmp_path: Path) -> None:
    arrays = source_arrays()
    arrays["qpos"][0, 14:17] = GOALS[1]
    write(tmp_path / f"{NAME}.npz", **arrays)
    hashes = {task_id: load(f"cube-single-task{task_id}", NAME, tmp_path).content_hash for task_id in (1, 2, 3)}
    (flat,) = flat_folders()
    assert flat.name.startswith(NAME)
    assert hashes[1] != hashes[2] == hashes[3]  # only the reward of task 1 differs


def test_second_load_writes_nothing(tmp_path: Path) -> None:
    write(tmp_path / f"{NAME}.npz", **source_arrays())
    first = load("cube-single", NAME, tmp_path)
    (flat,) = flat_folders()
    times = {file: file.stat().st_mtime_ns for file in flat.iterdir()}
    second = load("cube-single", NAME, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in flat.iterdir()} == times
    assert second.content_hash == first.content_hash


def test_changed_source_is_converted_anew(tmp_path: Path) -> None:
    write(tmp_path / f"{NAME}.npz", **source_arrays(seed=0))
    before = load("cube-single", NAME, tmp_path)
    write(tmp_path / f"{NAME}.npz", **source_arrays(seed=1))
    after = load("cube-single", NAME, tmp_path)
    np.testing.assert_array_equal(after.obs, source_arrays(seed=1)["observations"])
    assert after.content_hash != before.content_hash


def test_conversion_of_earlier_content_goes_once_nobody_uses_it(tmp_path: Path) -> None:
    write(tmp_path / f"{NAME}.npz", **source_arrays(seed=0))
    first = load("cube-single", NAME, tmp_path)
    write(tmp_path / f"{NAME}.npz", **source_arrays(seed=1))
    second = load("cube-single", NAME, tmp_path)
    assert len(flat_folders()) == 2
    np.testing.assert_array_equal(first.obs, source_arrays(seed=0)["observations"])
    del first, second
    write(tmp_path / f"{NAME}.npz", **source_arrays(seed=2))
    third = load("cube-single", NAME, tmp_path)
    (flat,) = flat_folders()
    assert str(third.obs.filename).startswith(str(flat))  # type: ignore[attr-defined]


def test_conversion_of_another_folder_stays(tmp_path: Path) -> None:
    for seed in (0, 1):
        write(tmp_path / str(seed) / f"{NAME}.npz", **source_arrays(seed=seed))
        load("cube-single", NAME, tmp_path / str(seed))
    assert len(flat_folders()) == 2


def test_conversions_of_a_users_file_for_two_tasks_stay_side_by_side(tmp_path: Path) -> None:
    arrays = source_arrays() | {"rewards": np.zeros(7, np.float32)}
    name = register(write(tmp_path / "mine.npz", **{key: arrays[key] for key in arrays if key != "qpos"}))
    tasks = ("cube-single-task1", "cube-single-task2")
    for task in tasks:
        load(task, name)
    folders = {folder: folder.stat().st_ino for folder in flat_folders()}
    assert len(folders) == 2
    for task in tasks:
        load(task, name)
    assert {folder: folder.stat().st_ino for folder in flat_folders()} == folders


def test_conversion_that_another_process_removes_at_the_wrong_moment_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / f"{NAME}.npz", **source_arrays())
    first = load("cube-single", NAME, tmp_path)
    (flat,) = flat_folders()
    mapped = store._mapped

    def removed_before(*arguments: Any) -> Transitions:
        monkeypatch.setattr(store, "_mapped", mapped)
        shutil.rmtree(flat)
        return mapped(*arguments)

    monkeypatch.setattr(store, "_mapped", removed_before)
    assert load("cube-single", NAME, tmp_path).content_hash == first.content_hash


def test_robomimic_files_which_all_have_one_name_are_told_by_their_folder(tmp_path: Path) -> None:
    bare = tmp_path / "low_dim_v15.hdf5"
    bare.write_bytes(b"")
    assert store.find(parse_name("lift-ph-v15"), tmp_path) == []
    (tmp_path / "lift" / "ph").mkdir(parents=True)
    bare.rename(tmp_path / "lift" / "ph" / bare.name)
    assert store.find(parse_name("lift-ph-v15"), tmp_path) == [tmp_path / "lift" / "ph" / bare.name]
    assert store.find(parse_name("lift-mh-v15"), tmp_path) == []


def test_other_demonstrations_than_the_published_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "lift" / "ph" / "low_dim_v15.hdf5"
    file.parent.mkdir(parents=True)
    shutil.copy(HUMAN_LIFT, file)
    message = "the published lift-ph-v15 has 200; delete it, then get it again: python -m bench data get lift-ph-v15;"
    with pytest.raises(DataError, match=rf"^{file} holds 3 demonstrations, {message}"):
        load("lift-ph", data_dir=tmp_path)


def test_a_wrong_file_that_was_downloaded_is_replaced_as_its_line_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, lock = tmp_path / "mirror", tmp_path / "lock.json"
    monkeypatch.setenv(store.OFFLINE, "0")
    monkeypatch.setenv(MIRROR, str(mirror))
    monkeypatch.setenv(LOCK, str(lock))
    served = mirror / "lift" / "ph" / "low_dim_v15.hdf5"
    served.parent.mkdir(parents=True)
    shutil.copy(HUMAN_LIFT, served)
    (file,) = get("lift-ph-v15", tmp_path / "data")
    entry = "lift-ph-v15/lift/ph/low_dim_v15.hdf5"
    with pytest.raises(DataError, match=rf"; delete it and its entry '{entry}' in {lock}, then get it again: python"):
        load("lift-ph", data_dir=tmp_path / "data")
    with h5py.File(served, "a") as content:
        content["data"].attrs["origin"] = "generated"  # under the published name that is enough
    file.unlink()
    lock.write_text("{}")
    get("lift-ph-v15", tmp_path / "data")
    assert load("lift-ph", data_dir=tmp_path / "data").origin == "generated"


@pytest.mark.parametrize(("value", "is_allowed"), [("1", False), ("0", True), ("", True)])
def test_downloads_can_be_forbidden(value: str, is_allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(store.OFFLINE, value)
    monkeypatch.setattr("datasets.download.fetch.fetch", lambda *_, **__: [Path("fetched")])
    assert will_fetch(NAME) is is_allowed
    assert not will_fetch(SHARDED), "a hundred files are left to an explicit get"
    if is_allowed:
        assert get(NAME) == [Path("fetched")]
    else:
        with pytest.raises(DataError, match="O2O_BENCH_OFFLINE is set, so nothing is downloaded"):
            get(NAME)
        with pytest.raises(DataError, match="O2O_BENCH_OFFLINE is set, so nothing is downloaded"):
            load("cube-single")


def test_minari_puts_its_data_where_it_looks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv(store.OFFLINE, "0")
    with pytest.raises(DataError, match=f"Minari's own folder {tmp_path / 'minari'}, not to {tmp_path}; MINARI_DATA"):
        get("minari:D4RL/door/human-v2", tmp_path)


def test_what_a_killed_conversion_left_is_removed(tmp_path: Path) -> None:
    write(tmp_path / f"{NAME}.npz", **source_arrays())
    other = cache_root() / "flat" / ".partial-cube-double-play-v0-0123456789ab-x"
    for folder in (other, cache_root() / "flat" / f".partial-{NAME}-0123456789ab-x"):
        (folder / "flat").mkdir(parents=True)
        (folder / "flat" / "obs.npy").write_bytes(b"half")
    load("cube-single", NAME, tmp_path)
    assert [folder.name for folder in flat_folders() if folder.name.startswith(".")] == [other.name]


def test_file_system_without_locks_converts_and_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    left_over = cache_root() / "flat" / f".partial-{NAME}-0123456789ab-x"
    left_over.mkdir(parents=True)
    for seed in (0, 1):
        write(tmp_path / f"{NAME}.npz", **source_arrays(seed=seed))
        assert load("cube-single", NAME, tmp_path).num_transitions == 5
    assert len(flat_folders()) == 3


def test_writing_to_a_loaded_array_leaves_the_file_alone(tmp_path: Path) -> None:
    write(tmp_path / f"{NAME}.npz", **source_arrays())
    load("cube-single", NAME, tmp_path).obs[:] = 0
    np.testing.assert_array_equal(load("cube-single", NAME, tmp_path).obs, source_arrays()["observations"])


def test_two_processes_convert_at_once_and_agree(tmp_path: Path) -> None:
    write(tmp_path / f"{NAME}.npz", **source_arrays())
    code = f"import datasets; print(datasets.load('cube-single', '{NAME}', {str(tmp_path)!r}).content_hash)"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    assert [folder.name[:11] for folder in flat_folders()] == [NAME[:11]]


@pytest.mark.parametrize("folder", [".", SHARDED])
def test_shards_are_one_data_set_without_their_validation_twins(folder: str, tmp_path: Path) -> None:
    for shard in range(NUM_SHARDS):
        base = tmp_path / folder / f"cube-quadruple-play-v0-{shard:03}"
        write(base.with_suffix(".npz"), **source_arrays((1,), num_cubes=4, seed=shard))
        write(base.with_name(f"{base.name}-val.npz"), **source_arrays((9,), num_cubes=4))
    data = load("cube-quadruple-task2", data_dir=tmp_path)
    expected = [source_arrays((1,), num_cubes=4, seed=shard)["observations"] for shard in range(NUM_SHARDS)]
    np.testing.assert_array_equal(data.obs, np.concatenate(expected))
    assert data.num_episodes == NUM_SHARDS


def test_missing_shard_is_named(tmp_path: Path) -> None:
    for shard in {*range(NUM_SHARDS)} - {41, 63}:
        write(tmp_path / f"cube-quadruple-play-v0-{shard:03}.npz", terminals=np.ones(1))
    with pytest.raises(DataError, match=r"2 of its 100 files are missing .*cube-quadruple-play-v0-041\.npz"):
        load("cube-quadruple-task1", data_dir=tmp_path)


def test_generated_file_under_a_published_name_stays_generated(tmp_path: Path) -> None:
    write(tmp_path / f"{NAME}.npz", **source_arrays(), origin="generated")
    assert load("cube-single", NAME, tmp_path).origin == "generated"
    assert describe(NAME, tmp_path)["origin"] == "generated"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "cube-double-play-v0",
            [
                "no cube-double-play-v0.npz in",
                "python -m bench data get cube-double-play-v0",
                "-generated-1000ep-seed0",
            ],
        ),
        ("cube-double-play-100m-v0", ["cube-double-play-v0-000.npz", "data get cube-double-play-100m-v0"]),
        (
            "cube-single-task3-mixed-generated-7ep-seed0",
            ["--task cube-single-task3 --kind mixed --episodes 7 --seed 0"],
        ),
        (
            "cube-double-noisy-generated-7ep-seed3",
            ["make it: python -m bench data generate --task cube-double --kind noisy --episodes 7 --seed 3"],
        ),
    ],
)
def test_missing_data_is_one_line_that_says_what_to_do(name: str, parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load(name[: name.index("-", 5)], name, tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    for part in [*parts, "python -m bench data generate"]:
        assert part in message


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-300])


def flip_a_bit(file: Path) -> None:
    """Corrupt the observations, so that their checksum fails."""
    with zipfile.ZipFile(file) as archive:
        start = archive.getinfo("observations.npy").header_offset
    content = bytearray(file.read_bytes())
    content[start + 400] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "is not a whole npz file"),
        (lambda file: file.write_bytes(b""), "is not a whole npz file"),
        (lambda file: file.write_text("<html>404</html>"), "is not a whole npz file"),
        (lambda file: np.save(file.open("wb"), np.zeros(3)), "is not a whole npz file"),
        (flip_a_bit, "key 'observations' is damaged"),
    ],
)
def test_damaged_file_is_one_line_that_names_it(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"{NAME}.npz", **source_arrays())
    damage(file)
    assert_refused(file, message)


def rows(first: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Set everything from row `first` on to `value`."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[first:] = value
        return array

    return change


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("qpos", None, "key 'qpos' is missing, it has actions, observations, terminals"),
        ("observations", lambda array: array[:, :-1], r"key 'observations' is float32 \(7, 27\), expected .*\(7, 28\)"),
        ("actions", lambda array: array[:-1], r"key 'actions' is float32 \(6, 5\)"),
        ("qpos", lambda array: array.astype(int), "key 'qpos' is int64"),
        ("observations", rows(4, np.nan), "key 'observations' is not finite in row 4"),
        ("qpos", rows(5, np.inf), "key 'qpos' is not finite in row 5"),
        ("actions", lambda array: array.astype(object), "key 'actions' holds objects .*, expected numbers"),
        ("terminals", rows(0, 0), "key 'terminals': no row ends an episode"),
        ("terminals", rows(4, 0), "key 'terminals': row 6, the last one, does not end"),
        ("terminals", rows(0, 1), "key 'terminals': row 0 is an episode of its own"),
        ("terminals", lambda array: array * 2.0, "key 'terminals' is float64"),
        ("terminals", lambda array: array[:, None], "key 'terminals' is bool"),
        ("origin", lambda _: np.array("elsewhere"), "key 'origin' is 'elsewhere'"),
    ],
)
def test_bad_arrays_are_refused_by_file_and_key(
    key: str, change: Callable[[np.ndarray], np.ndarray] | None, message: str, tmp_path: Path
) -> None:
    arrays = source_arrays()
    value = arrays.pop(key, None)
    if change is not None:
        arrays[key] = change(value)
    assert_refused(write(tmp_path / f"{NAME}.npz", **arrays), message)


def assert_refused(file: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        load("cube-single", NAME, file.parent)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)
    assert flat_folders() == []


def test_damaged_conversion_says_what_to_delete(tmp_path: Path) -> None:
    write(tmp_path / f"{NAME}.npz", **source_arrays())
    load("cube-single", NAME, tmp_path)
    (flat,) = flat_folders()
    truncate(flat / "obs.npy")
    with pytest.raises(DataError, match=f"{flat} is damaged .* delete it"):
        load("cube-single", NAME, tmp_path)
    shutil.rmtree(flat)
    load("cube-single", NAME, tmp_path)


def test_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / f"{NAME}.npz", **source_arrays())
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot write .*; O2O_BENCH_DATA=FOLDER puts the cache elsewhere"):
        load("cube-single", NAME, tmp_path)


WRITERS = {
    "flat": """
from datasets.flat_files import writing
np.savez(folder / "part.npz", **writing.episode_arrays([writing.Step(obs, obs, 0.0, False, True, obs)] * 100))
def write(file):
    with replacing(file) as partial:
        writing.write([folder / "part.npz"], partial, {"seed": 1})
""",
    "robomimic": """
from datasets.robomimic import files as robomimic_file
labels = {key: np.array(b"it") for key in robomimic_file.LABELS}
episode = {"actions": np.zeros((100, 500)), "success": np.array(True), **labels}
def write(file):
    with replacing(file) as partial:
        robomimic_file.write(partial, [episode], {}, {})
""",
    "export": """
from bench.tools.export import write_flat
from datasets.transitions import Transitions
rows, flags = np.zeros((100, 500), np.float32), np.zeros(100, bool)
transitions = Transitions(rows, rows, rows[:, 0], flags, np.arange(100) == 99, "name", "generated", "hash")
write = lambda file: write_flat("lift", transitions, file, replace=True)
""",
}


@pytest.mark.parametrize("kind", WRITERS)
def test_disk_that_runs_full_under_an_hdf5_file_is_an_error_like_any_other(kind: str, tmp_path: Path) -> None:
    code = f"""
import resource, sys
from pathlib import Path
import numpy as np
from bench.runs.contract import replacing
from datasets.spec import DataError
folder, obs = Path({str(tmp_path)!r}), np.zeros(500, np.float32)
{WRITERS[kind]}
contents = []
for name in ("first.hdf5", "second.hdf5"):
    write(folder / name)
    contents.append((folder / name).read_bytes())
assert len(contents[0]) > 100_000 and contents[0] == contents[1], "equal content gives equal bytes"
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write(folder / "full.hdf5")
except (OSError, DataError) as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "File too large" in done.stderr
    assert {file.name for file in tmp_path.iterdir()} <= {"part.npz", "first.hdf5", "second.hdf5"}


def test_two_writers_of_one_process_have_a_partial_file_each(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as first, replacing(tmp_path / "file") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "file").read_text() == "first"


def test_describe_reads_no_data(tmp_path: Path) -> None:
    absent = describe(NAME, tmp_path)
    assert (absent["present"], absent["origin"], absent["bytes"]) == (False, "published", 0)
    file = write(tmp_path / f"{NAME}.npz", **source_arrays())
    assert describe(NAME, tmp_path) == {
        "name": NAME,
        "origin": "published",
        "path": str(file),
        "bytes": file.stat().st_size,
        "present": True,
    }
    assert flat_folders() == []


def test_names_are_taken_apart() -> None:
    mixed = parse_name("cube-single-task3-mixed-generated-60ep-seed7")
    assert (mixed.domain, mixed.recipe) == ("cube-single", Recipe("mixed", episodes=60, seed=7, task_id=3))
    noisy = parse_name("cube-quadruple-noisy-100m-v0")
    assert (noisy.domain, noisy.recipe, len(noisy.files)) == ("cube-quadruple", None, NUM_SHARDS)
    assert noisy.files[41].name == "cube-quadruple-noisy-100m-v0/cube-quadruple-noisy-v0-041.npz"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cube-duoble-play-v0", "did you mean 'cube-double-play-v0'"),
        ("cube-single-play-100m-v0", "play-100m data of cube-single are not supported"),
        ("cube-single-mixed-generated-60ep-seed0", "did you mean 'cube-single-task.-mixed-generated-60ep-seed0'"),
        ("cube-single-task6-mixed-generated-60ep-seed0", "did you mean 'cube-single-task.-mixed-generated-60ep-seed0'"),
        ("cube-single-play-generated-0ep-seed0", "did you mean 'cube-single-play-generated-1ep-seed0'"),
        ("cube-single-plya-generated-37ep-seed12", "did you mean 'cube-single-play-generated-37ep-seed12'"),
        ("lift-mixd-generated-300ep-sed0", "did you mean 'lift-mixed-generated-300ep-seed0'"),
        ("hoper-bullet-random-genrated-5-seed0", "did you mean 'hopper-bullet-random-generated-5ep-seed0'"),
        ("lift-mh-v14", "did you mean 'lift-mh-v15'"),
        ("cube-double-play-v0", "of cube-double, task cube-single-task2 needs data of cube-single"),
    ],
)
def test_names_that_do_not_fit_are_refused(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load("cube-single", name)
