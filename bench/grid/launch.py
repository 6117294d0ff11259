"""`python -m bench launch`: a suite as a grid of Slurm jobs, submitted once through submitit; or the same plan here.

Order of a launch: what is to do, its cost, a copy of the code, the record of what will be submitted, the submission.
Whatever happens in between, launching again finds out from run directories, records and the queue what is missing.
"""

import argparse
import contextlib
import os
import shlex
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.grid import slurm
from bench.grid.cost import Cost, from_finished_runs
from bench.grid.job import bad_nodes, run_job
from bench.grid.launches import FOLDER, Array, Job, Launch, array_name, launches, new_id, queued_runs
from bench.grid.options import add_execution_options, add_run_options, execution_of, selected_configs
from bench.grid.plan import PACK_LIMIT, Pack, Plan, describe_plan, estimate_plan, make_packs, run_state, sort_out
from bench.grid.progress import duration
from bench.grid.snapshot import snapshot_path, take_snapshot
from bench.protocol.config import RunConfig
from bench.runs.claims import Claim, Claims
from bench.runs.contract import ConfigError, nearest
from bench.runs.writer import StorageError
from bench.tools.data import describe_data, ensure_data
from bench.tools.trackers import check_mirrors
from bench.training.pack import prepare_directory

PROFILE = Path("bench.toml")
ARRAY_LIMIT = 1000  # tasks; Slurm's own limit where that is lower
EVAL_WORKERS = 2  # per pack, where nothing is said: jobs are billed by core
SIGNAL_SECONDS = 120  # of warning before the time limit; a third of a short one
MB_OF_MIRROR = 300  # of which 80 for TensorBoard and 40 for W&B's own process were seen
MB_PER_PACK, MB_PER_PROCESS = 1_500, 700  # resident, as Slurm adds it up without cgroups; measured on cube-single


def add_launch_commands(commands: argparse._SubParsersAction, run_here: Callable) -> None:
    """The `launch` and `retry` commands."""
    launch = commands.add_parser(
        "launch",
        help="submit a suite to Slurm as job arrays, or run the same plan here",
        description="Launching again submits what is neither complete nor queued nor running.",
        allow_abbrev=False,
    )
    launch.set_defaults(command=lambda options, overrides: launch_command(options, overrides, run_here))
    add_run_options(launch, suite="suite")
    where = launch.add_argument_group("where")
    where.add_argument("--slurm", action="store_true", help="as jobs of this cluster")
    where.add_argument("--local", action="store_true", help="on this machine")
    where.add_argument("--dry-run", action="store_true", help="print the plan and the sbatch script; submits nothing")
    where.add_argument("--failed", action="store_true", help="only runs that have failed")
    where.add_argument("--profile", type=Path, help=f"site's options; default {PROFILE}, where that is there")
    site = launch.add_argument_group("Slurm (any of these, and of the execution options, may stand in the profile)")
    site.add_argument("--partition")
    site.add_argument("--account")
    site.add_argument("--qos")
    site.add_argument("--constraint")
    site.add_argument("--exclude", default="", help="nodes to keep away from, with commas")
    site.add_argument(
        "--time", default="12:00:00", help="limit per job; longer runs go on in the same job, started anew"
    )
    site.add_argument("--mem", help="per job, as in 16G; default: by its processes; 0: all of a node")
    site.add_argument("--gpus-per-node", type=int, default=0, help="per job; 0: jobs of CPUs")
    site.add_argument("--gres", help="instead of --gpus-per-node, e.g. gpu:h100:1 or shard:1")
    site.add_argument("--cpus-per-task", type=int, help="per job; default: the processes that its packs keep busy")
    site.add_argument("--packs-per-job", type=int, default=1, help="processes side by side in a job, on the same GPU")
    site.add_argument("--max-parallel", type=int, default=256, help="jobs of an array at the same time")
    site.add_argument(
        "--setup", action="append", default=[], metavar="LINE", help='e.g. "module load cuda"; repeatable'
    )
    add_execution_options(launch)

    retry = commands.add_parser("retry", help="launch again, as before, what has failed", allow_abbrev=False)
    retry.set_defaults(command=retry_command)
    retry.add_argument("suite", nargs="?", help="default: every suite that was launched")
    retry.add_argument("--failed", action="store_true", required=True)
    retry.add_argument("--results", type=Path, default=Path("results"))


def launch_command(options: argparse.Namespace, overrides: dict[str, str], run_here: Callable) -> int:
    """Plans, says what it will cost, submits. Raises ConfigError, SlurmError, StorageError."""
    apply_profile(options)
    if options.slurm == options.local:
        raise ConfigError("say where: --slurm (jobs of this cluster) or --local (this machine)")
    if options.local:
        return run_here(options, overrides)
    for name in ("packs_per_job", "max_parallel", "cpus_per_task"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least 1")
    minutes_of(options.time)
    check_mirrors(options.mirror)
    configs = selected_configs(options, overrides)
    results = options.results.absolute()
    with contextlib.nullcontext() if options.dry_run else only_launch(results):
        # Asked within: what another launch has just submitted must be seen.
        queued = {} if options.dry_run and not slurm.exists("squeue") else queued_runs(results, slurm.queue())
        plan = plan_grid(configs, results, options, set(queued))
        waiting = [config for config in configs if config.directory(results) in queued]
        describe_plan(plan, len(configs) - len(waiting), options.suite)
        if waiting:
            jobs = {queued[config.directory(results)].job for config in waiting}
            print(f"{len(waiting)} are in Slurm's queue already ({len(jobs)} jobs): not submitted twice")
        if not plan.packs:
            return 0
        launch = design(plan, options, costs_of(plan, options))
        describe_launch(launch, options)
        pending = [config for pack in plan.packs for config in pack.configs]
        describe_data(pending, options.data_dir)
        if options.dry_run:
            print(sbatch_script(launch, launch.arrays[0], options, dependency=None))
            return 0
        ensure_data(pending, options.data_dir)
        for pack in plan.packs:
            for config in pack.configs:
                prepare_directory(config, pack.results)
        take_snapshot(launch.code)
        submit(launch, options)
    suite = options.suite or options.name
    print(f"see how it fares: python -m bench status {suite}; stop it: python -m bench cancel {suite}")
    return 0


def retry_command(options: argparse.Namespace, _: dict[str, str]) -> int:
    """The newest launch of each suite once more, for what has failed."""
    from bench.__main__ import main

    newest = {launch.suite: launch for launch in launches(options.results.absolute(), options.suite)}
    if not newest:
        raise ConfigError(
            f"no launch{f' of {options.suite}' if options.suite else ''} is recorded under {options.results}; "
            "python -m bench run with the same options goes on with failed runs"
        )
    codes = [
        main(["launch", *[a for a in launch.arguments if a != "--failed"], "--failed"]) for launch in newest.values()
    ]
    return max(codes)


def apply_profile(options: argparse.Namespace) -> None:
    """Puts the values of bench.toml, table [launch], where the command line says nothing. Raises ConfigError."""
    path = options.profile or (PROFILE if PROFILE.exists() else None)
    if path is None:
        return
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the profile {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    unknown = [name for name in tables if name != "launch"]
    if unknown:
        raise ConfigError(f"{path} has a table or key {unknown[0]!r}; all options stand in the table [launch]")
    given = {argument.split("=")[0] for argument in options.arguments}
    parser = argparse.ArgumentParser(add_help=False)
    known = {action.dest: action for action in _profile_actions(parser)}
    for key, value in tables.get("launch", {}).items():
        name = key.replace("-", "_")
        if name not in known:
            raise ConfigError(
                f"{path} has no option {key!r}{nearest(name, known)}; options: {', '.join(sorted(known))}"
            )
        if f"--{name.replace('_', '-')}" in given:
            continue  # the command line's word
        setattr(options, name, _typed(path, key, value, known[name]))


def _profile_actions(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    add_execution_options(parser)
    for name, kind in _SITE_TYPES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    return parser._actions


_SITE_TYPES: dict[str, type] = {
    **dict.fromkeys(("partition", "account", "qos", "constraint", "exclude", "time", "mem", "gres"), str),
    **dict.fromkeys(("gpus_per_node", "cpus_per_task", "packs_per_job", "max_parallel", "pack"), int),
    **dict.fromkeys(("setup", "mirror"), list),
}


def _typed(path: Path, key: str, value: Any, action: argparse.Action) -> Any:
    if action.type is list:
        if not (isinstance(value, list) and all(isinstance(line, str) for line in value)):
            raise ConfigError(f"{path}: {key} must be a list of strings, not {value!r}")
        return value
    try:
        return action.type(str(value)) if callable(action.type) else str(value)
    except (ValueError, argparse.ArgumentTypeError):
        raise ConfigError(f"{path}: {key} = {value!r} makes no sense") from None


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


@contextlib.contextmanager
def only_launch(results: Path) -> Iterator[None]:
    """Held while a launch looks and submits, so that two of them never submit the same run."""
    folder = results / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror}") from error
    claims, said = Claims(), False
    while not isinstance(held := claims.take(folder), Claim):
        if claims.lives(folder):
            raise ConfigError(f"another launch is at work on {results} ({held}); try again when it is done")
        if not said:
            print(f"another launch is at work on {results} ({held}): waiting for it", flush=True)
        said = True
        time.sleep(1.0)
    try:
        yield
    finally:
        held.release()


def plan_grid(configs: list[RunConfig], results: Path, options: argparse.Namespace, queued: set[Path]) -> Plan:
    """What is neither complete nor held by a living process nor in Slurm's queue, as packs."""
    free = [config for config in configs if config.directory(results) not in queued]
    complete, elsewhere, pending = sort_out(free, results)
    if options.failed:
        pending = [config for config in pending if run_state(config.directory(results))["state"] == "failed"]
    execution = execution_of(options)
    execution = replace(execution, eval_workers=execution.eval_workers or EVAL_WORKERS)
    on_gpu = bool(options.gpus_per_node or options.gres) and execution.device != "cpu"
    packs = make_packs(pending, results, options.pack or PACK_LIMIT["cuda" if on_gpu else "cpu"])
    packs = tuple(pack for pack in packs if not queued.issuperset(pack.work.directories))  # offline phases may wait too
    return Plan(complete, elsewhere, packs, execution, options.max_parallel, results)


def costs_of(plan: Plan, options: argparse.Namespace) -> dict[Pack, Cost | None]:
    """By measured rates: of finished runs of the same kind on the same kind of device; else, for jobs of CPUs, of this
    machine. None where nothing is known."""
    on_gpu = bool(options.gpus_per_node or options.gres) and plan.execution.device != "cpu"
    costs: dict[Pack, Cost | None] = {
        pack: from_finished_runs(pack.configs, plan.results, "cuda" if on_gpu else "cpu", bool(pack.phases))
        for pack in plan.packs
    }
    unknown = tuple(pack for pack, cost in costs.items() if cost is None)
    if unknown and not on_gpu:
        here = replace(plan, packs=unknown, execution=replace(plan.execution, device="cpu"))
        costs |= estimate_plan(here)
    return costs


def design(plan: Plan, options: argparse.Namespace, costs: dict[Pack, Cost | None]) -> Launch:
    """Arrays of jobs: shared offline phases first, those that go on from them after them."""
    suite = options.suite or options.name
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
        for start in range(0, len(stage), options.packs_per_job):
            together = stage[start : start + options.packs_per_job]
            known = [cost.seconds() for pack in together if (cost := costs[pack]) is not None]
            seconds = max(known) if len(known) == len(together) else None
            jobs.append(Job(tuple(pack.work for pack in together), seconds))
        for start in range(0, len(jobs), limit):
            name = array_name(identity, len(arrays))
            arrays.append(Array(name, tuple(jobs[start : start + limit]), first if number == 2 else ()))
        if number == 0:
            first = tuple(array.name for array in arrays)
    environments = max(sum(config.num_envs for config in pack.configs) for pack in plan.packs)
    cores = options.cpus_per_task or options.packs_per_job * plan.execution.processes(environments)
    exclude = {node for node in options.exclude.split(",") if node} | bad_nodes(plan.results)
    return Launch(
        id=identity,
        suite=suite,
        results=plan.results,
        code=snapshot_path(plan.results / FOLDER / "code"),
        arguments=tuple(options.arguments[1:]),
        execution=plan.execution,
        gpus_per_job=options.gpus_per_node or int(bool(options.gres)),
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


def describe_launch(launch: Launch, options: argparse.Namespace) -> None:
    """Prints the grid: arrays, jobs, what each asks for, and hours."""
    jobs = [job for array in launch.arrays for job in array.jobs]
    runs = sum(len(job.directories) for job in jobs)
    packs = sum(len(job.works) for job in jobs)
    gpus = options.gres or (f"{launch.gpus_per_job} GPU" if launch.gpus_per_job else "no GPU")
    print(
        f"{len(launch.arrays)} job arrays: {len(jobs)} jobs with {packs} packs of seeds, {runs} runs; "
        f"each job {gpus}, {launch.cpus_per_job} cores, {options.mem or f'{memory_mb(launch)}M'} of memory, "
        f"up to {duration(60 * minutes_of(options.time))}, at most {options.max_parallel} at a time"
    )
    if launch.exclude:
        print(f"keeps away from {', '.join(launch.exclude)}")
    known = [job.seconds for job in jobs if job.seconds is not None]
    if len(known) < len(jobs):
        print(f"cost: unknown for {len(jobs) - len(known)} jobs, since no run of their kind has finished on such a GPU")
    if known:
        hours, longest = sum(known) / 3600, max(known)
        rounds = max(sum(known) / options.max_parallel, longest)
        print(
            f"about {hours * launch.gpus_per_job:.3g} GPU hours and {hours * launch.cpus_per_job:.3g} core hours; "
            f"the longest job {duration(longest)}, all at least {duration(rounds)} once they run"
        )


def submit(launch: Launch, options: argparse.Namespace) -> None:
    """Records the launch, then submits its arrays, recording the number of each. Raises SlurmError."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    launch.save()
    ids: dict[str, str] = {}
    for number, array in enumerate(launch.arrays):
        after = [ids[name] for name in array.after]
        dependency = f"afterany:{':'.join(after)}" if after else None
        executor = executor_of(launch, array, options, dependency)
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


def executor_of(launch: Launch, array: Array, options: argparse.Namespace, dependency: str | None):
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
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "exclude": ",".join(launch.exclude) or None,
        "time": minutes_of(options.time),
        "mem": options.mem or f"{memory_mb(launch)}M",
        "gres": options.gres,
        "gpus_per_node": (options.gpus_per_node or None) if not options.gres else None,
        "dependency": dependency,
    }
    setup = [*options.setup, f"export PYTHONPATH={shlex.quote(str(launch.code))}", "export PYTHONUNBUFFERED=1"]
    executor.update_parameters(
        **{name: value for name, value in asked.items() if value is not None},
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=launch.cpus_per_job,
        array_parallelism=options.max_parallel,
        signal_delay_s=min(SIGNAL_SECONDS, 20 * minutes_of(options.time)),
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


def sbatch_script(launch: Launch, array: Array, options: argparse.Namespace, dependency: str | None) -> str:
    """What would be submitted for one array."""
    executor = executor_of(launch, array, options, dependency)
    if len(array.jobs) > 1:
        executor.parameters["map_count"] = len(array.jobs)
    return executor._make_submission_file_text(executor._submitit_command_str, "")


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
