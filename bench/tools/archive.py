"""`python -m bench archive`: complete runs as a results folder that is small enough to publish.

Rows and configs are copied as they are, so that the sums in complete.json hold. Names of machines and paths are left
out, and so is what analysis can do without: checkpoints, logs, wall-clock times. Imports no torch.
"""

import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from bench.command_line import check_folder
from bench.runs.contract import (
    COMPLETE,
    CONFIG,
    PROVENANCE,
    REFERENCE,
    REPRODUCIBLE,
    ConfigError,
    RunName,
    StorageError,
    broken_links,
    config_hash,
    find_runs,
    is_start,
    is_sum_of,
    json_bytes,
    make_folder,
    nearest,
    read_json,
    selected,
    write_atomically,
)
from bench.runs.quantities import counted, size

OF_THE_MACHINE = ("host", "slurm_job", "slurm_restart", "visible_gpus")  # of a start, and of no use elsewhere


@dataclass(frozen=True)
class ArchiveOptions:
    """Copy complete runs of a suite, without checkpoints, into a folder that analysis reads like results."""

    suite: Positional[str]  # folder of the results
    agents: tuple[str, ...] = ()  # only these: sac, all its variants; sac@small, one of them; sac@, the one without
    tasks: tuple[str, ...] = ()  # only these tasks
    seeds: tuple[int, ...] = ()  # only these seeds: 0 1 2, or 0,1,2, or 0..2, or 0-2
    results: Path = Path("results")
    out: Path = Path("results") / REFERENCE

    def __post_init__(self) -> None:
        check_folder(self)
        check_folder(self, "out")


def archive_command(options: ArchiveOptions) -> int:
    """All runs are checked before the first is written."""
    runs = selected_runs(options)
    contents = {name: archived(options.results, name) for name in runs}
    new = [name for name in runs if not is_there(options.out, name, contents[name])]
    for name in new:
        write_folder(name.directory(options.out), contents[name])
    weight = size(sum(len(data) for files in contents.values() for data in files.values()))
    there = f"; {len(runs) - len(new)} of them were there already" if len(new) < len(runs) else ""
    print(f"{counted(len(runs), 'run')} of {options.suite} in {options.out}, {weight}{there}")
    print(f"record what is drawn of them: python -m analysis reference --write --results {options.out}")
    return 0


def selected_runs(options: ArchiveOptions) -> list[RunName]:
    """The runs that the options name, sorted. Raises ConfigError where there are none, or none of a name."""
    folder = options.results / options.suite
    if folder.resolve() in (options.out.resolve(), *options.out.resolve().parents):
        raise ConfigError(f"--out {options.out} lies in {folder}, whose runs are to be archived: name another folder")
    if lost := broken_links(options.results, (options.suite,)):
        raise ConfigError(f"{lost[0]} is a link that leads nowhere: restore what it led to, or remove it")
    folders = find_runs(folder, holding=None)
    found = sorted(run for run in map(RunName.parse, map(str, folders)) if run and run.suite == options.suite)
    if not found:
        suites = sorted({run.suite for run in map(RunName.parse, map(str, find_runs(options.results))) if run})
        raise ConfigError(f"no runs of {options.suite!r} under {options.results}{nearest(options.suite, suites)}")
    lacking = f"no run of {options.suite} has the"
    found = selected(found, options.agents, lambda run: run.names, f"{lacking} agent", "there are")
    found = selected(found, options.tasks, lambda run: (run.task,), f"{lacking} task", "there are")
    found = selected(found, options.seeds, lambda run: (run.seed,), f"{lacking} seed", "there are")
    if not found:
        raise ConfigError(f"no run of {options.suite} has these agents, tasks and seeds together")
    return found


def archived(results: Path, name: RunName) -> dict[str, bytes]:
    """The files that an archive has of a run. Raises ConfigError unless it is complete and as it was written."""
    folder = name.directory(results)
    marker, config, provenance = (read_json(folder / file) for file in (COMPLETE, CONFIG, PROVENANCE))
    if marker is None:
        raise ConfigError(f"{folder} is not complete: finish it, or leave it out with --agents, --tasks or --seeds")
    if config is None or provenance is None:
        raise ConfigError(
            f"{folder} lacks {CONFIG if config is None else PROVENANCE}: restore it, or leave the run out"
        )
    starts = provenance.get("starts")
    if not isinstance(starts, list) or not all(map(is_start, starts)):
        raise ConfigError(f"{folder / PROVENANCE} has no list of starts: restore it, or leave the run out")
    if config.get("config_hash") != config_hash(config) or RunName.of_config(config) != name:
        raise ConfigError(f"{folder / CONFIG} was edited, or is another run's: restore it, or leave the run out")
    sums = marker.get("files")
    if not isinstance(sums, dict):
        raise ConfigError(f"{folder / COMPLETE} has no sums of files: restore it, or leave the run out")
    rows = {file: (folder / file).read_bytes() for file in REPRODUCIBLE if (folder / file).is_file()}
    for file in REPRODUCIBLE:
        if file not in sums:
            raise ConfigError(f"{folder / COMPLETE} has no sum of {file}, so that nothing tells whether it was edited")
        if file not in rows or not is_sum_of(sums[file], rows[file]):
            raise ConfigError(f"{folder / file} is not what the run wrote: restore it, or leave the run out")
    return {
        **rows,
        CONFIG: (folder / CONFIG).read_bytes(),
        PROVENANCE: json_bytes({**provenance, "starts": [public(start) for start in starts]}),
        COMPLETE: json_bytes({key: value for key, value in marker.items() if key != "owner"}),
    }


def public(start: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of provenance.json's `starts` without names of machines, jobs and folders."""
    kept = {key: value for key, value in start.items() if key not in OF_THE_MACHINE}
    if kept.get("plugins"):
        kept["plugins"] = [{**plugin, "file": Path(plugin["file"]).name} for plugin in kept["plugins"]]
    return kept


def is_there(out: Path, name: RunName, contents: Mapping[str, bytes]) -> bool:
    """Whether the archive has these very files. Raises ConfigError where it has others."""
    folder = name.directory(out)
    if not folder.exists():
        return False
    for file, data in contents.items():
        path = folder / file
        if not path.is_file() or path.read_bytes() != data:
            raise ConfigError(f"{folder} holds another run ({file} differs): remove it first, or name another --out")
    return True


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """The folder with all its files, or none. Raises StorageError."""
    draft = make_folder(folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial"))
    try:
        for file, data in contents.items():
            write_atomically(draft / file, data)
        draft.rename(folder)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
