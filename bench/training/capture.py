"""Capturing work in CUDA graphs: on which stream, in which memory, and what is put back where it fails."""

from collections.abc import Callable
from typing import Any

import torch


class GraphFamily:
    """CUDA graphs that are captured on one stream, share one pool of memory, and end together.

    Where a graph ends, torch 2.13 frees the cuBLAS workspaces of the stream that it was captured on, and any other
    graph of that stream goes on using them (pytorch issue 193402). So what may end at different times is captured on
    different streams. Of those torch has 32, in circles.
    """

    def __init__(self, cuda: Any = torch.cuda):
        """
        Args:
            cuda: what offers `CUDAGraph`, `graph`, `Stream`, `stream`, `current_stream` and `synchronize`.
        """
        self._cuda = cuda
        self._stream: Any = None
        self._graphs: list[Any] = []

    def warm_up(self, work: Callable[[], object]) -> None:
        """Does the work outside of a capture first: libraries make their workspaces, the compiler its kernels."""
        if self._stream is None:
            self._stream = self._cuda.Stream()
        self._stream.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(self._stream):
            work()
        self._cuda.current_stream().wait_stream(self._stream)

    def capture(self, work: Callable[[], object]) -> Callable[[], object]:
        """What does the work again, in the same tensors; to be captured after `warm_up`.

        Raises whatever torch raises; then the family is to be ended.
        """
        graph = self._cuda.CUDAGraph()
        pool = self._graphs[0].pool() if self._graphs else None
        self._graphs.append(graph)
        # After a capture that fails, torch leaves its stream the current one.
        with self._cuda.stream(self._cuda.current_stream()), self._cuda.graph(graph, pool=pool, stream=self._stream):
            work()
        return graph.replay

    def end(self) -> None:
        """Frees all graphs, which must not be replayed again, and their memory."""
        if self._graphs:
            self._cuda.synchronize()  # a replay may be under way
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()
