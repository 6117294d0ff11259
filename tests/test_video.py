"""Videos of evaluation episodes: the very episodes, the right ones, well-formed files, and what is refused."""

import importlib.util
import json
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import datasets
from bench.__main__ import main
from bench.command_line import parse
from bench.protocol.config import ConfigError, RunConfig
from bench.runs.contract import SCHEMA_VERSION, StorageError, read_json
from bench.tools.film import Stage, Take, caption, steps_to_show, titled
from bench.tools.roll_out import POLICY
from bench.tools.video import (
    INDEX,
    SIZES,
    VideoOptions,
    add_to_index,
    chosen,
    format_of,
    last_evaluation,
    picture_size,
    read_index,
)
from bench.training.evaluate import FIXED_SEED, EpisodeRow, episode_seeds
from bench.training.execution import Execution
from bench.training.train import run
from tests.conftest import CUBE_DATASET
from tests.test_pictures import needs_bullet, needs_opengl, needs_robosuite
from tests.tiny_runs import ROOT, tiny_config

HUMAN_LIFT = Path(__file__).parent / "fixtures" / "lift_human3_low_dim.hdf5"
needs_av = pytest.mark.extra("video")
SMALL = ["--size", "96x64", "--no-shadows"]
SEEDS = [FIXED_SEED + number for number in range(4)]


def finish(results: Path, run_seeds: int = 1, **changes: Any) -> list[Path]:
    """The directories of complete runs."""
    settings = {"offline_updates": 3, "online_steps": 0, "eval_episodes": 1, "episode_seeds": "fixed", **changes}
    base = tiny_config("qc_fql", **settings)
    configs = [base.replace(seed=seed) for seed in range(run_seeds)]
    run(configs, results, Execution(device="cpu", env_workers=0), lambda: False)
    return [config.directory(results) for config in configs]


@pytest.fixture(scope="module")
def cache(tiny_data) -> Iterator[None]:
    """For the data of all tasks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("O2O_BENCH_DATA", str(tiny_data))
        yield


@pytest.fixture(scope="module")
def cubes(cache, tmp_path_factory) -> Path:
    datasets.ensure(CUBE_DATASET, workers=2)
    return finish(tmp_path_factory.mktemp("cubes"), task="cube-single-task1", dataset=CUBE_DATASET)[0]


@pytest.fixture(scope="module")
def toy(cache, tmp_path_factory) -> Path:
    return finish(tmp_path_factory.mktemp("toy"))[0]


@pytest.fixture(scope="module")
def lift(cache, tmp_path_factory) -> Path:
    dataset = datasets.register(HUMAN_LIFT, copy=True, options=datasets.FileOptions(("actions",)))
    return finish(tmp_path_factory.mktemp("lift"), task="lift-mh", dataset=dataset)[0]


@pytest.fixture(scope="module")
def hoppers(cache, tmp_path_factory) -> list[Path]:
    """Two runs, of four evaluation episodes each."""
    datasets.generate("hopper-bullet", "random", episodes=5)
    dataset = "hopper-bullet-random-generated-5ep-seed0"
    return finish(tmp_path_factory.mktemp("hoppers"), 2, task="hopper-bullet-random", dataset=dataset, eval_episodes=4)


@pytest.fixture(scope="module")
def hopper(hoppers) -> Path:
    return hoppers[0]


@pytest.fixture
def copy(hopper, tmp_path) -> Path:
    """Of a run on the hopper, to be spoilt."""
    return Path(shutil.copytree(hopper, tmp_path / "run"))


def options_of(*arguments: str) -> VideoOptions:
    return parse(VideoOptions, ["run", *arguments], "video")


def refusal(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The one line with which the command ends in exit code 2."""
    capsys.readouterr()
    assert main(["video", *map(str, arguments)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and not said.out, said
    return said.err.removeprefix("error: ").strip()


# Episodes


@pytest.mark.parametrize(
    "finished",
    [
        "toy",
        pytest.param("cubes", marks=pytest.mark.thorough),
        pytest.param("lift", marks=needs_robosuite),
        pytest.param("hopper", marks=needs_bullet),
    ],
)
def test_episodes_are_those_of_the_last_evaluation(finished: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(finished)
    rows = last_evaluation(directory)
    assert [*rows] == SEEDS[: len(rows)]
    config = RunConfig.from_json(read_json(directory / "config.json") or {})
    stage = Stage(config, (directory / POLICY).read_bytes(), renderer=None)
    try:
        stage.open()
        for seed, row in rows.items():
            stage.play(seed)
            take = stage.take()
            assert take.row == row
            assert len(take.returns) == len(take.solved) == int(row["length"] or 0) + 1
            assert take.returns[0] == 0.0 and take.returns[-1] == row["return"]
            assert take.solved[-1] == row["success"], "None where there is no such notion"
    finally:
        stage.close()


def take_of(length: int, success: int | None = 0, seed: int = 7) -> Take:
    """An episode of reward -1 that is solved by the last step or not at all."""
    row: EpisodeRow = {"episode_seed": seed, "success": success, "return": -length, "length": length}
    flags = [None] + [None if success is None else False] * (length - 1) + [None if success is None else bool(success)]
    return Take(row, [-float(step) for step in range(length + 1)], flags)


@pytest.mark.parametrize(
    ("last", "rate", "fps", "shown"),
    [
        (4, 20.0, 20.0, [0, 1, 2, 3, 4]),
        (4, 20.0, 10.0, [0, 2, 4]),
        (5, 20.0, 10.0, [0, 2, 4, 5]),  # the end is always seen
        (7, 60.0, 25.0, [0, 2, 5, 7]),
        (1, 20.0, 0.5, [0, 1]),
    ],
)
def test_steps_are_shown_at_the_speed_of_life(last: int, rate: float, fps: float, shown: list[int]) -> None:
    assert steps_to_show(last, rate, fps) == shown


# Captions


def test_a_caption_tells_agent_task_episode_step_and_return() -> None:
    first, second, solved = caption(tiny_config("qc_fql", seed=3), take_of(57, 1, seed=1_000_003), 12)
    assert first == "qc_fql, seed 3   toy-reach"
    assert second == "episode 1000003   step 12   return -12"
    assert solved is None


def test_the_flag_appears_the_moment_it_is_solved_or_is_not() -> None:
    config = tiny_config()
    assert [caption(config, take_of(3, 1), state)[2] for state in range(4)] == [None, None, None, True]
    assert [caption(config, take_of(3, 0), state)[2] for state in range(4)] == [None, None, None, False]
    assert [caption(config, take_of(3, None), state)[2] for state in range(4)] == [None] * 4


def test_captions_stand_below_the_picture_whatever_its_size() -> None:
    for width, height in ((480, 360), (64, 64), (321, 241)):
        picture = np.full((height, width, 3), 100, np.uint8)
        lines = ("sac_flow_g, seed 0   cube-quadruple-task5", "episode 1000049   step 1000   return -4000")
        plain = np.asarray(titled(picture, *lines, None))
        np.testing.assert_array_equal(plain[:height], picture)
        strip = plain[height:].astype(int)
        assert plain.shape[1:] == (width, 3) and 0 < len(strip) <= 0.5 * height
        written = (strip - strip[0, 0]).any(2)
        assert written.any() and not written[[0, -1]].any() and not written[:, [0, -1]].any(), "nothing is cut off"
        flags = [np.asarray(titled(picture, *lines, solved)) for solved in (True, False)]
        green, red = (flag.astype(int) - plain for flag in flags)
        assert (green[:height] != 0).any() and not green[height:].any()
        assert green.sum((0, 1)).argmax() == 1 and red.sum((0, 1)).argmax() == 0


# Which episodes


def rows_of(*successes: int | None) -> dict[int, EpisodeRow]:
    return {
        seed: {"episode_seed": seed, "success": success, "return": -1.0, "length": 1}
        for seed, success in enumerate(successes)
    }


@pytest.mark.parametrize(
    ("arguments", "evaluations", "seeds"),
    [
        ([], [rows_of(0, 1, 1, 0, 0)], [0, 1, 2]),
        (["--episodes", "9"], [rows_of(0, 1, 1, 0, 0)], [0, 1, 2, 3, 4]),
        (["--failures", "--episodes", "2"], [rows_of(1, 0, 1, 0, 0)], [1, 3]),
        (["--successes"], [rows_of(0, 1, 1, 0, 0)], [1, 2]),
        (["--episode-seeds", "4", "1", "4"], [rows_of(0, 1, 1, 0, 0)], [4, 1]),
        ([], [rows_of(None, None)], [0, 1]),
        ([], [rows_of(0, 1, 1, 0, 0), rows_of(0, 0, 1, 1, 0)], [1, 3]),  # where they differ
        (["--failures"], [rows_of(0, 1, 1, 0, 0), rows_of(0, 0, 1, 1, 0)], [3]),
        (["--successes"], [rows_of(0, 1, 1, 0, 0), rows_of(0, 0, 1, 1, 0)], [1]),
        (["--episode-seeds", "0"], [rows_of(0, 1), rows_of(0, 0)], [0]),
        (["--episode-seeds", "1"], [rows_of(0, 1), rows_of(0)], [1]),  # of one run alone
        ([], [rows_of(0, 1, 0, 1), rows_of(1, 1)], [0]),  # the other run had fewer episodes
        ([], [rows_of(None, None), rows_of(None, None)], [0, 1]),
    ],
)
def test_episodes_are_chosen_by_how_they_went(
    arguments: list[str], evaluations: list[dict[int, EpisodeRow]], seeds: list[int]
) -> None:
    assert chosen(options_of(*arguments), [tiny_config()] * len(evaluations), evaluations) == seeds


@pytest.mark.parametrize(
    ("arguments", "evaluations", "message"),
    [
        (
            ["--failures"],
            [rows_of(1, 1)],
            r"no episode that failed \(solved: 2 of 2\); --episode-seeds shows any of 0 to 1",
        ),
        (["--successes"], [rows_of(0)], r"no episode that succeeded \(solved: 0 of 1\)"),
        ([], [rows_of(0, 1), rows_of(0, 1)], r"where one fails and the other succeeds \(solved: 1 of 2 and 1 of 2\)"),
        (["--failures"], [rows_of(1), rows_of(0)], "where this run fails and the other succeeds"),
        (["--successes"], [rows_of(0), rows_of(1)], "where this run succeeds and the other fails"),
        (["--failures"], [rows_of(None)], "toy-reach has no notion of success; choose with --episodes"),
        (["--episode-seeds", "2"], [rows_of(0, 1)], "seed 2 is none of the run's last evaluation; they are 0 to 1"),
        (["--episode-seeds", "1"], [rows_of(0), rows_of(1)], "1 is none of either run's last evaluation; they are"),
    ],
)
def test_a_choice_that_leaves_nothing_is_refused(
    arguments: list[str], evaluations: list[dict[int, EpisodeRow]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(options_of(*arguments), [tiny_config()] * len(evaluations), evaluations)


def test_runs_without_a_common_episode_are_refused_until_episodes_are_named(cache, tmp_path: Path, capsys) -> None:
    directories = finish(tmp_path, 2, eval_episodes=2, episode_seeds="own")
    base = tiny_config("qc_fql", eval_episodes=2)
    ours, theirs = (episode_seeds(base.replace(seed=seed), "offline", 3, 0) for seed in (0, 1))
    assert [[*last_evaluation(directory)] for directory in directories] == [[*ours], [*theirs]]
    line = refusal(capsys, directories[0], "--against", directories[1], "--failures", "--format", "gif")
    assert line == (
        f"the last evaluations of both runs have no episode in common, but {ours[0]} to {ours[1]} (seed 0) and "
        f"{theirs[0]} to {theirs[1]} (seed 1): name a run of the same seed and budget, or the episodes, with "
        "--episode-seeds"
    )
    evaluations = [last_evaluation(directory) for directory in directories]
    assert chosen(options_of("--episode-seeds", str(theirs[1])), [base, base], evaluations) == [theirs[1]]


def test_the_last_evaluation_is_the_one_with_the_most_training(tmp_path: Path) -> None:
    lines = ["phase,updates,env_steps,episode_seed,success,return,length"]
    lines += ["offline,30,0,5,0,-9.5,9", "online,60,40,5,1,-0.25,3", "online,60,40,6,,1e-05,4", "offline,0,0,5,0,-1,1"]
    (tmp_path / "episodes.csv").write_text("\n".join(lines) + "\n")
    assert last_evaluation(tmp_path) == {
        5: {"episode_seed": 5, "success": 1, "return": -0.25, "length": 3},
        6: {"episode_seed": 6, "success": None, "return": 1e-05, "length": 4},
    }
    for content in ("", lines[0], lines[0] + "\noffline,0\n", lines[0] + "\noffline,0,0,5,0,x,1\n"):
        (tmp_path / "episodes.csv").write_text(content)
        with pytest.raises(StorageError, match=r"episodes\.csv does not hold the rows of an evaluation"):
            last_evaluation(tmp_path)


# Files


def frames_of(file: Path) -> list[np.ndarray]:
    """Each (height, width, 3), decoded."""
    if file.suffix == ".gif":
        with Image.open(file) as image:
            frames = []
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                frames.append(np.asarray(image.convert("RGB")))
            return frames
    import av

    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@needs_opengl
@needs_av
@pytest.mark.parametrize("finished", ["cubes", pytest.param("lift", marks=needs_robosuite)])
def test_arms_are_filmed(finished: str, request: pytest.FixtureRequest, tmp_path: Path, capsys) -> None:
    directory: Path = request.getfixturevalue(finished)
    results = directory.parents[3]
    name = str(directory.relative_to(results))
    arguments = ["video", name, "--results", str(results), *SMALL, "--episodes", "1", "--fps", "1"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert not said.err, "the episode went as in the evaluation"
    row = last_evaluation(directory)[SEEDS[0]]
    file = tmp_path / "out" / f"episode_{SEEDS[0]}.mp4"
    assert str(file) in said.out
    assert read_json(tmp_path / "out" / INDEX) == {
        "schema_version": SCHEMA_VERSION,
        "videos": [{"file": file.name, **row, "as_evaluated": True}],
    }
    frames = frames_of(file)
    assert len(frames) == int((row["length"] or 0) / 20) + 1, "one a second, the first included; the last stays for 1 s"
    height, width, _ = frames[0].shape
    assert width == 96 and 64 < height < 110 and height % 2 == 0
    assert (np.abs(frames[0].astype(int) - frames[-1])[:64] > 30).any(), "the arm has moved"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f".{INDEX}.lock", file.name, INDEX]


@needs_av
@needs_bullet
def test_two_runs_stand_side_by_side_and_the_shorter_one_waits(hoppers, tmp_path: Path, capsys) -> None:
    lengths = {seed: [int(last_evaluation(directory)[seed]["length"] or 0) for directory in hoppers] for seed in SEEDS}
    seed = next(seed for seed, (one, other) in lengths.items() if one != other)
    shorter, longer = (directory for _, directory in sorted(zip(lengths[seed], hoppers, strict=True)))
    first, second = (last_evaluation(directory)[seed] for directory in (shorter, longer))
    arguments = ["video", str(shorter), "--against", str(longer), *SMALL, "--episode-seeds", str(seed), "--fps", "10"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    index = read_json(tmp_path / INDEX)
    assert index is not None
    (entry,) = index["videos"]
    number = longer.name.removeprefix("seed_")
    assert entry["file"] == f"episode_{seed}_against_tiny_qc_fql_seed_{number}.mp4"
    assert {key: entry[key] for key in first} == first and entry["as_evaluated"]
    other = entry["against"]
    assert other["run"] == f"tiny/hopper-bullet-random/qc_fql/seed_{number}" and other["as_evaluated"]
    assert {"episode_seed": seed, **{key: other[key] for key in ("success", "return", "length")}} == second
    frames = [frame.astype(int) for frame in frames_of(tmp_path / entry["file"])]
    shown = steps_to_show(max(lengths[seed]), 1 / 0.0165, 10.0)
    assert len(frames) == len(shown) - 1 + 10, "the last one stays for a second"
    assert frames[0].shape[1] == 96 + 4 + 96
    waiting = [frame for step, frame in zip(shown, frames, strict=False) if step >= min(lengths[seed])]
    assert len(waiting) > 1
    for frame in waiting[1:]:
        assert np.abs(frame[:, :90] - waiting[0][:, :90]).mean() < 2, "but for what encoding loses"
    assert max(np.abs(frame[:, 106:] - frames[0][:, 106:]).mean() for frame in frames) > 2


@needs_bullet
def test_a_gif_needs_no_extra_and_a_video_made_again_replaces_the_old_one(
    copy: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    arguments = [*SMALL, "--episodes", "1"]
    assert refusal(capsys, copy, *arguments, "--format", "mp4").startswith(
        "MP4 needs av, which is not installed; install it: make setup EX"
    )
    assert not (copy / "videos").exists()
    for fps in (30, 5):
        assert main(["video", str(copy), *arguments, "--fps", str(fps)]) == 0
        row = last_evaluation(copy)[SEEDS[0]]
        file = copy / "videos" / f"episode_{SEEDS[0]}.gif"
        assert len(frames_of(file)) == len(steps_to_show(int(row["length"] or 0), 1 / 0.0165, fps))
        with Image.open(file) as image:
            assert image.info["loop"] == 0 and image.info["duration"] == pytest.approx(1000 / fps, abs=10)
    assert [entry["file"] for entry in read_index(copy / "videos")] == [file.name]


@needs_bullet
def test_an_episode_that_went_otherwise_is_told_and_marked(copy: Path, capsys) -> None:
    lines = (copy / "episodes.csv").read_text().splitlines()
    *others, length = lines[-3].split(",")  # of the second episode of four
    lines[-3] = ",".join([*others, str(int(length) + 1)])
    (copy / "episodes.csv").write_text("\n".join(lines) + "\n")
    assert main(["video", str(copy), *SMALL, "--format", "gif", "--fps", "2", "--episodes", "2"]) == 0
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith(
        "warning: tiny/hopper-bullet-random/qc_fql/seed_000, episode 1000001"
    )
    assert f"in {length} steps here" in told and f"in {int(length) + 1} steps in episodes.csv" in told
    assert [entry["as_evaluated"] for entry in read_index(copy / "videos")] == [True, False]


@needs_bullet
def test_an_episode_that_one_run_was_not_evaluated_on_is_compared_for_the_other_alone(hoppers, copy: Path) -> None:
    rows = (copy / "episodes.csv").read_text()
    (copy / "episodes.csv").write_text(rows.replace(str(SEEDS[3]), "7"))
    arguments = [str(hoppers[1]), "--against", str(copy), *SMALL, "--format", "gif", "--fps", "2"]
    assert main(["video", *arguments, "--episode-seeds", str(SEEDS[3]), "--out", str(copy / "videos")]) == 0
    (entry,) = read_index(copy / "videos")
    assert entry["as_evaluated"] is True and entry["against"]["as_evaluated"] is None


def test_the_index_keeps_other_videos_and_forgets_those_that_are_gone(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"")
        add_to_index(tmp_path, {"file": name, "episode_seed": 1})
    assert [entry["file"] for entry in read_index(tmp_path)] == ["a.mp4", "b.mp4"]
    (tmp_path / "a.mp4").unlink()
    assert [entry["file"] for entry in read_index(tmp_path)] == ["b.mp4"]
    assert read_index(tmp_path / "nowhere") == []
    (tmp_path / INDEX).write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1, "videos": []}))
    with pytest.raises(StorageError, match=r"is no index of videos of schema 1; delete it or name another --out"):
        read_index(tmp_path)


def test_the_extra_is_pinned_alike_everywhere() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["video"]
    lock = (ROOT / "requirements-video.lock").read_text().splitlines()
    assert extra == [line for line in lock if not line.startswith("#")]
    (all_extras,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("ALL_EXTRAS")]
    assert "video" in all_extras.split(), "make test installs it"


# What is refused, before anything is written


@needs_av
def test_a_run_that_is_none_or_has_no_policy_is_refused(toy, tmp_path: Path, capsys) -> None:
    assert "there is no run 'tiny/nothing'" in refusal(capsys, "tiny/nothing", "--results", tmp_path)
    own = Path(shutil.copytree(toy, tmp_path / "run"))
    assert refusal(capsys, own, "--against", own).startswith("--against names the run itself")
    assert "there is no run 'x'" in refusal(capsys, own, "--against", "x")
    (own / "episodes.csv").write_text("phase\n")
    assert "episodes.csv does not hold the rows of an evaluation" in refusal(capsys, own)
    (own / POLICY).unlink()
    assert refusal(capsys, own).endswith("holds no checkpoint/policy.safetensors")
    status = json.loads((own / "status.json").read_text())
    (own / "status.json").write_text(json.dumps(status | {"state": "running"}))
    assert "is running; its policy is written when it is complete" in refusal(capsys, own)
    assert not (own / "videos").exists()


@needs_bullet
def test_runs_of_two_tasks_are_no_pair(cubes, hopper, capsys) -> None:
    line = refusal(capsys, cubes, "--against", hopper)
    assert line.startswith("task is cube-single-task1 in ") and "but hopper-bullet-random in" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes", "0"], "--episodes is 0; it must be at least 1"),
        (["--size", "big"], "--size is 'big'; it must be like 480x360"),
        (["--size", "480x10"], "--size is '480x10'; it must be like 480x360"),
        (["--fps", "0"], "--fps is 0; it must lie between 0.1 and"),
        (["--fps", "nan"], "--fps: 'nan' is not a finite number"),
        (["--failures", "--successes"], "--failures and --successes exclude each other"),
        (["--failures", "--episode-seeds", "1000000"], "--episode-seeds names the episodes"),
        (["--format", "avi"], "--format: 'avi' is none of auto, mp4, gif"),
    ],
)
def test_senseless_options_are_refused(toy, capsys, arguments: list[str], message: str) -> None:
    assert message in refusal(capsys, toy, *arguments)
    assert not (toy / "videos").exists()


@needs_bullet
def test_what_the_environment_does_not_have_is_refused(hopper, tmp_path: Path, capsys) -> None:
    arguments = [hopper, "--format", "gif", *SMALL, "--episodes", "1", "--out"]
    line = refusal(capsys, *arguments, tmp_path / "a", "--camera", "front")
    assert line == "hopper-bullet-random has no camera 'front'; it is seen in one way only"
    assert "has 60.61 steps per second to show" in refusal(capsys, *arguments, tmp_path / "a", "--fps", "61")
    (tmp_path / "file").write_text("mine")
    assert "Not a directory" in refusal(capsys, *arguments, tmp_path / "file" / "out", "--fps", "1")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_opengl_nothing_begins(cubes, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYOPENGL_PLATFORM", "none-of-them")
    line = refusal(capsys, cubes, "--format", "gif", "--out", tmp_path / "out")
    assert "apt-get install libegl1 libgl1-mesa-dri" in line and not (tmp_path / "out").exists()


@needs_opengl
def test_an_unknown_camera_is_refused_with_the_nearest(cubes, tmp_path: Path, capsys) -> None:
    line = refusal(capsys, cubes, "--format", "gif", "--camera", "fornt", "--out", tmp_path / "out")
    assert line.endswith("no camera 'fornt' (did you mean 'front'?); its cameras are front, front_pixels")
    assert not (tmp_path / "out").exists()


def test_a_video_is_a_gif_where_nothing_writes_mp4_and_nobody_asks_for_it(monkeypatch):
    options = VideoOptions("a/b/c/seed_000")
    find_spec = importlib.util.find_spec
    for there, expected in ((object(), "mp4"), (None, "gif")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, it=there: it if name == "av" else find_spec(name))
        assert format_of(options) == expected and picture_size(options) == SIZES[expected]
