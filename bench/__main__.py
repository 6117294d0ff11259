"""`python -m bench run | plan | launch | status | logs | cancel | retry | mirror | data | video`: suites and single
runs, here or as a grid on a cluster, what they cost, how they fare, data to train on, and videos of what was learnt."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

os.environ.setdefault("MUJOCO_GL", "disable")  # observations are states; no GL context is needed
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # reproducible matrix products on a GPU

from bench.grid.slurm import SlurmError
from bench.grid.status import add_status_commands
from bench.runs.contract import ConfigError, StorageError, nearest
from bench.runs.provenance import ForeignPackage, check_checkout
from bench.tools.mirror import add_mirror_command
from bench.training.workers import WorkerError
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
            names = [f"--{name.replace('_', '-')}" for name in vars(options) if name != "command"]
            raise ConfigError(f"unknown option {rest[0]!r}{nearest(rest[0].split('=')[0], names)}; see --help")
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
        from bench.grid.run import plan_command, run_command, worker_command
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
        add_launch_commands(commands)
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


if __name__ == "__main__":
    sys.exit(main())
