"""Options that name runs, and where and how they run: what `run`, `plan` and `launch` have in common."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Fixed, arg

import datasets
from agents import AGENTS
from agents.blocks.base import Agent
from agents.blocks.config import settings_of
from bench.command_line import check_folder, check_least, flag, option_types, typed_names
from bench.protocol.config import RunConfig, RunSettings, check_agent, config_difference, default_agent_config
from bench.protocol.grids import run_config
from bench.protocol.plugins import Plugins, loaded_plugins
from bench.protocol.schedule import total_updates
from bench.protocol.suites import SUITES
from bench.protocol.tuned import tuned_config
from bench.runs.contract import ConfigError, RunName, nearest, selected
from bench.tools.trackers import MIRRORS, check_mirrors
from bench.training.execution import Execution


@dataclass(frozen=True)
class Selection:
    """what to run: a suite, or one task with one agent"""

    suite: Annotated[str | None, arg(help=f"one of {', '.join(SUITES)}")] = None
    agents: tuple[str, ...] = ()  # only these: sac, all its variants; sac@small, one of them; sac@, the one without
    tasks: tuple[str, ...] = ()  # only these tasks of the suite
    seeds: tuple[int, ...] = ()  # only these seeds: 0 1 2, or 0,1,2, or 0..2, or 0-2
    task: str | None = None  # a single run's task, e.g. cube-double-task2
    agent: Annotated[str | None, arg(help=f"a single run's agent: {', '.join(AGENTS)}")] = None
    seed: int = 0
    name: str = "single"  # folder of single runs under the results
    dataset: str | None = None  # default: the task's published set; none: learn from scratch, without data
    data: Path | None = None  # train on an npz or HDF5 file of yours
    accept: tuple[str, ...] = ()  # of --data: actions (clipped) or rewards (as they are) that are not the task's
    filter_key: str | None = None  # of --data in robomimic's layout: only this filter key's demonstrations
    agent_config: Annotated[
        dict[str, str],
        arg(metavar="FIELD V …", help="any fields of the agent's config, also each as --agent-config.FIELD V"),
    ] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """where runs go, and how many at a time"""

    results: Path = Path("results")
    extend: bool = False  # go on with finished runs to a larger budget, each in a folder of its own
    pack: int | None = None  # seeds trained together in one process; default by device
    jobs: int | None = None  # packs side by side on this machine; default one per core, or per GPU
    mirror: Annotated[tuple[str, ...], arg(help=f"show the runs in {', '.join(MIRRORS)} meanwhile")] = ()

    def __post_init__(self) -> None:
        check_least(self, pack=1, jobs=1)
        check_folder(self)
        check_mirrors(self.mirror)


@dataclass(frozen=True)
class PlanOptions:
    """What `run` with the same options would do; runs nothing."""

    selection: Selection = Selection()
    settings: RunSettings = RunSettings()
    placement: Placement = Placement()
    execution: Execution = Execution()
    plugins: Plugins = Plugins()
    typed: Fixed[tuple[str, ...]] = ()  # the command line's words

    @property
    def watched_execution(self) -> Execution:
        """How runs are executed, the mirrors beside them, and what their processes must import."""
        mirrors = check_mirrors(self.placement.mirror)
        return replace(self.execution, mirrors=mirrors, plugins=tuple(loaded_plugins()))


def selected_configs(options: PlanOptions) -> list[RunConfig]:
    """The runs that the options name. Settings that they say nothing about stay the suite's. Raises ConfigError."""
    selection, typed = options.selection, typed_names(options.typed)
    check_selection(selection, typed)
    selection = without_repetitions(selection)
    given = typed & option_types(RunSettings).keys()
    settings = {name: getattr(options.settings, name) for name in given}
    if selection.data is not None:
        if selection.dataset is not None:
            raise ConfigError("--data and --dataset exclude each other: a file of yours, or a set by its name")
        reading = datasets.FileOptions(selection.accept, selection.filter_key)
        settings["dataset"] = datasets.register(selection.data, options=reading)
    elif selection.dataset == NO_DATASET:
        settings["dataset"] = None
    elif selection.dataset is not None:
        settings["dataset"] = datasets.parse_name(selection.dataset).name  # in the form that fits a folder's name
    configs = _configs(selection, settings)
    check_on_policy(configs, given)
    check_idle(configs, given)
    check_updates(configs)
    check_data_is_sampled(configs, selection)
    if settings.get("variant"):
        check_variant(configs, _configs(replace(selection, agent_config={}), {}))
    return configs


NO_DATASET = "none"  # typed as a data set


def _configs(selection: Selection, settings: dict[str, Any]) -> list[RunConfig]:
    if selection.suite:
        return suite_configs(selection, settings)
    return [single_config(selection, settings, seed) for seed in selection.seeds or [selection.seed]]


def check_selection(selection: Selection, typed: set[str]) -> None:
    """ConfigError for an option that does nothing with the others, by the one that is meant.

    Args:
        typed: names of the options on the command line.
    """
    if selection.suite and (selection.task or selection.agent):
        raise ConfigError(
            "--suite and --task/--agent exclude each other; to run a part of a suite use --tasks and --agents"
        )
    if not selection.suite and not (selection.task and selection.agent):
        raise ConfigError(f"name a suite (--suite {'|'.join(SUITES)}) or a run (--task T --agent A --seed N)")
    instead = FOR_A_RUN if selection.suite else FOR_A_SUITE
    for name in sorted(typed & instead.keys()):
        raise ConfigError(f"{flag(name)} {instead[name]}")
    for name in sorted(typed & {"accept", "filter_key"}):
        if selection.data is None:
            raise ConfigError(f"{flag(name)} is for a file of yours: name it with --data FILE")
    if {"seed", "seeds"} <= typed:
        raise ConfigError("--seed and --seeds exclude each other; --seeds takes one or several")


# What an option does nothing for, and what is meant instead.
FOR_A_RUN = {
    "seed": "is for a single run (--task T --agent A); the seeds of a suite are chosen with --seeds",
    "name": "is the folder of single runs (--task T --agent A); a suite's has the suite's name, and --results "
    "puts it elsewhere",
}
FOR_A_SUITE = {
    "agents": "chooses from a suite (--suite S); a single run has one --agent",
    "tasks": "chooses from a suite (--suite S); a single run has one --task",
}


def without_repetitions(selection: Selection) -> Selection:
    """Every seed, agent and task once; prints which were there more than once."""
    once: dict[str, Any] = {}
    for name in ("seeds", "agents", "tasks"):
        values = getattr(selection, name)
        once[name] = tuple(dict.fromkeys(values))
        if repeated := [value for value in once[name] if values.count(value) > 1]:
            print(f"{flag(name)}: {', '.join(map(str, repeated))} more than once, counted once", flush=True)
    return replace(selection, **once)


def check_data_is_sampled(configs: list[RunConfig], selection: Selection) -> None:
    """ConfigError for data that are named although none of the runs would draw from any."""
    named = {"--dataset": selection.dataset, "--data": selection.data}
    options = [option for option, value in named.items() if value not in (None, NO_DATASET)]
    if options and all(config.data is None for config in configs):
        agents = ", ".join(dict.fromkeys(config.agent for config in configs))
        raise ConfigError(
            f"{options[0]} does nothing for {agents}, which learns from scratch (offline_updates 0, online_batch_share "
            "1): no update would draw from these data"
        )


# Settings of a replay and of updates after single steps: an agent that learns from whole rollouts reads none of them.
FOR_A_REPLAY = ("warmup_steps", "utd_ratio", "replay_capacity", "online_dataset_rows")


def check_on_policy(configs: list[RunConfig], given: Collection[str]) -> None:
    """ConfigError for a setting that none of the agents reads; prints which of several do not."""
    on_policy = list(dict.fromkeys(config.agent for config in configs if config.rollout_steps is not None))
    idle = [flag(name) for name in FOR_A_REPLAY if name in given]
    if not idle or not on_policy:
        return
    said = (
        f"{' and '.join(idle)}: nothing for {', '.join(on_policy)}, on-policy agents, which update after whole rollouts"
    )
    if all(config.rollout_steps is not None for config in configs):
        raise ConfigError(f"{said} (rollout_decisions, batch_decisions and epochs of --agent-config)")
    print(f"{said}; for all others as given", flush=True)


Reader = tuple[Callable[[RunConfig], bool], str]  # the runs that read a setting, and why others do not
BY_SUCCESS: Reader = (lambda run: datasets.task(run.task).tells_success, "their tasks are scored by return")
READ_BY: dict[str, Reader] = {
    "eval_interval_updates": (lambda run: run.offline_updates > 0, "they have no offline phase"),
    "eval_interval_steps": (lambda run: run.online_steps > 0, "they have no online phase"),
    "success_rule": BY_SUCCESS,
    "success_timing": BY_SUCCESS,
    "gradient_norm_interval": (
        lambda run: not run.gradient_norm_interval or AGENTS[run.agent][0].gradient_norms is not Agent.gradient_norms,
        "their policies' losses run back through no rollout",
    ),
}


def check_idle(configs: list[RunConfig], given: Collection[str]) -> None:
    """ConfigError for a setting that none of the runs reads."""
    for name in sorted(given & READ_BY.keys()):
        reads, why = READ_BY[name]
        if not any(reads(config) for config in configs):
            agents = ", ".join(dict.fromkeys(config.agent for config in configs))
            raise ConfigError(f"{flag(name)} does nothing for these runs of {agents}: {why}; leave it out")


def check_updates(configs: list[RunConfig]) -> None:
    """ConfigError for a run that would end before its first update: it would be complete, and nobody trained."""
    for config in configs:
        if total_updates(config) == 0:
            rollout = config.rollout_steps
            first = f"a rollout is {rollout}" if rollout else f"warmup_steps is {config.warmup_steps}"
            raise ConfigError(f"{first} and online_steps {config.online_steps}: {config.label} would make no update")


def check_variant(configs: list[RunConfig], unchanged: list[RunConfig]) -> None:
    """ConfigError for a variant that names no change of settings, or that different runs would share.

    Args:
        unchanged: the same runs by the settings of their suite.
    """
    variant = configs[0].variant
    for config, same in zip(configs, unchanged, strict=True):
        if config == same.replace(variant=variant):
            setting = next(iter(settings_of(config.agent_config)))
            raise ConfigError(
                f"--variant {variant} is for runs with changed settings, and {config.agent} has none changed; "
                f"change some, as in --agent-config.{setting} VALUE, or leave --variant out"
            )
    first: dict[RunName, RunConfig] = {}
    for config in configs:
        other = first.setdefault(config.name, config)
        if other != config:
            difference = config_difference(config.to_json(), other.to_json())
            raise ConfigError(
                f"--variant {variant} would put different runs into one folder, {config.name} ({difference}); "
                "the suite has variants of its own: leave --variant out"
            )


def suite_configs(selection: Selection, settings: dict[str, Any]) -> list[RunConfig]:
    """A suite's runs, or the part of them that is selected."""
    suite = selection.suite or ""
    if suite not in SUITES:
        raise ConfigError(f"unknown suite {suite!r}{nearest(suite, SUITES)}; suites: {', '.join(SUITES)}")
    configs = SUITES[suite]()
    tasks = [datasets.task(name).name for name in selection.tasks]
    for name, known in zip(selection.tasks, tasks, strict=True):
        _check_data_of_task(name, {"dataset": datasets.task(known).dataset})
    configs = selected(configs, tasks, lambda config: (config.task,), f"suite {suite} has no task", "it has")
    agents = selection.agents
    configs = selected(configs, agents, lambda config: config.name.names, f"suite {suite} has no agent", "it has")
    if selection.seeds:  # a suite may be run with any seeds
        first = configs[0].seed
        configs = [config.replace(seed=seed) for config in configs if config.seed == first for seed in selection.seeds]
    overrides = selection.agent_config
    return [
        config.replace(**settings, agent_config=default_agent_config(config.agent, overrides, config.agent_config))
        for config in configs
    ]


def single_config(selection: Selection, settings: dict[str, Any], seed: int) -> RunConfig:
    task = datasets.task(selection.task or "")
    agent = selection.agent or ""
    _check_data_of_task(selection.task or "", settings)
    check_agent(agent)
    agent_config = default_agent_config(agent, selection.agent_config, tuned_config(agent, task.domain))
    settings = {"dataset": task.dataset, **settings}
    asking = {name: settings[name] for name in ("dataset", "replay") if name in settings}  # for settings of their own
    if asking["dataset"] is None:  # a run without data is refused where it would train on some
        asking |= {name: settings[name] for name in ("offline_updates", "online_batch_share") if name in settings}
    config = run_config(selection.name, task, agent, seed, agent_config=agent_config, **asking)
    return config.replace(**settings)


def _check_data_of_task(name: str, settings: dict[str, Any]) -> None:
    """ConfigError where a task's name chooses data, as OGBench's names do, and the runs would have others."""
    task = datasets.task(name)
    chosen = settings.get("dataset", task.dataset)
    if task.dataset not in (chosen, datasets.task(task.name).dataset):
        raise ConfigError(
            f"task {name!r} means {task.name} with data {task.dataset}, but the data are {chosen}; "
            f"name the task {task.name}, and its data with --dataset"
        )
