"""`python -m bench video`: evaluation episodes of finished runs as videos, alone or side by side with another run's."""

import csv
import importlib.util
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

import datasets
from bench.command_line import check_folder, check_least
from bench.protocol.config import RunConfig
from bench.protocol.plugins import Plugins
from bench.runs.contract import (
    EPISODES,
    SCHEMA_VERSION,
    ConfigError,
    StorageError,
    make_folder,
    named_run,
    nearest,
    one_line,
    read_json,
    write_atomically,
    write_json,
)
from bench.tools.data import ProgressLine
from bench.tools.film import Film, Stage, Take, encode
from bench.tools.roll_out import finished_run
from bench.training.evaluate import EpisodeRow
from datasets.cache import exclusive
from datasets.pictures.view import Look

INDEX = "index.json"
SIZES = {"mp4": (480, 360), "gif": (320, 240)}  # pixels of a picture, without its caption
MOST_FPS = {"mp4": 30.0, "gif": 10.0}  # unless asked for; a faster environment is shown at every so many steps


@dataclass(frozen=True)
class VideoOptions:
    """Evaluation episodes of a finished run as MP4 or GIF, alone or side by side with another run's."""

    run: Positional[str]  # a run's folder, or suite/task/agent/seed_000
    against: str | None = None  # another run of the task, played beside on the same episodes
    results: Path = Path("results")
    episodes: int = 3  # so many, from the first one
    episode_seeds: tuple[int, ...] = ()  # these ones, as in episodes.csv, there the last rows of one of the runs
    failures: bool = False  # only where the run fails; with --against: alone
    successes: bool = False  # only where the run succeeds; with --against: alone
    format: Literal["auto", "mp4", "gif"] = "auto"  # auto: MP4 where the extra `video` is installed, else GIF
    size: str | None = None  # pixels of a picture (default 480x360; GIF 320x240)
    fps: float | None = None  # frames per second, at the speed of life (default: up to 30; GIF 10)
    camera: str | None = None  # one of the environment's
    no_shadows: bool = False  # much faster where no GPU draws
    out: Path | None = None  # a folder; default: videos/ in the run's folder
    plugins: Plugins = Plugins()

    def __post_init__(self) -> None:
        check_least(self, episodes=1)
        check_folder(self)
        if self.failures and self.successes:
            raise ConfigError("--failures and --successes exclude each other")
        if self.episode_seeds and (self.failures or self.successes):
            raise ConfigError("--episode-seeds names the episodes; --failures and --successes would choose others")
        if self.fps is not None and not 0.1 <= self.fps <= 1000:
            raise ConfigError(f"--fps is {self.fps:g}; it must lie between 0.1 and the environment's rate")
        picture_size(self)


def video_command(options: VideoOptions) -> int:
    """Everything that can be wrong is found out before the first episode is played."""
    directories = [named_run(run, options.results) for run in (options.run, options.against) if run is not None]
    check_format(options)
    runs = [finished_run(directory) for directory in directories]
    configs = [config for config, _ in runs]
    if len(runs) == 2:
        check_pair(directories, configs)
    evaluations = [last_evaluation(directory) for directory in directories]
    seeds = chosen(options, configs, evaluations)
    out = options.out or directories[0] / "videos"
    read_index(out)
    renderer = datasets.renderer(configs[0].task)
    stages = [Stage(config, policy, renderer) for config, policy in runs]
    try:
        for stage in stages:
            stage.open()
        look, fps = look_of(options, stages[0])
        for seed in seeds:
            film_episode(options, stages, evaluations, seed, look, fps, out)
    finally:
        for stage in stages:
            stage.close()
    return 0


def check_format(options: VideoOptions) -> None:
    """ConfigError where the package that writes it is not installed."""
    if options.format == "mp4" and not _writes_mp4():
        raise ConfigError(
            "MP4 needs av, which is not installed; install it: make setup EXTRAS=video "
            "(or pip install -r requirements-video.lock), or take --format gif"
        )


def format_of(options: VideoOptions) -> Literal["mp4", "gif"]:
    """What is written."""
    if options.format != "auto":
        return options.format
    return "mp4" if _writes_mp4() else "gif"


def _writes_mp4() -> bool:
    return importlib.util.find_spec("av") is not None


def picture_size(options: VideoOptions) -> tuple[int, int]:
    """Width and height in pixels."""
    if options.size is None:
        return SIZES[format_of(options)]
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", options.size)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (64 <= width <= 4096 and 64 <= height <= 4096):
        raise ConfigError(f"--size is {options.size!r}; it must be like 480x360, of 64 to 4096 pixels each")
    return width, height


def check_pair(directories: Sequence[Path], configs: Sequence[RunConfig]) -> None:
    """ConfigError for two runs whose episodes are not the same ones."""
    first, second = directories
    if first.resolve() == second.resolve():
        raise ConfigError(f"--against names the run itself, {first}; name another one")
    for name in ("task", "success_timing", "success_rule"):
        ours, theirs = (getattr(config, name) for config in configs)
        if ours != theirs:
            raise ConfigError(
                f"{name} is {ours} in {first}, but {theirs} in {second}; only episodes of one task and rule compare"
            )


def last_evaluation(directory: Path) -> dict[int, EpisodeRow]:
    """Rows of the last evaluation by episode seed. Raises StorageError where they cannot be read."""
    path = directory / EPISODES
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        last = max((int(row["updates"]), int(row["env_steps"])) for row in rows)
        return {
            int(row["episode_seed"]): {
                "episode_seed": int(row["episode_seed"]),
                "success": int(row["success"]) if row["success"] else None,
                "return": float(row["return"]),
                "length": int(row["length"]),
            }
            for row in rows
            if (int(row["updates"]), int(row["env_steps"])) == last
        }
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} does not hold the rows of an evaluation ({one_line(error)}); see results/README.md"
        ) from error


def chosen(
    options: VideoOptions, configs: Sequence[RunConfig], evaluations: Sequence[Mapping[int, EpisodeRow]]
) -> list[int]:
    """The episode seeds to show. Raises ConfigError where there are none, or one that was no evaluation's."""
    recorded = list(dict.fromkeys(itertools.chain(*evaluations)))
    if options.episode_seeds:
        for seed in options.episode_seeds:
            if seed not in recorded:
                of = "either run's last evaluation" if len(evaluations) == 2 else "the run's last evaluation"
                there_are = " and ".join(dict.fromkeys(_ranges([*rows]) for rows in evaluations))
                raise ConfigError(f"episode seed {seed} is none of {of}; they are {there_are}")
        return list(dict.fromkeys(options.episode_seeds))
    shared = [seed for seed in recorded if all(seed in rows for rows in evaluations)]
    if not shared:
        theirs = " and ".join(
            f"{_ranges([*rows])} (seed {config.seed})" for config, rows in zip(configs, evaluations, strict=True)
        )
        raise ConfigError(
            f"the last evaluations of both runs have no episode in common, but {theirs}: name a run of the same seed "
            "and budget, or the episodes, with --episode-seeds"
        )
    has_success = all(rows[seed]["success"] is not None for rows in evaluations for seed in shared)
    if not has_success and (options.failures or options.successes):
        raise ConfigError(f"{configs[0].task} has no notion of success; choose with --episodes or --episode-seeds")

    def is_wanted(seed: int) -> bool:
        solved, *others = (bool(rows[seed]["success"]) for rows in evaluations)
        is_told_apart = solved not in others or not has_success
        return is_told_apart and not (options.failures and solved) and not (options.successes and not solved)

    seeds = [seed for seed in shared if is_wanted(seed)]
    if not seeds:
        what = {
            (False, True, False): "that failed",
            (False, False, True): "that succeeded",
            (True, True, False): "where this run fails and the other succeeds",
            (True, False, True): "where this run succeeds and the other fails",
            (True, False, False): "where one fails and the other succeeds",
            (False, False, False): "at all",
        }[len(evaluations) == 2, options.failures, options.successes]
        solved = [f"{sum(bool(row['success']) for row in rows.values())} of {len(rows)}" for rows in evaluations]
        raise ConfigError(
            f"the last evaluation has no episode {what} (solved: {' and '.join(solved)}); "
            f"--episode-seeds shows any of {_ranges(shared)}"
        )
    return seeds[: options.episodes]


def _ranges(seeds: Sequence[int]) -> str:
    """`1000000 to 1000049` for consecutive ones, else all of them."""
    if not seeds:
        return "none"
    low, high = min(seeds), max(seeds)
    return f"{low} to {high}" if len(seeds) == high - low + 1 else ", ".join(map(str, sorted(seeds)))


def look_of(options: VideoOptions, stage: Stage) -> tuple[Look, float]:
    """How pictures are drawn, and frames per second. Raises ConfigError for a camera or a rate that there is not."""
    if options.camera is not None and options.camera not in stage.cameras:
        cameras = f"its cameras are {', '.join(stage.cameras)}" if stage.cameras else "it is seen in one way only"
        near = nearest(options.camera, stage.cameras)
        raise ConfigError(f"{stage.config.task} has no camera {options.camera!r}{near}; {cameras}")
    if options.fps is not None and options.fps > stage.rate * (1 + 1e-9):
        raise ConfigError(
            f"--fps is {options.fps:g}, but {stage.config.task} has {stage.rate:.4g} steps per second to show"
        )
    fps = options.fps or min(stage.rate, MOST_FPS[format_of(options)])
    return Look(*picture_size(options), options.camera, shadows=not options.no_shadows), fps


def film_episode(
    options: VideoOptions,
    stages: Sequence[Stage],
    evaluations: Sequence[Mapping[int, EpisodeRow]],
    seed: int,
    look: Look,
    fps: float,
    out: Path,
) -> None:
    """Plays one episode, compares it with the evaluation's row if it has one, draws it, writes video and index."""
    for stage in stages:
        stage.play(seed)
    takes = [stage.take() for stage in stages]
    as_evaluated = [
        is_as_evaluated(stage.config, take, rows[seed]) if seed in rows else None
        for stage, take, rows in zip(stages, takes, evaluations, strict=True)
    ]
    film = Film(stages, takes, look, fps)
    progress = ProgressLine(
        lambda done, total: f"episode {seed}: {done}/{total} pictures", lambda rate: f"{rate:.1f}/s"
    )
    data = encode(film, format_of(options), progress)
    name = file_name(options, [stage.config for stage in stages], seed)
    entry: dict[str, Any] = {"file": name, **takes[0].row, "as_evaluated": as_evaluated[0]}
    for stage, take, same in [*zip(stages, takes, as_evaluated, strict=True)][1:]:
        opponent = {"run": str(stage.config.name), **take.row, "as_evaluated": same}
        entry["against"] = {key: value for key, value in opponent.items() if key != "episode_seed"}
    make_folder(out)
    write_atomically(out / name, data)
    add_to_index(out, entry)
    outcome = " | ".join(describe(take.row) for take in takes)
    print(f"{out / name}: {outcome}; {len(film)} frames at {fps:.4g}/s, {len(data) / 1000:,.0f} kB", flush=True)


def is_as_evaluated(config: RunConfig, take: Take, recorded: EpisodeRow) -> bool:
    """Whether the episode went as in the last evaluation; where it did not, a line on stderr says so."""
    if take.row == recorded:
        return True
    print(
        f"warning: {config.name}, episode {take.row['episode_seed']:.0f}: {describe(take.row)} here, but "
        f"{describe(recorded)} in episodes.csv: another machine, other package versions, or a file that was changed",
        file=sys.stderr,
        flush=True,
    )
    return False


def describe(row: EpisodeRow) -> str:
    solved = {None: "", 0: "not solved, ", 1: "solved, "}[row["success"]]
    return f"{solved}return {row['return']} in {row['length']:.0f} steps"


def file_name(options: VideoOptions, configs: Sequence[RunConfig], seed: int) -> str:
    """The same for the same episode, camera and opponent, so that a video made again replaces the old one."""
    camera = f"_{options.camera.replace('/', '-')}" if options.camera else ""
    against = "".join(f"_against_{other.suite}_{other.label}_seed_{other.seed:03d}" for other in configs[1:])
    return f"episode_{seed}{against}{camera}.{format_of(options)}"


def read_index(folder: Path) -> list[dict[str, Any]]:
    """Entries of the folder's index whose files are there. Raises StorageError for one of another schema."""
    try:
        index = read_json(folder / INDEX)
    except OSError as error:
        raise StorageError(f"cannot read {folder / INDEX}: {error.strerror}") from error
    if index is None:
        return []
    if index.get("schema_version") != SCHEMA_VERSION or not isinstance(index.get("videos"), list):
        raise StorageError(
            f"{folder / INDEX} is no index of videos of schema {SCHEMA_VERSION}; delete it or name another --out"
        )
    return [entry for entry in index["videos"] if (folder / entry["file"]).exists()]


def add_to_index(folder: Path, entry: dict[str, Any]) -> None:
    """Puts one video into the index, in the place of an older one of the same name."""
    with exclusive(folder / f".{INDEX}.lock"):
        others = [old for old in read_index(folder) if old["file"] != entry["file"]]
        videos = sorted([*others, entry], key=lambda video: video["file"])
        write_json(folder / INDEX, {"schema_version": SCHEMA_VERSION, "videos": videos})
