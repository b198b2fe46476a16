"""``weight_only_mv`` as one tile program: products and sums without the matrix unit, which a token would leave idle.

A program makes some blocks of ``block_n`` columns of y, one after the other, and takes K in steps of ``block_k``.
Products of a step are added to those of the step before, each in its place, and all of a column up only at its end.
"""

from __future__ import annotations

from typing import Any

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.tile_math import added_rows, silu_times

_Stretch = tuple[torch.Tensor, torch.Tensor | None]
"""Places along a dimension, and which of them are inside; None if all are."""


@helion.kernel(static_shapes=False)
def weight_only_mv(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    out: torch.Tensor,
    total: torch.Tensor | None,
    epsilon: float,
    gated: hl.constexpr,
    block_n: hl.constexpr,
    block_k: hl.constexpr,
    blocks: hl.constexpr,
    ahead: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    """out [M, N].

    Args:
        x: [M, K]; residual: [M, K] to be added to it, or None.
        norm_weight: [K] of the norm that x goes through, or None.
        weight: codes [1, N, K], or the gate's and those of up [2, N, K] if ``gated``; weight_scales: [1, N] or [2, N].
        total: [M, K], to be written: x and residual added up. Not the residual itself, which all programs read.
        blocks: of columns of a program.
        ahead: steps of the weight, one block's after the other's, that are in flight at a time, and before the program
            waits for its predecessor; at most all that it takes.
        programmatic: see ``ops/programmatic.py``.
    """
    num_tokens = x.size(0)
    rows = hl.specialize(weight.size(1))
    depth = hl.specialize(weight.size(2))
    for tile_n, tile_m in hl.tile([rows, num_tokens], block_size=[blocks * block_n, 1]):
        start_successor(programmatic)
        _make_columns(
            x, residual, norm_weight, weight, weight_scales, out, total, tile_n, tile_m, epsilon, gated, rows, depth,
            block_n, block_k, blocks, ahead, programmatic,
        )  # fmt: skip


def _make_columns(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    out: torch.Tensor,
    total: torch.Tensor | None,
    tile_n: hl.Tile,
    tile_m: hl.Tile,
    epsilon: float,
    gated: bool,
    rows: int,
    depth: int,
    block_n: int,
    block_k: int,
    blocks: int,
    ahead: int,
    programmatic: bool,
) -> None:
    """All that a program does between its start and its end. Loops are unrolled as they are traced."""
    whole = rows % (blocks * block_n) == 0
    columns = [_stretch(tile_n.begin + block * block_n, block_n, rows, whole) for block in range(blocks)]
    steps = [_stretch(start, block_k, depth, start + block_k <= depth) for start in range(0, depth, block_k)]
    parts = range(2 if gated else 1)
    scales = [[_load(weight_scales, [part], own) for part in parts] for own in columns]
    norm_weights = [] if norm_weight is None else [_load(norm_weight, [], step) for step in steps]
    wanted = [(own, step) for own in columns for step in steps]
    codes = [[_load(weight, [part], *place) for part in parts] for place in wanted[:ahead]]
    wait_for_predecessor(programmatic)
    values: list[torch.Tensor] = []
    squares: torch.Tensor | None = None
    sums: list[torch.Tensor] = []
    finished: list[list[torch.Tensor]] = []
    for number in range(len(wanted)):
        if number + ahead < len(wanted):
            codes.append([_load(weight, [part], *wanted[number + ahead]) for part in parts])
        step = number % len(steps)
        if number == step:
            row = _load(x, [tile_m.begin], steps[step])
            if residual is not None:
                row = added_rows(row, _load(residual, [tile_m.begin], steps[step]))
                index = steps[step][0]
                # The first program's alone.
                hl.store(total, [tile_m.begin, index], row, extra_mask=index + tile_n.begin * depth < depth)
            value = row.to(torch.float32)
            if norm_weights:
                squares = value * value if squares is None else squares + value * value
                value = value * norm_weights[step].to(torch.float32)
            values.append(value)
        products = [code.to(torch.float32) * values[step].unsqueeze(0) for code in codes[number]]
        sums = products if step == 0 else [a + b for a, b in zip(sums, products, strict=True)]
        if step == len(steps) - 1:
            finished.append([torch.sum(each, dim=1) for each in sums])
    # The norm's factor is the row's: it may come last.
    factor = 1.0 if squares is None else torch.rsqrt(torch.sum(squares, dim=0) / depth + epsilon)
    for (column, inside), own, own_scales in zip(columns, finished, scales, strict=True):
        scaled = [each * factor * scale for each, scale in zip(own, own_scales, strict=True)]
        y = silu_times(scaled[0], scaled[1]) if gated else scaled[0]
        hl.store(out, [tile_m.begin, column], y.to(out.dtype), extra_mask=inside)


def _stretch(start: Any, length: int, size: int, whole: bool) -> _Stretch:
    """``length`` places, a power of two, from ``start`` on, along a dimension of ``size``."""
    index = hl.arange(length) + start
    return index, None if whole else index < size


def _load(tensor: torch.Tensor, before: list[Any], *stretches: _Stretch) -> torch.Tensor:
    """A tile of one or two dimensions at some place of those before, with zeros for what is not inside."""
    index, inside = stretches[-1]
    if len(stretches) == 1:
        return hl.load(tensor, [*before, index], extra_mask=inside)
    row, is_row = stretches[0]
    if is_row is not None:
        is_row = is_row.unsqueeze(1)
        inside = is_row if inside is None else is_row & inside.unsqueeze(0)
    elif inside is not None:
        inside = inside.unsqueeze(0)
    return hl.load(tensor, [*before, row, index], extra_mask=inside)
