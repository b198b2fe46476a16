"""``scaled_mm_silu_and_mul`` as one tile program: ``gemm``'s, but a program makes the gate and the up of its columns.

With ``swap_ab`` it makes activated.T, so that the weight is on the left of the matrix unit.
"""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.arrivals import arrived_last, forget_arrivals
from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.tile_dot import dot
from parhelion.ops.tile_math import silu_times


@helion.kernel(static_shapes=False, dot_precision="ieee")
def scaled_mm_silu_and_mul(
    x: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    activated: torch.Tensor,
    amax: torch.Tensor,
    parts: torch.Tensor | None,
    arrivals: torch.Tensor | None,
    amax_columns: hl.constexpr,
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
    """activated [M, I], or [I, M] if ``swap_ab``. With ``split_k`` programs a tile each makes the products of a
    ``span`` of K, and the last to be done adds up those of all, first to last.

    Args:
        x: codes [M, K]; scales: [M, 1].
        weight: codes [2, I, K]; weight_scales: [2, I, 1]. The gate's, then those of up.
        amax: [columns in whole tiles / amax_columns, M], to be written.
        parts: [2, split_k, M, I] (``swap_ab``: [2, split_k, I, M]) of ``sum_dtype``, to be written; None if ``split_k``
            is 1.
        arrivals: int32, a counter for each tile; see ``ops/arrivals.py``. None if ``split_k`` is 1.
        amax_columns: so many columns share an entry of amax; a tile has a multiple of them.
        sum_dtype: int32 for int8 codes, else float32.
        ragged: the spans cover more than K, or not whole blocks of it.
        programmatic: see ``ops/programmatic.py``.
        head: how much of a program's K is read of the weight before it waits for its predecessor; at most ``span``,
            and 0 if ``ragged``.
    """
    depth = hl.specialize(x.size(1))
    if swap_ab:
        rows = hl.specialize(weight.size(1))
        columns = x.size(0)
    else:
        rows = x.size(0)
        columns = hl.specialize(weight.size(1))
    across = (columns + block_r - 1) // block_r
    for tile_l, tile_r, split in hl.tile([rows, columns, split_k], block_size=[block_l, block_r, 1]):
        start_successor(programmatic)
        # Scales are read ahead of the loop: behind it, nothing would hide how long that takes.
        if swap_ab:
            left_gate_scale = weight_scales[0, tile_l, :]
            left_up_scale = weight_scales[1, tile_l, :]
        else:
            right_gate_scale = weight_scales[0, tile_r, :].T
            right_up_scale = weight_scales[1, tile_r, :].T
        gate = hl.zeros([tile_l, tile_r], dtype=sum_dtype)
        up = hl.zeros([tile_l, tile_r], dtype=sum_dtype)
        if head > 0:
            first = split.begin * span + hl.arange(head)
            if swap_ab:
                left_gate = hl.load(weight, [0, tile_l, first])
                left_up = hl.load(weight, [1, tile_l, first])
                wait_for_predecessor(programmatic)
                right_codes = hl.load(x, [tile_r, first])
                gate = dot(left_gate, right_codes.T, gate)
                up = dot(left_up, right_codes.T, up)
            else:
                right_gate = hl.load(weight, [0, tile_r, first])
                right_up = hl.load(weight, [1, tile_r, first])
                wait_for_predecessor(programmatic)
                left_codes = hl.load(x, [tile_l, first])
                gate = dot(left_codes, right_gate.T, gate)
                up = dot(left_codes, right_up.T, up)
        else:
            wait_for_predecessor(programmatic)
        if swap_ab:
            right_gate_scale = scales[tile_r, :].T
            right_up_scale = right_gate_scale
        else:
            left_gate_scale = scales[tile_l, :]
            left_up_scale = left_gate_scale
        for tile_k in hl.tile(head, span, block_size=block_k):
            index = tile_k.index + split.begin * span
            # Where spans are whole blocks of K the compiler need not be told of a mask.
            if swap_ab:
                if ragged:
                    inside = (index < depth)[None, :]
                    a_gate = hl.load(weight, [0, tile_l, index], extra_mask=inside)
                    a_up = hl.load(weight, [1, tile_l, index], extra_mask=inside)
                    b = hl.load(x, [tile_r, index], extra_mask=inside)
                else:
                    a_gate = weight[0, tile_l, tile_k + split.begin * span]
                    a_up = weight[1, tile_l, tile_k + split.begin * span]
                    b = x[tile_r, tile_k + split.begin * span]
                gate = dot(a_gate, b.T, gate)
                up = dot(a_up, b.T, up)
            else:
                if ragged:
                    inside = (index < depth)[None, :]
                    a = hl.load(x, [tile_l, index], extra_mask=inside)
                    b_gate = hl.load(weight, [0, tile_r, index], extra_mask=inside)
                    b_up = hl.load(weight, [1, tile_r, index], extra_mask=inside)
                else:
                    a = x[tile_l, tile_k + split.begin * span]
                    b_gate = weight[0, tile_r, tile_k + split.begin * span]
                    b_up = weight[1, tile_r, tile_k + split.begin * span]
                gate = dot(a, b_gate.T, gate)
                up = dot(a, b_up.T, up)
        if split_k > 1:
            parts[0, split.begin, tile_l, tile_r] = gate  # type: ignore[index]
            parts[1, split.begin, tile_l, tile_r] = up  # type: ignore[index]
            place = tile_l.id * across + tile_r.id
            if arrived_last(arrivals, place, split_k):
                total_gate = hl.zeros([tile_l, tile_r], dtype=sum_dtype)
                total_up = hl.zeros([tile_l, tile_r], dtype=sum_dtype)
                for part in hl.static_range(split_k):
                    total_gate = total_gate + parts[0, part, tile_l, tile_r]  # type: ignore[index]
                    total_up = total_up + parts[1, part, tile_l, tile_r]  # type: ignore[index]
                scaled_gate = total_gate.to(torch.float32) * left_gate_scale * right_gate_scale
                scaled_up = total_up.to(torch.float32) * left_up_scale * right_up_scale
                total = silu_times(scaled_gate, scaled_up).to(activated.dtype)
                activated[tile_l, tile_r] = total
                _store_amax(total, amax, tile_l, tile_r, block_l, block_r, amax_columns, swap_ab)
                forget_arrivals(arrivals, place)
        else:
            own_gate = gate.to(torch.float32) * left_gate_scale * right_gate_scale
            own_up = up.to(torch.float32) * left_up_scale * right_up_scale
            y = silu_times(own_gate, own_up).to(activated.dtype)
            activated[tile_l, tile_r] = y
            _store_amax(y, amax, tile_l, tile_r, block_l, block_r, amax_columns, swap_ab)


def _store_amax(
    activated: torch.Tensor,
    amax: torch.Tensor,
    tile_l: hl.Tile,
    tile_r: hl.Tile,
    block_l: int,
    block_r: int,
    amax_columns: int,
    swap_ab: bool,
) -> None:
    """The largest magnitudes of a tile, of each ``amax_columns`` of a token."""
    magnitudes = torch.abs(activated.to(torch.float32))
    if swap_ab:
        for piece in range(block_l // amax_columns):
            entry = tile_l.begin // amax_columns + piece
            if block_l == amax_columns:
                own = magnitudes
            else:
                own = torch.where((tile_l.index // amax_columns == entry).unsqueeze(1), magnitudes, 0.0)
            hl.store(amax, [entry, tile_r], torch.amax(own, 0))
    else:
        for piece in range(block_r // amax_columns):
            entry = tile_r.begin // amax_columns + piece
            if block_r == amax_columns:
                own = magnitudes
            else:
                own = torch.where((tile_r.index // amax_columns == entry).unsqueeze(0), magnitudes, 0.0)
            hl.store(amax, [entry, tile_l], torch.amax(own, 1))
