"""The GEMM once more, for Helion's own search alone: with everything open that it knows how to choose.

What serves is ``ops.gemm.helion_kernel``, whose tiles are arguments, so that one program is built for all M of a
bucket. Helion's search cannot see arguments. Here tiles are Helion's own block sizes, shapes are constants, and the
number of programs that share a tile is a tunable: the yardstick for what the project's tuner finds.

As there, which operand is the weight is up to the caller: y.T = weight @ x.T is the swapped algorithm, and its result
comes as a transposed view of y.
"""

from __future__ import annotations

import helion
import helion.language as hl
import torch
from helion.autotuner import PowerOfTwoFragment

from parhelion.ops.interpreting import interpreting
from parhelion.ops.scaled_mm import ScaledMm

_RELATIVE = ScaledMm.outputs[0].relative
"""Bound of ||y - expected|| / ||expected||, the contract's: what passed here and not there was searched for nothing."""

_LEAST_DEPTH = 32
"""Elements of K in a product of 8-bit operands, at least: Triton refuses fewer."""


def expected(
    left: torch.Tensor,
    right: torch.Tensor,
    left_scales: torch.Tensor,
    right_scales: torch.Tensor,
    dtype: torch.dtype,
    swap_ab: bool,
) -> torch.Tensor:
    """What both twins compute, in float32: of the two that are compared only the candidate's is rounded."""
    return (left.float() @ right.float().T) * left_scales * right_scales.T


def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """The search's own check, as the contract has it.

    Element by element all programs for a Hopper's warp groups would fail: their sums of FP8 products have fewer bits
    than float32, an error that is a share of the row and not of the element. It grows with K: at 25,600 it is above the
    bound unless K is divided.

    Raises:
        AssertionError: a candidate computes something else.
    """
    relative = float((actual.float() - expected).norm() / expected.norm())
    if not relative <= _RELATIVE:
        raise AssertionError(f"off by {relative:.3g} (relative), above {_RELATIVE:g}")


@helion.kernel(
    static_shapes=True,
    autotune_baseline_fn=expected,
    autotune_baseline_accuracy_check_fn=check,
    ignore_warnings=[helion.exc.TensorOperationInWrapper],
)
def whole(
    left: torch.Tensor,
    right: torch.Tensor,
    left_scales: torch.Tensor,
    right_scales: torch.Tensor,
    dtype: torch.dtype,
    swap_ab: hl.constexpr,
) -> torch.Tensor:
    """left [R, K] @ right.T [K, C] times scales [R, 1] and [C, 1]: [R, C], rows next to each other if ``swap_ab``."""
    rows, depth = left.size()
    columns = right.size(0)
    block_k = hl.register_block_size(_LEAST_DEPTH, depth)
    if swap_ab:
        out = torch.empty([columns, rows], dtype=dtype, device=left.device).t()
    else:
        out = torch.empty([rows, columns], dtype=dtype, device=left.device)
    for tile_l, tile_r in hl.tile([rows, columns]):
        total = hl.zeros([tile_l, tile_r], dtype=torch.float32)
        for tile_k in hl.tile(depth, block_size=block_k):
            total = _added(left[tile_l, tile_k], right[tile_r, tile_k], total)
        out[tile_l, tile_r] = (total * left_scales[tile_l, :] * right_scales[tile_r, :].T).to(dtype)
    return out


@helion.kernel(
    static_shapes=True,
    autotune_baseline_fn=expected,
    autotune_baseline_accuracy_check_fn=check,
    ignore_warnings=[helion.exc.TensorOperationInWrapper],
)
def split(
    left: torch.Tensor,
    right: torch.Tensor,
    left_scales: torch.Tensor,
    right_scales: torch.Tensor,
    dtype: torch.dtype,
    swap_ab: hl.constexpr,
) -> torch.Tensor:
    """The same, K divided among programs that add to one float32 sum, in any order."""
    rows, depth = left.size()
    columns = right.size(0)
    block_k = hl.register_block_size(_LEAST_DEPTH, depth)
    if swap_ab:
        sums = torch.zeros([columns, rows], dtype=torch.float32, device=left.device).t()
    else:
        sums = torch.zeros([rows, columns], dtype=torch.float32, device=left.device)
    # MAX_SPLIT_K, as a number: in a kernel Helion takes a module's names for sizes that are not known yet.
    split_k = hl.register_tunable("split_k", PowerOfTwoFragment(1, 16))
    span = helion.next_power_of_2(helion.cdiv(depth, split_k))
    for tile_l, tile_r, part in hl.tile([rows, columns, depth], block_size=[None, None, span]):
        total = hl.zeros([tile_l, tile_r], dtype=torch.float32)
        for tile_k in hl.tile(part.begin, part.end, block_size=block_k):
            total = _added(left[tile_l, tile_k], right[tile_r, tile_k], total)
        total = total * left_scales[tile_l, :] * right_scales[tile_r, :].T
        hl.atomic_add(sums, [tile_l, tile_r], total)
    return sums.to(dtype)


def _added(a: torch.Tensor, b: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """sums + a @ b.T."""
    if interpreting():
        # hl.dot is interpreted by torch functions that CPUs have not.
        return sums + a.to(sums.dtype) @ b.to(sums.dtype).T
    return hl.dot(a, b.T, acc=sums)
