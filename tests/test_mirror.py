"""Runs in TensorBoard and W&B: each number once, at its step, whatever becomes of the run; training never notices."""

import csv
import errno
import importlib.machinery
import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
import requests

from bench.__main__ import main
from bench.command_line import parse
from bench.grid.options import selected_configs
from bench.grid.pool import Unwatched, Work, run_works
from bench.grid.run import RunOptions
from bench.protocol.config import RunConfig
from bench.runs.claims import Claim, Claims, process_start
from bench.runs.contract import write_json
from bench.runs.writer import RunWriter
from bench.tools.mirror import Follower
from bench.tools.mirror_process import LOG, MirrorProcess
from bench.tools.trackers import MIRRORS
from bench.training.execution import Execution
from bench.training.pack import prepare_directory
from bench.training.train import run
from tests.conftest import TINY_DATASET
from tests.tiny_runs import ROOT, python, status_of, tiny_config

pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed (make setup EXTRAS=tensorboard)")
pytest.importorskip("wandb", reason="the extra 'wandb' is not installed (make setup EXTRAS=wandb)")
pytestmark = [pytest.mark.extra("tensorboard"), pytest.mark.extra("wandb")]

Curves = dict[str, list[tuple[int, float]]]  # by name of the scalar: step and value, in order of step


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """W&B's own settings and caches lie elsewhere, and no variable of the user's has a say."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path_factory.mktemp("wandb")))


# What the trackers' own readers see, and what the files say.


def in_tensorboard(directory: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0})
    return curves_of(reader.Reload())


def curves_of(reader) -> Curves:
    return {tag: sorted((event.step, event.value) for event in reader.Scalars(tag)) for tag in reader.Tags()["scalars"]}


def in_wandb(directory: Path) -> Curves:
    (folder,) = (directory / "wandb").glob("offline-run-*")
    deadline, records = time.monotonic() + 30, []
    while not any(record.WhichOneof("record_type") == "exit" for record in records):  # its process writes a bit later
        assert time.monotonic() < deadline, "the run was not closed"
        records = list(wandb_records(folder))
    curves: Curves = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for name, value in row.items():
                phase = name.split("/")[0]
                if phase in ("offline", "online"):
                    step = row["updates" if phase == "offline" else "env_steps"]
                    curves.setdefault(name, []).append((step, value))
    return {name: sorted(points) for name, points in curves.items()}


def wandb_records(folder: Path) -> Iterator:
    """The records of an offline run: LevelDB's log format after a header of 7 bytes, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            message = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            message.ParseFromString(record)
            yield message
            record = b""


READERS: dict[str, Callable[[Path], Curves]] = {"tensorboard": in_tensorboard, "wandb": in_wandb}
TRACKERS = tuple(MIRRORS)


def in_files(directory: Path) -> Curves:
    """What a mirror should show, computed apart from it: of evaluations, those that have all of their episodes."""
    config = json.loads((directory / "config.json").read_text())
    curves: Curves = {}

    def add(phase: str, row: dict[str, str], name: str, value: float) -> None:
        step = int(row["updates"] if phase == "offline" else row["env_steps"])
        curves.setdefault(f"{phase}/{name}", []).append((step, value))

    for kind in ("train", "timing"):
        for row in rows_of(directory, f"{kind}.csv"):
            add(row["phase"], row, f"{kind}/{row['name']}", float(row["value"]))
    episodes = rows_of(directory, "episodes.csv")
    number = config["eval_episodes"]
    for start in range(0, len(episodes) - number + 1, number):
        rows = episodes[start : start + number]
        hand_over = rows[0]["env_steps"] == "0" and int(rows[0]["updates"]) == config["offline_updates"]
        for phase in [rows[0]["phase"], *(["online"] if hand_over else [])]:
            add(phase, rows[0], "evaluation/success_rate", sum(int(row["success"]) for row in rows) / number)
            for name in ("return", "length"):
                add(phase, rows[0], f"evaluation/mean_{name}", sum(float(row[name]) for row in rows) / number)
    return {name: sorted(points) for name, points in curves.items()}


def rows_of(directory: Path, name: str) -> list[dict[str, str]]:
    if not (directory / name).exists():
        return []
    with (directory / name).open() as file:
        return list(csv.DictReader(file))


def same(shown: Curves, expected: Curves) -> bool:
    """Equal names, steps and numbers of points; values to the float32 that TensorBoard keeps."""
    assert shown.keys() == expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in shown[name]] == [step for step, _ in points], name
        assert [value for _, value in shown[name]] == pytest.approx([value for _, value in points], rel=1e-6), name
    return bool(expected)


COMMAND = [
    *("run", "--name", "tiny", "--task", "toy-reach", "--agent", "qc_fql", "--dataset", TINY_DATASET),
    *("--offline-updates", "300", "--online-steps", "20", "--warmup-steps", "11", "--batch-size", "8"),
    *("--eval-interval-updates", "300", "--eval-interval-steps", "10", "--eval-episodes", "2", "--log-interval", "7"),
    *("--agent-config.policy_hidden_dims", "16,16", "--agent-config.critic_hidden_dims", "16,16", "--device", "cpu"),
]


def whole_run(**changes) -> RunConfig:
    """The run of COMMAND: two evaluations offline, two online."""
    (config,) = selected_configs(parse(RunOptions, COMMAND[1:], "run"))
    return config.replace(**changes)


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole run, without a mirror."""
    results, config = tmp_path_factory.mktemp("finished"), whole_run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("O2O_BENCH_DATA", str(tiny_data))
        run([config], results, Execution(device="cpu", env_workers=0), lambda: False)
    return config.directory(results)


# A run's numbers.


@pytest.mark.parametrize("tracker", TRACKERS)
def test_every_scalar_of_a_finished_run_is_there_once(tracker, finished):
    done = python("-m", "bench", "mirror", str(finished), "--to", tracker)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"1 of 1 runs are mirrored to {tracker}\n"
    shown = READERS[tracker](finished)
    assert same(shown, in_files(finished))
    assert [step for step, _ in shown["offline/evaluation/success_rate"]] == [0, 300]
    assert [step for step, _ in shown["online/evaluation/success_rate"]] == [0, 10, 20]
    assert [step for step, _ in shown["offline/train/critic_loss"]] == [*range(7, 300, 7), 300]
    python("-m", "bench", "mirror", str(finished), "--to", tracker)  # a second time: once, still
    assert same(READERS[tracker](finished), in_files(finished))


def test_tensorboard_holds_the_config_and_when_things_happened(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[attr-defined]

    followed(finished, "tensorboard")
    reader = EventAccumulator(str(finished / "tensorboard")).Reload()
    (content,) = reader.PluginTagToContent("hparams").values()
    start = HParamsPluginData.FromString(content).session_start_info
    assert start.group_name == "tiny/toy-reach/qc_fql"
    assert start.hparams["batch_size"].number_value == 8
    assert start.hparams["agent_config.policy_hidden_dims"].string_value == "[16, 16]"
    assert "seed" not in start.hparams
    times = {
        int(row["updates"]): datetime.fromisoformat(row["time"]).timestamp()
        for row in rows_of(finished, "timing.csv")
        if row["name"] == "updates_per_second" and row["phase"] == "offline"
    }
    shown = {event.step: event.wall_time for event in reader.Scalars("offline/train/critic_loss")}
    assert shown == times


def test_a_wandb_run_is_known_by_its_config(finished):
    followed(finished, "wandb")
    (folder,) = (finished / "wandb").glob("offline-run-*")
    config = json.loads((finished / "config.json").read_text())
    records = list(wandb_records(folder))
    (start,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (start.run_id, start.project) == (config["config_hash"], "o2o-bench")
    assert start.display_name == "tiny/toy-reach/qc_fql/seed_000"
    assert start.run_group == "tiny/toy-reach/qc_fql"
    assert list(start.tags) == ["tiny", "toy-reach", "qc_fql", "seed_000"]
    said = {item.key: json.loads(item.value_json) for item in start.config.update}
    assert said["agent_config"] == config["agent_config"] and said["seed"] == 0
    axes = {record.metric.glob_name: record.metric.step_metric for record in records if record.metric.glob_name}
    assert axes == {"offline/*": "updates", "online/*": "env_steps"}


def followed(directory: Path, *trackers: str) -> None:
    """One look from the first row on, in this process."""
    follower = Follower(directory, trackers)
    follower.follow()
    follower.close()


# While it grows.


class Growing:
    """A run whose rows the test writes, through the real writer; after each `take` as another process."""

    def __init__(self, config: RunConfig, results: Path):
        self.directory = prepare_directory(config, results)
        self.offsets: dict[str, int] | None = None

    def take(self) -> None:
        for claim in (self.directory / "owner").glob("*.json"):
            claim.unlink()  # as of a process that was killed
        claim = Claims().take(self.directory)
        assert isinstance(claim, Claim)
        self.writer = RunWriter(self.directory, claim, self.offsets)

    def log(self, updates: int, loss: float) -> None:
        self.writer.train("offline", updates, 0, {"critic_loss": loss, "q_mean": -loss})
        self.writer.timing("offline", updates, 0, {"updates_per_second": 10 * loss})

    def evaluate(self, updates: int, successes: tuple[int, ...]) -> None:
        point = {"phase": "offline", "updates": updates, "env_steps": 0}
        self.writer.episodes(
            {**point, "episode_seed": seed, "success": success, "return": -7.5, "length": 20}
            for seed, success in enumerate(successes)
        )


@pytest.fixture
def growing(tmp_path: Path) -> Growing:
    grown = Growing(tiny_config("qc_fql", eval_episodes=2), tmp_path)
    write_json(grown.directory / "provenance.json", {"reference_returns": None})
    return grown


@pytest.mark.parametrize("tracker", TRACKERS)
def test_rows_that_a_take_over_cuts_off_are_gone_and_none_is_there_twice(tracker, growing):
    follower = Follower(growing.directory, [tracker])
    assert not follower.follow() and not follower.has_begun  # no file yet
    growing.take()
    growing.evaluate(0, (0, 1))
    growing.log(7, 1.0)
    follower.follow()
    growing.offsets = growing.writer.offsets()  # of a checkpoint
    growing.log(14, 2.0)
    growing.evaluate(15, (1, 1))
    follower.follow()
    growing.take()  # killed here, and goes on with other numbers on another machine
    growing.log(14, 2.5)
    growing.log(21, 3.0)
    follower.follow()
    growing.evaluate(15, (1, 0))
    follower.follow()
    follower.close()
    shown = READERS[tracker](growing.directory)
    assert same(shown, in_files(growing.directory))
    assert shown["offline/train/critic_loss"] == [(7, 1.0), (14, 2.5), (21, 3.0)]
    assert shown["offline/evaluation/success_rate"] == [(0, 0.5), (15, 0.5)]

    growing.log(28, 4.0)  # and when the mirror itself is another process
    followed(growing.directory, tracker)
    assert same(READERS[tracker](growing.directory), in_files(growing.directory))


def test_a_tensorboard_that_looks_on_forgets_what_was_cut_off(growing):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    follower = Follower(growing.directory, ["tensorboard"])
    growing.take()
    growing.log(7, 1.0)
    growing.offsets = growing.writer.offsets()
    growing.log(14, 2.0)
    follower.follow()
    reader = EventAccumulator(str(growing.directory / "tensorboard")).Reload()
    assert curves_of(reader)["offline/train/critic_loss"] == [(7, 1.0), (14, 2.0)]
    growing.take()
    growing.log(15, 5.0)
    follower.follow()
    assert same(curves_of(reader.Reload()), in_files(growing.directory))


def test_a_file_that_another_machine_replaced_on_nfs_is_read_anew(growing, monkeypatch):
    growing.take()
    growing.log(7, 1.0)
    follower = Follower(growing.directory, ["tensorboard"])
    follower.follow()
    growing.log(14, 2.0)

    def stale(_: int) -> os.stat_result:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", stale)
        follower.follow()
    follower.close()
    assert same(in_tensorboard(growing.directory), in_files(growing.directory))


def test_a_row_that_is_half_written_is_waited_for(growing):
    growing.take()
    growing.log(7, 1.0)
    follower = Follower(growing.directory, ["tensorboard"])
    with (growing.directory / "train.csv").open("ab", buffering=0) as file:
        file.write(b"offline,14,0,critic_loss,0.12")
        follower.follow()
        assert in_tensorboard(growing.directory)["offline/train/critic_loss"] == [(7, 1.0)]
        file.write(b"5\noffline,14,0,q_mean")
        follower.follow()
        assert in_tensorboard(growing.directory)["offline/train/critic_loss"] == [(7, 1.0), (14, 0.125)]
        file.write(b",-1\n")
    follower.follow()
    follower.close()
    assert same(in_tensorboard(growing.directory), in_files(growing.directory))


def test_an_evaluation_is_shown_once_it_has_all_its_episodes(growing):
    growing.take()
    follower = Follower(growing.directory, ["tensorboard"])
    growing.evaluate(0, (1,))
    follower.follow()
    assert in_tensorboard(growing.directory) == {}
    growing.evaluate(0, (0,))
    follower.follow()
    assert in_tensorboard(growing.directory)["offline/evaluation/success_rate"] == [(0, 0.5)]


def test_a_task_with_reference_returns_has_its_normalised_return(growing):
    write_json(growing.directory / "provenance.json", {"reference_returns": [-10.0, 0.0]})
    growing.take()
    growing.writer.episodes(
        {"phase": "offline", "updates": 0, "env_steps": 0, "episode_seed": n, "success": None, "return": r, "length": 9}
        for n, r in enumerate((-6.0, -4.0))
    )
    followed(growing.directory, "tensorboard")
    shown = in_tensorboard(growing.directory)
    assert shown["offline/evaluation/normalised_return"] == [(0, 0.5)]
    assert "offline/evaluation/success_rate" not in shown


# MirrorProcess training.


def mirror_of(directory: Path) -> int:
    """The process that writes the run's event file, which its name ends with."""
    deadline = time.monotonic() + 60
    while not (files := list((directory / "tensorboard").glob("events*"))):
        assert time.monotonic() < deadline, (directory / LOG).read_text()
        time.sleep(0.05)
    return int(files[0].name.rpartition(".")[2])


def test_a_mirror_that_is_killed_is_one_line_of_warning(growing, capfd):
    growing.take()
    with MirrorProcess([growing.directory], ["tensorboard"]) as mirror:
        os.kill(mirror_of(growing.directory), signal.SIGKILL)
        deadline = time.monotonic() + 10
        while "WARNING" not in (error := capfd.readouterr().err) and time.monotonic() < deadline:
            mirror.check()
            time.sleep(0.05)
        assert error.startswith("WARNING: the mirror has ended with exit code -9") and error.count("\n") == 1
        assert "python -m bench mirror SUITE --to tensorboard" in error
        mirror.check()
    assert capfd.readouterr().err == ""


def test_a_mirror_that_cannot_write_is_one_line_of_warning(growing, capfd):
    growing.take()
    growing.log(7, 1.0)
    (growing.directory / "tensorboard").write_text("a file is in the way")
    with MirrorProcess([growing.directory], ["tensorboard"]):
        pass
    error = capfd.readouterr().err
    assert error.startswith("WARNING: the mirror has ended with exit code 1") and error.count("\n") == 1
    log = (growing.directory / LOG).read_text()
    assert f"failed: {growing.directory}: FileExistsError" in log
    assert "0 of 1 runs are mirrored to tensorboard" in log


def test_signals_to_all_processes_of_a_job_leave_the_mirror_its_last_rows(growing, capfd):
    growing.take()
    with MirrorProcess([growing.directory], ["tensorboard", "wandb"]):
        process = mirror_of(growing.directory)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            os.killpg(process, number)
        growing.log(7, 1.0)
    assert capfd.readouterr().err == ""
    for tracker in TRACKERS:
        assert same(READERS[tracker](growing.directory), in_files(growing.directory))


def test_a_run_that_is_preempted_goes_on_in_its_mirrors_and_has_the_same_bytes_without(finished, data_cache, tmp_path):
    config = whole_run()
    directory = prepare_directory(config, tmp_path)
    execution = Execution(device="cpu", env_workers=0, mirrors=TRACKERS)
    work = Work("a pack", tmp_path, (directory,))
    endings = run_works([work], execution, 1, lambda: len(rows_of(directory, "train.csv")) > 20, Unwatched())
    assert (endings, status_of(directory)["state"]) == ([], "preempted")
    for tracker in TRACKERS:
        assert same(READERS[tracker](directory), in_files(directory))

    done = python("-m", "bench", *COMMAND, "--results", str(tmp_path), "--env-workers", "0", "--mirror", *TRACKERS)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 1 runs are mirrored" in (directory / LOG).read_text()
    for tracker in TRACKERS:
        assert same(READERS[tracker](directory), in_files(directory))
    for name in ("episodes.csv", "train.csv"):
        assert (directory / name).read_bytes() == (finished / name).read_bytes()


def test_a_mirror_ends_with_all_rows_when_the_driver_is_killed(data_cache, tmp_path):
    directory = prepare_directory(whole_run(offline_updates=90_000, eval_interval_updates=90_000), tmp_path)
    driver = f"""if True:
        from pathlib import Path
        from bench.grid.pool import Execution, Unwatched, Work, run_works
        work = Work("a pack", Path({str(tmp_path)!r}), (Path({str(directory)!r}),))
        execution = Execution(device="cpu", engine="eager", mirrors=("tensorboard",))
        run_works([work], execution, 1, lambda: False, Unwatched())
    """
    process = subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT)
    mirror = mirror_of(directory)
    while not rows_of(directory, "train.csv"):
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while process_start(mirror) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert same(in_tensorboard(directory), in_files(directory))


# No server, no package, no run.


class Trap:
    """A server that counts who connects; a proxy for all that would go out."""

    def __init__(self) -> None:
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            self.connections += 1
            connection.close()


def test_wandb_contacts_no_server(finished, monkeypatch):
    trap = Trap()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, trap.address)
    done = python("-m", "bench", "mirror", str(finished), "--to", "wandb")
    assert done.returncode == 0, done.stderr
    assert trap.connections == 0
    with pytest.raises(requests.RequestException):
        requests.get("http://example.invalid", proxies={"http": trap.address}, timeout=5)
    assert trap.connections == 1  # it would have noticed


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


@pytest.mark.parametrize("tracker", TRACKERS)
@pytest.mark.parametrize("command", ["run", "launch --local", "launch --slurm", "plan"])
def test_a_missing_package_is_named_before_anything_runs(command, tracker, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == tracker else find(name))
    error = fails(capsys, *command.split(), *COMMAND[1:], "--mirror", tracker)
    assert f"cannot mirror to {tracker}, which is not installed; install it: make setup EXTRAS={tracker} (or" in error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_that_name_is_no_package(capsys, tmp_path, finished, monkeypatch):
    (tmp_path / "wandb").mkdir()  # as W&B leaves it behind
    find = importlib.machinery.PathFinder.find_spec
    there = {"wandb": [str(tmp_path)]}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name, there.get(name)))
    assert "wandb, which is not installed" in fails(capsys, "mirror", str(finished), "--to", "wandb")


def test_what_cannot_be_mirrored_is_named(capsys, tmp_path, growing):
    assert "unknown mirror 'tensorbaord' (did you mean 'tensorboard'?); mirrors: tensorboard, wandb" in fails(
        capsys, "mirror", ".", "--to", "tensorbaord"
    )
    assert f"there is no run in 'quick': name a run's folder, a suite under {tmp_path}" in fails(
        capsys, "mirror", "quick", "--to", "tensorboard", "--results", str(tmp_path)
    )
    write_json(growing.directory / "config.json", {"schema_version": 7})
    assert "is of schema 7, this checkout writes 1" in fails(
        capsys, "mirror", ".", "--to", "tensorboard", "--results", str(tmp_path)
    )
