"""``weight_only_mv`` as a tile program, without the matrix unit, which a token leaves nearly idle, and with it.

Without: a program makes some blocks of ``block_n`` columns of y, one after the other, and takes K in steps of
``block_k``. Products of a step are added to those of the step before, each in its place, and all of a column up only
at its end. This multiplies each code in the units that also have to load and to widen it.

With: a program makes one block of columns, and the matrix unit takes the codes as they are.
"""

from __future__ import annotations

from typing import Any

import helion
import helion.language as hl
import torch

from parhelion.ops.arrivals import arrived_last, forget_arrivals
from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.quantize import FP8, power_of_two_scales_of
from parhelion.ops.tile_dot import dot
from parhelion.ops.tile_math import added_rows, silu_times

_STEPS = 16.0
"""By which what a code lacks is multiplied before it becomes a code: at most a sixteenth of its power of two."""

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
    codes = [[_codes(weight, part, *place) for part in parts] for place in wanted[:ahead]]
    wait_for_predecessor(programmatic)
    values: list[torch.Tensor] = []
    squares: torch.Tensor | None = None
    sums: list[torch.Tensor] = []
    finished: list[list[torch.Tensor]] = []
    for number in range(len(wanted)):
        if number + ahead < len(wanted):
            codes.append([_codes(weight, part, *wanted[number + ahead]) for part in parts])
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


def _load(tensor: torch.Tensor, before: list[Any], stretch: _Stretch) -> torch.Tensor:
    """A stretch of the last dimension, at some place of those before, with zeros for what is not inside."""
    index, inside = stretch
    return hl.load(tensor, [*before, index], extra_mask=inside)


def _codes(weight: torch.Tensor, part: int, rows: _Stretch, step: _Stretch) -> torch.Tensor:
    """A tile of the weight, which is read once: other things may stay in the L2 cache instead."""
    (row, is_row), (index, inside) = rows, step
    if inside is not None:
        inside = inside.unsqueeze(0)
    if is_row is not None:
        inside = is_row.unsqueeze(1) if inside is None else is_row.unsqueeze(1) & inside
    return hl.load(weight, [part, row, index], extra_mask=inside, eviction_policy="evict_first")


@helion.kernel(static_shapes=False, dot_precision="ieee")
def on_matrix_unit(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    out: torch.Tensor,
    total: torch.Tensor | None,
    parts: torch.Tensor | None,
    arrivals: torch.Tensor | None,
    epsilon: float,
    gated: hl.constexpr,
    block_n: hl.constexpr,
    block_k: hl.constexpr,
    split_k: hl.constexpr,
    span: hl.constexpr,
    head: hl.constexpr,
    reach: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    """The same product of FP8 codes: x becomes two of 16 columns, its codes and those of what they lack, so that
    8 bits of each element count; the other columns are zeros. With ``split_k`` programs a tile each takes a ``span`` of
    K, and the last to be done adds up those of all, first to last.

    Args:
        x, residual, norm_weight, weight, weight_scales, out, total: as above; K is ``split_k`` times ``span``.
        parts: float32 [split_k, 2 if ``gated`` else 1, M, N], to be written; None if ``split_k`` is 1.
        arrivals: int32, a counter for each tile and token; see ``ops/arrivals.py``. None if ``split_k`` is 1.
        block_n, block_k: of a tile of the weight.
        head: how much of a program's span is read of the weight before it waits for its predecessor, a power of two
            or 0; the rest is whole blocks.
        reach: a power of two that holds all of K if there is a norm, else the span: of that the scale is.
        programmatic: see ``ops/programmatic.py``.
    """
    num_tokens = x.size(0)
    rows = hl.specialize(weight.size(1))
    depth = hl.specialize(weight.size(2))
    for tile_n, split, tile_m in hl.tile([rows, split_k, num_tokens], block_size=[block_n, 1, 1]):
        start_successor(programmatic)
        start = split.begin * span
        # A number of the module would be taken for a size that is not known.
        lanes = hl.arange(16)
        if head > 0:
            first = start + hl.arange(head)
            gate_codes = hl.load(weight, [0, tile_n, first])
            if gated:
                up_codes = hl.load(weight, [1, tile_n, first])
        whole, inside = _reached(start, span, depth, reach, norm_weight)
        whole_weight = _loaded(norm_weight, whole, inside)
        wait_for_predecessor(programmatic)
        row = hl.load(x, [tile_m.begin, whole], extra_mask=inside)
        if residual is not None:
            row = added_rows(row, hl.load(residual, [tile_m.begin, whole], extra_mask=inside))
            # The first program's alone.
            is_first = inside & (whole + (tile_n.begin + split.begin) * depth < depth)
            hl.store(total, [tile_m.begin, whole], row, extra_mask=is_first)
        scale = power_of_two_scales_of(torch.amax(torch.abs(_weighted(row, whole_weight)), dim=0))
        inverse = 1.0 / scale
        gate = hl.zeros([tile_n, 16], dtype=torch.float32)
        up = hl.zeros([tile_n, 16], dtype=torch.float32)
        if head > 0:
            first_pair = _pair(_part(x, residual, norm_weight, tile_m.begin, first), inverse, lanes)
            gate = dot(gate_codes, first_pair.T, gate)
            if gated:
                up = dot(up_codes, first_pair.T, up)
        for tile_k in hl.tile(head, span, block_size=block_k):
            codes = weight[0, tile_n, tile_k + start]
            pair = _pair(_part(x, residual, norm_weight, tile_m.begin, tile_k.index + start), inverse, lanes)
            gate = dot(codes, pair.T, gate)
            if gated:
                up = dot(weight[1, tile_n, tile_k + start], pair.T, up)
        shares = _shares(lanes) * _factor(row, scale, norm_weight, depth, epsilon)
        sums = torch.sum(gate * shares[None, :], dim=1)
        other = torch.sum(up * shares[None, :], dim=1)
        if split_k > 1:
            parts[split.begin, 0, tile_m.begin, tile_n] = sums  # type: ignore[index]
            if gated:
                parts[split.begin, 1, tile_m.begin, tile_n] = other  # type: ignore[index]
            place = tile_n.id * num_tokens + tile_m.begin
            if arrived_last(arrivals, place, split_k):
                sums = hl.zeros([tile_n], dtype=torch.float32)
                other = hl.zeros([tile_n], dtype=torch.float32)
                for part in hl.static_range(split_k):
                    sums = sums + parts[part, 0, tile_m.begin, tile_n]  # type: ignore[index]
                    if gated:
                        other = other + parts[part, 1, tile_m.begin, tile_n]  # type: ignore[index]
                y = sums * weight_scales[0, tile_n]
                if gated:
                    y = silu_times(y, other * weight_scales[1, tile_n])
                out[tile_m.begin, tile_n] = y.to(out.dtype)
                forget_arrivals(arrivals, place)
        else:
            y = sums * weight_scales[0, tile_n]
            if gated:
                y = silu_times(y, other * weight_scales[1, tile_n])
            out[tile_m.begin, tile_n] = y.to(out.dtype)


def _reached(
    start: torch.Tensor, span: int, depth: int, reach: int, norm_weight: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Places in K, and which of them are inside: all of K if there is a norm, else a program's span."""
    index = hl.arange(reach)
    return (index + start, index < span) if norm_weight is None else (index, index < depth)


def _loaded(tensor: torch.Tensor | None, index: torch.Tensor, inside: torch.Tensor) -> torch.Tensor | None:
    return None if tensor is None else hl.load(tensor, [index], extra_mask=inside)


def _weighted(row: torch.Tensor, norm_weight: torch.Tensor | None) -> torch.Tensor:
    """A row, or part of one, as it goes into the product, but for the norm's factor, which may come last; float32."""
    values = row.to(torch.float32)
    return values if norm_weight is None else values * norm_weight.to(torch.float32)


def _factor(
    row: torch.Tensor, scale: torch.Tensor, norm_weight: torch.Tensor | None, depth: int, epsilon: float
) -> torch.Tensor:
    """Of the sums of codes: the codes' scale, and the norm's factor if there is a norm."""
    if norm_weight is None:
        return scale
    values = row.to(torch.float32)
    return scale * torch.rsqrt(torch.sum(values * values, dim=0) / depth + epsilon)


def _part(
    x: torch.Tensor, residual: torch.Tensor | None, norm_weight: torch.Tensor | None, token: Any, index: torch.Tensor
) -> torch.Tensor:
    """What goes into the product of some places in K, read again, from the nearest cache."""
    row = hl.load(x, [token, index])
    if residual is not None:
        row = added_rows(row, hl.load(residual, [token, index]))
    return _weighted(row, None if norm_weight is None else hl.load(norm_weight, [index]))


def _shares(lanes: torch.Tensor) -> torch.Tensor:
    """[16]: what each column's sums count for."""
    return torch.where(lanes == 0, 1.0, torch.where(lanes == 1, 1.0 / _STEPS, 0.0))


def _pair(values: torch.Tensor, inverse: torch.Tensor, lanes: torch.Tensor) -> torch.Tensor:
    """[16, K] codes for values [K]: theirs, then ``_STEPS`` times what those lack, then zeros."""
    scaled = values * inverse
    lacking = (scaled - scaled.to(FP8).to(torch.float32)) * _STEPS
    is_code, is_lacking = (lanes == 0).unsqueeze(1), (lanes == 1).unsqueeze(1)
    rest = torch.where(is_lacking, lacking.unsqueeze(0), 0.0)
    return torch.where(is_code, scaled.unsqueeze(0), rest).to(FP8)
