"""Makes OGBench cube data on the spot, with the scripted oracles that ship in the ogbench package.

`play` and `noisy` follow the recipe of the published sets of these names: episodes of 1000 transitions in which the
oracle carries cubes to one random place after the other. `mixed` is small data for one task: directed episodes of
different quality, which end as the environment ends them, and some play.

An episode depends on its data set's recipe, seed and index alone, so neither the number of workers nor an interruption
changes the result.
"""

import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import signal
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any

import numpy as np

from datasets.ogbench_cube import NUM_CUBES, TASK_IDS, relabel
from datasets.spec import DataError, nearest
from datasets.store import DatasetName, find, generated_dir, one_line, parse_name

KINDS = ("play", "noisy", "mixed")
Progress = Callable[[int, int], None]  # episodes finished, episodes in all


def ensure(name: str, workers: int = 1, progress: Progress | None = None, data_dir: str | Path | None = None) -> None:
    """Make the data set `name` if it is a generated one that neither `data_dir` nor the cache holds.

    One in the cache that follows another recipe is made again. Raises DataError as `generate` does.
    """
    dataset = parse_name(name)
    if not dataset.is_generated:
        return
    files = find(dataset, data_dir)
    if not files or files[0].parent == generated_dir(name):
        _generate(dataset, generated_dir(name), workers, progress)


def generate(
    domain: str,
    kind: str,
    episodes: int,
    seed: int = 0,
    workers: int = 1,
    task_id: int | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Make a data set with `workers` processes, and return its npz file in the folder `out`, or in the cache.

    The file loads with the stock OGBench loader too; a manifest lies beside it. Continues where a killed call stopped
    and returns at once where the set is complete. Raises DataError for arguments that name no data set.
    """
    if domain not in NUM_CUBES:
        raise DataError(f"unknown domain '{domain}'{nearest(domain, NUM_CUBES)}; domains are {', '.join(NUM_CUBES)}")
    if kind not in KINDS:
        raise DataError(f"unknown kind '{kind}'{nearest(kind, KINDS)}; kinds are {', '.join(KINDS)}")
    if (task_id is not None) != (kind == "mixed"):
        raise DataError(f"a mixed set needs a task from 1 to 5 and others take none, got kind '{kind}', task {task_id}")
    task = f"-task{task_id}" if kind == "mixed" else ""
    dataset = parse_name(f"{domain}{task}-{kind}-generated-{episodes}ep-seed{seed}")
    return _generate(dataset, generated_dir(dataset.name) if out is None else Path(out), workers, progress)


def _generate(dataset: DatasetName, folder: Path, workers: int, progress: Progress | None) -> Path:
    if workers < 1:
        raise DataError(f"workers must be at least 1, got {workers}")
    from datasets.ogbench_episodes import recipe

    numbers = recipe(dataset)
    npz = folder / f"{dataset.name}.npz"
    parts = folder / f"{dataset.name}.parts-{hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:12]}"
    if npz.exists() and _recipe_of(npz) == numbers:
        return npz
    try:
        parts.mkdir(parents=True, exist_ok=True)
        _make_parts(dataset, parts, workers, progress)
        _merge(dataset, parts, npz, numbers)
        for finished in folder.glob(f"{dataset.name}.parts-*"):  # those of abandoned recipes as well
            shutil.rmtree(finished, ignore_errors=True)
    except OSError as error:
        # A process that makes the same set at the same time removes the parts once it has merged them.
        if not (npz.exists() and _recipe_of(npz) == numbers):
            raise DataError(f"cannot make '{dataset.name}' in {folder}: {one_line(error)}") from error
    return npz


def _recipe_of(npz: Path) -> object:
    """The recipe that a generated file says it follows, None where it cannot be read."""
    try:
        with np.load(npz) as arrays:
            return json.loads(str(arrays["recipe"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


# Part files: one per episode, so that a killed call loses only the episodes it was in. Their folder's name tells the
# recipe, so that parts of different recipes never mix.


def _part(parts: Path, index: int) -> Path:
    return parts / f"episode-{index:06}.npz"


def _make_parts(dataset: DatasetName, parts: Path, workers: int, progress: Progress | None) -> None:
    total = dataset.episodes
    missing = [index for index in range(total) if not _part(parts, index).exists()]
    report = progress or (lambda finished, total: None)
    report(total - len(missing), total)
    if workers == 1:
        for finished, index in enumerate(missing, start=total - len(missing) + 1):
            _make_part(dataset, parts, index)
            report(finished, total)
        return

    # A forked simulator is not safe, so workers start afresh. Each has its share of the episodes from the beginning:
    # a pool's workers would wait for ever once their parent is killed.
    context = multiprocessing.get_context("spawn")
    shares = [missing[worker::workers] for worker in range(min(workers, len(missing)))]
    processes = [context.Process(target=_work, args=(dataset, parts, share), daemon=True) for share in shares]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            wait([process.sentinel for process in processes if process.is_alive()], timeout=0.5)
            report(sum(1 for _ in parts.glob("episode-*.npz")), total)
            if any(process.exitcode for process in processes):
                break
        failed = [process.exitcode for process in processes if process.exitcode]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
    if failed:
        raise DataError(
            f"a worker generating '{dataset.name}' died (exit code {failed[0]}); "
            "finished episodes are kept, run again to go on"
        )


def _work(dataset: DatasetName, parts: Path, indices: list[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, which then ends the workers
    parent = multiprocessing.parent_process()
    for index in indices:
        if parent is not None and not parent.is_alive():
            return
        try:
            _make_part(dataset, parts, index)
        except FileNotFoundError:
            if parts.exists():
                raise
            return  # another process has finished the set


def _make_part(dataset: DatasetName, parts: Path, index: int) -> None:
    from datasets.ogbench_episodes import make_episode

    if _part(parts, index).exists():
        return  # by another process, meanwhile
    arrays: dict[str, Any] = make_episode(dataset, index)
    _write(_part(parts, index), lambda handle: np.savez(handle, **arrays))


def _merge(dataset: DatasetName, parts: Path, npz: Path, numbers: dict[str, Any]) -> None:
    """Write the manifest, then all parts as one npz file; once that exists, the set is complete."""
    from datasets.ogbench_env import goal_positions

    files = [_part(parts, index) for index in range(dataset.episodes)]
    lengths = []
    solved = dict.fromkeys(TASK_IDS, 0)
    goals = goal_positions(dataset.domain)
    for file in files:
        with np.load(file) as episode:
            qpos = episode["qpos"]
        lengths.append(len(qpos))
        for task_id in TASK_IDS:
            solved[task_id] += bool(relabel(qpos, goals[task_id])[1].any())
    description = {
        "name": dataset.name,
        "origin": "generated",
        "recipe": numbers,
        "episodes": len(files),
        "transitions": sum(lengths) - len(files),
        "success_share": {f"task{task_id}": round(count / len(files), 4) for task_id, count in solved.items()},
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("ogbench", "mujoco", "numpy")},
    }
    manifest = npz.with_suffix(".manifest.json")
    _write(manifest, lambda handle: handle.write((json.dumps(description, indent=1) + "\n").encode()))
    notes = {"origin": np.array("generated"), "recipe": np.array(json.dumps(numbers))}
    _write(npz, lambda handle: _write_npz(handle, files, sum(lengths), notes))


def _write_npz(handle: IO[bytes], files: list[Path], num_rows: int, notes: dict[str, np.ndarray]) -> None:
    """As np.savez_compressed would, without holding the arrays in memory; equal arrays give equal bytes."""
    with np.load(files[0]) as episode:
        headers = {key: (array.dtype, array.shape[1:]) for key, array in episode.items()}
    with zipfile.ZipFile(handle, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, (dtype, columns) in headers.items():
            header = {"descr": dtype.str, "fortran_order": False, "shape": (num_rows, *columns)}
            with _member(archive, key) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for file in files:
                    with np.load(file) as episode:
                        member.write(episode[key].tobytes())
        for key, array in notes.items():
            with _member(archive, key) as member:
                np.lib.format.write_array(member, array)


def _member(archive: zipfile.ZipFile, key: str) -> IO[bytes]:
    info = zipfile.ZipInfo(f"{key}.npy")  # dated 1980, whenever it is written
    info.compress_type = zipfile.ZIP_DEFLATED
    return archive.open(info, "w", force_zip64=True)


def _write(file: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as handle:
            write(handle)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
