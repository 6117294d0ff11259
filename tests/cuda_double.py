"""A double of torch's CUDA graphs on the CPU: what is captured is recorded by operator, undone, and done again.

It has the properties of torch 2.13 that code must respect: an operator that waits for the device ends a capture, whose
end then raises an error of its own and leaves the stream as it is; a graph that ends takes the cuBLAS workspaces of its
capture stream with it, and a graph that goes on using them fails.
"""

import contextlib
import itertools
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")  # of cuBLAS
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")


class StreamDouble:
    """A stream; its number tells it from others."""

    def __init__(self, number: int):
        self.number = number

    def wait_stream(self, other: "StreamDouble") -> None:
        """Nothing to wait for: the CPU does one thing at a time."""


class GraphDouble:
    """The operators of one capture."""

    def __init__(self, cuda: "CudaDouble"):
        self.cuda = cuda
        self.stream: StreamDouble | None = None
        self.workspaces: set[int] = set()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []
        self.memory: object = None
        self.is_reset = False
        self.replays = 0
        cuda.graphs.append(self)

    def pool(self) -> object:
        return self.memory

    @torch.no_grad()
    def replay(self) -> None:
        if self.is_reset or not self.workspaces <= set(self.cuda.workspaces.values()):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self.replays += 1
        for function, args, kwargs, captured in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(captured), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def reset(self) -> None:
        self.is_reset = True
        self.calls.clear()
        if self.stream is not None:
            self.cuda.workspaces.pop(self.stream.number, None)


class Recorder(TorchDispatchMode):
    """Does and records what happens in a capture; undoes it at the end, since a capture does nothing."""

    def __init__(self, graph: GraphDouble):
        super().__init__()
        self.graph = graph
        self._before: dict[int, tuple[Any, Any]] = {}  # memory that was written to, and what was there

    def undo(self) -> None:
        for memory, content in self._before.values():
            memory.copy_(content)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.name().split(".")[0]
        if name in WAITS:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if name in PRODUCTS:
            self.graph.workspaces.add(self.graph.cuda.workspace())
        for declared, given in zip(func._schema.arguments, args, strict=False):
            if declared.alias_info is not None and declared.alias_info.is_write:
                for tensor in tree_leaves(given):
                    memory = tensor.untyped_storage()
                    if memory.data_ptr() not in self._before:
                        self._before[memory.data_ptr()] = memory, memory.clone()
        result = func(*args, **(kwargs or {}))
        self.graph.calls.append((func, args, kwargs or {}, result))
        return result


def without_this_file(trace: TracebackType | None) -> TracebackType | None:
    """A traceback as it is where operators are not Python."""
    if trace is None:
        return None
    rest = without_this_file(trace.tb_next)
    if trace.tb_frame.f_code.co_filename == __file__:
        return rest
    return TracebackType(rest, trace.tb_frame, trace.tb_lasti, trace.tb_lineno)


class CudaDouble:
    """What `bench.training.capture` uses of torch.cuda; `graphs` are all that were begun, in order."""

    def __init__(self) -> None:
        self.graphs: list[GraphDouble] = []
        self.workspaces: dict[int, int] = {}  # stream -> its workspace
        self._streams, self._made, self._pools = itertools.count(1), itertools.count(), itertools.count()
        self.current = self.default = StreamDouble(0)
        self._shared = self.Stream()  # what torch captures on where nothing is said

    @property
    def living(self) -> list[GraphDouble]:
        return [graph for graph in self.graphs if not graph.is_reset]

    def CUDAGraph(self) -> GraphDouble:
        return GraphDouble(self)

    def Stream(self) -> StreamDouble:
        return StreamDouble(next(self._streams))

    def current_stream(self) -> StreamDouble:
        return self.current

    def synchronize(self) -> None:
        """Nothing is under way."""

    def workspace(self) -> int:
        """That of the current stream, made where there is none."""
        return self.workspaces.setdefault(self.current.number, next(self._made))

    @contextlib.contextmanager
    def stream(self, stream: StreamDouble) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph: GraphDouble, pool: object = None, stream: StreamDouble | None = None) -> Iterator[None]:
        stream = stream or self._shared
        before, self.current = self.current, stream
        graph.stream, graph.memory = stream, next(self._pools) if pool is None else pool
        recorder = Recorder(graph)
        try:
            with recorder:
                yield
        except Exception as error:
            recorder.undo()
            error.__traceback__ = without_this_file(error.__traceback__)
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904
        recorder.undo()
        self.current = before
