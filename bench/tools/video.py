"""`python -m bench video`: evaluation episodes of finished runs as videos, alone or side by side with another run's."""

import argparse
import csv
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from bench.grid.status import find_run
from bench.protocol.config import RunConfig
from bench.runs.contract import ConfigError, nearest, one_line
from bench.runs.writer import SCHEMA_VERSION, StorageError, read_json, write_atomically, write_json
from bench.tools.data import Progress
from bench.tools.film import Film, Stage, Take, encode
from bench.tools.roll_out import finished_run
from bench.training.evaluate import Row
from datasets.cache import exclusive
from datasets.pictures.view import Look

INDEX = "index.json"
SIZES = {"mp4": (480, 360), "gif": (320, 240)}  # pixels of a picture, without its caption
MOST_FPS = {"mp4": 30.0, "gif": 10.0}  # unless asked for; a faster environment is shown at every so many steps


def add_video_command(commands: argparse._SubParsersAction) -> None:
    help = "evaluation episodes of a finished run as MP4 or GIF, alone or side by side with another run's"
    video = commands.add_parser("video", help=help, description=help, allow_abbrev=False)
    video.set_defaults(command=video_command)
    video.add_argument("run", metavar="RUN", help="a run's folder, or suite/task/agent/seed_000")
    video.add_argument("--against", metavar="RUN", help="another run of the task, played beside on the same episodes")
    video.add_argument("--results", type=Path, default=Path("results"))
    video.add_argument("--episodes", type=int, default=3, metavar="N", help="so many, from the first one (default 3)")
    video.add_argument("--episode-seeds", type=int, nargs="+", metavar="SEED", help="these ones, as in episodes.csv")
    which = video.add_mutually_exclusive_group()
    which.add_argument("--failures", action="store_true", help="only where the run fails; with --against: alone")
    which.add_argument("--successes", action="store_true", help="only where the run succeeds; with --against: alone")
    video.add_argument("--format", choices=("mp4", "gif"), default="mp4")
    video.add_argument("--size", metavar="WxH", help="pixels of a picture (default 480x360; GIF 320x240)")
    video.add_argument("--fps", type=float, help="frames per second, at the speed of life (default: up to 30; GIF 10)")
    video.add_argument("--camera", help="one of the environment's")
    video.add_argument("--no-shadows", action="store_true", help="much faster where no GPU draws")
    video.add_argument("--out", type=Path, metavar="FOLDER", help="default: videos/ in the run's folder")


def video_command(options: argparse.Namespace, _: dict[str, str]) -> int:
    """Everything that can be wrong is found out before the first episode is played."""
    directories = [find_run(run, options.results) for run in (options.run, options.against) if run is not None]
    check_options(options)
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


def check_options(options: argparse.Namespace) -> None:
    """ConfigError for what makes no sense whatever the run."""
    if options.episodes < 1:
        raise ConfigError(f"--episodes is {options.episodes}; it must be at least 1")
    if options.episode_seeds and (options.failures or options.successes):
        raise ConfigError("--episode-seeds names the episodes; --failures and --successes would choose others")
    if options.fps is not None and not 0.1 <= options.fps <= 1000:
        raise ConfigError(f"--fps is {options.fps:g}; it must lie between 0.1 and the environment's rate")
    picture_size(options)
    if options.format == "mp4" and importlib.util.find_spec("av") is None:
        raise ConfigError(
            "MP4 needs av, which is not installed; install it: make setup EXTRAS=video "
            "(or pip install -r requirements-video.lock), or take --format gif"
        )


def picture_size(options: argparse.Namespace) -> tuple[int, int]:
    """Width and height in pixels."""
    if options.size is None:
        return SIZES[options.format]
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", options.size)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (64 <= width <= 4096 and 64 <= height <= 4096):
        raise ConfigError(f"--size is {options.size!r}; it must be like 480x360, of 64 to 4096 pixels each")
    return width, height


def check_pair(directories: Sequence[Path], configs: Sequence[RunConfig]) -> None:
    """ConfigError for two runs whose episodes are not the same ones."""
    own, other = directories
    if own.resolve() == other.resolve():
        raise ConfigError(f"--against names the run itself, {own}; name another one")
    for name in ("task", "success_timing"):
        ours, theirs = (getattr(config, name) for config in configs)
        if ours != theirs:
            raise ConfigError(
                f"{name} is {ours} in {own}, but {theirs} in {other}; only runs of one task meet the same episodes"
            )


def last_evaluation(directory: Path) -> dict[int, Row]:
    """Rows of the last evaluation by episode seed. Raises StorageError where they cannot be read."""
    path = directory / "episodes.csv"
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
    options: argparse.Namespace, configs: Sequence[RunConfig], evaluations: Sequence[Mapping[int, Row]]
) -> list[int]:
    """The episode seeds to show. Raises ConfigError where there are none, or one that was no evaluation's."""
    shared = [seed for seed in evaluations[0] if all(seed in rows for rows in evaluations)]
    if options.episode_seeds:
        for seed in options.episode_seeds:
            if seed not in shared:
                of = "both runs' evaluations" if len(evaluations) == 2 else "the run's evaluations"
                raise ConfigError(f"episode seed {seed} is none of {of}; they are {_ranges(shared)}")
        return list(dict.fromkeys(options.episode_seeds))
    has_success = all(rows[seed]["success"] is not None for rows in evaluations for seed in shared)
    if not has_success and (options.failures or options.successes):
        raise ConfigError(f"{configs[0].task} has no notion of success; choose with --episodes or --episode-seeds")

    def is_wanted(seed: int) -> bool:
        own, *others = (bool(rows[seed]["success"]) for rows in evaluations)
        is_told_apart = own not in others or not has_success
        return is_told_apart and not (options.failures and own) and not (options.successes and not own)

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


def look_of(options: argparse.Namespace, stage: Stage) -> tuple[Look, float]:
    """How pictures are drawn, and frames per second. Raises ConfigError for a camera or a rate that there is not."""
    if options.camera is not None and options.camera not in stage.cameras:
        cameras = f"its cameras are {', '.join(stage.cameras)}" if stage.cameras else "it is seen in one way only"
        near = nearest(options.camera, stage.cameras)
        raise ConfigError(f"{stage.config.task} has no camera {options.camera!r}{near}; {cameras}")
    if options.fps is not None and options.fps > stage.rate * (1 + 1e-9):
        raise ConfigError(
            f"--fps is {options.fps:g}, but {stage.config.task} has {stage.rate:.4g} steps per second to show"
        )
    fps = options.fps or min(stage.rate, MOST_FPS[options.format])
    return Look(*picture_size(options), options.camera, shadows=not options.no_shadows), fps


def film_episode(
    options: argparse.Namespace,
    stages: Sequence[Stage],
    evaluations: Sequence[Mapping[int, Row]],
    seed: int,
    look: Look,
    fps: float,
    out: Path,
) -> None:
    """Plays one episode, compares it with the evaluation's row, draws it, writes video and index."""
    for stage in stages:
        stage.play(seed)
    takes = [stage.take() for stage in stages]
    as_evaluated = [
        is_as_evaluated(stage.config, take, rows[seed])
        for stage, take, rows in zip(stages, takes, evaluations, strict=True)
    ]
    film = Film(stages, takes, look, fps)
    progress = Progress(lambda done, total: f"episode {seed}: {done}/{total} pictures", lambda rate: f"{rate:.1f}/s")
    data = encode(film, options.format, progress)
    name = file_name(options, [stage.config for stage in stages], seed)
    entry: dict[str, Any] = {"file": name, **takes[0].row, "as_evaluated": as_evaluated[0]}
    for stage, take, same in [*zip(stages, takes, as_evaluated, strict=True)][1:]:
        told = {"run": run_name(stage.config), **take.row, "as_evaluated": same}
        entry["against"] = {key: value for key, value in told.items() if key != "episode_seed"}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {out}: {error.strerror}") from error
    write_atomically(out / name, data)
    add_to_index(out, entry)
    outcome = " | ".join(describe(take.row) for take in takes)
    print(f"{out / name}: {outcome}; {len(film)} frames at {fps:.4g}/s, {len(data) / 1000:,.0f} kB", flush=True)


def is_as_evaluated(config: RunConfig, take: Take, recorded: Row) -> bool:
    """Whether the episode went as in the last evaluation; where it did not, a line on stderr says so."""
    if take.row == recorded:
        return True
    print(
        f"warning: {run_name(config)}, episode {take.row['episode_seed']:.0f}: {describe(take.row)} here, but "
        f"{describe(recorded)} in episodes.csv: another machine, other package versions, or a file that was changed",
        file=sys.stderr,
        flush=True,
    )
    return False


def describe(row: Row) -> str:
    solved = {None: "", 0: "not solved, ", 1: "solved, "}[row["success"]]
    return f"{solved}return {row['return']} in {row['length']:.0f} steps"


def run_name(config: RunConfig) -> str:
    return str(config.directory(Path()))


def file_name(options: argparse.Namespace, configs: Sequence[RunConfig], seed: int) -> str:
    """The same for the same episode, camera and opponent, so that a video made again replaces the old one."""
    camera = f"_{options.camera.replace('/', '-')}" if options.camera else ""
    against = "".join(f"_against_{other.suite}_{other.agent}_seed_{other.seed:03d}" for other in configs[1:])
    return f"episode_{seed}{against}{camera}.{options.format}"


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
