"""`python -m bench run | plan | launch | status | logs | cancel | retry | mirror | data | video`: suites and single
runs, here or as a grid on a cluster, what they cost, how they fare, data to train on, and videos of what was learnt."""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

os.environ.setdefault("MUJOCO_GL", "disable")  # observations are states; no GL context is needed
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # reproducible matrix products on a GPU

from bench.grid.slurm import SlurmError
from bench.grid.status import add_status_commands
from bench.runs.contract import ConfigError, WorkerError, nearest
from bench.runs.provenance import ForeignPackage, check_checkout
from bench.runs.writer import StorageError, read_json
from bench.tools.mirror import add_mirror_command
from bench.training.execution import EXIT_PREEMPTED
from datasets.spec import DataError

AGENT_OPTION = "--agent-config."
LIGHT = ("status", "logs", "cancel", "mirror")  # commands that look at files only, without torch and so at once


class Parser(argparse.ArgumentParser):
    """Errors in one line, with the nearest option; exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1 where a run failed, 2 for bad input, 75 when stopped."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        check_checkout()
        others, overrides = split_agent_options(arguments)
        options, rest = build_parser(heavy=not others or others[0] not in LIGHT).parse_known_args(others)
        if rest:
            known = [f"--{name.replace('_', '-')}" for name in vars(options) if name != "command"]
            raise ConfigError(f"unknown option {rest[0]!r}{nearest(rest[0].split('=')[0], known)}; see --help")
        options.arguments = arguments
        return options.command(options, overrides)
    except (ConfigError, DataError, StorageError, ForeignPackage) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except (SlurmError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except BrokenPipeError:  # `… | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python writes at its end goes nowhere
        return 141  # as of a process that SIGPIPE ends
    except KeyboardInterrupt:
        print("stopped; start again to go on", file=sys.stderr, flush=True)
        return 130


def build_parser(heavy: bool) -> Parser:
    """All commands, or only the light ones."""
    parser = Parser(prog="python -m bench", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    if heavy:
        from bench.grid.launch import add_launch_commands
        from bench.grid.options import add_execution_options, add_run_options
        from bench.tools.data import add_data_commands
        from bench.tools.video import add_video_command

        run = commands.add_parser("run", help="run a suite, a part of one, or a single run here", allow_abbrev=False)
        run.set_defaults(command=run_command)
        plan = commands.add_parser(
            "plan", help="what `run` with the same options would do; runs nothing", allow_abbrev=False
        )
        plan.set_defaults(command=plan_command)
        worker = commands.add_parser("worker", allow_abbrev=False)  # for the pool; not in the list of commands
        worker.set_defaults(command=worker_command)
        worker.add_argument("directories", nargs="+", type=Path)
        worker.add_argument("--results", type=Path, required=True)
        worker.add_argument("--supervised", action="store_true", help="end with the process that started this one")
        for command in (run, plan):
            add_run_options(command)
        for command in (run, plan, worker):
            add_execution_options(command)
        run.add_argument("--dry-run", action="store_true", help="print the plan and its cost, then stop")
        add_launch_commands(commands, run_command)
        add_data_commands(commands)
        add_video_command(commands)
    add_status_commands(commands)
    add_mirror_command(commands)
    return parser


def split_agent_options(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """All but the `--agent-config.FIELD VALUE` pairs, and those. ConfigError for one without a value."""
    others, overrides = [], {}
    tokens = iter(arguments)
    for token in tokens:
        if not token.startswith(AGENT_OPTION) or token == f"{AGENT_OPTION}FIELD":
            others.append(token)
            continue
        name, separator, value = token.removeprefix(AGENT_OPTION).partition("=")
        if not separator:
            value = next(tokens, "")
        if not value:
            raise ConfigError(f"{AGENT_OPTION}{name} needs a value")
        overrides[name.replace("-", "_")] = value
    return others, overrides


def plan_command(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    options.dry_run = True
    return run_command(options, overrides)


def run_command(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    """Plans, says what it will cost, makes generated data that are missing, runs."""
    from bench.grid.options import execution_of, selected_configs
    from bench.grid.plan import describe_plan, estimate_plan, make_plan, run_plan
    from bench.grid.progress import duration, size
    from bench.tools.data import describe_data, ensure_data
    from bench.training.engine import pick_device, pick_mode

    configs = selected_configs(options, overrides)
    plan = make_plan(configs, options.results, execution_of(options), options.jobs, options.pack)
    describe_plan(plan, len(configs), options.suite)
    if not plan.packs:
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
    processes = {None: "ahead in a process for each", 0: "in its own process"}
    environments = processes.get(execution.env_workers, f"ahead in {execution.env_workers} processes")
    print(
        f"each pack: {execution.threads} threads, updates {' and '.join(modes)}; "
        f"evaluation in {execution.eval_workers} processes while it trains, environments {environments}",
        flush=True,
    )
    if options.dry_run:
        for pack, cost in costs.items():
            print(f"  {pack.work.name}: {duration(cost.seconds())} ({1 / cost.offline_update:.1f} offline updates/s)")
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
    stop = StopFlag()
    if options.supervised:
        exit_with_parent()
    from bench.grid.options import execution_of
    from bench.protocol.config import RunConfig
    from bench.training.evaluate import Preempted
    from bench.training.train import run

    configs = []
    for directory in options.directories:
        written = read_json(directory / "config.json")
        if written is None:
            raise ConfigError(f"{directory} holds no config.json")
        configs.append(RunConfig.from_json(written))
    if stop():
        return EXIT_PREEMPTED
    try:
        run(configs, options.results, execution_of(options), stop)
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
