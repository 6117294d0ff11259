"""Whether this checkout draws the very files that were drawn of an archive of runs when it was made."""

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import ft2font

from analysis.loading.read import ResultsError, read_json
from bench.runs.contract import SCHEMA_VERSION, of_this_code, with_loops_of_avx2, write_json

DRAWN = "drawn.json"  # in the archive: hashes of figures and tables, and what they were drawn with
PACKAGES = ("matplotlib", "numpy", "pandas", "pillow", "scipy")


def narrower_arithmetic() -> dict[str, str]:
    """Environment in which NumPy computes as on any x86-64 processor with AVX2; empty where it does already.

    With AVX-512 its logarithms have other last digits, which show in figures with a logarithmic scale as PDF.
    """
    return with_loops_of_avx2(np.show_config(mode="dicts")["SIMD Extensions"]["found"])


def draw_apart(root: Path, write: bool, environment: Mapping[str, str]) -> int:
    """`python -m analysis reference` in a process of its own; returns its exit code, and hands its output on."""
    words = [sys.executable, "-m", "analysis", "reference", "--results", str(root), *(["--write"] if write else [])]
    done = subprocess.run(words, env=of_this_code(environment), capture_output=True, text=True)
    print(done.stdout, end="", flush=True)
    print(done.stderr, end="", file=sys.stderr, flush=True)
    return done.returncode


def read_drawn(root: Path) -> dict[str, Any]:
    """What the archive says of its figures and tables. Raises ResultsError."""
    if not (root / DRAWN).is_file():
        raise ResultsError(f"{root} has no {DRAWN}: it is no archive, or its figures were not recorded yet (--write)")
    drawn = read_json(root / DRAWN, ("files", "drawn_with"))
    for key in ("files", "drawn_with"):
        if not isinstance(drawn[key], dict):
            raise ResultsError(f"{root / DRAWN}: {key} is {drawn[key]!r}, expected an object: record it anew (--write)")
    return drawn


def write_drawn(root: Path, written: Sequence[Path]) -> None:
    """Records the files that were `written`. Raises StorageError."""
    content = {"schema_version": SCHEMA_VERSION, "files": hashes_of(written), "drawn_with": drawn_with()}
    write_json(root / DRAWN, content)


def differences(drawn: Mapping[str, Any], written: Sequence[Path]) -> list[str]:
    """One line for each file that is not the recorded one, and one on what it was drawn with; none where all are."""
    recorded, found = drawn["files"], hashes_of(written)
    lines = [f"{name}: recorded, and not drawn" for name in sorted(recorded.keys() - found.keys())]
    lines += [f"{name}: drawn, and not recorded" for name in sorted(found.keys() - recorded.keys())]
    lines += [
        f"{name}: other bytes" for name in sorted(found.keys() & recorded.keys()) if recorded[name] != found[name]
    ]
    if not lines:
        return []
    before, here = drawn["drawn_with"], drawn_with()
    changed = [f"{key} {before.get(key)} then, {here[key]} now" for key in sorted(here) if before.get(key) != here[key]]
    if changed:
        return [*lines, f"drawn with another {'; '.join(changed)}: make setup installs the pinned versions"]
    return [
        *lines,
        "drawn with the same versions: the runs, the published numbers or the code of analysis have changed",
    ]


def hashes_of(paths: Sequence[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def drawn_with() -> dict[str, str]:
    """What the bytes of figures and tables may depend on, beside the runs and the code."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        **versions,
        "freetype": ft2font.__freetype_version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }
