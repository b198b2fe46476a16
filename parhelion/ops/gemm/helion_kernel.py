"""The GEMM as one tile program.

``gemm`` computes left @ right.T for left [R, K] and right [C, K]. Which of them is the weight is up to the caller:
x @ weight.T is the standard algorithm, weight @ x.T with a transposed view of y the swapped one. Likewise bytes of FP8
codes (int8 tensors, where products are of another dtype) are widened on whichever side they come, so that the program
compiles where there is no FP8.
"""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.arrivals import arrived_last, forget_arrivals
from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.tile_dot import dot

_SIGN_AND_MAGNITUDE = -0x78100000
"""Bits 31 and 20 to 26 as a signed number: where a float32 holds the sign, the low exponent bits and the first of the
fraction."""


@helion.kernel(static_shapes=False, dot_precision="ieee")
def gemm(
    left: torch.Tensor,
    right: torch.Tensor,
    left_scales: torch.Tensor | None,
    right_scales: torch.Tensor | None,
    left_bias: torch.Tensor | None,
    right_bias: torch.Tensor | None,
    out: torch.Tensor,
    parts: torch.Tensor | None,
    arrivals: torch.Tensor | None,
    dtype: torch.dtype,
    sum_dtype: torch.dtype,
    block_l: hl.constexpr,
    block_r: hl.constexpr,
    block_k: hl.constexpr,
    swap_ab: hl.constexpr,
    split_k: hl.constexpr,
    span: hl.constexpr,
    ragged: hl.constexpr,
    group: hl.constexpr,
    programmatic: hl.constexpr,
    head: hl.constexpr,
) -> None:
    """out [R, C]. With ``split_k`` programs a tile each makes the products of a ``span`` of K, and the last to be done
    adds up those of all, first to last.

    Args:
        left_scales, right_scales: float32: [R, 1] and [C, 1], for the sums; or, with a ``group``, for groups of K:
            [R, K / group] and [C, K / group], of the weight (left if ``swap_ab``) [its rows / group, K / group].
        left_bias, right_bias: [R, 1] and [C, 1]; at most one is given.
        parts: [split_k, R, C] of ``sum_dtype``, to be written; None if ``split_k`` is 1.
        arrivals: int32, a counter for each tile; see ``ops/arrivals.py``. None if ``split_k`` is 1.
        dtype: of the products' operands.
        sum_dtype: int32 for int8 operands, else float32.
        ragged: the spans cover more than K, or not whole blocks of it.
        group: 0 if scales are not by group.
        programmatic: see ``ops/programmatic.py``.
        head: how much of a program's K is read of the weight before it waits for its predecessor; at most ``span``,
            and 0 if ``ragged`` or with a ``group``.
    """
    depth = hl.specialize(left.size(1))
    # N is static and M is not: the compiler need not mask tiles of N that it can see are whole.
    if swap_ab:
        rows = hl.specialize(left.size(0))
        columns = right.size(0)
    else:
        rows = left.size(0)
        columns = hl.specialize(right.size(0))
    across = (columns + block_r - 1) // block_r
    for tile_l, tile_r, split in hl.tile([rows, columns, split_k], block_size=[block_l, block_r, 1]):
        start_successor(programmatic)
        sums = hl.zeros([tile_l, tile_r], dtype=sum_dtype)
        if head > 0:
            first = split.begin * span + hl.arange(head)
            if swap_ab:
                first_a = hl.load(left, [tile_l, first])
                wait_for_predecessor(programmatic)
                first_b = hl.load(right, [tile_r, first])
            else:
                first_b = hl.load(right, [tile_r, first])
                wait_for_predecessor(programmatic)
                first_a = hl.load(left, [tile_l, first])
            sums = dot(_widened(first_a, dtype), _widened(first_b, dtype).T, sums)
        else:
            wait_for_predecessor(programmatic)
        for tile_k in hl.tile(head, span, block_size=block_k):
            start = split.begin * span
            if ragged:
                index = tile_k.index + start
                a = hl.load(left, [tile_l, index], extra_mask=(index < depth)[None, :])
                b = hl.load(right, [tile_r, index], extra_mask=(index < depth)[None, :])
            else:
                a = left[tile_l, tile_k + start]
                b = right[tile_r, tile_k + start]
            if group > 0:
                g = (tile_k.begin + start) // group
                if ragged:
                    # The last span may go on after the last group, where products are 0 and any scale will do.
                    g = min(g, (depth - 1) // group)
                if swap_ab:
                    left_scale = left_scales[tile_l.index // group, g]  # type: ignore[index]
                    right_scale = right_scales[tile_r, g]  # type: ignore[index]
                else:
                    left_scale = left_scales[tile_l, g]  # type: ignore[index]
                    right_scale = right_scales[tile_r.index // group, g]  # type: ignore[index]
                products = dot(_widened(a, dtype), _widened(b, dtype).T, hl.zeros([tile_l, tile_r], dtype=sum_dtype))
                sums = sums + products * left_scale[:, None] * right_scale[None, :]
            else:
                sums = dot(_widened(a, dtype), _widened(b, dtype).T, sums)
        if split_k > 1:
            parts[split.begin, tile_l, tile_r] = sums  # type: ignore[index]
            place = tile_l.id * across + tile_r.id
            if arrived_last(arrivals, place, split_k):
                total = hl.zeros([tile_l, tile_r], dtype=sum_dtype)
                for part in hl.static_range(split_k):
                    total = total + parts[part, tile_l, tile_r]  # type: ignore[index]
                if group > 0:
                    y = _finished(total, None, None, left_bias, right_bias, tile_l, tile_r)
                else:
                    y = _finished(total, left_scales, right_scales, left_bias, right_bias, tile_l, tile_r)
                out[tile_l, tile_r] = y.to(out.dtype)
                forget_arrivals(arrivals, place)
        elif group > 0:
            y = _finished(sums, None, None, left_bias, right_bias, tile_l, tile_r)
            out[tile_l, tile_r] = y.to(out.dtype)
        else:
            y = _finished(sums, left_scales, right_scales, left_bias, right_bias, tile_l, tile_r)
            out[tile_l, tile_r] = y.to(out.dtype)


def _widened(codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Operands as they are, or ``float8_e4m3fn`` codes that come as bytes in another dtype, without a rounding.

    A byte's seven lower bits, put at bit 20 of a float32, are its value with the exponent's bias short by 120;
    subnormals included, NaN (0x7f) not: it comes out as 480.
    """
    if codes.dtype != torch.int8 or dtype == torch.int8:
        return codes
    bits = (codes.to(torch.int32) << 20) & _SIGN_AND_MAGNITUDE
    return (bits.view(torch.float32) * 2.0**120).to(dtype)


def _finished(
    sums: torch.Tensor,
    left_scales: torch.Tensor | None,
    right_scales: torch.Tensor | None,
    left_bias: torch.Tensor | None,
    right_bias: torch.Tensor | None,
    tile_l: hl.Tile,
    tile_r: hl.Tile,
) -> torch.Tensor:
    """The epilogue, in float32: scales of rows and columns, then the bias."""
    y = sums.to(torch.float32)
    if left_scales is not None:
        y = y * left_scales[tile_l, :]
    if right_scales is not None:
        y = y * right_scales[tile_r, :].T
    if left_bias is not None:
        y = y + left_bias[tile_l, :].to(torch.float32)
    if right_bias is not None:
        y = y + right_bias[tile_r, :].to(torch.float32).T
    return y
