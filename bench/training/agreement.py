"""Whether updates that were executed a fast way agree with eager ones from the same state."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

# Largest distance of fast from eager execution, as a share of how far eager execution moved from the start. Adam's
# means are linear in gradients; parameters get more room, because Adam's first steps are signs of gradients and
# rounding turns those of gradients near 0: from there it reaches gradients of a policy that follows its critics' step
# (1e-3 with batch statistics). Counts are equal: in a norm their steps of 1 would outweigh all else.
TOLERANCE = {"metrics": 1e-3, "gradients": 3e-3, "parameters": 5e-2, "counts": 0.0}
# After several updates, each of which has carried on the rounding of those before it.
TOLERANCE_OF_SEVERAL = {"metrics": 1e-2, "gradients": math.inf, "parameters": 0.5, "counts": 0.0}

# The same of products in TF32 or bf16: numbers that differ in the last bit of fp32 may round to neighbours, 4e-3 apart
# in bf16. More of Adam's first signs turn, and the next gradients are those of other parameters.
TOLERANCE_IN_FEW_BITS = {"metrics": 1e-2, "gradients": 2e-2, "parameters": 0.2, "counts": 0.0}
TOLERANCE_OF_SEVERAL_IN_FEW_BITS = {**TOLERANCE_OF_SEVERAL, "metrics": 5e-2}


class MismatchError(Exception):
    """A fast way of executing updates does not give what eager execution gives."""


def check_agreement(
    before: State, expected: State, got: State, tolerance: Mapping[str, float] = TOLERANCE
) -> dict[str, float]:
    """How far apart the states are, by kind of tensor. Raises MismatchError where that is more than `tolerance`, or
    where a number is not finite that is so in eager updates."""
    for name, eager in expected.items():
        if not bool((got[name].isfinite() | ~eager.isfinite()).all()):
            raise MismatchError(f"{name} is not finite, as it is after eager updates")
    apart = distances(before, expected, got)
    if any(not apart[kind] <= allowed for kind, allowed in tolerance.items()):
        raise MismatchError(f"{in_words(apart)} from eager updates; allowed: {in_words(tolerance)}")
    return apart


def distances(before: State, expected: State, got: State) -> dict[str, float]:
    """How far `got` is from `expected`, as a share of how far `expected` is from `before`, by kind of tensor.

    Of counts it is the root of how many differ.
    """
    moved, apart = dict.fromkeys(TOLERANCE, 0.0), dict.fromkeys(TOLERANCE, 0.0)
    for name, eager in expected.items():
        kind = "metrics" if name.startswith("metric ") else "gradients" if "/" in name else "parameters"
        if name.endswith("/steps") or not eager.is_floating_point():
            apart["counts"] += float((got[name] != eager).sum())
            continue
        # A metric may be new. A seed that diverged holds NaN on both sides.
        start, eager, fast = (
            torch.nan_to_num(state[name].double(), 0, 0, 0) if name in state else torch.zeros((), dtype=torch.float64)
            for state in (before, expected, got)
        )
        moved[kind] += float((eager - start).square().sum())
        apart[kind] += float((fast - eager).square().sum())
    moved["counts"] = 1.0
    return {kind: math.sqrt(apart[kind] / (moved[kind] or math.nan)) if apart[kind] else 0.0 for kind in TOLERANCE}


def in_words(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {share:.0e}" for kind, share in shares.items() if math.isfinite(share))
