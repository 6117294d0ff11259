"""From a launch to Slurm, through submitit: arrays of jobs, recorded before and after each is submitted."""

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator

from bench.grid import slurm
from bench.grid.job import run_job
from bench.grid.launch_options import Site, minutes_of
from bench.grid.launches import Array, Launch
from bench.grid.snapshot import plugin_root
from bench.protocol.plugins import loaded_plugins
from bench.runs.quantities import counted

SIGNAL_SECONDS = 120  # of warning before the time limit; a third of a short one


# What sbatch says where a user, an account or the cluster has as many jobs in the queue as it may, or an array is too
# large: fewer may be taken. Versions that give the reason name the limit; others are about wall time and the like.
NAMED_LIMIT = re.compile(r"\b(?:QOS|Assoc)\w+Limit")
LIMIT = re.compile(r"job submit limit|Invalid job array specification|Resource temporarily unavailable")


class LimitError(slurm.SlurmError):
    """The site takes no array of so many jobs now."""


def submit(launch: Launch, site: Site) -> None:
    """Records the launch, then submits its arrays, recording the number of each. One that is more than the site takes
    is divided. Raises SlurmError, where one job is more: that says how many runs are submitted."""
    launch.save()
    ids: dict[str, str] = {}
    while len(ids) < len(launch.arrays):
        array = launch.arrays[len(ids)]
        try:
            job = submit_array(launch, len(ids), site, [ids.get(name, name) for name in array.after])
        except LimitError as error:
            if len(array.jobs) == 1:
                raise slurm.SlurmError(refusal(launch, len(ids), str(error))) from error
            if not array.name.endswith((".0", ".1")):  # said once, and not of its halves
                print(
                    f"the site does not take {counted(len(array.jobs), 'job')} at once ({error}): fewer at a time",
                    flush=True,
                )
            launch = launch.divided(len(ids))
            launch.save()
            continue
        except slurm.SlurmError as error:
            done, left = runs_of(launch, len(ids))
            rest = (
                f"{done} of {done + left} runs are submitted; launch again for the rest"
                if done
                else "nothing is submitted"
            )
            raise slurm.SlurmError(f"{error} ({rest})") from error
        ids[array.name] = job
        launch = launch.with_job_id(array, job)
        launch.save()
        print(f"submitted {counted(len(array.jobs), 'job')} as {job} ({array.name})", flush=True)


def refusal(launch: Launch, submitted: int, why: str) -> str:
    """What to do where the site takes one array after another, and then no job more."""
    done, left = runs_of(launch, submitted)
    if done:
        return (
            f"the site takes no more jobs now ({why}): {done} of {done + left} runs are submitted; "
            f"launch again for the other {left} when some of these have ended"
        )
    if slurm.queue():
        return (
            f"the site takes no job now ({why}): none of {left} runs is submitted; "
            "launch again when some of those in the queue have ended (python -m bench status)"
        )
    return (
        f"the site takes not one job, and none of this project is in the queue ({why}): none of {left} runs is "
        "submitted; see who fills the limit with squeue, and whether --partition, --account, --qos and --time are right"
    )


def runs_of(launch: Launch, number: int) -> tuple[int, int]:
    """How many are in its first `number` arrays, and in all others."""
    runs = [sum(len(job.directories) for job in array.jobs) for array in launch.arrays]
    return sum(runs[:number]), sum(runs[number:])


def limit_of(said: str) -> str | None:
    """The limit of jobs in the queue that sbatch refers to; None where it refuses for another reason."""
    if named := NAMED_LIMIT.search(said):
        return named[0] if "Submit" in named[0] else None
    found = LIMIT.search(said)
    return found[0] if found else None


def submit_array(launch: Launch, number: int, site: Site, after: list[str]) -> str:
    """Slurm's number for it. Raises LimitError where it has too many jobs, SlurmError."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    count = len(launch.arrays[number].jobs)
    dependency = f"afterany:{':'.join(after)}" if after else None
    executor = executor_of(launch, launch.arrays[number], site, dependency)
    said = io.StringIO()  # submitit repeats there what sbatch has said, and the exception has it as well
    try:
        with outside_of_jobs(), contextlib.redirect_stderr(said):
            jobs = executor.map_array(run_job, [str(launch.folder)] * count, [number] * count, range(count))
    except (FailedJobError, FailedSubmissionError) as error:
        if limit := limit_of(str(error)):
            raise LimitError(limit) from error
        raise slurm.SlurmError(_last_line(error)) from error
    return jobs[0].job_id.split("_")[0]


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
    print(f"each job of array {array.name}:")
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
