"""`python -m bench VERB`: suites and single runs, here or as a grid on a cluster, what they cost, how they fare, data
to train on, and videos of what was learnt. A verb's module is imported when it is called: some take seconds."""

import importlib.util
import os
import sys
from collections.abc import Sequence

if importlib.util.find_spec("tyro") is None or importlib.util.find_spec("torch") is None:
    print(f"error: {sys.executable} lacks the packages; use .venv/bin/python -m bench (make setup)", file=sys.stderr)
    sys.exit(2)

os.environ.setdefault("MUJOCO_GL", "disable")  # observations are states; no GL context is needed
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # reproducible matrix products on a GPU

from bench.command_line import Verb, exit_code, run_verb
from bench.grid.slurm import SlurmError
from bench.runs.contract import ConfigError, StorageError
from bench.runs.provenance import ForeignPackage, check_checkout
from bench.training.workers import WorkerError
from datasets.spec import DataError

PROGRAM = "python -m bench"
ABOUT = "Suites and single runs, here or as a grid on a cluster; data to train on; videos of what was learnt."
VERBS = {
    "run": Verb("run a suite, a part of one, or a single run here", "bench.grid.run:run_command"),
    "plan": Verb("what `run` with the same options would do; runs nothing", "bench.grid.run:plan_command"),
    "launch": Verb("submit a suite to Slurm as job arrays, or run it here", "bench.grid.launch:launch_command"),
    "retry": Verb("launch again, as before, what has failed", "bench.grid.launch:retry_command"),
    "status": Verb("state, progress, rates, time left and failures of runs", "bench.grid.status:status_command"),
    "logs": Verb("the output of a run's process and of its job", "bench.grid.status:logs_command"),
    "cancel": Verb("end a grid's jobs; launch again to go on", "bench.grid.status:cancel_command"),
    "mirror": Verb("copy runs' numbers to TensorBoard or W&B", "bench.tools.mirror:mirror_command"),
    "archive": Verb(
        "complete runs without checkpoints, small enough to publish", "bench.tools.archive:archive_command"
    ),
    "repeat": Verb("train the runs of an archive again", "bench.grid.repeat:repeat_command"),
    "evaluate": Verb("a finished run's policy on fresh episodes", "bench.tools.evaluation:evaluate_command"),
    "video": Verb("evaluation episodes of a finished run as MP4 or GIF", "bench.tools.video:video_command"),
    "list suites": Verb("every suite, and what it is for", "bench.tools.lists:suites_command"),
    "list agents": Verb("every agent, and what it is", "bench.tools.lists:agents_command"),
    "list tasks": Verb("every task, by family", "bench.tools.lists:tasks_command"),
    "list settings": Verb("an agent's settings, their defaults and values", "bench.tools.lists:settings_command"),
    "data list": Verb("every task, its data set, and whether both can be used", "bench.tools.data:list_command"),
    "data get": Verb("download published data", "bench.tools.data:get_command"),
    "data verify": Verb("compare data files with their recorded checksums", "bench.tools.data:verify_command"),
    "data generate": Verb("make data with scripted experts, or by a run's policy", "bench.tools.data:generate_command"),
    "data import": Verb("name a file of yours so that runs can use it", "bench.tools.data:import_command"),
    "data export": Verb("write data, or a run's replay, for others to read", "bench.tools.export:export_command"),
    "worker": Verb("", "bench.grid.run:worker_command"),  # for the pool; not in the list
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1 where a run failed, 2 for bad input, 75 when stopped."""

    def program() -> int:
        check_checkout()
        return run_verb(VERBS, sys.argv[1:] if arguments is None else arguments, PROGRAM, ABOUT)

    refused = (ConfigError, DataError, StorageError, ForeignPackage)
    return exit_code(program, refused, failed=(SlurmError, WorkerError))


if __name__ == "__main__":
    sys.exit(main())
