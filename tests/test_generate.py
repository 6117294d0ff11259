"""Data made on the spot: its form, its repeatability, and the plans behind directed episodes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import DataError, ensure, generate, load
from datasets.episode_process import part_of, portable_arithmetic, start_episodes
from datasets.ogbench.files import recipe_of
from datasets.registry import parse_name
from datasets.store import generated_dir
from tests.tiny_runs import python, small_disk

NAME = "cube-single-task1-mixed-generated-2ep-seed5"


SHOWS_FEATURES = "import numpy; print(*numpy.show_config(mode='dicts')['SIMD Extensions']['found'])"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home and cache for every test."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the data set NAME."""
    return generate("cube-single", "mixed", 2, seed=5, task_id=1, out=tmp_path_factory.mktemp("mixed"))


def arrays_of(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


def test_directed_episode_stops_one_transition_after_its_goal(mixed: Path) -> None:
    data = load("cube-single-task1", NAME, mixed.parent)
    first = slice(0, int(data.episode_ends[0]))
    np.testing.assert_array_equal(np.flatnonzero(data.terminated[first]), [data.episode_ends[0] - 1])
    np.testing.assert_array_equal(data.reward[first], np.where(data.terminated[first], 0, -1))
    assert data.origin == "generated"
    assert data.num_episodes == 2


def test_stock_loader_reads_the_same_transitions(mixed: Path) -> None:
    from ogbench.utils import load_dataset

    expected = load_dataset(str(mixed), add_info=True)
    data = load("cube-single-task1", NAME, mixed.parent)
    kept = np.flatnonzero(~data.final)
    np.testing.assert_array_equal(data.obs[kept], expected["observations"])
    np.testing.assert_array_equal(data.obs[kept + 1], expected["next_observations"])
    np.testing.assert_allclose(data.action[kept], expected["actions"], atol=2e-5)
    assert expected["qpos"].shape == (data.num_transitions, 21)


def test_manifest_says_how_the_data_came_about(mixed: Path) -> None:
    manifest = json.loads(mixed.with_suffix(".manifest.json").read_text())
    assert (manifest["name"], manifest["origin"], manifest["episodes"]) == (NAME, "generated", 2)
    assert manifest["transitions"] == len(arrays_of(mixed)["actions"]) - 2
    assert manifest["recipe"]["seed"] == 5
    assert manifest["success_share"]["task1"] >= 0.5
    assert set(manifest["versions"]) == {"python", "ogbench", "mujoco", "numpy"}
    assert sorted(file.name for file in mixed.parent.iterdir()) == [f"{NAME}.manifest.json", f"{NAME}.npz"]


def test_file_with_a_damaged_recipe_says_none(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    np.savez_compressed(file, recipe=np.array(json.dumps({"kind": "play"}) * 50))
    content = bytearray(file.read_bytes())
    start = 30 + int.from_bytes(content[26:28], "little") + int.from_bytes(content[28:30], "little")
    content[start] = 0xFF  # a kind of block that no deflated data have
    file.write_bytes(content)
    assert recipe_of(file) is None


def test_number_of_workers_changes_no_byte(mixed: Path, tmp_path: Path) -> None:
    reports = []
    again = generate(
        "cube-single",
        "mixed",
        2,
        5,
        workers=2,
        task_id=1,
        out=tmp_path,
        progress=lambda *report: reports.append(report),
    )
    assert again.read_bytes() == mixed.read_bytes()
    assert (reports[0], reports[-1]) == ((0, 2), (2, 2))


def test_episode_depends_on_seed_and_index_alone() -> None:
    from datasets.ogbench.episodes import make_episode

    dataset = parse_name(NAME)
    np.random.seed(1)
    first = make_episode(dataset, 1)
    global_state = np.random.random()
    make_episode(dataset, 0)
    again = make_episode(dataset, 1)
    for key, array in first.items():
        np.testing.assert_array_equal(array, again[key])
    np.random.seed(1)
    assert np.random.random() == global_state  # the caller's global generator is left alone
    other_seed = make_episode(parse_name(NAME.replace("seed5", "seed6")), 1)
    assert not np.array_equal(first["observations"][0], other_seed["observations"][0])


def test_killed_run_goes_on_to_the_same_bytes(mixed: Path) -> None:
    code = f"import datasets; datasets.ensure('{NAME}')"
    process = subprocess.Popen([sys.executable, "-c", code])
    folder = generated_dir(NAME)
    deadline = time.monotonic() + 60
    while not list(folder.glob("*.parts-*/episode-*.npz")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # until the process that makes episodes has noticed
    kept = len(list(folder.glob("*.parts-*/episode-*.npz")))
    assert kept > 0
    assert not (folder / f"{NAME}.npz").exists()
    reports = []
    ensure(NAME, progress=lambda *report: reports.append(report))
    assert (reports[0], reports[-1]) == ((kept, 2), (2, 2))
    assert (folder / f"{NAME}.npz").read_bytes() == mixed.read_bytes()
    assert sorted(file.name for file in folder.iterdir()) == [f"{NAME}.manifest.json", f"{NAME}.npz"]


def test_processes_that_make_one_set_at_once_all_succeed(mixed: Path) -> None:
    code = f"import datasets; datasets.ensure('{NAME}')"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert (generated_dir(NAME) / f"{NAME}.npz").read_bytes() == mixed.read_bytes()


def test_a_process_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []

    def start(*what: Any) -> subprocess.Popen[str]:
        started.append(start_episodes(*what))
        return started[-1]

    def kill(*_: int) -> None:
        for process in started:
            process.kill()

    monkeypatch.setattr(sys.modules["datasets.generate"], "start_episodes", start)
    with pytest.raises(DataError, match=r"a process .* died \(exit code -9\); finished episodes are kept"):
        generate("cube-single", "mixed", 8, workers=2, task_id=1, out=tmp_path, progress=kill)
    assert list(tmp_path.glob("*.npz")) == []
    assert all(process.returncode for process in started)


def test_a_set_may_have_more_episodes_than_an_argument_holds(tmp_path: Path) -> None:
    process = start_episodes(parse_name("toy-reach-mixed-generated-40000ep-seed0"), tmp_path, range(40_000))
    try:
        while not part_of(tmp_path, 2).exists():
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()


def test_a_disk_that_is_full_is_named(tmp_path: Path) -> None:
    full = pytest.raises(DataError, match=rf"cannot make '{NAME}' in {tmp_path}: .*No space left on device")
    with small_disk(tmp_path, "40k"), full:
        generate("cube-single", "mixed", 2, seed=5, task_id=1, out=tmp_path)


def test_episodes_are_the_same_with_the_arithmetic_of_other_processors(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if not portable_arithmetic():
        pytest.skip("no x86-64 processor with AVX2")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")  # of what calls; the process that makes episodes has its own
    again = generate("cube-single", "mixed", 2, seed=5, task_id=1, out=tmp_path)
    assert again.read_bytes() == mixed.read_bytes()
    assert capfd.readouterr().err == ""
    for name, value in portable_arithmetic().items():
        monkeypatch.setenv(name, value)
    assert not {"X86_V4", "AVX512_ICL"} & {*python("-c", SHOWS_FEATURES).stdout.split()}
    monkeypatch.setattr("datasets.episode_process.portable_arithmetic", lambda: {"OPENBLAS_CORETYPE": "Nehalem"})
    other = generate("cube-single", "mixed", 2, seed=5, task_id=1, out=tmp_path / "other")
    assert other.read_bytes() != mixed.read_bytes()  # these matter, too


def test_complete_set_is_not_made_again(mixed: Path) -> None:
    before = mixed.stat().st_mtime_ns
    reports = []
    path = generate(
        "cube-single", "mixed", 2, 5, task_id=1, out=mixed.parent, progress=lambda *report: reports.append(report)
    )
    assert (path, path.stat().st_mtime_ns, reports) == (mixed, before, [])


def test_set_of_another_recipe_is_made_again_in_the_cache_only(mixed: Path, tmp_path: Path) -> None:
    stale = arrays_of(mixed) | {"recipe": np.array("{}")}
    own, cached = tmp_path / "own" / mixed.name, generated_dir(NAME) / mixed.name
    for file in (own, cached):
        file.parent.mkdir(parents=True)
        np.savez(file, **stale)  # pyright: ignore[reportArgumentType]
    before = own.read_bytes()
    ensure(NAME, data_dir=own.parent)
    assert own.read_bytes() == before
    ensure(NAME)
    assert cached.read_bytes() == mixed.read_bytes()


def test_published_set_is_never_made() -> None:
    ensure("cube-double-play-v0")  # and not downloaded either, in tests
    assert not generated_dir("cube-double-play-v0").parent.exists()
    with pytest.raises(DataError, match="is missing"):
        load("cube-double")


@pytest.mark.parametrize(("domain", "kind"), [("cube-single", "play"), ("cube-double", "noisy")])
def test_play_and_noisy_have_the_published_form(domain: str, kind: str, tmp_path: Path) -> None:
    file = generate(domain, kind, 1, out=tmp_path)
    arrays = arrays_of(file)
    num_cubes = {"cube-single": 1, "cube-double": 2}[domain]
    shapes = {
        "observations": (1001, 19 + 9 * num_cubes),
        "actions": (1001, 5),
        "qpos": (1001, 14 + 7 * num_cubes),
        "qvel": (1001, 14 + 6 * num_cubes),
        "terminals": (1001,),
    }
    assert {key: arrays[key].shape for key in shapes} == shapes
    assert {key: arrays[key].dtype for key in shapes} == dict.fromkeys(shapes, np.float32) | {"terminals": bool}
    np.testing.assert_array_equal(np.flatnonzero(arrays["terminals"]), [1000])
    heights = arrays["qpos"][:, 16::7]
    assert 0.1 < (heights > 0.05).any(1).mean() < 0.8  # cubes are carried around, and put down
    assert load(f"{domain}-task1", file.stem, tmp_path).num_transitions == 1000


def test_shares_of_behaviours_hold_in_every_stretch() -> None:
    from datasets.ogbench.episodes import MIXED, behaviour_of

    for start in (0, 37, 1000):
        behaviours = [behaviour_of(index) for index in range(start, start + 60)]
        for behaviour in MIXED:
            share = behaviour.share / sum(other.share for other in MIXED)
            assert abs(behaviours.count(behaviour) - 60 * share) <= 3


def directed(goals: list[tuple[float, float, float]], p_miss: float = 0.0) -> Any:
    from datasets.ogbench.episodes import Behaviour, Directed, _play_env

    behaviour = Behaviour(share=1.0, p_miss=p_miss)
    return Directed(_play_env("cube-single"), np.array(goals), behaviour, np.random.default_rng(0))


A, B, C = (0.35, -0.1, 0.02), (0.35, 0.1, 0.02), (0.5, 0.0, 0.02)
ON_A, ON_C = (0.35, -0.1, 0.06), (0.5, 0.0, 0.06)


def test_plan_moves_the_one_cube_that_is_away_from_its_goal() -> None:
    cube, place = directed([A, B]).next_move(np.array([A, C]))
    assert (cube, tuple(place)) == (1, B)


def test_plan_of_a_swap_parks_a_cube_clear_of_all_goals() -> None:
    _, place = directed([A, B]).next_move(np.array([B, A]))
    assert place[2] == 0.02
    assert min(np.linalg.norm(place - np.array(goal)) for goal in (A, B)) > 0.06


def test_plan_of_a_stack_begins_at_the_bottom() -> None:
    plan = directed([ON_C, C])
    assert plan.next_move(np.array([A, B]))[0] == 1
    cube, place = plan.next_move(np.array([A, C]))
    assert (cube, tuple(place)) == (0, ON_C)


def test_plan_takes_a_stack_down_from_the_top() -> None:
    assert directed([B, C]).next_move(np.array([A, ON_A]))[0] == 1


def test_miss_ends_away_from_the_goal() -> None:
    cube, place = directed([A], p_miss=1.0).next_move(np.array([C]))
    assert cube == 0
    assert np.linalg.norm(place - np.array(A)) > 0.06


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cube-dingle", "play", 1), "unknown domain 'cube-dingle' .did you mean 'cube-single'"),
        (
            ("cube-single", "plya", 1),
            r"unknown kind 'plya' of cube-single \(did you mean 'play'\?\); kinds are play, noisy, mixed",
        ),
        (("cube-single", "play", 0), "unknown data set"),
        (("cube-single", "mixed", 1), "kind 'mixed' is made for one task, like cube-single-task1"),
        (("cube-single", "play", 1, 0, 1, 3), "is made for all tasks of cube-single, not for one"),
        (("cube-single", "play", 1, 0, 0), "workers must be at least 1"),
    ],
)
def test_arguments_that_name_no_set_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(DataError, match=message):
        generate(*arguments)


def test_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot make 'cube-single-play-generated-1ep-seed0' in"):
        generate("cube-single", "play", 1, out=tmp_path / "file" / "folder")
