"""What tensor code would do on a GPU: its launches and their least time, and what no CUDA graph can hold."""

import contextlib
import traceback
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

ROOT = Path(__file__).resolve().parents[2]
HARNESS = ("watch.py", "memory.py", "device.py", "paths.py")  # of this folder

ALLOCATE = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")
DEVICE_OF = torch.ops.prim.device.default
COPY = ("_to_copy", "copy_", "_copy_from")
BY_INDEX = ("index", "index_put", "index_put_", "_index_put_impl_")
GATHER = ("index", "index_select", "gather", "searchsorted")  # read as much as they write, of a table of any size
# Launches of one operator where they are not one: the bias is spread over the result before the product; gradients of a
# normalisation's input and of its scale and shift are computed apart.
SEVERAL = {"baddbmm": 2, "native_layer_norm_backward": 2}
# ATen/native/cuda/MultiTensorApply.cuh, built for CUDA 13: numbers in a block's share, shares and tensors in a launch.
CHUNK, CHUNKS, TENSORS = 65536, 2240, 252


class Fault(Exception):
    """What no CUDA graph can hold, or what a GPU would not do."""


class Operator(NamedTuple):
    """What one operator costs on a GPU."""

    launches: int
    flop: int  # of matrix products
    bytes: int  # read and written


class Watch(TorchDispatchMode):
    """Within it every operator on fake CUDA tensors is examined and put down in `operators`.

    Raises Fault, beside what fake tensors raise themselves: for operators that take tensors of host and device, and for
    those that the host would wait for (`.item()`, shapes that depend on data).
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self._looks_away = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # no compiler is at work that would have to be kept out at each call

    @contextlib.contextmanager
    def looking_away(self) -> Iterator[None]:
        """Within it nothing is examined or put down."""
        self._looks_away = True
        try:
            yield
        finally:
            self._looks_away = False

    @property
    def launches(self) -> int:
        return sum(operator.launches for operator in self.operators)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is DEVICE_OF:  # half of all calls
            return args[0].fake_device
        if self._looks_away:
            return func(*args, **kwargs)
        inputs = [*_tensors(args), *_tensors(kwargs.values())]
        name, launches_nothing, draws = _traits(func)
        if _on_gpu(inputs):
            _examine(name, draws, inputs, args)
        result = func(*args, **kwargs)
        outputs = [*_tensors([result])]
        if not _on_gpu(inputs + outputs):
            return result
        if name in COPY and any(tensor.device.type == "cpu" for tensor in inputs + outputs):
            raise Fault(f"{name} between host and device")
        if not launches_nothing:
            flop = flop_registry.get(func.overloadpacket, lambda *_, **__: 0)(*args, **kwargs, out_val=result)
            moved = 2 * outputs if name in GATHER else inputs + outputs
            self.operators.append(Operator(_launches(name, args), flop, sum(map(_bytes, moved))))
        return result


def line_of_ours(error: BaseException) -> str:
    """The innermost line of this checkout that an exception comes from, as agents/fql.py:12."""
    here = Path(__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        is_harness = path.parent == here and path.name in HARNESS
        if path.is_relative_to(ROOT) and ".venv" not in path.parts and not is_harness:
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "no line of ours"


@cache
def _traits(func: Any) -> tuple[str, bool, bool]:
    """Name of an operator, whether nothing is launched for it, whether it draws random numbers."""
    name = func._schema.name.removeprefix("aten::")
    return name, _is_view(func) or name in ALLOCATE, torch.Tag.nondeterministic_seeded in func.tags


def _examine(name: str, draws: bool, inputs: list[Tensor], args: Any) -> None:
    """Raises Fault for what an operator on CUDA tensors must not do and fake tensors allow."""
    if name in BY_INDEX and any(index is not None and index.dtype == torch.bool for index in args[1]):
        raise Fault(f"{name} by a mask: the host waits to learn how many rows that are")
    if draws:
        raise Fault(f"{name} draws random numbers that are on no tape")
    # A single number on the host is taken as an argument of the kernel; a tensor is not.
    if name not in COPY and any(tensor.device.type == "cpu" and tensor.dim() for tensor in inputs):
        raise Fault(f"{name} of tensors on host and device")
    if name == "_fused_adam_":
        for tensors in zip(*args[:4], strict=True):
            if len({_layout(tensor) for tensor in tensors}) > 1:
                raise Fault(f"_fused_adam_ of several layouts: {', '.join(str(_layout(t)) for t in tensors)}")


def _layout(tensor: Tensor) -> tuple[object, ...]:
    """What must be equal of a parameter, its gradient and its means."""
    strides = [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
    return tensor.device.type, tensor.dtype, tuple(tensor.shape), tuple(strides)


def _launches(name: str, args: Any) -> int:
    if name.startswith(("_fused_", "_foreach_")):
        chunks = sum(-(-tensor.numel() // CHUNK) for tensor in args[0])
        return max(-(-chunks // CHUNKS), -(-len(args[0]) // TENSORS))
    return SEVERAL.get(name, 1)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_view(func: Any) -> bool:
    """Whether the operator gives another view of its input, for which nothing is launched."""
    aliases = [returned.alias_info for returned in func._schema.returns if returned.alias_info is not None]
    return any(not alias.is_write for alias in aliases) or func._schema.name == "aten::_unsafe_view"


def _on_gpu(tensors: Iterable[Tensor]) -> bool:
    return any(tensor.device.type == "cuda" for tensor in tensors)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
