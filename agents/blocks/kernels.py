"""How networks of S seeds are computed on a CPU: member by member, by the faster of two libraries, with fewer passes.

Each function takes tensors with or without a leading dimension of members. On a GPU, and for small networks on a CPU,
they are torch's own operators, for all members at once.
GELU is the tanh approximation and LayerNorm has eps 1e-6 unless told otherwise, as in the official JAX code.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

GELU_LINEAR = 2 * math.sqrt(2 / math.pi)  # gelu(x) = x sigmoid(GELU_LINEAR x + GELU_CUBIC x^3)
GELU_CUBIC = 0.044715 * GELU_LINEAR
HAS_ONEDNN = torch.backends.mkldnn.is_available()

Matmul = Literal["fp32", "tf32", "bf16"]  # precision of the products of layers
NARROW = 16  # rows or columns of a product below which it is cheap whatever computes it
SMALL = 2**24  # B times the entries of the largest operand, up to which calls cost a CPU more than what they compute
FEW = 2**16  # entries of a batch of hidden values, likewise

_matmul: Matmul = "fp32"


@contextlib.contextmanager
def products_in(matmul: Matmul) -> Iterator[None]:
    """Within it the products of all layers, and of their gradients, have this precision; everything else is fp32.

    tf32, on a GPU: operands have 10 bits behind the point. bf16: they have 7, their products are summed in fp32, and
    sums are rounded to bf16 once, because torch's library for CPUs returns nothing else; biases are added in fp32.
    Narrow products stay fp32: among them is the last layer of every critic, whose values reach -300, where bf16 has
    steps of 2. Parameters are cast for each product, and stay fp32 with their optimiser's state.

    Who runs updates enters it around them, also around their compilation or capture, which keep what they find.
    """
    global _matmul
    before = _matmul, torch.backends.cuda.matmul.allow_tf32
    _matmul, torch.backends.cuda.matmul.allow_tf32 = matmul, matmul == "tf32"
    try:
        yield
    finally:
        _matmul, torch.backends.cuda.matmul.allow_tf32 = before


def multiplies(matmul: Matmul, device: torch.device) -> bool:
    """Whether the device multiplies in this precision by instructions of its own."""
    if device.type == "cpu":
        has_bf16 = any(is_there for name, is_there in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
        return matmul == "fp32" or (matmul == "bf16" and HAS_ONEDNN and has_bf16)
    return matmul == "fp32" or torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere, which brought both


def at_once(x: Tensor) -> bool:
    """Whether x (S, ...) is computed by one operator for all seeds and members, whatever its size: as on a GPU.

    The form of a GPU may run on any device: a test that replaces this function has its numbers on a CPU.
    """
    return x.device.type != "cpu"


def has_one_thread() -> bool:
    return torch.get_num_threads() == 1


# A constant for torch.compile, as by torch.compiler.assume_constant_result, which would load the compiler to say so.
has_one_thread._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def are_small(x: Tensor, *parameters: Tensor) -> bool:
    """Whether a CPU computes x (M, B, in) for all M members at once, and rounds each as if it were alone.

    That has been tried (tests/test_kernels.py), of one thread and fp32, where each member's rows or columns fill whole
    vectors: the members then begin where vectors do. Of M = 1, too, so that a seed's numbers do not depend on its pack.
    """
    batches = [tensor.shape[-2:] for tensor in (x, *parameters) if tensor.dim() > 2]
    most = max(rows * columns for rows, columns in batches)
    return (
        x.shape[-2] * most <= SMALL
        and all((rows % 16 == 0 or columns % 16 == 0) and rows > 1 for rows, columns in batches)
        and x.shape[-2] % 16 == 0
        and _matmul == "fp32"
        and has_one_thread()
    )


def _is_small(x: Tensor) -> bool:
    """The same of a function of each element of x (..., B, n)."""
    count = x.shape[-2:].numel()
    return count <= FEW and count % 64 == 0 and x.dim() > 2 and has_one_thread()


def by_member(function: Callable[..., Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
    """`function(x, *parameters)` of every seed and member: x (S, *members, B, in) -> (S, *members, B, out).

    Parameters begin with (S, *members), as does another input, which may be among them.

    On a GPU it is called once, with one leading dimension for all members, and so it is for small networks on a CPU.
    Otherwise a CPU calls it for each member alone: that is faster than batched products. Either way the rounding of a
    seed's numbers does not depend on its pack, for batches of a multiple of 16 rows (MKL rounds by where in memory an
    operand begins).
    """
    (y,) = all_by_member(lambda *of_member: (function(*of_member),), x, *parameters)
    return y


def all_by_member(function: Callable[..., tuple[Tensor, ...]], x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    """The same of a function with several results, each with the leading dimensions of x (S, *members, B, in)."""
    leading = x.shape[:-2]
    flat = [tensor.flatten(0, len(leading) - 1) for tensor in (x, *parameters)]
    if at_once(x) or are_small(*flat):
        results = function(*flat)
    else:
        first, *others = [function(*member) for member in zip(*flat, strict=True)]
        each = zip(first, *others, strict=True)
        results = tuple(torch.stack(of_all) for of_all in each) if others else tuple(y.unsqueeze(0) for y in first)
    return tuple(result.unflatten(0, leading) for result in results)


def by_seed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function`, of each element, of x (S, ...); on a CPU of each seed alone.

    A CPU computes most elements in vectors and the last few one by one, and sigmoid, SiLU, Mish, softplus and atanh
    round differently there. Which elements are the last ones must not depend on the pack.
    """
    return function(x) if at_once(x) or _is_small(x) else torch.stack([function(seed) for seed in x])


def affine_of(parts: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """x @ weight + bias, where x (B, in) is `parts` side by side, or with a leading dimension of members.

    A row of a part with fewer rows, of which B is a multiple, stands for B / rows rows of x that follow each other: an
    observation for all of its candidates, a flow time for the whole batch. It is multiplied once.
    """
    if len(parts) == 1:
        return affine(parts[0], weight, bias)
    of_parts = zip(parts, weight.split([part.shape[-1] for part in parts], -2), strict=True)
    y = bias.unsqueeze(-2)
    for part, of_part in sorted(of_parts, key=lambda pair: pair[0].shape[-2]):
        if y.shape[-2] == 1:
            y = affine(part, of_part, y.squeeze(-2))
        else:
            grouped = affine(part, of_part).unflatten(-2, (y.shape[-2], -1))
            y = grouped.add_(y.unsqueeze(-2)).flatten(-3, -2)  # in place: memory costs as much here as products
    return y


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight [+ bias], of one member or with a leading dimension of members."""
    in_bf16 = _matmul == "bf16" and min(x.shape[-2], *weight.shape[-2:]) >= NARROW
    if x.dim() == 2 and not in_bf16:
        return _multiply(x, weight, bias)
    # The bias of members is added, not handed to torch.baddbmm: that copies it into the result before the product,
    # while a compiler adds it in what follows.
    y = _multiply(x.bfloat16(), weight.bfloat16()).float() if in_bf16 else _multiply(x, weight)
    return y if bias is None else y + bias.unsqueeze(-2)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.dim() == 3:
        if x.device.type == "cpu" and weight.shape[-1] == 1:
            # MKL rounds a product of a matrix and a vector otherwise where it is the only one.
            return (x * weight.mT).sum(-1, keepdim=True)
        return torch.bmm(x, weight)
    return _CPUAffine.apply(x, weight, bias) if torch.is_grad_enabled() else _product(x, weight, bias)


class _CPUAffine(torch.autograd.Function):
    """x (B, in) @ weight (in, out) [+ bias (out,)], by oneDNN where that is the faster library.

    torch.addmm calls MKL, which keeps to AVX2 on AMD processors: oneDNN needs 0.45 of its time there at 512 x 512 and
    batch 256 (on Intel they are equal). Both compute float32 in float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if needs_x else None,
            _product(x.t(), grad) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (m, k) @ b (k, n) [+ bias (n,)]."""
    # A product with few rows or columns (one observation, the last layer of a critic) is faster in MKL everywhere.
    if HAS_ONEDNN and min(a.shape[0], b.shape[1]) >= NARROW:
        return torch.ops.o2o_bench.onednn_product(_dense(a), _dense(b), bias)
    return a @ b if bias is None else torch.addmm(bias, a, b)


def _dense(x: Tensor) -> Tensor:
    """x (m, n) without gaps between its rows or columns; with them, as in the gradient of a part of `torch.cat`, oneDNN
    takes 40 to 100 times as long."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


# An operator of its own, because torch.compile takes oneDNN's linear layer only with constant weights.
_operators = torch.library.Library("o2o_bench", "DEF")
_operators.define("onednn_product(Tensor a, Tensor b, Tensor? bias) -> Tensor")


@torch.library.impl(_operators, "onednn_product", "CPU")
def _onednn_product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")


@torch.library.register_fake("o2o_bench::onednn_product", lib=_operators)
def _onednn_product_shape(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def gelu(x: Tensor) -> Tensor:
    """GELU with the tanh approximation."""
    if at_once(x):
        return F.gelu(x, approximate="tanh")
    return _CPUGELU.apply(x) if torch.is_grad_enabled() else x * _gelu_gate(x)


def mish(x: Tensor) -> Tensor:
    """x tanh(log(1 + e^x)), Mish (Misra, arXiv 1908.08681)."""
    if not torch.compiler.is_compiling():
        return F.mish(x)
    # By one exponential, where a compiler would write three functions, and as many again for the gradient.
    exp = x.clamp(max=20.0).exp()  # from there on Mish is x
    rise = exp * (exp + 2)
    return x * (rise / (rise + 2))


class _CPUGELU(torch.autograd.Function):
    """x * sigmoid(2 u), which equals x * (1 + tanh(u)) / 2 and takes half the time of torch's operator on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = _gelu_gate(x)
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        slope = x.square().mul_(3 * GELU_CUBIC).add_(GELU_LINEAR).mul_(x)
        return slope.mul_(torch.addcmul(gate, gate, gate, value=-1)).add_(gate).mul_(grads[0])


def _gelu_gate(x: Tensor) -> Tensor:
    return x.square().mul_(GELU_CUBIC).add_(GELU_LINEAR).mul_(x).sigmoid_()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """Normalised last dimension, scaled and shifted, of one member or with a leading dimension of members."""
    if x.dim() == 2:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps=eps)
    return torch.addcmul(bias.unsqueeze(1), F.layer_norm(x, x.shape[-1:], eps=eps), weight.unsqueeze(1))
