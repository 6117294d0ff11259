"""Where torch.compile keeps its results: a folder that survives the process; in a job of a cluster one on its node.

Kernels are files named by what they were made of. Jobs of an array want the same ones at the same moment, and a home
over NFS is slow with locks and small files. So a process of a job works in a folder of its own on the node: it begins
with a copy of what the shared folder holds, and gives back what it has compiled once that has proved right.
"""

import atexit
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from bench.runs.claims import slurm_job
from bench.runs.contract import StorageError, make_folder, write_atomically
from datasets.cache import cache_root

FOLDER = "TORCHINDUCTOR_CACHE_DIR"  # torch's variable
KEYED = ("fxgraph", "aotautograd")  # torch reads any file in a folder of these; each process would add one
LEFT_OUT = ("triton", "locks")  # kernels with absolute paths, which entries of fxgraph hold as well; and locks


def use_folder(agent: str) -> None:
    """Chooses the folder for what is compiled for an agent, by its class; one that the user has named stays."""
    if not _user_has_named_one():
        shared = shared_folder(agent)
        os.environ[FOLDER] = str((slurm_job() and node_folder(shared)) or shared)


def share(agent: str) -> None:
    """Puts what this process has compiled on its node into the shared folder. To be called when it is known to be
    right; another process of the job may still be at work on its own."""
    shared = shared_folder(agent)
    if slurm_job() and os.environ.get(FOLDER) == str(node_folder(shared)):
        copy_new(Path(os.environ[FOLDER]), shared)


def shared_folder(agent: str) -> Path:
    """Of what was compiled for an agent and this kind of processor: a home may be shared by several kinds."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    features = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    kind = hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:12]
    return cache_root() / "compiled" / kind / agent


@cache
def node_folder(shared: Path) -> Path | None:
    """A folder of this process alone on its node, with a copy of the shared one's entries; it goes with the process.

    None, with a warning, where the node has no room for it.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="o2o-bench-compiled-", dir=os.environ.get("SLURM_TMPDIR")))
    except OSError as error:
        _warn(f"no folder on this node for compiled code ({error.strerror}): it is kept in {shared}")
        return None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy_new(shared, folder)
    return folder


def copy_new(source: Path, target: Path) -> None:
    """Copies files that `target` lacks, each whole or not at all; the rest is left with a warning where one fails."""
    for name in list(files_in(source)):
        place = target / name
        if place.exists() or (name.parts[0] in KEYED and next(files_in(place.parent), None)):
            continue
        try:
            make_folder(place.parent)
            write_atomically(place, (source / name).read_bytes())
        except FileNotFoundError:  # someone clears the folder meanwhile
            continue
        except (OSError, StorageError) as error:
            _warn(f"compiled code is not copied to {target}: {error}")
            return


def files_in(folder: Path) -> Iterator[Path]:
    """Relative paths of what processes can share; files that are being written begin with a dot, and are left out."""
    for directory, folders, names in os.walk(folder):
        here = Path(directory).relative_to(folder)
        folders[:] = [name for name in folders if name[0] != "." and str(here / name) not in LEFT_OUT]
        yield from (here / name for name in names if name[0] != ".")


def _user_has_named_one() -> bool:
    """Whether torch's variable holds a folder other than the one that torch puts there when it is imported."""
    if FOLDER not in os.environ:
        return False
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    return os.environ[FOLDER] != default_cache_dir()


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)
