"""From a list of runs to what there is to do: what is complete, what another process holds, packs of seeds, costs."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import datasets
from bench.grid.cost import Cost
from bench.grid.measuring import estimate
from bench.grid.pool import Work, mark_failed, run_works
from bench.grid.progress import Display
from bench.protocol.config import RunConfig
from bench.protocol.schedule import total_updates
from bench.protocol.suites import SUITES
from bench.runs.claims import Heartbeats, Owner, clock_of, is_fresh
from bench.runs.contract import CHECKPOINT, CONFIG, OFFLINE_PHASES, PROVENANCE, STATUS, is_complete, read_json
from bench.runs.quantities import counted, duration
from bench.runs.resumption import computed_by
from bench.training.engine import pick_device, pick_mode
from bench.training.execution import Execution, available_cores
from bench.training.pack import engines_of_pack, prepare_directory
from bench.training.shared_phase import shared_offline_phases

# Seeds per process: a GPU gains from more, a CPU only saves memory and call overhead.
PACK_LIMIT = {"cpu": 4, "cuda": 8}
FIRST_MEASURED = 5  # configurations, after which it can be said how long measuring all of them takes


@dataclass(frozen=True)
class Pack:
    """Runs that one process trains together: equal but for their seed."""

    configs: tuple[RunConfig, ...]
    results: Path
    phases: tuple[RunConfig, ...] = ()  # offline phases, packs of their own, that these go on from

    @property
    def name(self) -> str:
        seeds = [config.seed for config in self.configs]
        span = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]}-{seeds[-1]}"
        return f"{self.configs[0].task} {self.configs[0].label} {span}"

    @property
    def work(self) -> Work:
        return Work(
            self.name if self.configs[0].online_steps else f"{self.name} (offline, shared)",
            self.results,
            tuple(config.directory(self.results) for config in self.configs),
            frozenset(phase.directory(self.results / OFFLINE_PHASES) for phase in self.phases),
        )


@dataclass(frozen=True)
class Plan:
    """What there is to do for a list of runs."""

    complete: tuple[RunConfig, ...]
    elsewhere: dict[RunConfig, Owner]  # held by a process that shows signs of life: left to it
    packs: tuple[Pack, ...]  # offline phases first
    execution: Execution
    jobs: int  # packs side by side
    results: Path
    gpus: tuple[str, ...] = field(default=())  # that packs share out on this machine


def make_plan(
    configs: list[RunConfig], results: Path, execution: Execution, jobs: int | None = None, pack: int | None = None
) -> Plan:
    """Sorts runs into complete ones and packs. Raises ConfigError where a directory belongs to another config.

    Args:
        jobs: processes side by side; default one per core, on GPUs one per GPU.
        pack: seeds per process at most; default by device, and small enough to keep all cores busy.
    """
    results = results.absolute()
    complete, elsewhere, pending = sort_out(configs, results)
    device = pick_device(execution.device)
    for config in pending:
        pick_mode(execution.engine, device, total_updates(config))
    cores = available_cores()
    gpus = visible_gpus() if device.type == "cuda" else ()
    jobs = jobs or (len(gpus) if gpus else max(1, cores // execution.threads))
    size = pack or max(1, min(PACK_LIMIT[device.type], len(pending) // jobs))
    packs = make_packs(pending, results, size)
    jobs = max(1, min(jobs, len(packs)))
    if execution.eval_workers == 0:
        execution = replace(execution, eval_workers=max(1, cores // jobs))
    return Plan(complete, elsewhere, packs, execution, jobs, results, gpus)


def sort_out(
    configs: list[RunConfig], results: Path
) -> tuple[tuple[RunConfig, ...], dict[RunConfig, Owner], list[RunConfig]]:
    """Runs that are complete, that a living process holds, and that are to do. Creates nothing; ConfigError where a
    directory belongs to another config."""
    directories = [config.directory(results) for config in configs]
    owners = Heartbeats().owners([path for path in directories if not is_complete(path)], results)
    now = clock_of(results)
    complete, elsewhere, pending = [], {}, []
    for config in configs:
        directory = config.directory(results)
        if (directory / CONFIG).exists():
            prepare_directory(config, results)
        if run_state(directory)["state"] == "complete":
            complete.append(config)
        elif directory in owners and is_fresh(owners[directory], now):
            elsewhere[config] = owners[directory]
        else:
            pending.append(config)
    return tuple(complete), elsewhere, pending


def make_packs(pending: list[RunConfig], results: Path, size: int) -> tuple[Pack, ...]:
    """Packs of at most `size` runs that are equal but for their seed. Before them, where several of the runs share an
    offline phase, packs that train it once."""
    shared = shared_offline_phases(pending, results)
    phases = list(dict.fromkeys(shared.values()))
    offline = results / OFFLINE_PHASES
    unfinished = [phase for phase in phases if not is_complete(phase.directory(offline))]
    packs = [Pack(tuple(group), offline) for group in _groups(unfinished, size)]
    for group in _groups(pending, size):
        needed = dict.fromkeys(shared[config] for config in group if config in shared)
        packs.append(Pack(tuple(group), results, tuple(phase for phase in needed if phase in unfinished)))
    return tuple(packs)


def _groups(configs: list[RunConfig], size: int) -> list[list[RunConfig]]:
    alike: dict[RunConfig, list[RunConfig]] = {}
    for config in configs:
        alike.setdefault(config.replace(seed=0), []).append(config)
    return [group[start : start + size] for group in alike.values() for start in range(0, len(group), size)]


def describe_plan(plan: Plan, num_runs: int, suite: str | None) -> None:
    """Prints what is complete, what is left to other processes, and what is to do."""
    if suite:
        print(f"suite {suite}: {(SUITES[suite].__doc__ or '').splitlines()[0]}")
    to_do = num_runs - len(plan.complete) - len(plan.elsewhere)
    print(f"{counted(num_runs, 'run')}: {len(plan.complete)} complete, {to_do} to do", flush=True)
    for owner, configs in _by_owner(plan.elsewhere).items():
        print(f"{len(configs)} left to {owner}, which is at work on them", flush=True)
    if not plan.packs:
        print(
            f"nothing to do: every run under {plan.results} is complete" + (" or under way" if plan.elsewhere else "")
        )
    phases = sum(len(pack.configs) for pack in plan.packs if pack.results != plan.results)
    if phases:
        print(f"{counted(phases, 'offline phase')} trained once for the runs that share them")


def _by_owner(elsewhere: dict[RunConfig, Owner]) -> dict[str, list[RunConfig]]:
    owners: dict[str, list[RunConfig]] = {}
    for config, owner in elsewhere.items():
        owners.setdefault(str(owner), []).append(config)
    return owners


def run_state(directory: Path) -> dict[str, Any]:
    """The run's status.json; state `planned` where it has not begun, `complete` where it has ended."""
    status = read_json(directory / STATUS) or {"state": "planned"}
    return status | {"state": "complete"} if is_complete(directory) else status


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        tuple(map(str.strip, named.split(",")))
        if named
        else tuple(str(number) for number in range(torch.cuda.device_count()))
    )


def refuse_changes(plan: Plan, device: torch.device, model: str) -> None:
    """ConfigError where runs that have begun elsewhere, or with another engine, would go on here unasked.

    Their workers look more closely: a machine may have GPUs of several models.

    Args:
        model: of the device (`bench.runs.provenance.model_of`).
    """
    for pack in plan.packs:
        computed = {}
        for directory in pack.work.directories:
            if any((directory / CHECKPOINT).glob("slot-*.pt")):
                computed[directory] = computed_by(read_json(directory / PROVENANCE))
        asked = pick_mode(plan.execution.engine, device, total_updates(pack.configs[0]))
        known = {directory: before for directory, before in computed.items() if before is not None}
        engines_of_pack(known, device, model, asked, plan.execution)


def estimate_plan(plan: Plan, call: Callable[..., Any]) -> dict[Pack, Cost]:
    """Measures each distinct configuration once; tasks of one domain cost the same.

    Args:
        call: of (function, *arguments): calls it where it may use the device.
    """
    device = pick_device(plan.execution.device)
    kinds: dict[tuple, list[Pack]] = {}
    for pack in plan.packs:
        config = pack.configs[0]
        task = datasets.task(config.task)
        first = next((other.name for other in datasets.TASKS.values() if other.domain == task.domain), task.name)
        kinds.setdefault((config.replace(seed=0, task=first), len(pack.configs), bool(pack.phases)), []).append(pack)
    costs, started = {}, time.monotonic()
    for number, packs in enumerate(kinds.values()):
        if number == FIRST_MEASURED:
            seconds = (time.monotonic() - started) / number * (len(kinds) - number)
            if seconds > 10:
                print(f"measuring {len(kinds)} configurations on this machine: {duration(seconds)}", flush=True)
        pack = packs[0]
        config, execution = pack.configs[0], plan.execution
        mode = pick_mode(execution.engine, device, total_updates(config))
        cost = call(estimate, config, len(pack.configs), execution.eval_workers, device, execution.threads, mode)
        costs |= dict.fromkeys(packs, replace(cost, offline_elsewhere=bool(pack.phases)))
    return costs


def run_plan(plan: Plan, costs: dict[Pack, Cost], should_stop: Callable[[], bool]) -> list[str]:
    """Runs all packs, `jobs` at a time, each in a process of its own; returns one line per failed pack.

    When asked to stop, passes that on: every worker checkpoints and leaves its runs `preempted`.
    """
    for pack in plan.packs:
        for config in pack.configs:
            prepare_directory(config, pack.results)
    works = {pack.work: pack for pack in plan.packs}
    with Display({work: costs[pack] for work, pack in works.items()}, plan.jobs) as display:
        endings = run_works(list(works), plan.execution, plan.jobs, should_stop, display, plan.gpus)
    for ending in endings:
        if ending.crashed:
            mark_failed(ending.work, ending.line)
    return [f"{ending.work.name}: {ending.line}" for ending in endings]
