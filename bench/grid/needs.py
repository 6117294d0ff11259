"""What jobs of a grid need of Slurm: cores and memory, by the processes that their packs keep busy and their arrays."""

from collections.abc import Sequence
from dataclasses import replace

from bench.grid.cost import batch_bytes, replay_bytes
from bench.grid.launch_options import CORES_PER_GPU, Site, device_type
from bench.grid.launches import Launch, Need
from bench.grid.plan import Pack
from bench.runs.contract import ConfigError
from bench.runs.quantities import size
from bench.training.execution import Execution, compile_processes

MB_OF_MIRROR = 300  # of which 80 for TensorBoard and 40 for W&B's own process were seen
MB_PER_PACK, MB_PER_PROCESS = 1_500, 700  # resident, as Slurm adds it up without cgroups; measured on cube-single
MB_PER_ENVIRONMENT = 150  # of each but the first of a process; 70 to 145 were seen on cubes
# On a GPU. Torch with CUDA takes 690 with its compiler imported, torch without it 340. No context was measured yet.
MB_OF_CUDA, MB_OF_CONTEXT, MB_PER_COMPILER = 350, 1_000, 700  # in each process, of each pack, of each that compiles
MB_STEP = 1_000  # memory is asked for in multiples, so that tasks that are nearly alike share an array


def with_cores_shared_out(execution: Execution, site: Site) -> Execution:
    """With a number of environment processes for each pack where nothing is said of them: what a job's cores leave,
    beside training and evaluation. A pack of fewer environments has fewer."""
    if execution.env_workers is not None:
        return execution
    cores = (site.cpus_per_task or site.cores_per_gpu * max(1, site.gpus)) // site.packs_per_job
    return replace(execution, env_workers=max(1, cores - replace(execution, env_workers=0).processes(0)))


def need_of(pack: Pack, together: int, site: Site, execution: Execution) -> Need:
    """What a job of so many packs like this one asks for. Raises ConfigError where its arrays alone are larger."""
    config = pack.configs[0]
    arrays = megabytes_of_arrays(pack, together)
    least = int(-(-megabytes(pack, together, site, execution) // MB_STEP) * MB_STEP)
    if site.megabytes is not None and arrays > 1.048576 * site.megabytes:
        raise ConfigError(
            f"--mem is {site.mem}, and replay and batches of a job of {config.task} {config.label} alone take "
            f"{size(1e6 * arrays)}; leave --mem out, or ask for {least}M"
        )
    return Need(cores_of(pack, together, site, execution), site.mem or f"{least}M")


def cores_of(pack: Pack, together: int, site: Site, execution: Execution) -> int:
    """Of a job of so many packs like this one."""
    return site.cpus_per_task or together * execution.processes(_environments(pack))


def megabytes(pack: Pack, together: int, site: Site, execution: Execution) -> float:
    """Memory that a job of so many packs like this one takes: its processes', as Slurm adds it up, and its arrays'."""
    environments = _environments(pack)
    processes = execution.processes(environments)
    crowded = environments - max(1, execution.stepping(environments))
    mb = MB_PER_PACK + MB_PER_PROCESS * processes + MB_PER_ENVIRONMENT * max(0, crowded)
    if device_type(site, execution) == "cuda":
        mb += MB_OF_CONTEXT + MB_OF_CUDA * processes
        mb += MB_PER_COMPILER * _compilers(cores_of(pack, together, site, execution), execution)
    return together * mb + megabytes_of_arrays(pack, together) + (MB_OF_MIRROR if execution.mirrors else 0)


def megabytes_of_arrays(pack: Pack, together: int) -> float:
    """Of the replay and batches of so many packs like this one."""
    return together * (sum(map(replay_bytes, pack.configs)) + batch_bytes(pack.configs[0])) / 1e6


def _environments(pack: Pack) -> int:
    return sum(config.num_envs for config in pack.configs)


def _compilers(cores: int, execution: Execution) -> int:
    """Processes that compile for a pack on a GPU, the one that the others are forked from included."""
    if execution.engine in ("eager", "graph") or compile_processes(cores) == 1:
        return 0
    return 1 + compile_processes(cores)


def kinds(packs: Sequence[Pack], site: Site, execution: Execution) -> dict[Need, list[Pack]]:
    """Packs by what their jobs ask for."""
    found: dict[Need, list[Pack]] = {}
    for pack in packs:
        found.setdefault(need_of(pack, min(site.packs_per_job, len(packs)), site, execution), []).append(pack)
    return found


def describe_needs(launch: Launch, site: Site) -> None:
    """Prints a table of the kinds of jobs, and warns where a GPU takes many cores."""
    rows: list[tuple[str, ...]] = [("cores", "memory", "jobs", "packs", "runs", "agents")]
    for need in dict.fromkeys(array.need for array in launch.arrays):
        jobs = [job for array in launch.arrays if array.need == need for job in array.jobs]
        agents = dict.fromkeys(directory.parent.name for job in jobs for directory in job.directories)
        counts = (len(jobs), sum(len(job.works) for job in jobs), sum(len(job.directories) for job in jobs))
        shown = ", ".join(agents) if len(agents) <= 6 else f"{len(agents)} agents and variants"
        rows.append((str(need.cores), need.memory, *(f"{count:,}" for count in counts), shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for *numbers, agents in rows:
        print("".join(f"  {text:>{width}}" for text, width in zip(numbers, widths, strict=False)) + f"  {agents}")
    if device_type(site, launch.execution) == "cuda":
        compilers = max(_compilers(array.need.cores, launch.execution) for array in launch.arrays)
        compiling = f", and {size(1e6 * MB_PER_COMPILER * compilers)} while it compiles" if compilers else ""
        print(f"of the memory, a pack takes {size(1e6 * MB_OF_CONTEXT)} for its GPU{compiling}")
    most, usual = max(array.need.cores for array in launch.arrays), CORES_PER_GPU * max(1, launch.gpus_per_job)
    if most > usual:
        print(
            f"warning: a job of {most} cores may wait for long, since nodes have about {CORES_PER_GPU} for each GPU; "
            "--env-workers, --eval-workers, --threads and --packs-per-job decide"
        )
