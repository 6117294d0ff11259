"""Starts a Python in which fake CUDA tensors can be differentiated without a GPU.

Two small libraries make that possible: one takes the place of torch's answers about accelerators and must be loaded
before it, the other, for a CPU build of torch, adds a device guard. Both are compiled anew, in a second.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

HERE = Path(__file__).parent
GUARD = "O2O_BENCH_DEVICE_GUARD"  # names the second library to the child


class NoFakeGPU(Exception):
    """This machine cannot compile or load the two libraries; the message says why."""


def run_on_fake_gpu(arguments: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    """`python …` with the libraries. Raises NoFakeGPU; `options` are those of subprocess.run."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "LD_PRELOAD": _compiled("no_accelerator", Path(folder)),
            GUARD: _compiled("device_guard", Path(folder)),
            "CUDA_VISIBLE_DEVICES": "",  # a GPU that is there is none of theirs
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "compiled"),  # for a GPU that is not this machine's
        }
        # Copies of networks ask for the addresses of tensors without numbers.
        command = [sys.executable, "-W", "ignore:Accessing the data pointer of FakeTensor", *arguments]
        return subprocess.run(command, env=environment, cwd=HERE.parents[1], text=True, **options)  # type: ignore


def load_device_guard() -> None:
    """In the child, once, before the first fake tensor."""
    if torch.version.cuda is None:
        ctypes.CDLL(os.environ[GUARD])


def _compiled(name: str, folder: Path) -> str:
    """The library's file. Raises NoFakeGPU."""
    if sys.platform != "linux":
        raise NoFakeGPU(f"libraries are preloaded as Linux does; this is {sys.platform}")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise NoFakeGPU(f"there is no C++ compiler {os.environ.get('CXX', 'c++')!r} here")
    installed = Path(torch.__file__).parent
    include = [f"-I{installed / 'include'}", f"-I{installed / 'include/torch/csrc/api/include'}"]
    target = folder / f"{name}.so"
    command = [compiler, "-shared", "-fPIC", "-std=c++20", *include, str(HERE / f"{name}.cpp"), "-o", str(target)]
    if name == "device_guard":
        command += [f"-L{installed / 'lib'}", "-Wl,--no-as-needed", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoFakeGPU(f"{compiler} cannot compile {name}.cpp: {done.stderr.strip().splitlines()[0]}")
    return str(target)
