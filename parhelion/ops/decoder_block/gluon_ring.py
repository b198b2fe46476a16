"""Parts of ``decoder_block``'s program: barriers of all programs, the ring of tiles, and products of what is in it."""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from parhelion.ops.gluon_parts import copy, sync

TILE_ROWS = gl.constexpr(64)
PARTS = gl.constexpr(4)
OUTPUTS = gl.constexpr(16)
COLUMNS = gl.constexpr(8)
LARGEST = gl.constexpr(448.0)
STEPS = gl.constexpr(16.0)
SPLITTER = gl.constexpr(129.0)


@gluon.jit
def arrive(counter):
    """What this program has stored is there for all that await the counter."""
    sync()
    gl.inline_asm_elementwise(
        "{ .reg .pred p; .reg .u32 t; mov.u32 t, %tid.x; setp.eq.u32 p, t, 0;"
        " @p red.release.gpu.global.add.u32 [$1], 1; mov.u32 $0, 0; }",
        "=r,l", [counter], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def wait_for_all(counter, count):
    """Until so many programs have arrived."""
    gl.inline_asm_elementwise(
        "{ .reg .pred p, q; .reg .u32 t, v; mov.u32 t, %tid.x; setp.ne.u32 p, t, 0; @p bra DONE;"
        " SPIN: ld.acquire.gpu.global.u32 v, [$1]; setp.lt.u32 q, v, $2; @q bra SPIN; DONE: mov.u32 $0, 0; }",
        "=r,l,r", [counter, count], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip
    sync()


@gluon.jit
def forget(counter, left, count):
    """Zero a counter that everybody has awaited once ``count`` programs have said so in ``left``, and that one too."""
    gl.inline_asm_elementwise(
        "{ .reg .pred p, q; .reg .u32 t, v; mov.u32 t, %tid.x; setp.ne.u32 p, t, 0; @p bra DONE;"
        " atom.relaxed.gpu.global.add.u32 v, [$2], 1; add.u32 v, v, 1; setp.ne.u32 q, v, $3; @q bra DONE;"
        " st.relaxed.gpu.global.u32 [$1], 0; st.relaxed.gpu.global.u32 [$2], 0; DONE: mov.u32 $0, 0; }",
        "=r,l,l,r", [counter, left, count], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def put(tile, full, empty, c, places, there, slots: gl.constexpr, in_flight: gl.constexpr, fences: gl.constexpr):
    """Ask for tile ``c`` once its slot is empty; zeros where ``there`` is not None and false.

    Args:
        fences: say that a tile is there, and for the matrix unit too, when ``in_flight`` more have been asked for. Else
            each says so for itself, and who multiplies it has to fence it.
    """
    slot = c % slots
    mbarrier.wait(empty.index(slot), ((c // slots) & 1) ^ 1)
    copy(tile, places, mask=there)
    if not fences:
        async_copy.mbarrier_arrive(full.index(slot), increment_count=False)
    # Much that is asked for at once only makes those wait who ask for little.
    async_copy.commit_group()
    async_copy.wait_group(in_flight)
    if fences:
        tell(full, c - in_flight, slots)
    return c + 1


@gluon.jit
def tell(full, c, slots: gl.constexpr):
    """Tile ``c`` is there."""
    fence_async_shared()
    sync()
    if c >= 0:
        mbarrier.arrive(full.index(c % slots), count=1)


@gluon.jit
def tell_last(full, c, slots: gl.constexpr, in_flight: gl.constexpr):
    """So are the last of ``c`` tiles."""
    async_copy.wait_group(0)
    for number in gl.static_range(in_flight):
        tell(full, c - in_flight + number, slots)


@gluon.jit
def fetch(
    ring, full, empty, weight, c, pid, layout: gl.constexpr, n: gl.constexpr, k: gl.constexpr, gated: gl.constexpr,
    grid: gl.constexpr, tile_k: gl.constexpr, slots: gl.constexpr, in_flight: gl.constexpr,
):  # fmt: skip
    """Ask for a product's tiles of this program, one after the other, as the ring has room."""
    j = gl.arange(0, TILE_ROWS, layout=gl.SliceLayout(1, layout))
    i = gl.arange(0, tile_k, layout=gl.SliceLayout(0, layout))
    if gated:
        row = (j % OUTPUTS) // 2 + (j % 2) * (n // 2)
        stride: gl.constexpr = OUTPUTS // 2 * k
    else:
        row = j % OUTPUTS
        stride: gl.constexpr = OUTPUTS * k
    at = (row * k + (j // OUTPUTS) * (k // PARTS))[:, None] + i[None, :]
    tiles: gl.constexpr = k // PARTS // tile_k
    for unit in range(pid, n // OUTPUTS, grid):
        first = weight + unit * stride
        for tile in range(tiles):
            c = put(ring.index(c % slots), full, empty, c, first + tile * tile_k + at, None, slots, in_flight,
                    False)  # fmt: skip
    return c


@gluon.jit
def places_of(tile: gl.constexpr, k: gl.constexpr, tile_k: gl.constexpr, layout: gl.constexpr):
    """Where in a token's k elements those of a tile stand, [4, tile_k]: a piece of each quarter."""
    part = gl.arange(0, PARTS, layout=gl.SliceLayout(1, layout))
    i = gl.arange(0, tile_k, layout=gl.SliceLayout(0, layout))
    return (part * (k // PARTS))[:, None] + (tile * tile_k + i)[None, :]


@gluon.jit
def codes_of(value):
    """FP8 codes of numbers up to ``LARGEST``, and codes of ``STEPS`` times what these lack."""
    # float16 has 11 bits, and 8 of an element count. Four of them make a code (Dekker, "A floating-point technique for
    # extending the available precision", 1971): what has been made a code is not read back, since ptxas 12.8 mistakes
    # the register if the code is also stored.
    value = value.to(gl.float16)
    # As a product it would be contracted with what follows, and nothing be split.
    far = gl.fma(value, gl.full_like(value, SPLITTER), gl.full_like(value, 0.0))
    code = far - (far - value)
    return code.to(gl.float8e4nv), ((value - code) * STEPS).to(gl.float8e4nv)


@gluon.jit
def encode(xbuf, xs, tiles: gl.constexpr, tile_k: gl.constexpr):
    """Put a token's elements, a tensor a tile, on the matrix unit's right: their codes, and those of what they lack.
    Gives what an element of the sums counts.
    """
    most = gl.abs(xs[0])
    for tile in gl.static_range(1, tiles):
        most = gl.maximum(most, gl.abs(xs[tile]))
    largest = gl.maximum(gl.max(gl.max(most.to(gl.float32), axis=1), axis=0), 1e-20)
    for tile in gl.static_range(tiles):
        code, lack = codes_of(xs[tile].to(gl.float32) * (LARGEST / largest))
        both = gl.permute(gl.join(code, lack), (0, 2, 1))
        xbuf.index(tile).store(gl.reshape(both, [COLUMNS, tile_k]))
    fence_async_shared()
    sync()
    return largest / LARGEST


@gluon.jit
def multiply(
    ring, full, empty, xbuf, c, scales, y, factor, pid, n: gl.constexpr, k: gl.constexpr, gated: gl.constexpr,
    grid: gl.constexpr, tile_k: gl.constexpr, slots: gl.constexpr, acc_layout: gl.constexpr, row_layout: gl.constexpr,
    pair_layout: gl.constexpr,
):  # fmt: skip
    """A product's columns of this program, into y [n], or [n / 2] if gated."""
    j = gl.arange(0, TILE_ROWS, layout=gl.SliceLayout(1, acc_layout))
    column = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, acc_layout))
    own = (column // 2)[None, :] == (j // OUTPUTS)[:, None]
    counts = gl.where(own, gl.where(column % 2 == 0, 1.0, 1.0 / STEPS)[None, :], 0.0)
    r = gl.arange(0, OUTPUTS, layout=row_layout)
    for unit in range(pid, n // OUTPUTS, grid):
        if gated:
            scale = gl.load(scales + unit * (OUTPUTS // 2) + r // 2 + (r % 2) * (n // 2))
        else:
            scale = gl.load(scales + unit * OUTPUTS + r)
        acc = gl.full([TILE_ROWS, COLUMNS], 0.0, gl.float32, layout=acc_layout)
        for tile in range(k // PARTS // tile_k):
            slot = c % slots
            mbarrier.wait(full.index(slot), (c // slots) & 1)
            fence_async_shared()
            acc = warpgroup_mma(ring.index(slot), xbuf.index(tile).permute((1, 0)), acc, is_async=True)
            acc = warpgroup_mma_wait(0, deps=(acc,))
            sync()
            mbarrier.arrive(empty.index(slot), count=1)
            c += 1
        sums = gl.sum(gl.reshape(gl.sum(acc * counts, axis=1), [PARTS, OUTPUTS]), axis=0)
        sums = gl.convert_layout(sums, row_layout) * factor * scale
        if gated:
            pairs = gl.convert_layout(gl.reshape(sums, [OUTPUTS // 2, 2]), pair_layout)
            gate, up = gl.split(pairs)
            at = gl.arange(0, OUTPUTS // 2, layout=gl.SliceLayout(1, pair_layout))
            gl.store(y + unit * (OUTPUTS // 2) + at, (gate / (1.0 + gl.exp(-gate)) * up).to(gl.bfloat16))
        else:
            gl.store(y + unit * OUTPUTS + r, sums.to(gl.bfloat16))
    return c


@gluon.jit
def normed(total, weights, tiles: gl.constexpr, size: gl.constexpr, epsilon: gl.constexpr):
    """A token's elements times the norm's weights, and the norm's factor."""
    xs = ()
    squares = total[0].to(gl.float32) * total[0].to(gl.float32)
    for tile in gl.static_range(tiles):
        x = total[tile].to(gl.float32)
        if tile > 0:
            squares += x * x
        xs = xs + (x * weights[tile].to(gl.float32),)
    return xs, gl.rsqrt(gl.sum(gl.sum(squares, axis=1), axis=0) / size + epsilon)
