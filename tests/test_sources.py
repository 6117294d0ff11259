"""What holds for the tasks and data of every source: the registry, files of users, and runs that stop and go on."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest

import datasets
from bench.__main__ import main
from bench.tools.export import write_flat
from bench.training.execution import Execution, Preemption
from bench.training.train import run
from datasets.registry import EXTRAS, FAMILIES, family_of, missing_extra
from datasets.spec import DataError, FileOptions
from datasets.transitions import Transitions
from tests.tiny_runs import ROOT, provenance_of, python, status_of, tiny_config

HUMAN_LIFT = ROOT / "tests" / "fixtures" / "lift_human3_low_dim.hdf5"


def simulated(task: str, *values: object) -> object:
    """A task as a parameter: `make test` has the toy and one of the arms, the rest takes extras or seconds each."""
    extra = family_of(datasets.task(task)).EXTRA
    if extra:
        return pytest.param(task, *values, marks=pytest.mark.extra(extra))
    return pytest.param(task, *values, marks=[] if task.startswith(("toy-", "cube-single")) else pytest.mark.thorough)


FIRST_TASKS = [next(name for name, spec in datasets.TASKS.items() if spec.domain == own) for own in datasets.domains()]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def random_file(task: str, file: Path, lengths: tuple[int, ...] = (12, 9)) -> Path:
    """A flat file of random numbers with the shapes of a task."""
    spec = datasets.task(task)
    rng = np.random.default_rng(0)
    num_rows = sum(lengths)
    ends = np.isin(np.arange(num_rows), np.cumsum(lengths) - 1)
    np.savez(
        file,
        observations=rng.normal(size=(num_rows, spec.obs_dim)).astype(np.float32),
        next_observations=rng.normal(size=(num_rows, spec.obs_dim)).astype(np.float32),
        actions=rng.uniform(-1, 1, (num_rows, spec.action_dim)).astype(np.float32),
        rewards=-np.ones(num_rows, np.float32),
        terminals=np.zeros(num_rows, bool),
        timeouts=ends,
    )
    return file


def test_every_task_belongs_to_one_family_and_has_data_it_can_name_or_none() -> None:
    for name, spec in datasets.TASKS.items():
        owners = [family.SUITE for family in FAMILIES if family.task(name) is not None]
        assert owners == [spec.suite], name
        if spec.dataset is None:
            continue
        dataset = datasets.parse_name(spec.dataset)
        assert dataset.domain == spec.domain
        assert dataset.recipe or all(file.urls for file in dataset.files), f"nobody can get {spec.dataset}"
        if dataset.substitute is not None:
            substitute = datasets.parse_name(dataset.substitute)
            assert substitute.domain == spec.domain and substitute.recipe is not None
        assert datasets.default_dataset(name) == spec.dataset


def test_every_extra_is_installed_from_a_lock_of_its_name() -> None:
    assert {family.EXTRA for family in FAMILIES} - {None} == set(EXTRAS)
    for extra in EXTRAS:
        assert (ROOT / f"requirements-{extra}.lock").exists()


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRAS, "robomimic", "no_such_simulator")
    assert missing_extra(family_of(datasets.task("lift"))) == "robomimic"
    with pytest.raises(DataError, match="no_such_simulator, which is not installed; install it: make setup EX"):
        datasets.make_env("lift")
    assert "make setup EXTRAS=robomimic" in (datasets.unavailable("can-ph") or "")
    assert datasets.unavailable("cube-single") is None


@pytest.mark.parametrize(("task", "extra"), [("lift", "robomimic"), ("hopper-bullet", "bullet")])
def test_data_that_a_missing_simulator_would_make_are_refused_in_that_line(task: str, extra: str) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("robosuite", "pybullet", "pybullet_envs_gymnasium")))
from bench.__main__ import main
sys.exit(main(["data", "generate", "--task", "{task}", "--episodes", "2"]))
"""
    done = python("-c", code)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"{EXTRAS[extra]}, which is not installed; install it: make setup EXTRAS={extra} " in done.stderr


@pytest.mark.parametrize("package", ["minari", pytest.param("huggingface_hub", marks=pytest.mark.extra("minari"))])
def test_a_missing_downloader_is_named_with_that_command(package: str, own_cache: Path) -> None:
    code = f"""
import sys
sys.modules["{package}"] = None
from bench.__main__ import main
sys.exit(main(["data", "get", "minari:D4RL/door/human-v2"]))
"""
    done = python("-c", code, O2O_BENCH_OFFLINE="0", MINARI_DATASETS_PATH=str(own_cache))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert re.search(rf"{package}.* is not installed; install it: make setup EXTRAS=minari ", done.stderr), done.stderr


@pytest.mark.parametrize("task", [*map(simulated, FIRST_TASKS)])
def test_an_environment_keeps_the_contract_of_all(task: str) -> None:
    spec = datasets.task(task)
    env = datasets.make_env(task)
    obs, info = env.reset(seed=1)
    assert (obs.shape, obs.dtype, info) == ((spec.obs_dim,), np.float32, {})
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
    action = np.full(spec.action_dim, 3.0)  # beyond the bounds: clipped
    first, reward, terminated, truncated, info = env.step(action)
    assert first.dtype == np.float32 and isinstance(reward, float)
    assert isinstance(terminated, bool) and isinstance(truncated, bool)
    assert set(info) <= {"success"}
    np.testing.assert_array_equal(env.reset(seed=1)[0], obs)
    np.testing.assert_array_equal(env.step(action.clip(-1, 1))[0], first)
    with pytest.raises(ValueError, match="finite numbers"):
        env.step(np.full(spec.action_dim, np.nan))
    env.close()


def physics(env: Any) -> dict[str, bytes]:
    """The numbers from which MuJoCo goes on, where it simulates; observations in float32 hide their last digits."""
    inner = env.unwrapped
    data = inner.robosuite.sim.data if hasattr(inner, "robosuite") else getattr(inner, "data", None)
    names = ("qpos", "qvel", "act", "ctrl", "qacc_warmstart", "mocap_pos", "time")
    return {name: np.array(getattr(data, name)).tobytes() for name in names if hasattr(data, "qacc_warmstart")}


@pytest.mark.parametrize("task", [*map(simulated, FIRST_TASKS)])
def test_a_seeded_reset_leaves_no_trace_of_what_was_before_to_the_last_bit(task: str) -> None:
    used, fresh = datasets.make_env(task), datasets.make_env(task)
    actions = np.random.default_rng(0).uniform(-1, 1, (30, datasets.task(task).action_dim)).astype(np.float32)
    used.reset(seed=3)
    for action in actions[:10]:
        used.step(action)
    used.reset(seed=1)
    fresh.reset(seed=1)
    for action in actions:
        assert physics(used) == physics(fresh)
        np.testing.assert_array_equal(used.step(action)[0], fresh.step(action)[0])
    used.close()
    fresh.close()


RUNS = {  # of each simulator that has no such test of its own: what a user would name as its data
    "toy-reach": None,
    "cube-single-task1": None,
    "antmaze-large-task1": None,
    "lift-mh": HUMAN_LIFT,
}


@pytest.mark.parametrize("task", [*map(simulated, RUNS)])
def test_a_run_on_a_file_of_the_users_stops_and_goes_on_to_the_same_bytes(task: str, own_cache: Path) -> None:
    file = RUNS[task] or random_file(task, own_cache / "mine.npz")
    config = tiny_config(
        "qc_fql",
        task=task,
        dataset=datasets.register(file, options=FileOptions(("actions",) if file == HUMAN_LIFT else ())),
        offline_updates=0,
        online_steps=24,
        eval_interval_steps=24,
        eval_episodes=1,
    )
    execution = Execution(device="cpu", env_workers=0)
    whole, stopped = own_cache / "whole", own_cache / "stopped"
    run([config], whole, execution, lambda: False)
    table = config.directory(stopped) / "train.csv"
    with pytest.raises(Preemption):
        run([config], stopped, execution, lambda: table.exists() and "\nonline," in table.read_text())
    run([config], stopped, execution, lambda: False)
    for name in ("episodes.csv", "train.csv"):
        assert (config.directory(stopped) / name).read_bytes() == (config.directory(whole) / name).read_bytes()
    provenance = provenance_of(config.directory(stopped))
    assert len(provenance["starts"]) == 2 and provenance["dataset"]["origin"] == "user"
    status = status_of(config.directory(stopped))
    assert status["state"] == "complete" and status["success_rate"] is not None


# Files of users.


def test_a_file_is_known_by_its_content_wherever_it_lies(own_cache: Path) -> None:
    file = random_file("can", own_cache / "my data (2).npz")
    name = datasets.register(file)
    assert name.startswith("user-my-data-2-")
    moved = own_cache / "elsewhere" / "other.npz"
    moved.parent.mkdir()
    shutil.copy(file, moved)
    assert datasets.register(moved)[-10:] == name[-10:]
    assert datasets.describe(name)["origin"] == "user"
    assert datasets.load("can", name).num_transitions == 21
    assert name in datasets.made_here()


def export_of(task: str, file: Path) -> Path:
    """Random numbers with the shapes of a task, in a flat file that is written here."""
    spec = datasets.task(task)
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(22, spec.obs_dim)).astype(np.float32)
    action = rng.uniform(-1, 1, (22, spec.action_dim)).astype(np.float32)
    reward, final = -rng.integers(0, 2, 22).astype(np.float32), np.arange(22) == 21
    write_flat(task, Transitions(obs, action, reward, np.zeros(22, bool), final, "any", "generated", "hash"), file)
    return file


@pytest.mark.parametrize(("of", "task"), [("can-mh", "square-mh"), ("cube-single-task1", "cube-single-task2")])
def test_an_export_is_refused_for_a_task_with_other_rewards(
    of: str, task: str, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = export_of(of, own_cache / "mine.hdf5")
    assert main(["data", "import", str(file), "--task", task]) == 2
    message = f"error: {file} was exported from task {of}; its rewards are not those of {task}\n"
    assert capsys.readouterr().err == message
    assert main(["data", "import", str(file), "--task", of]) == 0


def test_an_export_fits_tasks_that_start_from_other_data(own_cache: Path) -> None:
    for of, task in (("can-mh", "can-ph"), ("hopper-bullet-medium", "hopper-bullet-random")):
        assert datasets.load(task, datasets.register(export_of(of, own_cache / f"{of}.hdf5"))).num_transitions == 21


@pytest.mark.parametrize("recipe", [{}, {"task": "reach"}, {"task": ["can-mh"]}, ["can-mh"]])
def test_a_file_that_tells_no_task_of_ours_is_taken_as_it_is(recipe: dict | list, own_cache: Path) -> None:
    file = export_of("can-mh", own_cache / "mine.hdf5")
    with h5py.File(file, "a") as content:
        content.attrs["recipe"] = json.dumps(recipe)
    assert datasets.load("square-mh", datasets.register(file)).num_transitions == 21


def test_a_copy_outlives_the_file(own_cache: Path) -> None:
    file = random_file("can", own_cache / "mine.npz")
    name = datasets.register(file, copy=True)
    file.unlink()
    assert datasets.load("can", name).num_transitions == 21


def test_a_file_that_has_changed_is_not_taken_for_the_old_one(own_cache: Path) -> None:
    file = random_file("can", own_cache / "mine.npz")
    name = datasets.register(file)
    random_file("can", file, lengths=(5, 5))
    with pytest.raises(DataError, match=f"mine.npz has changed since it was named '{name}'"):
        datasets.load("can", name)


def test_a_file_that_is_gone_or_unknown_here_says_how_to_name_it_again(own_cache: Path) -> None:
    file = random_file("can", own_cache / "mine.npz")
    name = datasets.register(file)
    file.unlink()
    with pytest.raises(DataError, match=r"is missing: no mine\.npz in .*; name it again: --data FILE"):
        datasets.load("can", name)
    with pytest.raises(DataError, match="not known here; name it again: --data FILE"):
        datasets.load("can", "user-mine-0123456789")


@pytest.mark.parametrize(
    ("task", "file", "message"),
    [
        ("can", HUMAN_LIFT, "holds data of Lift, the task is PickPlaceCan"),
        ("cube-single", HUMAN_LIFT, "holds data of robomimic, task cube-single-task2 is of ogbench"),
        ("lift", "flat", r"'observations' is .*23.*19"),
        ("lift", "text", "is neither"),
        ("lift", "absent", "no data file"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(
    task: str, file: Path | str, message: str, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if file == "flat":
        file = random_file("can", own_cache / "flat.npz")
    elif file == "text":
        file = own_cache / "notes.npz"
        file.write_text("observations")
    arguments = ["--task", task, "--agent", "fql", "--results", str(own_cache / "results"), "--data", str(file)]
    arguments += ["--offline-updates", "1", "--online-steps", "0"]
    assert main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (own_cache / "results").exists()


def test_output_that_nobody_reads_to_its_end_is_no_error() -> None:
    command = f"{sys.executable} -u -m bench data list | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("ogbench\n", "")


def test_data_and_dataset_exclude_each_other() -> None:
    arguments = ["--task", "lift", "--agent", "fql", "--data", str(HUMAN_LIFT), "--dataset", "lift-mh-v15"]
    done = python("-m", "bench", "plan", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--data and --dataset exclude each other" in done.stderr


def test_the_list_shows_every_task_and_what_was_made_here_whatever_else_lies_there(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(own_cache / "minari"))
    name = datasets.register(random_file("can", own_cache / "mine.npz"))
    torn = datasets.register(random_file("can", own_cache / "torn.npz", lengths=(3, 4)))
    (own_cache / "cache" / "user" / f"{torn}.json").write_text('{"path": ')
    (own_cache / "cache" / "generated" / "notes").mkdir(parents=True)
    damaged = own_cache / "cube-single-play-v0.npz"
    damaged.write_text("<html>404</html>")
    minari = own_cache / "minari" / "lab" / "door-v0" / "data"
    minari.mkdir(parents=True)
    (minari / "metadata.json").write_text("{")
    assert main(["data", "list", "--data-dir", str(own_cache)]) == 0
    listed = capsys.readouterr().out
    for spec in datasets.TASKS.values():
        assert spec.dataset is None or spec.dataset in listed
    assert re.search(rf"^  {name}: user, .* {own_cache / 'mine.npz'}$", listed, re.MULTILINE)
    assert f"cube-single-play-v0: {damaged} is not a whole npz file" in listed
    assert "  minari:lab/door-v0: " in listed
    assert torn not in listed and "notes" not in listed
    assert main(["data", "verify", "--data-dir", str(own_cache)]) == 1
    assert f"{damaged} is not a whole npz file" in capsys.readouterr().out


def test_a_torn_record_of_a_file_is_like_none(own_cache: Path) -> None:
    name = datasets.register(random_file("can", own_cache / "mine.npz"))
    for text in ('{"path": ', "[]", "{}", '{"path": 3}'):
        (own_cache / "cache" / "user" / f"{name}.json").write_text(text)
        with pytest.raises(DataError, match="not known here; name it again: --data FILE"):
            datasets.load("can", name)


def test_a_file_of_minari_is_not_copied_without_its_metadata(own_cache: Path) -> None:
    with h5py.File(own_cache / "main_data.hdf5", "w") as content:
        content.create_group("episode_0")
    assert datasets.register(own_cache / "main_data.hdf5").startswith("user-main_data-")
    with pytest.raises(DataError, match=r"metadata\.json beside it .* without --copy"):
        datasets.register(own_cache / "main_data.hdf5", copy=True)


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("name", ["can-mixed-generated-2ep-seed0", "can-ph-v15"])
def test_data_of_another_domain_are_refused_before_they_are_made_or_fetched(
    command: str, name: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("O2O_BENCH_OFFLINE", "0")
    monkeypatch.setattr("datasets.download.fetch.fetch", lambda *_, **__: pytest.fail("asks a server"))
    arguments = ["--task", "lift-mh", "--agent", "fql", "--results", str(own_cache / "results"), "--dataset", name]
    assert main([command, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: data set '{name}' is of can, task lift-mh needs data of lift\n"
    assert name not in printed.out and list(own_cache.iterdir()) == []


@pytest.mark.parametrize(
    ("offline", "task", "expected"),
    [
        pytest.param("0", "lift", "absent, will be downloaded first", marks=pytest.mark.extra("robomimic")),
        pytest.param(
            *("1", "lift", "absent: python -m bench data get lift-mh-v15 first"), marks=pytest.mark.extra("robomimic")
        ),
        ("0", "cube-quadruple", "absent: python -m bench data get cube-quadruple-play-100m-v0 first"),
    ],
)
def test_a_plan_promises_only_downloads_that_come(
    offline: str, task: str, expected: str, own_cache: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("O2O_BENCH_OFFLINE", offline)
    assert main(["plan", "--task", task, "--agent", "fql", "--results", str(own_cache)]) == 0
    assert expected in capsys.readouterr().out
