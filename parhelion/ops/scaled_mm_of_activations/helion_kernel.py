"""``scaled_mm_of_activations`` as one tile program: ``gemm``'s, but x is quantized in registers on its way.

With ``swap_ab`` it makes y.T, so that the weight is on the left of the matrix unit.
"""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.arrivals import arrived_last, forget_arrivals
from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.quantize import codes_of, scales_of
from parhelion.ops.tile_dot import dot


@helion.kernel(static_shapes=False, dot_precision="ieee")
def scaled_mm_of_activations(
    x: torch.Tensor,
    amax: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    out: torch.Tensor,
    parts: torch.Tensor | None,
    arrivals: torch.Tensor | None,
    entries: hl.constexpr,
    block_g: hl.constexpr,
    sum_dtype: torch.dtype,
    block_l: hl.constexpr,
    block_r: hl.constexpr,
    block_k: hl.constexpr,
    swap_ab: hl.constexpr,
    split_k: hl.constexpr,
    span: hl.constexpr,
    ragged: hl.constexpr,
    programmatic: hl.constexpr,
    head: hl.constexpr,
) -> None:
    """out [M, N], or [N, M] if ``swap_ab``. With ``split_k`` programs a tile each makes the products of a ``span`` of
    K, and the last to be done adds up those of all, first to last.

    Args:
        x: [M, K].
        amax: [entries * M]: in one dimension, as its own might be 1 by chance, which is a constant to Helion.
        weight: codes [N, K]; weight_scales: [N, 1].
        parts: [1, split_k, M, N] (``swap_ab``: [1, split_k, N, M]) of ``sum_dtype``, to be written; None if ``split_k``
            is 1.
        arrivals: int32, a counter for each tile; see ``ops/arrivals.py``. None if ``split_k`` is 1.
        entries: of amax for a token.
        block_g: how many of them are read at once, a power of two.
        sum_dtype: int32 for int8 codes, else float32.
        ragged: the spans cover more than K, or not whole blocks of it.
        programmatic: see ``ops/programmatic.py``.
        head: how much of a program's K is read of the weight before it waits for its predecessor; at most ``span``,
            and 0 if ``ragged``.
    """
    num_tokens = x.size(0)
    depth = hl.specialize(x.size(1))
    if swap_ab:
        rows = hl.specialize(weight.size(0))
        columns = num_tokens
    else:
        rows = num_tokens
        columns = hl.specialize(weight.size(0))
    across = (columns + block_r - 1) // block_r
    for tile_l, tile_r, split in hl.tile([rows, columns, split_k], block_size=[block_l, block_r, 1]):
        start_successor(programmatic)
        # Read ahead of the loop: behind it, nothing would hide how long that takes.
        if swap_ab:
            left_scale = weight_scales[tile_l, :]
        else:
            right_scale = weight_scales[tile_r, :].T
        sums = hl.zeros([tile_l, tile_r], dtype=sum_dtype)
        if head > 0:
            first = split.begin * span + hl.arange(head)
            if swap_ab:
                left_first = hl.load(weight, [tile_l, first])
                wait_for_predecessor(programmatic)
                right_first = hl.load(x, [tile_r, first])
            else:
                right_first = hl.load(weight, [tile_r, first])
                wait_for_predecessor(programmatic)
                left_first = hl.load(x, [tile_l, first])
        else:
            wait_for_predecessor(programmatic)
        if swap_ab:
            right_amax = hl.zeros([tile_r], dtype=torch.float32)
            for step in hl.static_range((entries + block_g - 1) // block_g):
                entry = hl.arange(block_g) + step * block_g
                place = entry[:, None] * num_tokens + tile_r.index[None, :]
                known = (entry < entries)[:, None] & (tile_r.index < num_tokens)[None, :]
                right_amax = torch.maximum(right_amax, torch.amax(hl.load(amax, [place], extra_mask=known), 0))
            right_row = scales_of(right_amax, weight.dtype)
            right_inverse = 1.0 / right_row
            right_scale = right_row[None, :]
        else:
            left_amax = hl.zeros([tile_l], dtype=torch.float32)
            for step in hl.static_range((entries + block_g - 1) // block_g):
                entry = hl.arange(block_g) + step * block_g
                place = entry[:, None] * num_tokens + tile_l.index[None, :]
                known = (entry < entries)[:, None] & (tile_l.index < num_tokens)[None, :]
                left_amax = torch.maximum(left_amax, torch.amax(hl.load(amax, [place], extra_mask=known), 0))
            left_row = scales_of(left_amax, weight.dtype)
            left_inverse = 1.0 / left_row
            left_scale = left_row[:, None]
        if head > 0:
            if swap_ab:
                sums = dot(left_first, _codes(right_first, right_inverse, weight.dtype).T, sums)
            else:
                sums = dot(_codes(left_first, left_inverse, weight.dtype), right_first.T, sums)
        for tile_k in hl.tile(head, span, block_size=block_k):
            index = tile_k.index + split.begin * span
            if swap_ab:
                if ragged:
                    a = hl.load(weight, [tile_l, index], extra_mask=(index < depth)[None, :])
                    wide_b = hl.load(x, [tile_r, index], extra_mask=(index < depth)[None, :])
                else:
                    a = weight[tile_l, tile_k + split.begin * span]
                    wide_b = x[tile_r, tile_k + split.begin * span]
                sums = dot(a, _codes(wide_b, right_inverse, weight.dtype).T, sums)
            else:
                if ragged:
                    wide_a = hl.load(x, [tile_l, index], extra_mask=(index < depth)[None, :])
                    b = hl.load(weight, [tile_r, index], extra_mask=(index < depth)[None, :])
                else:
                    wide_a = x[tile_l, tile_k + split.begin * span]
                    b = weight[tile_r, tile_k + split.begin * span]
                sums = dot(_codes(wide_a, left_inverse, weight.dtype), b.T, sums)
        if split_k > 1:
            parts[0, split.begin, tile_l, tile_r] = sums  # type: ignore[index]
            counter = tile_l.id * across + tile_r.id
            if arrived_last(arrivals, counter, split_k):
                total = hl.zeros([tile_l, tile_r], dtype=sum_dtype)
                for part in hl.static_range(split_k):
                    total = total + parts[0, part, tile_l, tile_r]  # type: ignore[index]
                out[tile_l, tile_r] = (total.to(torch.float32) * left_scale * right_scale).to(out.dtype)
                forget_arrivals(arrivals, counter)
        else:
            out[tile_l, tile_r] = (sums.to(torch.float32) * left_scale * right_scale).to(out.dtype)


def _codes(x: torch.Tensor, inverse_scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Codes [T, K] of x [T, K], by 1 / scale [T]."""
    return codes_of(x.to(torch.float32), inverse_scales.unsqueeze(1), dtype)
