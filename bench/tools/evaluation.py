"""`python -m bench evaluate`: policies of finished runs on fresh episodes, which go into files of their own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import safetensors.torch
from scipy.stats import binomtest
from tyro.conf import Positional

import datasets
from bench.command_line import check_folder, check_least
from bench.protocol.config import RunConfig
from bench.protocol.plugins import Plugins
from bench.runs.contract import (
    CONFIG,
    EPISODES,
    EVALUATIONS,
    HEADERS,
    STATUS,
    ConfigError,
    make_folder,
    named_runs,
    read_json,
    write_atomically,
)
from bench.runs.quantities import counted
from bench.runs.writer import csv_bytes
from bench.tools.data import ProgressLine
from bench.tools.roll_out import finished_run
from bench.training.evaluate import EpisodeRow, Evaluation, Evaluator, episode_seeds, prepare_worker, score_of
from bench.training.execution import available_cores
from bench.training.workers import Template

EPISODES_PLAYED = 200
BASE_SEED = 2_000_000  # evaluations during training begin at 1,000,000 or from 1,000,000,000 on
LARGEST_SEED = 2**31 - 1  # that every simulator takes
NORMAL_95 = 1.959964  # 97.5 % quantile


@dataclass(frozen=True)
class EvaluateOptions:
    """The final policy of a finished run on fresh episodes. Episode i resets with the base seed + i."""

    run: Positional[str]  # a run's folder, or suite/task/agent/seed_000; or an agent's folder: each of its runs
    episodes: int | None = None  # default: 200
    task: str | None = None  # another one with observations and actions of the same size; default: the run's
    base_seed: int | None = None  # default: 2000000
    again: bool = False  # the episodes of the run's last evaluation during training, as many as it had
    workers: int = available_cores()  # processes
    results: Path = Path("results")
    plugins: Plugins = Plugins()
    out: Path | None = None  # a folder; default: evaluations/ in the run's folder

    def __post_init__(self) -> None:
        check_least(self, episodes=1, base_seed=0, workers=1)
        check_folder(self)
        if self.out is not None:
            check_folder(self, "out")
        if self.again and (self.episodes is not None or self.base_seed is not None):
            raise ConfigError("--again plays the last evaluation's episodes; --episodes and --base-seed choose others")
        seeds = self.fresh_seeds
        if seeds[-1] > LARGEST_SEED:
            raise ConfigError(
                f"--base-seed is {seeds.start} and --episodes {seeds.stop - seeds.start}; the seed of an episode is at "
                f"most {LARGEST_SEED}"
            )

    @property
    def fresh_seeds(self) -> range:
        """Of the episodes that are played unless it is those of training again."""
        first = BASE_SEED if self.base_seed is None else self.base_seed
        return range(first, first + (EPISODES_PLAYED if self.episodes is None else self.episodes))


def evaluate_command(options: EvaluateOptions) -> int:
    """Everything that can be wrong is found out before the first episode is played."""
    found = [(directory, *finished_run(directory)) for directory in named_runs(options.run, options.results)]
    played = [played_config(directory, trained, options.task) for directory, trained, _ in found]
    for config in played:
        if options.out is not None and (config.directory(options.out) / CONFIG).exists():
            raise ConfigError(f"--out {options.out}: {config.name} there is a run's folder; leave --out out")
    for (directory, trained, policy), config in zip(found, played, strict=True):
        status = read_json(directory / STATUS) or {}
        at = {name: status[name] for name in ("phase", "updates", "env_steps")}
        seeds = episode_seeds(trained, **at) if options.again else options.fresh_seeds
        rows = play(config, policy, seeds, options.workers)
        folder = directory / EVALUATIONS if options.out is None else config.directory(options.out)
        file = make_folder(folder) / f"{config.task}_{len(seeds)}ep_seed{seeds[0]}.csv"
        columns = HEADERS[EPISODES]
        write_atomically(file, csv_bytes([columns, *([{**at, **row}[name] for name in columns] for row in rows)]))
        print(f"{config.label}, seed {config.seed}, on {config.task}: {described(rows)}; {file}", flush=True)
    return 0


def played_config(directory: Path, config: RunConfig, task: str | None) -> RunConfig:
    """The run's config on a task. Raises ConfigError, DataError where its policy cannot act there."""
    trained, played = datasets.task(config.task), datasets.task(config.task if task is None else task)
    ours, theirs = ((spec.obs_dim, spec.action_dim) for spec in (trained, played))
    if ours != theirs:
        raise ConfigError(
            f"{played.name} has observations of {theirs[0]} numbers and actions of {theirs[1]}, but {directory} was "
            f"trained on {trained.name}, with {ours[0]} and {ours[1]}; name a task of the same size"
        )
    if why := datasets.unavailable(played.name):
        raise ConfigError(why)
    return config if played.name == trained.name else config.replace(task=played.name, success_rule=played.success_rule)


def play(config: RunConfig, policy: bytes, seeds: range, workers: int) -> list[EpisodeRow]:
    """A row for each episode, in order, as evaluations during training play theirs. Raises WorkerError."""
    evaluation = Evaluation("", 0, 0, {0: safetensors.torch.load(policy)}, {0: seeds})
    progress = ProgressLine(lambda done, total: f"{done}/{total} episodes", lambda rate: f"{rate:.1f}/s")
    template = Template(prepare_worker, config)
    try:
        evaluator = Evaluator(template, min(workers, len(seeds)), config.success_rule)
        evaluator.submit(evaluation)
        while not evaluator.finished(timeout=1.0):
            progress(len(evaluation.rows), len(seeds))
    finally:
        progress.clear()
        template.close()
    return evaluation.rows_of(0)


def described(rows: Sequence[EpisodeRow]) -> str:
    """Success rate with Wilson's interval; where the task has none, the mean return with a normal one."""
    score, returns = score_of(list(rows)), [row["return"] or 0.0 for row in rows]
    if (rate := score["success_rate"]) is not None:
        solved = round(rate * len(rows))
        low, high = binomtest(solved, len(rows)).proportion_ci(method="wilson")
        of = counted(len(rows), "episode")
        return f"success rate {rate:.3f}, {solved} of {of} (95 % interval {low:.3f} to {high:.3f})"
    mean = fmean(returns)
    if len(rows) == 1:
        return f"return {mean:.4g} in 1 episode"
    half = NORMAL_95 * stdev(returns) / math.sqrt(len(rows))
    return f"mean return {mean:.4g} of {len(rows)} episodes (95 % interval {mean - half:.4g} to {mean + half:.4g})"
