"""From a launch to Slurm, through submitit: arrays of jobs, recorded before and after each is submitted."""

import contextlib
import os
import shlex
from collections.abc import Iterator

from bench.grid import slurm
from bench.grid.job import run_job
from bench.grid.launch_options import Site, minutes_of
from bench.grid.launches import Array, Launch
from bench.grid.snapshot import plugin_root
from bench.protocol.plugins import loaded_plugins

SIGNAL_SECONDS = 120  # of warning before the time limit; a third of a short one


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
        "mem": array.need.memory,
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
        cpus_per_task=array.need.cores,
        array_parallelism=site.max_parallel,
        signal_delay_s=min(SIGNAL_SECONDS, 20 * minutes_of(site.time)),
        stderr_to_stdout=True,
        setup=setup,
        srun_args=[f"--cpus-per-task={array.need.cores}"],  # not inherited from sbatch since Slurm 22.05
        additional_parameters={
            "requeue": True,
            "kill-on-invalid-dep": "yes",
            "chdir": str(launch.code),  # what is imported lies there, and not in the checkout
        },
    )
    return executor


def print_request(launch: Launch, site: Site) -> None:
    """What submitit would be asked for, for the first array; others differ in cores and memory. The script that it
    makes of this is kept beside the record of a launch; its public interface has none before a submission."""
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
