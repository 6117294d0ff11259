"""Makes data on the spot with the scripted experts of a source, episode by episode, in worker processes.

An episode depends on its data set's recipe, seed and index alone, so neither the number of workers, an interruption nor
the processor (x86-64 with AVX2) changes the result.
"""

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.runs.contract import nearest, one_line, replacing
from datasets.episode_process import REFUSED, part_of, start_episodes
from datasets.registry import generator_of, kinds, parse_name, require_extra
from datasets.spec import DataError, Dataset, Recipe, generated_name
from datasets.store import can_download, find, generated_dir, get

if TYPE_CHECKING:
    from datasets.download.fetch import ByteProgress

_POLL_SECONDS = 0.1
_MOST_FILES = 4  # that are downloaded without being asked for: the sets of 100 files have tens of gigabytes
EpisodeProgress = Callable[[int, int], None]  # episodes finished, episodes in all


def ensure(
    name: str,
    workers: int = 1,
    progress: EpisodeProgress | None = None,
    data_dir: str | Path | None = None,
    bytes_progress: "ByteProgress | None" = None,
) -> None:
    """Make or download the data set `name` where neither `data_dir` nor the usual places hold it.

    A generated one in the cache that follows another recipe is made again; a published one of many files is left to
    an explicit `get`. Raises DataError as `generate` and `get` do.
    """
    dataset = parse_name(name)
    if dataset.recipe is None:
        if will_fetch(name):
            get(name, data_dir, progress=bytes_progress)
        return
    files = find(dataset, data_dir)
    if not files or files[0].parent == generated_dir(name):
        _generate(dataset, generated_dir(name), workers, progress)


def will_fetch(name: str) -> bool:
    """`ensure` downloads this set where it is absent. Raises DataError for an unknown name."""
    dataset = parse_name(name)
    return can_download(dataset) and len(dataset.files) <= _MOST_FILES


def generate(
    domain: str,
    kind: str,
    episodes: int,
    seed: int = 0,
    workers: int = 1,
    task_id: int | None = None,
    out: str | Path | None = None,
    progress: EpisodeProgress | None = None,
) -> Path:
    """Make a data set with `workers` processes, and return its file in the folder `out`, or in the cache.

    The file has the published format of its source; a manifest lies beside it. Continues where a killed call stopped
    and returns at once where the set is complete. Raises DataError for arguments that name no data set, and where the
    simulator is not installed.
    """
    domain_kinds = kinds(domain)
    if not domain_kinds:
        raise DataError(f"no expert is known for {domain}: use its published data, or a file of yours with --data FILE")
    if kind not in domain_kinds:
        raise DataError(
            f"unknown kind '{kind}' of {domain}{nearest(kind, domain_kinds)}; kinds are {', '.join(domain_kinds)}"
        )
    if domain_kinds[kind] and task_id is None:
        raise DataError(f"a set of kind '{kind}' is made for one task, like {domain}-task1")
    if not domain_kinds[kind] and task_id is not None:
        raise DataError(f"a set of kind '{kind}' is made for all tasks of {domain}, not for one")
    dataset = parse_name(generated_name(domain, Recipe(kind, episodes, seed, task_id or 0)))
    return _generate(dataset, generated_dir(dataset.name) if out is None else Path(out), workers, progress)


def _generate(dataset: Dataset, folder: Path, workers: int, progress: EpisodeProgress | None) -> Path:
    if workers < 1:
        raise DataError(f"workers must be at least 1, got {workers}")
    source = generator_of(dataset)
    require_extra(source)  # first: a recipe is told by the module that makes episodes, which imports the simulator
    recipe = source.recipe(dataset)
    file = folder / dataset.files[0].name
    parts = folder / f"{dataset.name}.parts-{hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]}"

    def is_complete() -> bool:
        return file.exists() and source.recipe_of(file) == recipe

    if is_complete():
        return file
    try:
        parts.mkdir(parents=True, exist_ok=True)
        _make_parts(dataset, parts, workers, progress)
        _merge(dataset, parts, file, recipe)
        for finished in folder.glob(f"{dataset.name}.parts-*"):  # those of abandoned recipes as well
            shutil.rmtree(finished, ignore_errors=True)
    except OSError as error:
        # A process that makes the same set at the same time removes the parts once it has merged them.
        if not is_complete():
            raise DataError(f"cannot make '{dataset.name}' in {folder}: {one_line(error)}") from error
    return file


# Part files: one per episode, so that a killed call loses only the episodes it was in. Their folder's name tells the
# recipe, so that parts of different recipes never mix.


def _make_parts(dataset: Dataset, parts: Path, workers: int, progress: EpisodeProgress | None) -> None:
    total = dataset.made_by.episodes
    missing = [index for index in range(total) if not part_of(parts, index).exists()]
    report = progress or (lambda finished, total: None)
    reported = total - len(missing)
    report(reported, total)
    processes = []
    try:
        for worker in range(min(workers, len(missing))):
            processes.append(start_episodes(dataset, parts, missing[worker::workers]))
        failed = None
        while failed is None and any(process.poll() is None for process in processes):
            time.sleep(_POLL_SECONDS)
            failed = next((process for process in processes if process.poll()), None)
            finished = sum(1 for _ in parts.glob("episode-*.npz"))
            if finished > reported:
                report(reported := finished, total)
    finally:
        for process in processes:
            process.terminate()
        said = {process: process.communicate()[0].strip() for process in processes}
    if failed is not None and failed.returncode == REFUSED:
        raise DataError(f"cannot make '{dataset.name}' in {parts.parent}: {said[failed]}")
    if failed is not None:
        raise DataError(
            f"a process generating '{dataset.name}' died (exit code {failed.returncode}); "
            "finished episodes are kept, run again to go on"
        )


def _merge(dataset: Dataset, parts: Path, file: Path, recipe: dict[str, Any]) -> None:
    """Write the manifest, then all parts as one file; once that exists, the set is complete."""
    episodes = [part_of(parts, index) for index in range(dataset.made_by.episodes)]
    with replacing(file) as partial:
        facts = generator_of(dataset).write_set(dataset, episodes, partial, recipe)
        description = {
            "name": dataset.name,
            "origin": "generated",
            "recipe": recipe,
            "episodes": len(episodes),
            **facts,
            "versions": {"python": platform.python_version()}
            | {package: version(package) for package in generator_of(dataset).PACKAGES},
        }
        with replacing(file.with_suffix(".manifest.json")) as manifest:
            manifest.write_text(json.dumps(description, indent=1) + "\n")
