"""Time per sampled batch and resident memory, by size and place of the data set and by number of seeds.

    python -m tests.benchmarks.memory [--written-gb 5] [--folder /fast/disk] [--batches 40]

Three questions: does the cost of a batch grow with the data set; does a set that no memory holds stream under a fixed
budget; what does a process hold at the end of a full run. The set of 100M rows is a sparse file: it has the size, but
its pages are zeros that no disk delivers. What a disk costs is measured on a smaller set that is really written and
then dropped from the page cache.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from datasets.replay.replay import Replay
from datasets.transitions import Transitions
from tests.benchmarks.measure import Timing, interleaved, machine_line, table, timing

BATCH_SIZE, CHUNK_LENGTH = 256, 5
DOUBLE, QUADRUPLE, ACTION_DIM = 37, 55, 5  # numbers per observation and action
EPISODE_ROWS = 1001
ONLINE_STEPS = 1_000_000
AHEAD = 4  # batches gathered before they are asked for
UPDATE_SECONDS = 0.05  # of other work between two of them
SEEDS = (1, 8)
FIELDS = ("obs", "action", "reward", "terminated", "final")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time per sampled batch and resident memory.")
    parser.add_argument("--written-gb", type=float, default=5.0, help="size of the set that is really written")
    parser.add_argument("--folder", type=Path, help="where it is written; the system's temporary folder by default")
    parser.add_argument("--batches", type=int, default=40, help="batches per measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine_line())
    print(f"batches of {BATCH_SIZE} windows of {CHUNK_LENGTH} for each of S seeds; wall-clock, one torch thread")
    print(in_memory(arguments.batches))
    folder = Path(tempfile.mkdtemp(prefix="o2o-bench-memory-", dir=arguments.folder))
    try:
        print(streamed(folder, arguments.written_gb, arguments.batches))
    finally:
        shutil.rmtree(folder)
    print(whole_process())


def in_memory(batches: int) -> str:
    """Cost of a batch by data set size, all sizes in turns."""
    sizes, rows = (100_000, 1_000_000, 5_000_000), []
    sets = {
        size: Transitions(**random_arrays(size), name="", origin="generated", content_hash="", warnings=())
        for size in sizes
    }
    for num_seeds in SEEDS:
        replays = {size: make_replay(data, num_seeds) for size, data in sets.items()}
        timings = interleaved({str(size): sampler(replay) for size, replay in replays.items()}, calls=batches)
        first = timings[str(sizes[0])].median
        for size in sizes:
            measured = timings[str(size)]
            megabytes = sets[size].num_bytes() / 1e6
            rows.append(
                [f"{size / 1e6:g}M", num_seeds, *cells(measured), f"{measured.median / first:.2f}", f"{megabytes:.0f}"]
            )
    title = "Data set in memory, observations of 37 numbers"
    return table(title, ["rows", "S", "ms / batch", "spread", "/ 0.1M", "data MB"], rows)


def streamed(folder: Path, written_gb: float, batches: int) -> str:
    """Cost of a batch and peak memory of a process of its own that streams, for each set and number of seeds."""
    row_bytes = 4 * (QUADRUPLE + ACTION_DIM + 1) + 2
    written = int(written_gb * 1e9 / row_bytes)
    save_sparse(folder / "sparse", 100_000_000)
    save_written(folder / "written", written)
    rows = []
    for name, size, is_cold in (
        ("sparse", 100_000_000, False),
        ("written", written, True),
        ("written", written, False),
    ):
        for num_seeds in SEEDS:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                when_asked, wait, peak = process.submit(stream, folder / name, num_seeds, batches, is_cold).result()
            what = f"{name}, {'read from disk' if is_cold else 'in the page cache'}"
            gigabytes = f"{size * row_bytes / 1e9:.1f}"
            waited = f"{1e3 * wait:.2f}"
            rows.append(
                [what, f"{size / 1e6:.0f}M", gigabytes, num_seeds, *cells(when_asked), waited, f"{peak / 1e6:.0f}"]
            )
    update = f"{1e3 * UPDATE_SECONDS:.0f} ms"
    columns = ["set", "rows", "GB", "S", "ms / batch", "spread", f"waited for after {update}", "peak MB"]
    title = f"Streamed, observations of 55 numbers; {AHEAD} batches ahead of updates of {update}; memory of the process"
    return table(title, columns, rows)


def stream(folder: Path, num_seeds: int, batches: int, is_cold: bool) -> tuple[Timing, float, int]:
    """Seconds per batch gathered when it is asked for, mean wait for one gathered ahead, peak memory in bytes."""
    torch.set_num_threads(1)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in FIELDS}
    transitions = Transitions(**arrays, name="", origin="generated", content_hash="")
    replay = make_replay(transitions, num_seeds, placement="stream")
    fractions = [torch.rand(num_seeds, BATCH_SIZE, dtype=torch.float64) for _ in range(2 * batches + AHEAD)]
    if is_cold:
        drop_from_page_cache(folder)
    else:
        for batch in fractions:
            replay.sample(batch)
    when_asked = [elapsed(lambda number=number: replay.sample(fractions[number])) for number in range(batches)]
    for number in range(batches, batches + AHEAD):
        replay.prefetch(number, fractions[number])
    waits = []
    for number in range(batches, 2 * batches):
        work(UPDATE_SECONDS)
        waits.append(elapsed(lambda number=number: replay.sample(fractions[number], number)))
        replay.prefetch(number + AHEAD, fractions[number + AHEAD])
    return timing(when_asked), statistics.fmean(waits), status_bytes("VmHWM")


def work(seconds: float) -> None:
    """Matrix products, as in an update, for about so long."""
    matrix, end = torch.ones(512, 512), time.perf_counter() + seconds
    while time.perf_counter() < end:
        torch.mm(matrix, matrix)


def whole_process() -> str:
    """Resident memory at the end of a full run of cube-double, without networks: 1M rows and 1M online steps."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        steps = process.submit(fill).result()
    packed_width = 2 * DOUBLE + ACTION_DIM + 3
    before = 4 * packed_width * ONLINE_STEPS
    rows = [[what, f"{resident / 1e6:.0f}"] for what, resident in steps]
    rows.append(["one seed's ring with next_obs beside obs, for comparison", f"{before / 1e6:.0f}"])
    return table("One process, S = 1, 1M online steps", ["resident after", "MB"], rows)


def fill() -> list[tuple[str, int]]:
    """What a process holds after each step of its life."""
    torch.set_num_threads(1)
    steps = [("importing torch and this package", status_bytes("VmRSS"))]
    data = Transitions(**random_arrays(1_000_000), name="", origin="generated", content_hash="", warnings=())
    replay = make_replay(data, 1)
    steps.append(("a data set of 1M rows", status_bytes("VmRSS")))
    replay.open_ring(2_000_000, ONLINE_STEPS)
    steps.append(("opening the ring", status_bytes("VmRSS")))
    packed = torch.zeros(1, ONLINE_STEPS, replay.row_width)
    packed[:, ::200, -DOUBLE - 1] = 1.0  # an episode end
    replay.restore_online(packed)
    del packed
    sampler(replay)()
    steps.append(("1M online steps", status_bytes("VmRSS")))
    return steps


def make_replay(transitions: Transitions, num_seeds: int, placement: str = "device") -> Replay:
    return Replay(
        transitions,
        num_seeds=num_seeds,
        chunk_length=CHUNK_LENGTH,
        discount=0.99,
        device=torch.device("cpu"),
        placement=placement,  # type: ignore[arg-type]
    )


def sampler(replay: Replay) -> Callable[[], object]:
    """Samples a batch at new places with every call."""
    generator = torch.Generator().manual_seed(0)

    def sample() -> object:
        shape = (replay.num_seeds, BATCH_SIZE)
        return replay.sample(torch.rand(*shape, dtype=torch.float64, generator=generator))

    return sample


def random_arrays(num_rows: int) -> dict[str, np.ndarray]:
    """Arrays of a data set in memory."""
    rng = np.random.default_rng(0)
    return {
        "obs": rng.random((num_rows, DOUBLE), np.float32),
        "action": rng.random((num_rows, ACTION_DIM), np.float32),
        "reward": rng.random(num_rows, np.float32),
        "terminated": np.zeros(num_rows, np.bool_),
        "final": finals(num_rows),
    }


def finals(num_rows: int) -> np.ndarray:
    """Episodes of EPISODE_ROWS, the last one longer."""
    final = np.arange(1, num_rows + 1) % EPISODE_ROWS == 0
    final[-EPISODE_ROWS:] = False
    final[-1] = True
    return final


def save_sparse(folder: Path, num_rows: int) -> None:
    """Files of the full size without content, but for the ends of the episodes."""
    folder.mkdir()
    for name, dtype, width in layout():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (num_rows, *width))
    np.save(folder / "final.npy", finals(num_rows))


def save_written(folder: Path, num_rows: int) -> None:
    """Files full of random numbers, on the disk and no longer in the page cache."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, dtype, width in layout():
        block = rng.random((min(num_rows, 250_000), *width), np.float32).astype(dtype)
        with (folder / f"{name}.npy").open("wb") as file:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (num_rows, *width)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, num_rows, len(block)):
                file.write(block[: num_rows - start].data)
            file.flush()
            os.fsync(file.fileno())
    np.save(folder / "final.npy", finals(num_rows))


def layout() -> list[tuple[str, type, tuple[int, ...]]]:
    return [
        ("obs", np.float32, (QUADRUPLE,)),
        ("action", np.float32, (ACTION_DIM,)),
        ("reward", np.float32, ()),
        ("terminated", np.bool_, ()),
    ]


def drop_from_page_cache(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def elapsed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def status_bytes(name: str) -> int:
    """Memory of this process by its name in /proc/self/status, mapped pages included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def cells(measured: Timing) -> list[str]:
    return [f"{1e3 * measured.median:.2f}", f"{measured.spread:.0%}"]


if __name__ == "__main__":
    main()
