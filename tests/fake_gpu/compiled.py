"""How many kernels an update launches once inductor has fused it for an H100, compiled on a machine without a GPU.

    python -m tests.fake_gpu.compiled fql --seeds 1 --phase offline

Needs Triton, which a CPU build of torch does not bring (pip install triton; tried with 3.7.1). Code is generated for a
GPU whose facts stand below; no kernel is built or run. That takes about as long as compiling for one does.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from agents.blocks.base import Phase
from bench.training.engine import set_up_compiler
from tests.fake_gpu.budget import COMPILED, Row
from tests.fake_gpu.build import GUARD, load_device_guard, run_on_fake_gpu
from tests.fake_gpu.device import fake_gpu
from tests.fake_gpu.paths import Subject

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 * 2**30,
    gcnArchName="",
    L2_cache_size=50 * 2**20,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    uuid="0",
)


def compiled_launches(name: str, num_seeds: int, phase: Phase) -> dict[str, int]:
    """Launches of an agent's update in that phase: Triton's kernels, and those of libraries."""
    code: list[str] = []
    set_up_compiler()
    with inductor_for(H100, code.append), fake_gpu():
        subject = Subject(name, num_seeds)
        if phase == "online":
            subject.act()
            subject.hand_over()
        update = subject.update_offline if phase == "offline" else subject.update_online
        update()  # streams join the tape
        torch.compile(lambda: update(), fullgraph=True, dynamic=False, backend=_compile_only)()
    calls = [text[text.index("def call(") :] for text in code]
    return {
        "triton": sum(len(re.findall(r"^\s+triton_\w+\.run\(", call, re.MULTILINE)) for call in calls),
        "library": sum(len(re.findall(r"extern_kernels\.\w+\(|torch\.ops\.[\w.]+\(", call)) for call in calls),
    }


def fused_launches(agents: Iterable[tuple[str, int]]) -> Iterator[tuple[Row, int]]:
    """Launches of the offline update of each agent with that many seeds, by a process of its own. Raises NoFakeGPU."""
    for name, num_seeds in agents:
        arguments = ["-m", "tests.fake_gpu.compiled", name, "--seeds", str(num_seeds)]
        done = run_on_fake_gpu(arguments, stdout=subprocess.PIPE)
        if done.returncode:
            raise RuntimeError(f"compiling {name}, S = {num_seeds}, ended with exit code {done.returncode}")
        yield (name, num_seeds, COMPILED), sum(json.loads(done.stdout.splitlines()[-1]).values())


def _compile_only(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
    from torch._inductor.compile_fx import compile_fx

    compile_fx(graph, inputs)
    return graph.forward


@contextlib.contextmanager
def inductor_for(gpu: SimpleNamespace, take: Callable[[str], object]) -> Iterator[None]:
    """Within it inductor generates code for `gpu`, hands it to `take` and builds no kernel."""
    import torch._inductor.compile_fx as compile_fx
    import torch._inductor.config as config
    import torch._inductor.fx_passes.fuse_attention as fuse_attention
    import torch._inductor.fx_passes.pad_mm as pad_mm
    import torch._subclasses.fake_tensor as fake_tensor
    import torch.fx.experimental.proxy_tensor as proxy_tensor
    import triton  # pyright: ignore[reportMissingImports]
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.graph import GraphLowering
    from torch._inductor.runtime import triton_helpers, triton_heuristics
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]

    def answer(value: object = None) -> Callable[..., Any]:
        return lambda *_, **__: value

    asked = {"current_device": 0, "device_count": 1, "synchronize": None, "get_device_properties": gpu}
    target = GPUTarget("cuda", 10 * gpu.major + gpu.minor, gpu.warp_size)
    driver = {"get_current_target": target, "get_current_device": 0, "get_current_stream": 0, "is_active": True}
    driver["get_active_torch_device"] = torch.device("cuda:0")
    triton.runtime.driver.set_active(SimpleNamespace(**{name: answer(value) for name, value in driver.items()}))
    own = {"is_available": True, "is_initialized": False, "get_device_name": gpu.name, "_lazy_init": None}
    own |= {"get_device_capability": (gpu.major, gpu.minor), "get_rng_state": torch.zeros(16), "set_rng_state": None}
    with contextlib.ExitStack() as stack:

        def replace(owner: Any, values: dict[str, Any]) -> None:
            for name, value in values.items():
                stack.enter_context(mock.patch.object(owner, name, answer(value), create=True))

        replace(torch.cuda, asked | own)
        replace(CudaInterface, asked | {"is_available": True, "raise_if_triton_unavailable": None})
        replace(CudaInterface.Worker, {"current_device": 0, "get_device_properties": gpu})
        replace(torch._C, {"_cuda_getCurrentRawStream": 0})
        replace(fake_tensor, {"init_gpu_context": None})
        # Numbers for a GPU are made on the host first, as without one: there is none, whatever torch has been told.
        stack.enter_context(mock.patch.object(fake_tensor.FakeTensorMode, "avoid_device_init", True))
        # A number that is known beforehand would be computed there and then, on the device.
        stack.enter_context(mock.patch.object(proxy_tensor, "CONSTANT_NUMEL_LIMIT", 0))
        replace(triton_helpers, {"set_driver_to_gpu": None})
        replace(triton_heuristics.CachingAutotuner, {"precompile": None})
        replace(compile_fx, {"get_cuda_device_context": contextlib.nullcontext()})
        # Patterns are traced on real tensors of the device.
        replace(fuse_attention, {"_sfdp_init": None})
        replace(pad_mm, {"_pad_mm_init": None})
        stack.enter_context(mock.patch.object(GraphLowering, "save_output_code", staticmethod(take)))
        stack.enter_context(config.patch(joint_graph_constant_folding=False, fx_graph_cache=False, compile_threads=1))
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agent")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--phase", choices=("offline", "online"), default="offline")
    args = parser.parse_args()
    if GUARD not in os.environ:
        return run_on_fake_gpu(["-m", "tests.fake_gpu.compiled", *sys.argv[1:]]).returncode
    load_device_guard()
    print(json.dumps(compiled_launches(args.agent, args.seeds, args.phase)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
