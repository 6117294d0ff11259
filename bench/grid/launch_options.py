"""What a launch may be told: the plan's options, what jobs ask Slurm for, and a profile that holds them for a site."""

import re
import tomllib
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from bench.command_line import check_least, flag, option_types, parse, typed_names
from bench.grid.options import PlanOptions, Selection
from bench.grid.until_decided import Spending
from bench.protocol.suites import SUITES
from bench.runs.contract import ConfigError, nearest
from bench.training.execution import Execution

PROFILE = Path("bench.toml")
CORES_PER_GPU = 16  # nodes have about as many, and billing goes by them
NODE = r"[^\s,\[\]'\"]+(?:\[[\d,-]+\][^\s,\[\]'\"]*)*"  # or several, as Slurm writes them


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
    mem: str | None = None  # per job, as in 16G; default: by its processes and data; 0: all of a node
    gpus_per_node: int = 0  # per job; 0: jobs of CPUs
    gres: str | None = None  # instead of --gpus-per-node, e.g. gpu:h100:1 or shard:1
    cpus_per_task: int | None = None  # per job; default: the processes that its packs keep busy
    cores_per_gpu: int = CORES_PER_GPU  # at most, for environments beside the rest; of a job without GPU: in all
    packs_per_job: int = 1  # processes side by side in a job, on the same GPU
    max_parallel: int = 256  # jobs of an array at the same time
    array_size: int = 1000  # jobs of an array at most; fewer where Slurm takes fewer
    setup: UseAppendAction[tuple[str, ...]] = ()  # a line for the job's shell, e.g. "module load cuda"

    def __post_init__(self) -> None:
        check_least(self, gpus_per_node=0, cpus_per_task=1, cores_per_gpu=1, packs_per_job=1)
        check_least(self, max_parallel=1, array_size=1)
        minutes_of(self.time)
        for name in ("partition", "account", "qos", "constraint", "gres"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[^\s'\"]+", value):
                raise ConfigError(f"{flag(name)} is {value!r}; it must be a word of Slurm's, without blanks and quotes")
        if self.exclude and not re.fullmatch(rf"{NODE}(,{NODE})*", self.exclude):
            raise ConfigError(
                f"--exclude is {self.exclude!r}; it must be nodes with commas between them, as in n1,n[3-5]"
            )
        if self.mem is not None and not re.fullmatch(r"\d+[KMGTkmgt]?", self.mem):
            raise ConfigError(f"--mem is {self.mem!r}; Slurm takes a whole number with K, M, G or T, as in 16G")
        if self.gres and (none := re.fullmatch(r"(.+:)0", self.gres)):
            raise ConfigError(f"--gres is {self.gres!r}; it must ask for something, as in {none[1]}1, or be left out")

    @property
    def gpus(self) -> int:
        """Per job; one where it asks for a part of one."""
        if self.gres is None:
            return self.gpus_per_node
        counted = re.match(r"gpu(?::[^:,]+)?:(\d+)(?:,|\(|$)", self.gres)
        return int(counted[1]) if counted else 1

    @property
    def excluded(self) -> set[str]:
        """Nodes, and lists of them such as n[1,3-5]."""
        return {found[0] for found in re.finditer(NODE, self.exclude)}

    @property
    def megabytes(self) -> float | None:
        """Memory asked for; None where that is not said, or is a whole node's."""
        if not self.mem or not int(self.mem.rstrip("KMGTkmgt")):
            return None
        return int(self.mem.rstrip("KMGTkmgt")) * 1024.0 ** (
            "KMGT".find(self.mem[-1].upper()) - 1 if self.mem[-1].isalpha() else 0
        )


def device_type(site: Site, execution: Execution) -> Literal["cpu", "cuda"]:
    """What jobs train on."""
    return "cuda" if site.gpus and execution.device != "cpu" else "cpu"


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
    spending: Spending = Spending()
    profile: Path | None = None  # the site's options; default bench.toml, where that is there
    site: Site = Site()


@dataclass(frozen=True)
class Profile:
    """What may stand in the table [launch] of bench.toml."""

    site: Site = Site()
    execution: Execution = Execution()
    pack: int | None = None
    mirror: tuple[str, ...] = ()


def check_effect(options: LaunchOptions) -> None:
    """ConfigError for an option of the command line that does nothing where the runs are to run."""
    idle = option_types(Site).keys() if options.local else {"jobs"}
    typed = typed_names(options.typed)
    for name in sorted(typed & idle):
        where = "--slurm" if options.local else "--local; jobs of an array side by side: --max-parallel"
        raise ConfigError(f"{flag(name)} is for {where}")
    for name in sorted(typed & {"max_seeds", "seeds_at_once", "first_seed"}):
        if options.spending.until_decided is None:
            raise ConfigError(f"{flag(name)} is for --until-decided CLAIM")
    if {"gres", "gpus_per_node"} <= typed:
        raise ConfigError("--gres and --gpus-per-node exclude each other; --gres gpu:TYPE:N asks for N GPUs as well")
    for name in ("cpus_per_task", "env_workers"):
        if {"cores_per_gpu", name} <= typed:
            raise ConfigError(
                f"--cores-per-gpu and {flag(name)} exclude each other: the first is a limit of the second"
            )


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
