"""`python -m bench launch`: a suite as a grid of Slurm jobs, submitted once through submitit; or the same plan here.

Order of a launch: what is to do, its cost, a copy of the code, the record of what will be submitted, the submission.
Whatever happens in between, launching again finds out from run directories, records and the queue what is missing.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tyro.conf import Positional

from bench.command_line import check_folder, parse
from bench.grid import slurm
from bench.grid.cost import Cost, from_finished_runs
from bench.grid.job import bad_nodes
from bench.grid.launch_options import LaunchOptions, Site, check_effect, device_type, minutes_of, with_profile
from bench.grid.launches import Array, Job, Launch, array_name, launches, new_id, queued_runs
from bench.grid.measuring_process import MeasuringProcess
from bench.grid.needs import describe_needs, kinds, with_cores_shared_out
from bench.grid.options import selected_configs
from bench.grid.plan import PACK_LIMIT, Pack, Plan, describe_plan, estimate_plan, make_packs, run_state, sort_out
from bench.grid.run import run_here
from bench.grid.snapshot import snapshot_path, take_snapshot
from bench.grid.submission import print_request, submit
from bench.grid.until_decided import spend_seeds
from bench.protocol.config import RunConfig
from bench.runs.claims import Claim, Claims
from bench.runs.contract import GRIDS, OFFLINE_PHASES, ConfigError, StorageError, make_folder
from bench.runs.quantities import counted, duration
from bench.tools.data import describe_data, ensure_data
from bench.training.extension import extend
from bench.training.pack import prepare_directory

Answer = TypeVar("Answer")

EVAL_WORKERS = 2  # per pack, where nothing is said: jobs are billed by core


@dataclass(frozen=True)
class RetryOptions:
    """Launch again, as before, what has failed."""

    suite: Positional[str | None] = None  # default: every suite that was launched
    results: Path = Path("results")

    def __post_init__(self) -> None:
        check_folder(self)


def launch_command(options: LaunchOptions) -> int:
    if options.slurm == options.local:
        raise ConfigError("say where: --slurm (jobs of this cluster) or --local (this machine)")
    check_effect(options)
    if options.spending.until_decided is not None:
        return spend_seeds(options, launch_runs)
    return launch_runs(options)


def launch_runs(options: LaunchOptions) -> int:
    """Plans, says what it will cost, submits. Raises ConfigError, SlurmError, StorageError."""
    options = with_profile(options)
    configs = selected_configs(options)
    results = options.placement.results.absolute()
    if options.placement.extend:
        configs = extend(configs, results, options.dry_run)
        if options.dry_run:
            return 0
    if options.failed:
        configs = [config for config in configs if run_state(config.directory(results))["state"] == "failed"]
    if options.local:
        return run_here(options, configs, options.dry_run)
    if options.execution.device == "cuda" and not options.site.gpus:
        raise ConfigError("--device cuda needs jobs with a GPU: --gpus-per-node 1")
    if any(config.matmul == "tf32" for config in configs) and device_type(options.site, options.execution) == "cpu":
        raise ConfigError("--matmul tf32 needs jobs with a GPU: --gpus-per-node 1")
    data_dir = options.execution.data_dir
    with contextlib.nullcontext() if options.dry_run else only_launch(results):
        # Asked within: what another launch has just submitted must be seen.
        queued = queued_runs(results, asked(slurm.queue, {}, options.dry_run))
        plan = plan_grid(configs, results, options, set(queued))
        waiting = [config for config in configs if config.directory(results) in queued]
        describe_plan(plan, len(configs) - len(waiting), options.selection.suite)
        if waiting:
            jobs = {queued[config.directory(results)].job for config in waiting}
            there = f"{counted(len(waiting), 'run')} in Slurm's queue already ({counted(len(jobs), 'job')})"
            print(f"{there}: not submitted twice")
        if not plan.packs:
            return 0
        launch = design(plan, options, costs_of(plan, options.site), queued)
        describe_launch(launch, options.site)
        pending = [config for pack in plan.packs for config in pack.configs]
        said = describe_data(pending, data_dir)
        if options.dry_run:
            print_request(launch, options.site)
            return 0
        ensure_data(pending, data_dir, said)
        for pack in plan.packs:
            for config in pack.configs:
                prepare_directory(config, pack.results)
        take_snapshot(launch.code)
        submit(launch, options.site)
    suite = launch.suite
    print(f"see how it fares: python -m bench status {suite}; stop it: python -m bench cancel {suite}")
    return 0


def asked(question: Callable[[], Answer], unknown: Answer, dry_run: bool) -> Answer:
    """Slurm's answer; in a dry run `unknown` where there is no Slurm, or, with a warning, none that answers."""
    if dry_run and not slurm.exists("squeue"):
        return unknown
    try:
        return question()
    except slurm.SlurmError as error:
        if not dry_run:
            raise
        print(f"warning: Slurm does not answer, the plan is made without it ({error})", file=sys.stderr, flush=True)
        return unknown


def retry_command(options: RetryOptions) -> int:
    """The newest launch of each suite once more, for what has failed; its options are read as they were."""
    newest = {launch.suite: launch for launch in launches(options.results.absolute(), options.suite)}
    if not newest:
        raise ConfigError(
            f"no launch{f' of {options.suite}' if options.suite else ''} is recorded under {options.results}; "
            "python -m bench run with the same options goes on with failed runs"
        )
    before = {
        suite: parse(LaunchOptions, launch.arguments, "python -m bench launch") for suite, launch in newest.items()
    }
    code = 0
    for suite, own in before.items():
        try:
            code = max(code, launch_runs(replace(own, failed=True)))
        except (ConfigError, slurm.SlurmError, StorageError) as error:
            if len(before) == 1:
                raise
            print(f"error: {suite}: {error}", file=sys.stderr, flush=True)
            code = 2
    return code


@contextlib.contextmanager
def only_launch(results: Path) -> Iterator[None]:
    """Held while a launch looks and submits, so that two of them never submit the same run."""
    folder = make_folder(results / GRIDS)
    claims, has_waited = Claims(), False
    while not isinstance(held := claims.take(folder), Claim):
        if claims.lives(folder):
            raise ConfigError(f"another launch is at work on {results} ({held}); try again when it is done")
        if not has_waited:
            print(f"another launch is at work on {results} ({held}): waiting for it", flush=True)
        has_waited = True
        time.sleep(1.0)
    try:
        yield
    finally:
        held.release()


def plan_grid(configs: list[RunConfig], results: Path, options: LaunchOptions, queued: set[Path]) -> Plan:
    """What is neither complete nor held by a living process nor in Slurm's queue, as packs."""
    free = [config for config in configs if config.directory(results) not in queued]
    complete, elsewhere, pending = sort_out(free, results)
    execution = options.watched_execution
    execution = replace(execution, eval_workers=execution.eval_workers or EVAL_WORKERS)
    execution = with_cores_shared_out(execution, options.site)
    packs = make_packs(pending, results, options.placement.pack or PACK_LIMIT[device_type(options.site, execution)])
    packs = tuple(pack for pack in packs if not queued.issuperset(pack.work.directories))  # offline phases may wait too
    return Plan(complete, elsewhere, packs, execution, options.site.max_parallel, results)


def costs_of(plan: Plan, site: Site) -> dict[Pack, Cost | None]:
    """By measured rates: of finished runs of the same kind on the same kind of device; else, for jobs of CPUs, of this
    machine. None where nothing is known."""
    device = device_type(site, plan.execution)
    costs: dict[Pack, Cost | None] = {
        pack: from_finished_runs(pack.configs, plan.results, device, bool(pack.phases)) for pack in plan.packs
    }
    unknown = tuple(pack for pack, cost in costs.items() if cost is None)
    if unknown and device == "cpu":
        here = replace(plan, packs=unknown, execution=replace(plan.execution, device="cpu"))
        with MeasuringProcess() as measuring:
            costs |= estimate_plan(here, measuring)
    return costs


def design(
    plan: Plan, options: LaunchOptions, costs: Mapping[Pack, Cost | None], queued: Mapping[Path, slurm.Task]
) -> Launch:
    """Arrays of jobs that ask for the same: shared offline phases first, those that go on from them after them."""
    suite, site = plan.packs[-1].configs[0].suite, options.site
    identity = new_id(suite)
    limit = min(site.array_size, asked(slurm.array_limit, site.array_size, options.dry_run))
    stages = (
        [pack for pack in plan.packs if pack.results != plan.results],
        [pack for pack in plan.packs if pack.results == plan.results and not pack.phases],
        [pack for pack in plan.packs if pack.results == plan.results and pack.phases],
    )
    arrays: list[Array] = []
    phases: tuple[str, ...] = ()
    for number, stage in enumerate(stages):
        before = phases + phases_in_queue(stage, plan.results, queued) if number == 2 else ()
        for need, packs in kinds(stage, site, plan.execution).items():
            jobs = side_by_side(packs, site.packs_per_job, costs)
            for start in range(0, len(jobs), limit):
                name = array_name(identity, len(arrays))
                arrays.append(Array(name, tuple(jobs[start : start + limit]), need, before))
        if number == 0:
            phases = tuple(array.name for array in arrays)
    return Launch(
        id=identity,
        suite=suite,
        results=plan.results,
        code=snapshot_path(plan.results / GRIDS / "code"),
        arguments=options.typed,
        execution=plan.execution,
        gpus_per_job=site.gpus,
        exclude=tuple(sorted(site.excluded | bad_nodes(plan.results))),
        arrays=tuple(arrays),
    )


def side_by_side(packs: Sequence[Pack], number: int, costs: Mapping[Pack, Cost | None]) -> list[Job]:
    """Jobs of at most `number` packs."""
    jobs = []
    for start in range(0, len(packs), number):
        together = packs[start : start + number]
        estimates = [cost.seconds() for pack in together if (cost := costs[pack]) is not None]
        seconds = max(estimates) if len(estimates) == len(together) else None
        jobs.append(Job(tuple(pack.work for pack in together), seconds))
    return jobs


def phases_in_queue(packs: Sequence[Pack], results: Path, queued: Mapping[Path, slurm.Task]) -> tuple[str, ...]:
    """Numbers of earlier jobs that train offline phases of these packs."""
    phases = dict.fromkeys(phase.directory(results / OFFLINE_PHASES) for pack in packs for phase in pack.phases)
    return tuple(dict.fromkeys(queued[phase].job.split("_")[0] for phase in phases if phase in queued))


def describe_launch(launch: Launch, site: Site) -> None:
    """Prints the grid: arrays, jobs, what each asks for, and hours."""
    jobs = [job for array in launch.arrays for job in array.jobs]
    runs = sum(len(job.directories) for job in jobs)
    packs = sum(len(job.works) for job in jobs)
    gpus = site.gres or (f"{launch.gpus_per_job} GPU" if launch.gpus_per_job else "no GPU")
    print(
        f"{counted(len(launch.arrays), 'job array')}: {counted(len(jobs), 'job')} with "
        f"{counted(packs, 'pack')} of seeds, {counted(runs, 'run')}; "
        f"each job {gpus}, up to {duration(60 * minutes_of(site.time))}, {site.max_parallel} of an array at a time"
    )
    describe_needs(launch, site)
    if launch.exclude:
        print(f"keeps away from {', '.join(launch.exclude)}")
    estimates = [job.seconds for job in jobs if job.seconds is not None]
    if len(estimates) < len(jobs):
        unknown = len(jobs) - len(estimates)
        print(f"cost: unknown for {counted(unknown, 'job')}, since no run of their kind has finished on such a GPU")
    if estimates:
        hours, longest = sum(estimates) / 3600, max(estimates)
        cores = sum((job.seconds or 0) / 3600 * array.need.cores for array in launch.arrays for job in array.jobs)
        rounds = max(sum(estimates) / site.max_parallel, longest)
        print(
            f"about {hours * launch.gpus_per_job:.3g} GPU hours and {cores:.3g} core hours; "
            f"the longest job {duration(longest)}, all at least {duration(rounds)} once they run"
        )
