"""`python -m bench run | plan | worker`: runs on this machine, and the process that trains one pack of them."""

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from bench.grid.measuring import MEASURED
from bench.grid.measuring_process import MeasuringProcess
from bench.grid.options import PlanOptions, selected_configs
from bench.grid.plan import describe_plan, estimate_plan, make_plan, refuse_changes, run_plan
from bench.protocol.config import RunConfig
from bench.protocol.plugins import Plugins
from bench.protocol.schedule import total_updates
from bench.runs.contract import CONFIG, ConfigError, read_json
from bench.runs.provenance import model_of
from bench.runs.quantities import counted, duration, size
from bench.tools.data import describe_data, ensure_data
from bench.training.engine import COMPILE_FROM, check_matmul, pick_device, pick_mode
from bench.training.execution import EXIT_PREEMPTED, Execution, Preemption
from bench.training.extension import extend


@dataclass(frozen=True)
class RunOptions(PlanOptions):
    """Run a suite, a part of one, or a single run here. What is complete is not run again."""

    dry_run: bool = False  # print the plan and its cost, then stop


@dataclass(frozen=True)
class WorkerOptions:
    """One pack of runs, in this process."""

    directories: Positional[tuple[Path, ...]]  # of the runs, which hold their configs
    results: Path
    supervised: bool = False  # end with the process that started this one
    execution: Execution = Execution()
    plugins: Plugins = Plugins()


def plan_command(options: PlanOptions) -> int:
    return run_selected(options, dry_run=True)


def run_command(options: RunOptions) -> int:
    return run_selected(options, options.dry_run)


def run_selected(options: PlanOptions, dry_run: bool) -> int:
    """What the options name, here."""
    configs = selected_configs(options)
    if options.placement.extend:
        configs = extend(configs, options.placement.results, dry_run)
        if dry_run:  # nothing is there yet that could be planned
            return 0
    return run_here(options, configs, dry_run)


def run_here(options: PlanOptions, configs: list[RunConfig], dry_run: bool) -> int:
    """Plans, says what it will cost, makes generated data that are missing, runs."""
    placement, data_dir = options.placement, options.execution.data_dir
    plan = make_plan(configs, placement.results, options.watched_execution, placement.jobs, placement.pack)
    describe_plan(plan, len(configs), options.selection.suite)
    if not plan.packs:
        return 0
    pending = [config for pack in plan.packs for config in pack.configs]
    execution, device = plan.execution, pick_device(plan.execution.device)
    with MeasuringProcess() as measuring:
        for matmul in sorted({config.matmul for config in pending}):
            measuring(check_matmul, matmul, device)
        said = describe_data(pending, data_dir)
        refuse_changes(plan, device, measuring(model_of, device))
        costs = estimate_plan(plan, measuring)
    disk = size(sum(c.bytes for c in costs.values()))
    seconds = max(sum(c.seconds() for c in costs.values()) / plan.jobs, max(c.seconds() for c in costs.values()))
    modes = sorted({pick_mode(execution.engine, device, total_updates(config)) for config in pending})
    apart = "; updates were measured without compiling, which takes longer" if set(modes) & MEASURED.keys() else ""
    print(
        f"{counted(len(plan.packs), 'pack')} of seeds, {plan.jobs} side by side on {device}; about {duration(seconds)} "
        f"if no episode succeeds early, and {disk} of disk on this machine{apart}",
        flush=True,
    )
    rule = f" (auto: compiled from {COMPILE_FROM:,} on)" if execution.engine == "auto" and device.type == "cpu" else ""
    processes = {None: "ahead in a process for each", 0: "in its own process"}
    environments = processes.get(execution.env_workers, f"ahead in {counted(execution.env_workers or 0, 'process')}")
    print(
        f"each pack: {counted(execution.threads, 'thread')}, updates {' and '.join(modes)}{rule}; "
        f"evaluation in {counted(execution.eval_workers, 'process')} while it trains, environments {environments}",
        flush=True,
    )
    if dry_run:
        for pack, cost in costs.items():
            has_offline = cost.config.offline_updates > 0
            update = cost.offline_update if has_offline else cost.online_update
            rate = f"{1 / update:.1f} {'offline' if has_offline else 'online'} updates/s"
            print(f"  {pack.work.name}: {duration(cost.seconds())} ({rate})")
        return 0
    ensure_data(pending, data_dir, said)
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


def worker_command(options: WorkerOptions) -> int:
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
        run(configs, options.results, options.execution, stop)
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
