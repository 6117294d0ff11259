"""`python -m bench repeat`: runs of an archive once more, from their configs, in a folder of their own.

`python -m analysis verify` says then whether they have the same bytes.
"""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from bench.command_line import check_folder, check_least
from bench.grid.options import Placement, PlanOptions
from bench.grid.run import run_here
from bench.protocol.config import RunConfig
from bench.protocol.plugins import Plugins
from bench.runs.contract import (
    CONFIG,
    PROVENANCE,
    REFERENCE,
    REPEATED,
    ConfigError,
    RunName,
    find_runs,
    is_complete,
    nearest,
    read_json,
)
from bench.training.execution import Execution


@dataclass(frozen=True)
class RepeatOptions:
    """Train the runs of an archived cell again, from their configs. What is complete there is not trained again."""

    cell: Positional[str]  # suite/task/agent of the archive
    seeds: tuple[int, ...] = ()  # only these seeds: 0 1 2, or 0,1,2, or 0..2, or 0-2
    reference: Path = Path("results") / REFERENCE  # the archive
    results: Path = Path("results") / REPEATED
    jobs: int | None = None  # packs side by side on this machine; default one per core, or per GPU
    dry_run: bool = False  # print what it will cost, then stop
    execution: Execution = Execution()
    plugins: Plugins = Plugins()

    def __post_init__(self) -> None:
        check_least(self, jobs=1)
        check_folder(self)
        if self.results.resolve().is_relative_to(self.reference.resolve()):
            raise ConfigError(f"--results {self.results} is in the archive {self.reference}; name another folder")


def repeat_command(options: RepeatOptions) -> int:
    configs = archived_configs(options)
    complete = [
        config.directory(options.results) for config in configs if is_complete(config.directory(options.results))
    ]
    if complete:
        print(f"{len(complete)} of {len(configs)} were trained again before; remove {complete[0].parent} to do so anew")
    placement = Placement(results=options.results, jobs=options.jobs)
    plan = PlanOptions(placement=placement, execution=options.execution, plugins=options.plugins)
    return run_here(plan, configs, options.dry_run)


def archived_configs(options: RepeatOptions) -> list[RunConfig]:
    """Those of the cell's runs. Raises ConfigError for a cell that is not there, or runs that no config leads to."""
    cells: dict[str, list[RunName]] = {}
    for run in map(RunName.parse, map(str, find_runs(options.reference))):
        if run is not None:
            cells.setdefault(run.group, []).append(run)
    if options.cell not in cells:
        there_are = f"{nearest(options.cell, cells)}; there are: {', '.join(cells) or 'none'}"
        raise ConfigError(f"no cell {options.cell!r} under {options.reference}{there_are}")
    runs = cells[options.cell]
    for seed in options.seeds:
        if seed not in [run.seed for run in runs]:
            raise ConfigError(f"{options.cell} has no seed {seed}; it has {', '.join(str(run.seed) for run in runs)}")
    return [_config_of(run.directory(options.reference)) for run in runs if run.seed in (options.seeds or (run.seed,))]


def _config_of(folder: Path) -> RunConfig:
    if (read_json(folder / PROVENANCE) or {}).get("extended_from"):
        raise ConfigError(
            f"{folder} went on from a shorter run (--extend): its config alone does not lead to its bytes"
        )
    try:
        return RunConfig.from_json(read_json(folder / CONFIG) or {})
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error
