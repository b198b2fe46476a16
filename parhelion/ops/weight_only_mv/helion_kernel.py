"""``weight_only_mv`` as one tile program: products and sums without the matrix unit, which a token would leave idle.

A program makes ``block_n`` columns of y and takes K in steps of ``block_k``. Products of a step are added to those of
the step before, each in its place, and all of them up only at the end.
"""

from __future__ import annotations

from typing import Any

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.tile_math import added_rows, silu_times


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
    ahead: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    """out [M, N].

    Args:
        x: [M, K]; residual: [M, K] to be added to it, or None.
        norm_weight: [K] of the norm that x goes through, or None.
        weight: codes [1, N, K], or the gate's and those of up [2, N, K]; weight_scales: [1, N] or [2, N].
        total: [M, K], to be written: x and residual added up. Not the residual itself, which all programs read.
        ahead: steps of the weight that are in flight at a time, and before the program waits for its predecessor.
        programmatic: see ``ops/programmatic.py``.
    """
    num_tokens = x.size(0)
    rows = hl.specialize(weight.size(1))
    depth = hl.specialize(weight.size(2))
    for tile_n, tile_m in hl.tile([rows, num_tokens], block_size=[block_n, 1]):
        start_successor(programmatic)
        products = _products(
            x, residual, norm_weight, weight, weight_scales, total, tile_n, tile_m, epsilon, gated, depth, block_k,
            ahead, programmatic,
        )  # fmt: skip
        out[tile_m.begin, tile_n] = products.to(out.dtype)


def _products(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    total: torch.Tensor | None,
    tile_n: hl.Tile,
    tile_m: hl.Tile,
    epsilon: float,
    gated: bool,
    depth: int,
    block_k: int,
    ahead: int,
    programmatic: bool,
) -> torch.Tensor:
    """A program's columns [block_n] of a row of y, in float32. Loops are unrolled as they are traced."""
    steps, parts = -(-depth // block_k), range(2 if gated else 1)
    scales = [hl.load(weight_scales, [part, tile_n]) for part in parts]
    norm_weights = []
    if norm_weight is not None:
        norm_weights = [_columns(norm_weight, [], step, depth, block_k) for step in range(steps)]
    codes = [[_codes(weight, part, tile_n, step, depth, block_k) for part in parts] for step in range(ahead)]
    wait_for_predecessor(programmatic)
    squares = None
    sums: list[torch.Tensor] = []
    for step in range(steps):
        if step + ahead < steps:
            codes.append([_codes(weight, part, tile_n, step + ahead, depth, block_k) for part in parts])
        row = _columns(x, [tile_m.begin], step, depth, block_k)
        if residual is not None:
            row = added_rows(row, _columns(residual, [tile_m.begin], step, depth, block_k))
            column = _column(step, block_k)
            # The first program's alone.
            hl.store(total, [tile_m.begin, column], row, extra_mask=column + tile_n.begin * depth < depth)
        values = row.to(torch.float32)
        if norm_weights:
            squares = values * values if squares is None else squares + values * values
            values = values * norm_weights[step].to(torch.float32)
        products = [code.to(torch.float32) * values.unsqueeze(0) for code in codes[step]]
        sums = [a + b for a, b in zip(sums, products, strict=True)] if sums else products
    factor = 1.0 if squares is None else torch.rsqrt(torch.sum(squares, dim=0) / depth + epsilon)
    y = [torch.sum(each, dim=1) * factor * scale for each, scale in zip(sums, scales, strict=True)]
    return y[0] if len(y) == 1 else silu_times(y[0], y[1])


def _column(step: int, block_k: int) -> torch.Tensor:
    """Which of K a step takes."""
    return hl.arange(block_k) + step * block_k


def _codes(weight: torch.Tensor, part: int, tile_n: hl.Tile, step: int, depth: int, block_k: int) -> torch.Tensor:
    """A step [block_n, block_k] of a program's rows of the weight."""
    return _columns(weight, [part, tile_n], step, depth, block_k)


def _columns(tensor: torch.Tensor, rows: list[Any], step: int, depth: int, block_k: int) -> torch.Tensor:
    """A step [..., block_k] of K, with zeros beyond its end."""
    column = _column(step, block_k)
    if (step + 1) * block_k <= depth:
        return hl.load(tensor, [*rows, column])
    known = column < depth
    return hl.load(tensor, [*rows, column], extra_mask=known)
