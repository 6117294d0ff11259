"""`python -m bench run | plan | worker`: runs on this machine, and the process that trains one pack of them."""

import argparse
import os
import signal
import sys
import threading
import time

from bench.grid.options import execution_of, selected_configs
from bench.grid.plan import describe_plan, estimate_plan, make_plan, run_plan
from bench.protocol.config import RunConfig
from bench.protocol.schedule import total_updates
from bench.runs.contract import CONFIG, ConfigError, read_json
from bench.runs.quantities import duration, size
from bench.tools.data import describe_data, ensure_data
from bench.training.engine import pick_device, pick_mode
from bench.training.execution import EXIT_PREEMPTED, Preemption


def plan_command(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    options.dry_run = True
    return run_command(options, overrides)


def run_command(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    """Plans, says what it will cost, makes generated data that are missing, runs."""
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
    modes = sorted({pick_mode(execution.engine, device, total_updates(config)) for config in pending})
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
    from bench.training.train import run  # what takes its time to import: a signal that comes meanwhile is noticed

    configs = []
    for directory in options.directories:
        written = read_json(directory / CONFIG)
        if written is None:
            raise ConfigError(f"{directory} holds no config.json")
        configs.append(RunConfig.from_json(written))
    if stop():
        return EXIT_PREEMPTED
    try:
        run(configs, options.results, execution_of(options), stop)
    except Preemption:
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
