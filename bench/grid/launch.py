"""`python -m bench launch`: a suite as a grid of Slurm jobs, submitted once through submitit; or the same plan here.

Order of a launch: what is to do, its cost, a copy of the code, the record of what will be submitted, the submission.
Whatever happens in between, launching again finds out from run directories, records and the queue what is missing.
"""

import contextlib
import os
import re
import shlex
import time
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from bench.command_line import check_folder, check_least, flag, option_types, parse, typed_names
from bench.grid import slurm
from bench.grid.cost import Cost, from_finished_runs
from bench.grid.job import bad_nodes, run_job
from bench.grid.launches import Array, Job, Launch, array_name, launches, new_id, queued_runs
from bench.grid.options import PlanOptions, Selection, selected_configs
from bench.grid.plan import PACK_LIMIT, Pack, Plan, describe_plan, estimate_plan, make_packs, run_state, sort_out
from bench.grid.run import run_here
from bench.grid.snapshot import plugin_root, snapshot_path, take_snapshot
from bench.protocol.config import RunConfig
from bench.protocol.plugins import loaded_plugins
from bench.protocol.suites import SUITES
from bench.runs.claims import Claim, Claims
from bench.runs.contract import GRIDS, ConfigError, make_folder, nearest
from bench.runs.quantities import duration
from bench.tools.data import describe_data, ensure_data
from bench.training.execution import Execution
from bench.training.extension import extend
from bench.training.pack import prepare_directory

PROFILE = Path("bench.toml")
ARRAY_LIMIT = 1000  # tasks; Slurm's own limit where that is lower
EVAL_WORKERS = 2  # per pack, where nothing is said: jobs are billed by core
SIGNAL_SECONDS = 120  # of warning before the time limit; a third of a short one
MB_OF_MIRROR = 300  # of which 80 for TensorBoard and 40 for W&B's own process were seen
MB_PER_PACK, MB_PER_PROCESS = 1_500, 700  # resident, as Slurm adds it up without cgroups; measured on cube-single


def minutes_of(text: str) -> int:
    """Slurm's forms of a time limit: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S; rounded up to minutes."""
    try:
        days, _, clock = text.rpartition("-")
        parts = [int(part) for part in clock.split(":")]
        if days:
            hours, minutes, seconds = [*parts, 0, 0][:3]
        elif len(parts) == 3:
            hours, minutes, seconds = parts
        else:
            hours, (minutes, seconds) = 0, [*parts, 0][:2]
        total = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
        if len(parts) > 3 or total <= 0 or text.startswith("-"):
            raise ValueError
    except ValueError:
        raise ConfigError(f"--time is {text!r}; Slurm takes minutes, H:M:S or D-H:M:S") from None
    return -(-total // 60)


@dataclass(frozen=True)
class Site:
    """what jobs ask Slurm for (may stand in the profile, as the execution options, pack and mirror)"""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str = ""  # nodes to keep away from, with commas
    time: str = "12:00:00"  # limit per job; longer runs go on in the same job, started anew
    mem: str | None = None  # per job, as in 16G; default: by its processes; 0: all of a node
    gpus_per_node: int = 0  # per job; 0: jobs of CPUs
    gres: str | None = None  # instead of --gpus-per-node, e.g. gpu:h100:1 or shard:1
    cpus_per_task: int | None = None  # per job; default: the processes that its packs keep busy
    packs_per_job: int = 1  # processes side by side in a job, on the same GPU
    max_parallel: int = 256  # jobs of an array at the same time
    setup: UseAppendAction[tuple[str, ...]] = ()  # a line for the job's shell, e.g. "module load cuda"

    def __post_init__(self) -> None:
        check_least(self, gpus_per_node=0, cpus_per_task=1, packs_per_job=1, max_parallel=1)
        minutes_of(self.time)
        if self.mem is not None and not re.fullmatch(r"\d+[KMGTkmgt]?", self.mem):
            raise ConfigError(f"--mem is {self.mem!r}; Slurm takes a whole number with K, M, G or T, as in 16G")


@dataclass(frozen=True)
class SuiteSelection(Selection):
    """what to run: a suite, or one task with one agent"""

    suite: Annotated[str | None, Positional, arg(help=f"one of {', '.join(SUITES)}")] = None


@dataclass(frozen=True)
class LaunchOptions(PlanOptions):
    """Submit a suite to Slurm as job arrays, or run the same plan here. Launching again submits what is neither
    complete nor queued nor running."""

    selection: SuiteSelection = SuiteSelection()
    slurm: bool = False  # as jobs of this cluster
    local: bool = False  # on this machine
    dry_run: bool = False  # print the plan, and what jobs would ask for; submits nothing
    failed: bool = False  # only runs that have failed
    profile: Path | None = None  # the site's options; default bench.toml, where that is there
    site: Site = Site()


@dataclass(frozen=True)
class Profile:
    """What may stand in the table [launch] of bench.toml."""

    site: Site = Site()
    execution: Execution = Execution()
    pack: int | None = None
    mirror: tuple[str, ...] = ()


@dataclass(frozen=True)
class RetryOptions:
    """Launch again, as before, what has failed."""

    suite: Positional[str | None] = None  # default: every suite that was launched
    failed: bool = False  # must be said
    results: Path = Path("results")

    def __post_init__(self) -> None:
        check_folder(self)


def launch_command(options: LaunchOptions) -> int:
    if options.slurm == options.local:
        raise ConfigError("say where: --slurm (jobs of this cluster) or --local (this machine)")
    check_effect(options)
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
    data_dir = options.execution.data_dir
    with contextlib.nullcontext() if options.dry_run else only_launch(results):
        # Asked within: what another launch has just submitted must be seen.
        queued = {} if options.dry_run and not slurm.exists("squeue") else queued_runs(results, slurm.queue())
        plan = plan_grid(configs, results, options, set(queued))
        waiting = [config for config in configs if config.directory(results) in queued]
        describe_plan(plan, len(configs) - len(waiting), options.selection.suite)
        if waiting:
            jobs = {queued[config.directory(results)].job for config in waiting}
            print(f"{len(waiting)} are in Slurm's queue already ({len(jobs)} jobs): not submitted twice")
        if not plan.packs:
            return 0
        launch = design(plan, options, costs_of(plan, options.site))
        describe_launch(launch, options.site)
        pending = [config for pack in plan.packs for config in pack.configs]
        describe_data(pending, data_dir)
        if options.dry_run:
            print_request(launch, options.site)
            return 0
        ensure_data(pending, data_dir)
        for pack in plan.packs:
            for config in pack.configs:
                prepare_directory(config, pack.results)
        take_snapshot(launch.code)
        submit(launch, options.site)
    suite = launch.suite
    print(f"see how it fares: python -m bench status {suite}; stop it: python -m bench cancel {suite}")
    return 0


def check_effect(options: LaunchOptions) -> None:
    """ConfigError for an option of the command line that does nothing where the runs are to run."""
    idle = option_types(Site).keys() if options.local else {"jobs"}
    typed = typed_names(options.typed)
    for name in sorted(typed & idle):
        where = "--slurm" if options.local else "--local; jobs of an array side by side: --max-parallel"
        raise ConfigError(f"{flag(name)} is for {where}")
    if {"gres", "gpus_per_node"} <= typed:
        raise ConfigError("--gres and --gpus-per-node exclude each other; --gres gpu:TYPE:N asks for N GPUs as well")


def retry_command(options: RetryOptions) -> int:
    """The newest launch of each suite once more, for what has failed; its options are read as they were."""
    if not options.failed:
        raise ConfigError("say what to launch again: retry --failed")
    newest = {launch.suite: launch for launch in launches(options.results.absolute(), options.suite)}
    if not newest:
        raise ConfigError(
            f"no launch{f' of {options.suite}' if options.suite else ''} is recorded under {options.results}; "
            "python -m bench run with the same options goes on with failed runs"
        )
    before = [parse(LaunchOptions, launch.arguments, "python -m bench launch") for launch in newest.values()]
    return max([launch_runs(replace(options, failed=True)) for options in before])


def with_profile(options: LaunchOptions) -> LaunchOptions:
    """Puts the values of bench.toml, table [launch], where the command line says nothing. Raises ConfigError."""
    path = options.profile or (PROFILE if PROFILE.exists() else None)
    if path is None:
        return options
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the profile {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    unknown = [name for name in tables if name != "launch"]
    if unknown:
        raise ConfigError(f"{path} has a table or key {unknown[0]!r}; all options stand in the table [launch]")
    table = {key.replace("-", "_"): value for key, value in tables.get("launch", {}).items()}
    words = [word for name, value in table.items() for word in _words(path, name, value)]
    try:
        profile = parse(Profile, words, "python -m bench launch")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    said = {**vars(profile), **vars(profile.site), **vars(profile.execution)}
    typed = typed_names(options.typed)
    either = {"gres", "gpus_per_node"}  # one typed replaces both
    taken = {name: said[name] for name in table.keys() - typed - (either if typed & either else set())}

    def filled(part: Any) -> Any:
        return replace(part, **{name: value for name, value in taken.items() if hasattr(part, name)})

    return replace(
        options, site=filled(options.site), execution=filled(options.execution), placement=filled(options.placement)
    )


def _words(path: Path, name: str, value: Any) -> list[str]:
    """A key of the profile as words of a command line. Raises ConfigError."""
    types = option_types(Profile)
    if name not in types:
        options = ", ".join(sorted(types))
        raise ConfigError(f"{path} has no option {name!r}{nearest(name, types)}; options: {options}")
    if typing.get_origin(types[name]) is not tuple:
        return [f"{flag(name)}={value}"]
    if not (isinstance(value, list) and all(isinstance(line, str) for line in value)):
        raise ConfigError(f"{path}: {name} must be a list of strings, not {value!r}")
    if name == "setup":
        return [f"{flag(name)}={line}" for line in value]
    return [flag(name), *value] if value else []


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
    packs = make_packs(pending, results, options.placement.pack or PACK_LIMIT[device_type(options.site, execution)])
    packs = tuple(pack for pack in packs if not queued.issuperset(pack.work.directories))  # offline phases may wait too
    return Plan(complete, elsewhere, packs, execution, options.site.max_parallel, results)


def device_type(site: Site, execution: Execution) -> Literal["cpu", "cuda"]:
    """What jobs train on."""
    return "cuda" if (site.gpus_per_node or site.gres) and execution.device != "cpu" else "cpu"


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
        costs |= estimate_plan(here)
    return costs


def design(plan: Plan, options: LaunchOptions, costs: dict[Pack, Cost | None]) -> Launch:
    """Arrays of jobs: shared offline phases first, those that go on from them after them."""
    suite, site = plan.packs[-1].configs[0].suite, options.site
    identity = new_id(suite)
    limit = ARRAY_LIMIT if options.dry_run and not slurm.exists("scontrol") else min(ARRAY_LIMIT, slurm.array_limit())
    stages = (
        [pack for pack in plan.packs if pack.results != plan.results],
        [pack for pack in plan.packs if pack.results == plan.results and not pack.phases],
        [pack for pack in plan.packs if pack.results == plan.results and pack.phases],
    )
    arrays: list[Array] = []
    first: tuple[str, ...] = ()
    for number, stage in enumerate(stages):
        jobs = []
        for start in range(0, len(stage), site.packs_per_job):
            together = stage[start : start + site.packs_per_job]
            estimates = [cost.seconds() for pack in together if (cost := costs[pack]) is not None]
            seconds = max(estimates) if len(estimates) == len(together) else None
            jobs.append(Job(tuple(pack.work for pack in together), seconds))
        for start in range(0, len(jobs), limit):
            name = array_name(identity, len(arrays))
            arrays.append(Array(name, tuple(jobs[start : start + limit]), first if number == 2 else ()))
        if number == 0:
            first = tuple(array.name for array in arrays)
    environments = max(sum(config.num_envs for config in pack.configs) for pack in plan.packs)
    cores = site.cpus_per_task or site.packs_per_job * plan.execution.processes(environments)
    exclude = {node for node in site.exclude.split(",") if node} | bad_nodes(plan.results)
    return Launch(
        id=identity,
        suite=suite,
        results=plan.results,
        code=snapshot_path(plan.results / GRIDS / "code"),
        arguments=options.typed,
        execution=plan.execution,
        gpus_per_job=site.gpus_per_node or int(bool(site.gres)),
        cpus_per_job=cores,
        environments=environments,
        exclude=tuple(sorted(exclude)),
        arrays=tuple(arrays),
    )


def memory_mb(launch: Launch) -> int:
    """What the largest job needs: torch, simulator and networks in each process that is busy, some are shared."""
    packs = max(len(job.works) for array in launch.arrays for job in array.jobs)
    training = packs * (MB_PER_PACK + MB_PER_PROCESS * launch.execution.processes(launch.environments))
    return training + (MB_OF_MIRROR if launch.execution.mirrors else 0)


def describe_launch(launch: Launch, site: Site) -> None:
    """Prints the grid: arrays, jobs, what each asks for, and hours."""
    jobs = [job for array in launch.arrays for job in array.jobs]
    runs = sum(len(job.directories) for job in jobs)
    packs = sum(len(job.works) for job in jobs)
    gpus = site.gres or (f"{launch.gpus_per_job} GPU" if launch.gpus_per_job else "no GPU")
    print(
        f"{len(launch.arrays)} job arrays: {len(jobs)} jobs with {packs} packs of seeds, {runs} runs; "
        f"each job {gpus}, {launch.cpus_per_job} cores, {site.mem or f'{memory_mb(launch)}M'} of memory, "
        f"up to {duration(60 * minutes_of(site.time))}, at most {site.max_parallel} at a time"
    )
    if launch.exclude:
        print(f"keeps away from {', '.join(launch.exclude)}")
    estimates = [job.seconds for job in jobs if job.seconds is not None]
    if len(estimates) < len(jobs):
        unknown = len(jobs) - len(estimates)
        print(f"cost: unknown for {unknown} jobs, since no run of their kind has finished on such a GPU")
    if estimates:
        hours, longest = sum(estimates) / 3600, max(estimates)
        rounds = max(sum(estimates) / site.max_parallel, longest)
        print(
            f"about {hours * launch.gpus_per_job:.3g} GPU hours and {hours * launch.cpus_per_job:.3g} core hours; "
            f"the longest job {duration(longest)}, all at least {duration(rounds)} once they run"
        )


def submit(launch: Launch, site: Site) -> None:
    """Records the launch, then submits its arrays, recording the number of each. Raises SlurmError."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    launch.save()
    ids: dict[str, str] = {}
    for number, array in enumerate(launch.arrays):
        after = [ids[name] for name in array.after]
        dependency = f"afterany:{':'.join(after)}" if after else None
        executor = executor_of(launch, array, site, dependency)
        try:
            with outside_of_jobs():
                jobs = executor.map_array(
                    run_job,
                    *zip(*((str(launch.folder), number, index) for index in range(len(array.jobs))), strict=True),
                )
        except (FailedJobError, FailedSubmissionError) as error:  # with all of sbatch's output in it
            done = f"{len(ids)} of {len(launch.arrays)} arrays are submitted, launch again for the rest"
            raise slurm.SlurmError(f"{_last_line(error)} ({done})") from error
        ids[array.name] = jobs[0].job_id.split("_")[0]
        launch = launch.with_job_id(array, ids[array.name])
        launch.save()
        print(f"submitted {len(array.jobs)} jobs as {ids[array.name]} ({array.name})", flush=True)


def executor_of(launch: Launch, array: Array, site: Site, dependency: str | None):
    """submitit's executor for one array."""
    import submitit

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 2  # Slurm was asked already; a dry run needs none

    executor = Executor(launch.folder / "jobs", max_num_timeout=1000)
    asked = {
        "job_name": array.name,
        "comment": launch.id,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "exclude": ",".join(launch.exclude) or None,
        "time": minutes_of(site.time),
        "mem": site.mem or f"{memory_mb(launch)}M",
        "gres": site.gres,
        "gpus_per_node": (site.gpus_per_node or None) if not site.gres else None,
        "dependency": dependency,
    }
    # Plugins lie in the copy of the code, which comes first; what they import beside them is found where it is.
    folders = dict.fromkeys([launch.code, *(plugin_root(*plugin) for plugin in loaded_plugins().items())])
    python_path = shlex.quote(os.pathsep.join(map(str, folders)))
    setup = [*site.setup, f"export PYTHONPATH={python_path}", "export PYTHONUNBUFFERED=1"]
    executor.update_parameters(
        **{name: value for name, value in asked.items() if value is not None},
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=launch.cpus_per_job,
        array_parallelism=site.max_parallel,
        signal_delay_s=min(SIGNAL_SECONDS, 20 * minutes_of(site.time)),
        stderr_to_stdout=True,
        setup=setup,
        srun_args=[f"--cpus-per-task={launch.cpus_per_job}"],  # not inherited from sbatch since Slurm 22.05
        additional_parameters={
            "requeue": True,
            "kill-on-invalid-dep": "yes",
            "chdir": str(launch.code),  # what is imported lies there, and not in the checkout
        },
    )
    return executor


def print_request(launch: Launch, site: Site) -> None:
    """What submitit would be asked for, for the first array. The script that it makes of this is kept beside the record
    of a launch; before a submission there is none to be had through its public interface."""
    array = launch.arrays[0]
    parameters = executor_of(launch, array, site, dependency=None).parameters
    print(f"each of {len(array.jobs)} jobs of array {array.name}:")
    for name, value in (parameters | parameters.get("additional_parameters", {})).items():
        if name == "setup":
            print("\n".join(f"  setup: {line}" for line in value))
        elif name != "additional_parameters":
            print(f"  {name} = {value}")


@contextlib.contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Without what Slurm tells processes of a job: a launch from within one would hand its limits on."""
    kept = {
        name: os.environ.pop(name) for name in list(os.environ) if name.startswith("SLURM_") and name != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(kept)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
