"""Parts of ``decoder_block``'s program for several tokens: products of a part of K each, and what adds them up."""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from parhelion.ops.decoder_block.gluon_ring import LARGEST, STEPS, TILE_ROWS, codes_of, put
from parhelion.ops.decoder_block.gluon_rows_attention import added_up
from parhelion.ops.gluon_parts import sync


@gluon.constexpr_function
def multiplied_in(columns):
    """The layout of the sums of a tile's rows by so many columns, in 8 warps."""
    return gl.NVMMADistributedLayout([3, 0], [4, 2], [16, columns // 2, 32])


@gluon.constexpr_function
def made_early(inner_size, grid, rounds):
    """How many of the down projection's inputs all rounds but the last make."""
    units = inner_size // (TILE_ROWS.value // 2)
    return (rounds - 1) * -(-units // (grid * rounds)) * grid * (TILE_ROWS.value // 2)


@gluon.jit
def rows_of_unit(j, n: gl.constexpr, gated: gl.constexpr):
    """Which outputs the 64 rows ``j`` of a product's first tile are: 32 gates, and then what they are multiplied by."""
    if gated:
        return j % (TILE_ROWS // 2) + j // (TILE_ROWS // 2) * (n // 2)
    else:
        return j


@gluon.jit
def fetch_part(
    ring, full, empty, weight, c, group, begin, layout: gl.constexpr, n: gl.constexpr, k: gl.constexpr,
    tiles: gl.constexpr, gated: gl.constexpr, groups: gl.constexpr, tile_k: gl.constexpr, slots: gl.constexpr,
    in_flight: gl.constexpr,
):  # fmt: skip
    """Ask for the tiles of a part of K, from ``begin`` on, of a group's outputs, as the ring has room."""
    j = gl.arange(0, TILE_ROWS, layout=gl.SliceLayout(1, layout))
    i = gl.arange(0, tile_k, layout=gl.SliceLayout(0, layout))
    at = (rows_of_unit(j, n, gated) * k + begin)[:, None] + i[None, :]
    stride: gl.constexpr = TILE_ROWS // (2 if gated else 1) * k
    for unit in range(group, n // TILE_ROWS, groups):
        first = weight + unit * stride
        for tile in range(tiles):
            c = put(ring.index(c % slots), full, empty, c, first + tile * tile_k + at, None, slots, in_flight,
                    True)  # fmt: skip
    return c


@gluon.jit
def weights_of_part(norm, begin, tiles: gl.constexpr, tile_k: gl.constexpr, layout: gl.constexpr):
    """A norm's weights of a part of K, a tensor [1, tile_k] a tile."""
    i = gl.arange(0, tile_k, layout=gl.SliceLayout(0, layout))
    weights = ()
    for tile in gl.static_range(tiles):
        weights = weights + (gl.load(norm + begin + tile * tile_k + i)[None, :],)
    return weights


@gluon.jit
def encode_rows(xbuf, xs, tiles: gl.constexpr, tile_k: gl.constexpr, rows: gl.constexpr):
    """Put all tokens' elements, a tensor a tile, on the matrix unit's right: of token 4 q + j their codes are column
    8 j + 2 q, and those of what they lack the next: so a thread has neighbouring tokens. Gives what an element of a
    token's sums counts, [rows].
    """
    most = gl.abs(xs[0])
    for tile in gl.static_range(1, tiles):
        most = gl.maximum(most, gl.abs(xs[tile]))
    largest = gl.maximum(gl.max(most.to(gl.float32), axis=1), 1e-20)
    by = (LARGEST / largest)[:, None]
    for tile in gl.static_range(tiles):
        code, lack = codes_of(xs[tile].to(gl.float32) * by)
        both = gl.reshape(gl.join(code, lack), [4, rows // 4, tile_k, 2])
        xbuf.index(tile).store(gl.reshape(gl.permute(both, (1, 0, 3, 2)), [2 * rows, tile_k]))
    fence_async_shared()
    sync()
    return largest / LARGEST


@gluon.jit
def normed_rows(total, weights, tiles: gl.constexpr):
    """All tokens' elements times the norm's weights, and their squares' sums, [rows]."""
    xs = ()
    squares = total[0].to(gl.float32) * total[0].to(gl.float32)
    for tile in gl.static_range(tiles):
        x = total[tile].to(gl.float32)
        if tile > 0:
            squares += x * x
        xs = xs + (x * weights[tile].to(gl.float32),)
    return xs, gl.sum(squares, axis=1)


@gluon.jit
def multiply_part(
    ring, full, empty, xbuf, c, scales, sums_at, counts, begin, end, n: gl.constexpr, tiles: gl.constexpr,
    gated: gl.constexpr, adds: gl.constexpr, groups: gl.constexpr, rows: gl.constexpr, slots: gl.constexpr,
    layout: gl.constexpr,
):  # fmt: skip
    """What a part of K adds to a group's outputs, into sums_at [rows, n], float32.

    Args:
        begin, end: of the units of 64 outputs, every ``groups``-th of which is the group's.
        counts: of each token, what an element of its sums counts.
        adds: to what this program has found there before.
    """
    # As the codes' columns stand.
    both = gl.reshape(gl.join(counts, counts * (1.0 / STEPS)), [4, rows // 4, 2])
    of_column = gl.convert_layout(gl.reshape(gl.permute(both, (1, 0, 2)), [2 * rows]), gl.SliceLayout(0, layout))
    j = gl.arange(0, TILE_ROWS, layout=gl.SliceLayout(1, layout))
    column = gl.arange(0, 2 * rows, layout=gl.SliceLayout(0, layout))
    own = rows_of_unit(j, n, gated)
    token = column % 8 // 2 * (rows // 4) + column // 8
    at = sums_at + split_sums(j[:, None] + (token * n)[None, :], rows, True)
    for unit in range(begin, end, groups):
        scale = gl.load(scales + unit * (TILE_ROWS // (2 if gated else 1)) + own)
        if adds:
            before = gl.load(at + unit * TILE_ROWS, cache_modifier=".cg")
        acc = gl.full([TILE_ROWS, 2 * rows], 0.0, gl.float32, layout=layout)
        for tile in range(tiles):
            slot = c % slots
            mbarrier.wait(full.index(slot), (c // slots) & 1)
            acc = warpgroup_mma(ring.index(slot), xbuf.index(tile).permute((1, 0)), acc, is_async=True)
            # The one before has been multiplied.
            acc = warpgroup_mma_wait(1, deps=(acc,))
            if tile > 0:
                sync()
                mbarrier.arrive(empty.index((c - 1) % slots), count=1)
            c += 1
        acc = warpgroup_mma_wait(0, deps=(acc,))
        sync()
        mbarrier.arrive(empty.index((c - 1) % slots), count=1)
        sums = split_sums(acc * scale[:, None] * of_column[None, :], rows, False)
        if adds:
            sums += before
        gl.store(at + unit * TILE_ROWS, sums)
    return c


@gluon.jit
def split_sums(acc, rows: gl.constexpr, one: gl.constexpr):
    """[64, columns] as [64, columns / 2]: neighbours added up, or one of them."""
    pairs = gl.reshape(acc, [TILE_ROWS, rows, 2])
    if one:
        first, _ = gl.split(pairs)
        return first
    else:
        first, second = gl.split(pairs)
        return first + second


@gluon.jit
def finish(
    sums_at, hidden, residual, y, num_tokens, group, part, n: gl.constexpr, groups: gl.constexpr, parts: gl.constexpr,
    rows: gl.constexpr, warps: gl.constexpr,
):  # fmt: skip
    """Add up a program's share of its group's outputs, and of what the block was given if that is to be added, into
    y [num_tokens, n].
    """
    share: gl.constexpr = TILE_ROWS // parts
    units: gl.constexpr = n // TILE_ROWS
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [32 // share, share], [warps, 1], [1, 0])
    token = gl.arange(0, rows, layout=gl.SliceLayout(1, layout))[:, None]
    i = gl.arange(0, share, layout=gl.SliceLayout(0, layout))[None, :]
    totals = ()
    added = ()
    for u in gl.static_range((units + groups - 1) // groups):
        place = token * n + (group + u * groups) * TILE_ROWS + part * share + i
        there = (token < num_tokens) & (group + u * groups + i * 0 < units)
        totals = totals + (added_up(sums_at, place, parts, rows * n, there),)
        if hidden is not None:
            x = gl.load(hidden + place, mask=there, other=0.0).to(gl.float32)
            x += gl.load(residual + place, mask=there, other=0.0).to(gl.float32)
            added = added + (x.to(gl.bfloat16).to(gl.float32),)
    for u in gl.static_range((units + groups - 1) // groups):
        place = token * n + (group + u * groups) * TILE_ROWS + part * share + i
        there = (token < num_tokens) & (group + u * groups + i * 0 < units)
        made = totals[u].to(gl.bfloat16)
        if hidden is not None:
            made = (added[u] + made.to(gl.float32)).to(gl.bfloat16)
        gl.store(y + place, made, mask=there)


@gluon.jit
def finish_gated(
    sums_at, squares, y, group, part, epsilon: gl.constexpr, hidden_size: gl.constexpr, n: gl.constexpr,
    groups: gl.constexpr, parts: gl.constexpr, rows: gl.constexpr, warps: gl.constexpr, first,
    passes: gl.constexpr,
):  # fmt: skip
    """Add up a program's share of its group's gates and ups, and multiply them, into y [rows, n].

    Args:
        first, passes: which of the program's units, and how many.
        squares: what each part of K found, [parts, rows].
    """
    share: gl.constexpr = TILE_ROWS // 2
    units: gl.constexpr = 2 * n // TILE_ROWS
    layout: gl.constexpr = gl.BlockedLayout([1, 2], [2, 16], [warps, 1], [1, 0])
    token = gl.arange(0, rows, layout=gl.SliceLayout(1, layout))
    i = gl.arange(0, share, layout=gl.SliceLayout(0, layout))[None, :]
    gates = ()
    ups = ()
    for each in gl.static_range(passes):
        unit = group + ((first + each) * parts + part) * groups
        place = (token * (2 * n))[:, None] + unit * TILE_ROWS + i
        there = (unit < units) & (place >= 0)
        gates = gates + (added_up(sums_at, place, parts, rows * 2 * n, there),)
        ups = ups + (added_up(sums_at, place + share, parts, rows * 2 * n, there),)
    square = added_up(squares, token, parts, rows, token >= 0)
    factor = gl.rsqrt(square / hidden_size + epsilon)[:, None]
    for each in gl.static_range(passes):
        unit = group + ((first + each) * parts + part) * groups
        place = (token * n)[:, None] + unit * share + i
        gate = gates[each] * factor
        made = gate / (1.0 + gl.exp(-gate)) * (ups[each] * factor)
        gl.store(y + place, made.to(gl.bfloat16), mask=(unit < units) & (place >= 0))
