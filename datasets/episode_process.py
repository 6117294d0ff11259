"""Processes that make episodes of a generated set, whose arithmetic does not depend on the processor.

NumPy and OpenBLAS choose loops by processor. With AVX-512 their sums and sines have other last digits, and contacts
make other episodes of that: a third of the rows of 60 episodes of a cube. A process that makes episodes therefore uses
what every x86-64 processor with AVX2 has. Its own arithmetic is chosen when NumPy is imported, so it starts afresh.
"""

import contextlib
import importlib
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.runs.contract import of_this_code, one_line, replacing, with_loops_of_avx2
from datasets.registry import PLUGINS, generator_of, parse_name
from datasets.spec import DataError, Dataset

REFUSED = 2  # exit code; the reason is a line on the standard output
_PROGRAM = "import sys; from datasets.episode_process import main; sys.exit(main(sys.argv[1:]))"


def part_of(parts: Path, index: int) -> Path:
    """The file of one episode."""
    return parts / f"episode-{index:06}.npz"


def start_episodes(dataset: Dataset, parts: Path, indices: Sequence[int]) -> subprocess.Popen[str]:
    """A process that makes those episodes into the folder `parts`; it ends with this one, in whatever way that ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, dataset.name, str(parts.absolute()), *PLUGINS],
        env=of_this_code(portable_arithmetic()),
        stdin=subprocess.PIPE,  # closed when this process is gone
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is this process' business
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # of one that has ended, and whose exit code says so
        print(*indices, file=process.stdin, flush=True)  # no argument holds those of a large set
    return process


def portable_arithmetic() -> dict[str, str]:
    """Environment in which NumPy and OpenBLAS compute alike on every x86-64 processor with AVX2; empty on others."""
    features = np.show_config(mode="dicts")["SIMD Extensions"]
    known = [*features["baseline"], *features["found"]]
    if platform.machine() not in ("x86_64", "AMD64") or not {"X86_V3", "AVX2"} & {*known}:
        return {}
    return {"OPENBLAS_CORETYPE": "Haswell", **with_loops_of_avx2(features["found"])}


def make_episodes(dataset: Dataset, parts: Path, indices: Sequence[int]) -> None:
    """Those that are not there yet; another process may be making the same set."""
    for index in indices:
        if part_of(parts, index).exists():
            continue
        arrays: dict[str, Any] = generator_of(dataset).make_episode(dataset, index)
        try:
            with replacing(part_of(parts, index)) as partial, partial.open("wb") as handle:
                np.savez(handle, **arrays)
        except FileNotFoundError:
            if parts.exists():
                raise
            return  # the other process has finished the set


def main(words: Sequence[str]) -> int:
    """NAME PARTS [PLUGIN ...]; a line of indices on the standard input, which the caller keeps open while it lives."""
    indices = [int(index) for index in sys.stdin.readline().split()]

    def end_with_parent() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    name, parts, *plugins = words
    try:
        for module in plugins:
            importlib.import_module(module)
        make_episodes(parse_name(name), Path(parts), indices)
    except (DataError, OSError) as error:
        print(one_line(error), flush=True)
        return REFUSED
    return 0
