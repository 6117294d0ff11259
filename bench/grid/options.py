"""Options that name runs and how they are executed; those of `run`, `plan` and `launch`."""

import argparse
import dataclasses
import typing
from pathlib import Path
from typing import Any

import datasets
from agents import AGENTS
from bench.protocol.config import RunConfig, check_agent, default_agent_config, parse_value
from bench.protocol.suites import SUITES, run_config, tuned_config
from bench.runs.claims import LEASE_SECONDS
from bench.runs.contract import ConfigError, nearest
from bench.tools.trackers import MIRRORS, check_mirrors
from bench.training.engine import MODES
from bench.training.execution import Execution

RUN_FIELDS = tuple(
    f for f in dataclasses.fields(RunConfig) if f.name not in ("suite", "task", "agent", "seed", "agent_config")
)


def add_run_options(parser: argparse.ArgumentParser, suite: str = "--suite") -> None:
    """What to run; `suite` may be the name of a positional argument."""
    what = parser.add_argument_group("what to run: a suite, or one task with one agent")
    named = what.add_argument(suite, help=f"one of {', '.join(SUITES)}")
    if not suite.startswith("-"):
        named.nargs, named.required = "?", False
    what.add_argument("--agents", nargs="+", help="only these agents of the suite")
    what.add_argument("--tasks", nargs="+", help="only these tasks of the suite")
    what.add_argument("--seeds", nargs="+", type=int, help="only these seeds")
    what.add_argument("--task", help="a single run's task, e.g. cube-double-task2")
    what.add_argument("--agent", help=f"a single run's agent: {', '.join(AGENTS)}")
    what.add_argument("--seed", type=int, default=0)
    what.add_argument("--name", default="single", help="folder of single runs under results/")
    fields = parser.add_argument_group("settings that make another run of it (they override the suite's)")
    for field in RUN_FIELDS:
        fields.add_argument(
            f"--{field.name.replace('_', '-')}",
            metavar="V",
            help=f"default {field.default}" if field.name != "dataset" else "default: the task's published set",
        )
    fields.add_argument("--data", type=Path, metavar="FILE", help="train on an npz or HDF5 file of yours")
    fields.add_argument("--agent-config.FIELD", metavar="V", help="any field of the agent's config")
    how = parser.add_argument_group("how to run it (changes no result)")
    how.add_argument("--results", type=Path, default=Path("results"))
    how.add_argument("--pack", type=int, help="seeds trained together in one process; default by device")
    how.add_argument("--jobs", type=int, help="packs side by side on this machine; default one per core, or per GPU")
    how.add_argument("--mirror", nargs="+", default=[], help=f"show the runs in {', '.join(MIRRORS)} meanwhile")


def add_execution_options(parser: argparse.ArgumentParser) -> None:
    """How runs are executed, which changes no result."""
    how = parser.add_argument_group("execution")
    how.add_argument("--device", default="auto", help="auto, cpu or cuda")
    how.add_argument("--engine", default="auto", help=f"how updates are executed: auto, {', '.join(MODES)}")
    how.add_argument("--threads", type=int, default=1, help="CPU threads per process")
    how.add_argument(
        "--eval-workers", type=int, default=0, help="evaluation processes per pack; 0: the cores there are"
    )
    how.add_argument(
        "--env-workers",
        type=count_or_auto,
        default=None,
        metavar="N|auto",
        help="processes that step a pack's training environments ahead; 0: none; auto: one for each",
    )
    how.add_argument("--checkpoint-seconds", type=float, default=300.0)
    how.add_argument(
        "--lease-seconds",
        type=float,
        default=LEASE_SECONDS,
        help="without a sign of life from a run's process on another machine, after which it is taken over",
    )
    how.add_argument("--data-dir", type=Path, help="where published data lie; default ~/.ogbench/data")


def selected_configs(options: argparse.Namespace, overrides: dict[str, str]) -> list[RunConfig]:
    """The runs that the options name."""
    if options.suite and (options.task or options.agent):
        raise ConfigError(
            "--suite and --task/--agent exclude each other; to run a part of a suite use --tasks and --agents"
        )
    kinds = typing.get_type_hints(RunConfig)
    given = {f.name: getattr(options, f.name) for f in RUN_FIELDS if getattr(options, f.name) is not None}
    settings = {name: parse_value(kinds[name], text, name) for name, text in given.items()}
    if options.data is not None:
        if "dataset" in settings:
            raise ConfigError("--data and --dataset exclude each other: a file of yours, or a set by its name")
        settings["dataset"] = datasets.register(options.data)
    elif "dataset" in settings:
        settings["dataset"] = datasets.parse_name(settings["dataset"]).name  # in the form that fits a folder's name
    if not options.suite:
        if not (options.task and options.agent):
            raise ConfigError(f"name a suite (--suite {'|'.join(SUITES)}) or a run (--task T --agent A --seed N)")
        return [single_config(options, settings, overrides, seed) for seed in options.seeds or [options.seed]]
    if options.suite not in SUITES:
        raise ConfigError(
            f"unknown suite {options.suite!r}{nearest(options.suite, SUITES)}; suites: {', '.join(SUITES)}"
        )
    configs = SUITES[options.suite]()
    tasks = [datasets.task(name).name for name in options.tasks] if options.tasks else None
    for name, wanted in (("task", tasks), ("agent", options.agents), ("seed", options.seeds)):
        if wanted:
            present = list(dict.fromkeys(getattr(config, name) for config in configs))
            for value in wanted:
                if value not in present and name != "seed":
                    raise ConfigError(
                        f"suite {options.suite} has no {name} {value!r}{nearest(value, present)}; "
                        f"it has {', '.join(present)}"
                    )
            if name == "seed":  # a suite may be run with any seeds
                configs = [c.replace(seed=s) for c in configs if c.seed == present[0] for s in wanted]
            else:
                configs = [config for config in configs if getattr(config, name) in wanted]
    return [
        config.replace(**settings, agent_config=default_agent_config(config.agent, overrides, config.agent_config))
        for config in configs
    ]


def single_config(
    options: argparse.Namespace, settings: dict[str, Any], overrides: dict[str, str], seed: int
) -> RunConfig:
    task = datasets.task(options.task)
    check_agent(options.agent)
    agent_config = default_agent_config(options.agent, overrides, tuned_config(options.agent, task.domain))
    config = run_config(options.name, task, options.agent, seed, agent_config=agent_config)
    return config.replace(**settings)


def execution_of(options: argparse.Namespace) -> Execution:
    """How the options say that runs are executed. Raises ConfigError."""
    for name, least in (("threads", 1), ("eval_workers", 0), ("env_workers", 0), ("pack", 1), ("jobs", 1)):
        value = getattr(options, name, None)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    return Execution(
        device=options.device,
        engine=options.engine,
        threads=options.threads,
        eval_workers=options.eval_workers,
        env_workers=options.env_workers,
        checkpoint_seconds=options.checkpoint_seconds,
        data_dir=options.data_dir,
        lease_seconds=options.lease_seconds,
        mirrors=check_mirrors(getattr(options, "mirror", [])),
    )


def count_or_auto(text: str) -> int | None:
    """A whole number, or None for "auto"."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor auto") from None
