"""Fake tensors at a fraction of their price: an operator's results are worked out once for each kind of its inputs.

FakeTensorMode has such a memory, but it must hold for symbolic shapes, sparse tensors and numbers known beforehand, and
the keys for that take most of its time. Here shape, stride, offset, type and device of each tensor tell all, of every
agent in a process: they share most of their shapes.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

FROM_NUMBERS = ("_to_copy", "copy_", "lift_fresh")  # may be of tensors whose numbers are known


class Unknown(Exception):
    """Of an argument that a kind does not tell all about."""


class Kind(NamedTuple):
    """All that an operator's result depends on, of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device


class RememberingFakeTensorMode(FakeTensorMode):
    """FakeTensorMode for whole numbers as shapes and dense tensors."""

    _known: ClassVar[dict[object, tuple[Kind, ...]]] = {}

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.cache_enabled = False  # of the class above
        self._attributes: dict[str, Any] | None = None  # of a fake tensor that is no constant and no parameter

    def dispatch(
        self, func: OpOverload, types: Sequence[type], args: Any = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        returned = _returned(func)
        try:
            key = returned and (func, _kind_of(args), _kind_of([*(kwargs or {}).items()]))
        except Unknown:
            key = ""
        if not key or key not in self._known:
            result = super().dispatch(func, types, args, kwargs or {})
            if key and (kinds := _plain_kinds(result)):
                self._known[key] = kinds
            return result
        if returned == "input":
            return args[0]
        results = tuple([self._fake(kind, args[0] if returned == "view" else None) for kind in self._known[key]])
        return results if returned == "several" else results[0]

    def _fake(self, kind: Kind, base: Tensor | None) -> FakeTensor:
        """A tensor of that kind, a view of `base` if there is one."""
        tensor = torch.empty_strided(kind.shape, kind.stride, dtype=kind.dtype, device="meta")
        if base is not None:
            tensor.set_(base.untyped_storage(), kind.offset, kind.shape, kind.stride)
        if self._attributes is None:
            first = FakeTensor(self, tensor, kind.device)
            self._attributes = dict(vars(first))
            return first
        # The same, without setting a dozen attributes one by one.
        made = Tensor._make_subclass(
            FakeTensor, tensor, False, dispatch_device=True, device_for_backend_keys=kind.device
        )
        vars(made).update(self._attributes, _fake_device=kind.device)
        return made


@cache
def _returned(func: OpOverload) -> str:
    """Whether an operator gives its first `input`, a `view` of it, something `new` or `several` such; else nothing."""
    schema = func._schema
    unsure = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*func.tags}
    if unsure or func.namespace != "aten" or schema.name.removeprefix("aten::") in FROM_NUMBERS:
        return ""
    if not schema.returns or any(str(each.type) != "Tensor" for each in schema.returns):
        return ""
    if len(schema.returns) > 1:
        return "" if any(each.alias_info for each in schema.returns) else "several"
    alias = schema.returns[0].alias_info
    if alias is None:
        return "" if schema.name == "aten::_unsafe_view" else "new"
    if schema.arguments[0].alias_info is None:
        return ""
    return "input" if alias.is_write else "view"


def _plain_kinds(result: object) -> tuple[Kind, ...]:
    """The kind of each result; nothing where one has known numbers or is none."""
    results = result if isinstance(result, tuple) else (result,)
    is_plain = all(type(each) is FakeTensor and each.constant is None for each in results)
    return tuple([_kind_of(each) for each in results]) if is_plain else ()


def _kind_of(value: Any) -> Any:
    """Raises Unknown."""
    if isinstance(value, Tensor):
        if type(value) is not FakeTensor or value.constant is not None:
            raise Unknown
        return Kind(value.shape, value.stride(), int(value.storage_offset()), value.dtype, value.fake_device)
    if isinstance(value, (list, tuple)):
        return tuple([_kind_of(item) for item in value])
    return type(value), value
