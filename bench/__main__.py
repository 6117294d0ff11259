"""`python -m bench run | plan | data`: suites and single runs, what they cost, and data to train on."""

import argparse
import dataclasses
import os
import signal
import sys
import threading
import time
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("MUJOCO_GL", "disable")  # observations are states; no GL context is needed
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # reproducible matrix products on a GPU

import datasets
from agents import AGENTS
from bench.config import ConfigError, RunConfig, check_agent, default_agent_config, parse_value
from bench.data import add_data_commands, describe_data, ensure_data
from bench.engine import MODES, pick_device, pick_mode
from bench.evaluate import EXIT_PREEMPTED, Preempted
from bench.provenance import ForeignPackage, check_checkout
from bench.suites import SUITES, tuned_config
from bench.workers import WorkerError
from bench.writer import StorageError, read_json
from datasets.spec import DataError, nearest

AGENT_OPTION = "--agent-config."
RUN_FIELDS = tuple(
    f for f in dataclasses.fields(RunConfig) if f.name not in ("suite", "task", "agent", "seed", "agent_config")
)


class Parser(argparse.ArgumentParser):
    """Errors in one line, with the nearest option; exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1 where a run failed, 2 for bad input, 75 when stopped."""
    try:
        check_checkout()
        options, rest = build_parser().parse_known_args(arguments)
        overrides = agent_overrides(rest, options)
        return options.command(options, overrides)
    except (ConfigError, DataError, StorageError, ForeignPackage) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except BrokenPipeError:  # `… | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python writes at its end goes nowhere
        return 141  # as of a process that SIGPIPE ends
    except KeyboardInterrupt:
        print("stopped; start again to go on", file=sys.stderr, flush=True)
        return 130


def build_parser() -> Parser:
    parser = Parser(prog="python -m bench", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    run = commands.add_parser("run", help="run a suite, a part of one, or a single run", allow_abbrev=False)
    run.set_defaults(command=run_command)
    plan = commands.add_parser(
        "plan", help="what `run` with the same options would do; runs nothing", allow_abbrev=False
    )
    plan.set_defaults(command=plan_command)
    for command in (run, plan):
        add_run_options(command)
    run.add_argument("--dry-run", action="store_true", help="print the plan and its cost, then stop")

    worker = commands.add_parser("worker", help=argparse.SUPPRESS, allow_abbrev=False)
    worker.set_defaults(command=worker_command)
    worker.add_argument("directories", nargs="+", type=Path)
    worker.add_argument("--supervised", action="store_true", help="end with the process that started this one")
    for command in (run, plan, worker):
        add_execution_options(command)

    add_data_commands(commands)
    return parser


def add_run_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to run: a suite, or one task with one agent")
    what.add_argument("--suite", help=f"one of {', '.join(SUITES)}")
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
    fields.add_argument(f"{AGENT_OPTION}FIELD", metavar="V", help="any field of the agent's config")
    how = parser.add_argument_group("how to run it (changes no result)")
    how.add_argument("--results", type=Path, default=Path("results"))
    how.add_argument("--pack", type=int, help="seeds trained together in one process; default by device")
    how.add_argument("--jobs", type=int, help="packs side by side; default one per core, one on a GPU")


def add_execution_options(parser: argparse.ArgumentParser) -> None:
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
        help="processes that step a pack's training environments ahead; 0: none; auto: one for each seed",
    )
    how.add_argument("--checkpoint-seconds", type=float, default=300.0)
    how.add_argument("--data-dir", type=Path, help="where published data lie; default ~/.ogbench/data")
    if "worker" in parser.prog:
        how.add_argument("--results", type=Path, required=True)


def agent_overrides(rest: list[str], options: argparse.Namespace) -> dict[str, str]:
    """`--agent-config.FIELD VALUE` pairs. ConfigError for anything else that is left over."""
    overrides = {}
    tokens = iter(rest)
    for token in tokens:
        if not token.startswith(AGENT_OPTION):
            known = [f"--{name.replace('_', '-')}" for name in vars(options) if name != "command"]
            raise ConfigError(f"unknown option {token!r}{nearest(token.split('=')[0], known)}; see --help")
        name, separator, value = token.removeprefix(AGENT_OPTION).partition("=")
        if not separator:
            value = next(tokens, "")
        if not value:
            raise ConfigError(f"{AGENT_OPTION}{name} needs a value")
        overrides[name.replace("-", "_")] = value
    return overrides


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
    settings = {"dataset": task.dataset, **settings}
    return RunConfig(
        suite=options.name, task=task.name, agent=options.agent, seed=seed, agent_config=agent_config, **settings
    )


def execution_of(options: argparse.Namespace):
    from bench.train import Execution

    for name, least in (("threads", 1), ("eval_workers", 0), ("env_workers", 0)):
        value = getattr(options, name)
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
    )


def count_or_auto(text: str) -> int | None:
    """A whole number, or None for "auto"."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor auto") from None


def plan_command(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    options.dry_run = True
    return run_command(options, overrides)


def run_command(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    """Plans, says what it will cost, makes generated data that are missing, runs."""
    from bench.launch import estimate_plan, make_plan, run_plan
    from bench.progress import duration, size

    configs = selected_configs(options, overrides)
    for name in ("pack", "jobs"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    plan = make_plan(configs, options.results, execution_of(options), options.jobs, options.pack)
    if options.suite:
        print(f"suite {options.suite}: {(SUITES[options.suite].__doc__ or '').splitlines()[0]}")
    print(f"{len(configs)} runs: {len(plan.complete)} complete, {len(configs) - len(plan.complete)} to do", flush=True)
    if not plan.packs:
        print(f"nothing to do: every run under {options.results} is complete")
        return 0
    pending = [config for pack in plan.packs for config in pack.configs]
    describe_data(pending, options.data_dir)
    costs = estimate_plan(plan)
    disk = size(sum(c.bytes for c in costs.values()))
    seconds = max(sum(c.seconds() for c in costs.values()) / plan.jobs, max(c.seconds() for c in costs.values()))
    execution = plan.execution
    device = pick_device(execution.device)
    modes = sorted({pick_mode(execution.engine, device, config.total_updates) for config in pending})
    eagerly = "" if modes == ["eager"] else "; updates were measured eagerly, which takes longer"
    print(
        f"{len(plan.packs)} packs of seeds, {plan.jobs} side by side on {device}; about {duration(seconds)} "
        f"if no episode succeeds early, and {disk} of disk on this machine{eagerly}",
        flush=True,
    )
    processes = {None: "ahead in a process for each seed", 0: "in its own process"}
    environments = processes.get(execution.env_workers, f"ahead in {execution.env_workers} processes")
    print(
        f"each pack: {execution.threads} threads, updates {' and '.join(modes)}; "
        f"evaluation in {execution.eval_workers} processes while it trains, environments {environments}",
        flush=True,
    )
    if options.dry_run:
        for pack, cost in costs.items():
            print(f"  {pack.name}: {duration(cost.seconds())} ({1 / cost.offline_update:.1f} offline updates/s)")
        return 0
    ensure_data(pending, options.data_dir)
    stop = StopFlag()
    failures = run_plan(plan, costs, stop)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr, flush=True)
    if stop():
        print(
            "stopped: runs are checkpointed and marked preempted; the same command goes on", file=sys.stderr, flush=True
        )
        return EXIT_PREEMPTED
    return 1 if failures else 0


def worker_command(options: argparse.Namespace, _: dict[str, str]) -> int:
    """One pack, in this process: the directories' configs, as the parent wrote them."""
    from bench.train import run

    if options.supervised:
        exit_with_parent()
    configs = []
    for directory in options.directories:
        written = read_json(directory / "config.json")
        if written is None:
            raise ConfigError(f"{directory} holds no config.json")
        configs.append(RunConfig.from_json(written))
    try:
        run(configs, options.results, execution_of(options), StopFlag())
    except Preempted:
        return EXIT_PREEMPTED
    return 0


def exit_with_parent() -> None:
    """Ends this process soon after its parent is gone, also when that was killed with SIGKILL."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class StopFlag:
    """True once SIGINT or SIGTERM has come; the second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self._stopped = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, _frame: object) -> None:
        self._stopped = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __call__(self) -> bool:
        return self._stopped


if __name__ == "__main__":
    sys.exit(main())
