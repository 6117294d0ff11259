"""Options that name runs, and where and how they run: what `run`, `plan` and `launch` have in common."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Fixed, arg

import datasets
from agents import AGENTS
from bench.command_line import check_least, option_types, typed_names
from bench.protocol.config import RunConfig, RunSettings, check_agent, default_agent_config
from bench.protocol.suites import SUITES, run_config, tuned_config
from bench.runs.contract import ConfigError, nearest
from bench.tools.trackers import MIRRORS, check_mirrors
from bench.training.execution import Execution


@dataclass(frozen=True)
class Selection:
    """what to run: a suite, or one task with one agent"""

    suite: Annotated[str | None, arg(help=f"one of {', '.join(SUITES)}")] = None
    agents: tuple[str, ...] = ()  # only these agents of the suite
    tasks: tuple[str, ...] = ()  # only these tasks of the suite
    seeds: tuple[int, ...] = ()  # only these seeds
    task: str | None = None  # a single run's task, e.g. cube-double-task2
    agent: Annotated[str | None, arg(help=f"a single run's agent: {', '.join(AGENTS)}")] = None
    seed: int = 0
    name: str = "single"  # folder of single runs under the results
    dataset: str | None = None  # default: the task's published set
    data: Path | None = None  # train on an npz or HDF5 file of yours
    agent_config: Annotated[
        dict[str, str],
        arg(metavar="FIELD V …", help="any fields of the agent's config, also each as --agent-config.FIELD V"),
    ] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Of the runs under the results."""
        return self.suite or self.name


@dataclass(frozen=True)
class Placement:
    """where runs go, and how many at a time"""

    results: Path = Path("results")
    pack: int | None = None  # seeds trained together in one process; default by device
    jobs: int | None = None  # packs side by side on this machine; default one per core, or per GPU
    mirror: Annotated[tuple[str, ...], arg(help=f"show the runs in {', '.join(MIRRORS)} meanwhile")] = ()

    def __post_init__(self) -> None:
        check_least(self, pack=1, jobs=1)
        check_mirrors(self.mirror)


@dataclass(frozen=True)
class PlanOptions:
    """What `run` with the same options would do; runs nothing."""

    selection: Selection = Selection()
    settings: RunSettings = RunSettings()
    placement: Placement = Placement()
    execution: Execution = Execution()
    typed: Fixed[tuple[str, ...]] = ()  # the command line's words

    @property
    def watched_execution(self) -> Execution:
        """How runs are executed, and the mirrors beside them."""
        return replace(self.execution, mirrors=check_mirrors(self.placement.mirror))


def selected_configs(options: PlanOptions) -> list[RunConfig]:
    """The runs that the options name. Settings that they say nothing about stay the suite's. Raises ConfigError."""
    selection = options.selection
    if selection.suite and (selection.task or selection.agent):
        raise ConfigError(
            "--suite and --task/--agent exclude each other; to run a part of a suite use --tasks and --agents"
        )
    given = typed_names(options.typed) & option_types(RunSettings).keys()
    settings = {name: getattr(options.settings, name) for name in given}
    if selection.data is not None:
        if selection.dataset is not None:
            raise ConfigError("--data and --dataset exclude each other: a file of yours, or a set by its name")
        settings["dataset"] = datasets.register(selection.data)
    elif selection.dataset is not None:
        settings["dataset"] = datasets.parse_name(selection.dataset).name  # in the form that fits a folder's name
    if selection.suite:
        return suite_configs(selection, settings)
    if not (selection.task and selection.agent):
        raise ConfigError(f"name a suite (--suite {'|'.join(SUITES)}) or a run (--task T --agent A --seed N)")
    return [single_config(selection, settings, seed) for seed in selection.seeds or [selection.seed]]


def suite_configs(selection: Selection, settings: dict[str, Any]) -> list[RunConfig]:
    """A suite's runs, or the part of them that is selected."""
    suite = selection.suite or ""
    if suite not in SUITES:
        raise ConfigError(f"unknown suite {suite!r}{nearest(suite, SUITES)}; suites: {', '.join(SUITES)}")
    configs = SUITES[suite]()
    tasks = [datasets.task(name).name for name in selection.tasks]
    for name, wanted in (("task", tasks), ("agent", selection.agents)):
        present = list(dict.fromkeys(getattr(config, name) for config in configs))
        for value in wanted:
            if value not in present:
                raise ConfigError(
                    f"suite {suite} has no {name} {value!r}{nearest(value, present)}; it has {', '.join(present)}"
                )
        if wanted:
            configs = [config for config in configs if getattr(config, name) in wanted]
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
    check_agent(agent)
    agent_config = default_agent_config(agent, selection.agent_config, tuned_config(agent, task.domain))
    config = run_config(selection.name, task, agent, seed, agent_config=agent_config)
    return config.replace(**settings)
