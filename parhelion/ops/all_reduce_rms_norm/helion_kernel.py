"""``all_reduce_rms_norm`` as one tile program: a program takes a row, sends it to all ranks, adds up what it gets."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.exchange import high_of, low_of, packed, received, send
from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.quantize import codes_of, scales_of


@helion.kernel(static_shapes=False)
def all_reduce_rms_norm(
    hidden: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    scales: torch.Tensor | None,
    turns: torch.Tensor,
    addresses: torch.Tensor,
    epsilon: float,
    num_ranks: hl.constexpr,
    most_rows: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    """Rows are seen as two halves: hidden, residual and y [M, 2, half], weight [2, half], scales [M] float32 where y is
    codes. turns and addresses: see ``Inboxes``.
    """
    num_tokens = hidden.size(0)
    half = hl.specialize(hidden.size(2))
    for tile_m in hl.tile(num_tokens, block_size=1):
        start_successor(programmatic)
        row = tile_m.begin
        columns = hl.arange(helion.next_power_of_2(half))
        is_real = columns < half
        low_weight = hl.load(weight, [0, columns], extra_mask=is_real).to(torch.float32)
        high_weight = hl.load(weight, [1, columns], extra_mask=is_real).to(torch.float32)
        wait_for_predecessor(programmatic)
        turn = turns[row] + 1
        words = packed(
            hl.load(hidden, [row, 0, columns], extra_mask=is_real),
            hl.load(hidden, [row, 1, columns], extra_mask=is_real),
            turn,
        )
        first = (turn & 1) * num_ranks
        place = ((first * most_rows + row) * half) + columns
        for other in hl.static_range(num_ranks):
            send(addresses, other, place, words, is_real)
        low = hl.load(residual, [row, 0, columns], extra_mask=is_real).to(torch.float32)
        high = hl.load(residual, [row, 1, columns], extra_mask=is_real).to(torch.float32)
        for other in hl.static_range(num_ranks):
            found = received(addresses, num_ranks, place + other * most_rows * half, is_real, turn, words)
            low = low + low_of(found, hidden.dtype)
            high = high + high_of(found, hidden.dtype)
        # Behind the waiting: by then all threads have read it.
        turns[row] = turn
        low_total = low.to(residual.dtype)
        high_total = high.to(residual.dtype)
        hl.store(residual, [row, 0, columns], low_total, extra_mask=is_real)
        hl.store(residual, [row, 1, columns], high_total, extra_mask=is_real)
        low = torch.where(is_real, low_total.to(torch.float32), 0.0)
        high = torch.where(is_real, high_total.to(torch.float32), 0.0)
        squares = torch.sum(low * low + high * high, dim=-1)
        factor = torch.rsqrt(squares / (2 * half) + epsilon)
        low = low * factor * low_weight
        high = high * factor * high_weight
        if scales is None:
            hl.store(y, [row, 0, columns], low.to(y.dtype), extra_mask=is_real)
            hl.store(y, [row, 1, columns], high.to(y.dtype), extra_mask=is_real)
        else:
            amax = torch.amax(torch.maximum(torch.abs(low), torch.abs(high)), dim=-1)
            scale = scales_of(amax, y.dtype)
            hl.store(y, [row, 0, columns], codes_of(low, 1.0 / scale, y.dtype), extra_mask=is_real)
            hl.store(y, [row, 1, columns], codes_of(high, 1.0 / scale, y.dtype), extra_mask=is_real)
            scales[row] = scale
