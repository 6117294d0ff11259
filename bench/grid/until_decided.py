"""Seeds where they matter: two agents of a suite get more, a few at a time, until a claim about them is decided.

Analysis judges, in a process of its own: it reads files under results alone, and nothing here depends on it. Its limits
hold at every number of seeds, so that looking after each few does not make errors more frequent.
"""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from bench.command_line import check_least, flag, typed_names
from bench.grid.options import selected_configs
from bench.protocol.config import RunConfig
from bench.runs.contract import ConfigError, Statement, is_among, is_complete
from bench.runs.quantities import counted
from bench.training.pack import prepare_directory

TYPED_APART = ("agents", "tasks", "seeds", "task", "agent", "seed", "failed", "extend")


@dataclass(frozen=True)
class Spending:
    """seeds until a claim is decided"""

    until_decided: str | None = None  # "qc_fql > sac_flow_g", "fql > fql@wide"; of some tasks: "… on SUITE/TASK"
    max_seeds: int = 30  # of each agent, decided or not
    seeds_at_once: int = 2  # of each agent, between looks
    first_seed: int = 0  # seeds from here on are made and count: not those that were seen before the claim was made

    def __post_init__(self) -> None:
        check_least(self, max_seeds=1, seeds_at_once=1, first_seed=0)


def spend_seeds(options: Any, launch: Callable[[Any], int]) -> int:
    """Launches seeds of the two agents until the claim is decided; with --slurm the next ones, once those before are
    complete: the same command goes on. The exit code is that of the launch where it is not 0.

    Args:
        options: a launch's (`LaunchOptions`).
        launch: makes one launch of such options.
    """
    statement, options = checked(options)
    results, most = options.placement.results.absolute(), options.spending.max_seeds
    configs = selected_configs(with_seeds(options, most))
    while True:
        done = seeds_done(configs, results)
        if done:
            judgement = ask_analysis(statement, results, options.spending.first_seed)
            print(judgement["text"], flush=True)
            if judgement["outcome"] != "undecided":
                return 0
        if done >= most:
            print(f"--max-seeds allows no more than {counted(done, 'seed')} of each agent")
            return 0
        wanted = min(done + options.spending.seeds_at_once, most)
        code = launch(with_seeds(options, wanted))
        if code or options.dry_run:
            return code
        if options.slurm:
            print("when they are complete, the same command looks again and goes on", flush=True)
            return 0
        if seeds_done(configs, results) < wanted:
            print("some of these runs are at work elsewhere: when they are complete, the same command goes on")
            return 0


def checked(options: Any) -> tuple[Statement, Any]:
    """The claim, and the options with its agents and tasks. ConfigError for an option that has no effect beside it, for
    another suite, and for what analysis would refuse once it is paid for."""
    suite, typed = options.selection.suite, typed_names(options.typed)
    for name in sorted(typed & set(TYPED_APART)):
        raise ConfigError(
            f"{flag(name)} and --until-decided exclude each other: the claim says what runs, and how often"
        )
    if suite is None:
        raise ConfigError("--until-decided is for a suite: python -m bench launch SUITE --local --until-decided CLAIM")
    text = options.spending.until_decided
    statement = Statement.parse(text if " on " in text else f"{text} on {suite}")
    name, slash, _ = statement.where.partition("/")
    if name != suite:
        if slash:
            raise ConfigError(f"the claim is on suite {name}, and the launch of {suite}")
        statement = replace(statement, where=f"{suite}/{statement.where}")
    options = selecting(options, statement)
    if statement.first == statement.second:
        raise ConfigError(f"{text!r} compares {statement.first} with itself")
    configs = selected_configs(with_seeds(options, 1))
    if more := {config.label for config in configs} - {statement.first, statement.second}:
        raise ConfigError(
            f"these agents have variants in {suite}, and all would run: name two of {', '.join(sorted(more))}"
        )
    for config in configs:
        if not datasets.task(config.task).tells_success:
            raise ConfigError(
                f"{config.task} is scored by its return, which has no bounds: a claim needs success rates"
            )
        if not config.online_steps:
            raise ConfigError("a claim is about evaluations after the offline phase, and --online-steps 0 leaves none")
    return statement, options


def selecting(options: Any, statement: Statement) -> Any:
    """The launch's options with the claim's agents and tasks; in its record, too, are the words that select them."""
    names = (statement.first, statement.second)
    suite, _, inside = statement.where.partition("/")
    known = tuple(dict.fromkeys(config.task for config in selected_configs(options)))
    tasks = tuple(task for task in known if is_among(task, inside))
    if not tasks:
        raise ConfigError(f"suite {suite} has no task {inside!r}; it has {', '.join(known)}")
    selection = replace(options.selection, agents=names, tasks=tasks)
    return replace(options, selection=selection, typed=(*options.typed, "--agents", *names, "--tasks", *tasks))


def with_seeds(options: Any, number: int) -> Any:
    """The same with the first `number` seeds of the claim."""
    seeds = range(options.spending.first_seed, options.spending.first_seed + number)
    selection = replace(options.selection, seeds=tuple(seeds))
    return replace(options, selection=selection, typed=(*options.typed, "--seeds", f"{seeds[0]}..{seeds[-1]}"))


def seeds_done(configs: list[RunConfig], results: Path) -> int:
    """How many seeds, from the first on without a gap, are complete for both agents on all tasks. ConfigError where a
    directory belongs to another config: a claim is about the runs of this launch."""
    of_seed: dict[int, list[bool]] = defaultdict(list)
    for config in configs:
        complete = is_complete(config.directory(results))
        if complete:
            prepare_directory(config, results)
        of_seed[config.seed].append(complete)
    return next((place for place, seed in enumerate(sorted(of_seed)) if not all(of_seed[seed])), len(of_seed))


def ask_analysis(statement: Statement, results: Path, first_seed: int) -> dict[str, Any]:
    """Raises ConfigError with what analysis says where it refuses."""
    command = [sys.executable, "-m", "analysis", "claim", str(statement), "--results", str(results), "--json"]
    command += ["--first-seed", str(first_seed)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise ConfigError(done.stderr.strip().removeprefix("error: "))
    return json.loads(done.stdout)
