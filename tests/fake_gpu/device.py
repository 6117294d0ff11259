"""A GPU that is not there: within `fake_gpu` the device `cuda` has tensors without numbers.

Needs the two libraries of `tests.fake_gpu.build`.
"""

import contextlib
import gc
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

from tests.fake_gpu.memory import RememberingFakeTensorMode
from tests.fake_gpu.watch import Fault

FREE = 80 * 2**30  # bytes


@contextlib.contextmanager
def fake_gpu() -> Iterator[None]:
    """Answers in the driver's place what torch asks it: for free memory and pinned memory."""
    mode = RememberingFakeTensorMode(allow_non_fake_inputs=True)
    threads = torch.autograd.is_multithreading_enabled()
    torch._C._set_multithreading_enabled(False)  # threads of the backward pass would set a device
    try:
        with (
            mock.patch.object(torch.cuda, "mem_get_info", lambda device=None: (FREE, FREE)),
            mock.patch.object(Tensor, "pin_memory", Tensor.clone),
            mode,
        ):
            yield
    finally:
        torch._C._set_multithreading_enabled(threads)


@contextlib.contextmanager
def no_graph_outlives() -> Iterator[None]:
    """Raises Fault where a tensor made within is left with its autograd graph: nodes of it hold the stream that they
    were made on, which breaks a later capture."""
    gc.freeze()
    gc.disable()  # what is made from here on stays in the youngest generation
    try:
        yield
        kept = [thing for thing in gc.get_objects(0) if issubclass(type(thing), Tensor) and thing.grad_fn is not None]
    finally:
        gc.enable()
        gc.unfreeze()
    if kept:
        raise Fault(f"{len(kept)} tensors keep their autograd graph beyond the update, one by {kept[0].grad_fn}")
