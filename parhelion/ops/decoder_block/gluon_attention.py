"""Parts of ``decoder_block``'s program: a token's attention, by several programs for each key head. What earlier steps
have left in the cache comes through the ring, between the tiles of two weights.
"""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, mma_v2

from parhelion.ops.decoder_block.gluon_ring import PARTS, put
from parhelion.ops.gluon_parts import LOG2_E, sync, taken_as

HEADS = gl.constexpr(16)
AT_ONCE = gl.constexpr(6)
NOTHING = gl.constexpr(-1.0e30)


@gluon.jit
def spread(vector):
    """[head_dim] as [1, 1, head_dim]."""
    return gl.expand_dims(gl.expand_dims(vector, 0), 0)


@gluon.constexpr_function
def cached_keys(tile_k, head_dim):
    """Tokens whose keys, or values, a tile of the ring holds."""
    return 32 * tile_k // head_dim


@gluon.jit
def share_of(seq_len, split, keys_a_program: gl.constexpr, most_splits: gl.constexpr):
    """How many programs share a row's keys, and of number ``split`` among them where its share of the cached ones
    begins and ends, and whether the token's own key, which is not in the cache yet, is its too.
    """
    num_splits = gl.minimum(gl.maximum((seq_len + keys_a_program - 1) // keys_a_program, 1), most_splits)
    share = (seq_len + num_splits * 16 - 1) // (num_splits * 16) * 16
    begin = split * share
    end = gl.minimum(begin + share, seq_len)
    owns = (end == seq_len) & (begin < seq_len)
    return num_splits, begin, gl.where(split < num_splits, gl.where(owns, end - 1, end), 0), owns


@gluon.jit
def siblings_before(row_slots, seq_lens, row, seq_len, there, siblings: gl.constexpr):
    """How many rows right before a row are of its sequence, each a token less far than the one behind it. What a step
    computes of them is in no cache yet.

    Args:
        row: a row's number, or several; ``there``: whether there is such a row.
        siblings: a bound of a sequence's rows.
    """
    count = row * 0
    if siblings > 1:
        slot = gl.load(row_slots + row, mask=there, other=-1)
        for each in gl.static_range(1, siblings):
            is_row = there & (row >= each)
            is_same = gl.load(row_slots + row - each, mask=is_row, other=-2) == slot
            is_next = gl.load(seq_lens + row - each, mask=is_row, other=-1) == seq_len - each
            count += (is_same & is_next).to(gl.int32)
    return count


@gluon.jit
def blocks_of(block_table, begin, end, keys: gl.constexpr, layout: gl.constexpr, block_size: gl.constexpr):
    """The block of each of a tile's keys, [keys]; 0 where there are none."""
    key = begin + gl.arange(0, keys, layout=gl.SliceLayout(1, layout))
    return gl.load(block_table + key // block_size, mask=key < end, other=0)


@gluon.jit
def fetch_keys(
    ring, full, empty, kv_cache, block_table, begin, end, kv_head, c, layout: gl.constexpr, cached: gl.constexpr,
    num_kv_heads: gl.constexpr, head_dim: gl.constexpr, block_size: gl.constexpr, keys: gl.constexpr,
    slots: gl.constexpr, in_flight: gl.constexpr, fences: gl.constexpr,
):  # fmt: skip
    """Ask for a program's keys and values, a tile of either after the other, as the ring has room."""
    d = gl.arange(0, head_dim, layout=gl.SliceLayout(0, layout))[None, :]
    block = blocks_of(block_table, begin, end, keys, layout, block_size)
    for start in range(begin, end, keys):
        key = start + gl.arange(0, keys, layout=gl.SliceLayout(1, layout))
        token = block.to(gl.int64) * block_size + key % block_size
        at = kv_cache + (token * (2 * num_kv_heads * head_dim) + kv_head * head_dim)[:, None] + d
        there = (key < end)[:, None]
        block = blocks_of(block_table, start + keys, end, keys, layout, block_size)
        c = put(taken_as(ring.index(c % slots), gl.bfloat16, [keys, head_dim], cached), full, empty, c, at, there,
                slots, in_flight, fences)  # fmt: skip
        c = put(taken_as(ring.index(c % slots), gl.bfloat16, [keys, head_dim], cached), full, empty, c,
                at + num_kv_heads * head_dim, there, slots, in_flight, fences)  # fmt: skip
    return c


@gluon.jit
def attend(
    ring, full, empty, c, asked, counts, scale: gl.constexpr, top, sums, result, layout: gl.constexpr,
    cached: gl.constexpr, keys: gl.constexpr, head_dim: gl.constexpr, slots: gl.constexpr,
):  # fmt: skip
    """Attention's running maxima, sums and weighted values of a head's queries, with the ring's next tile of keys and
    that of their values; ``counts``: how many of them there are.
    """
    scores = gl.full([HEADS, keys], 0.0, gl.float32, layout=layout)
    slot = c % slots
    mbarrier.wait(full.index(slot), (c // slots) & 1)
    tile = taken_as(ring.index(slot), gl.bfloat16, [keys, head_dim], cached)
    scores = mma_v2(asked, tile.permute((1, 0)).load(gl.DotOperandLayout(1, layout, 2)), scores)
    there = gl.arange(0, keys, layout=gl.SliceLayout(0, layout)) < counts
    scores = gl.where(there[None, :], scores * (scale * LOG2_E), NOTHING)
    new_top = gl.maximum(top, gl.max(scores, axis=1))
    kept = gl.exp2(top - new_top)
    shares = gl.where(there[None, :], gl.exp2(scores - new_top[:, None]), 0.0)
    sums = sums * kept + gl.sum(shares, axis=1)
    shares = gl.convert_layout(shares.to(gl.bfloat16), gl.DotOperandLayout(0, layout, 2))
    next_slot = (c + 1) % slots
    mbarrier.wait(full.index(next_slot), ((c + 1) // slots) & 1)
    tile = taken_as(ring.index(next_slot), gl.bfloat16, [keys, head_dim], cached)
    value = tile.load(gl.DotOperandLayout(1, layout, 2))
    sync()
    mbarrier.arrive(empty.index(slot), count=1)
    mbarrier.arrive(empty.index(next_slot), count=1)
    return c + 2, new_top, sums, mma_v2(shares, value, result * kept[:, None])


@gluon.jit
def combined(
    found,
    found_lse,
    num_splits,
    tiles: gl.constexpr,
    size: gl.constexpr,
    num_heads: gl.constexpr,
    head_dim: gl.constexpr,
    tile_k: gl.constexpr,
    layout: gl.constexpr,
    heads_layout: gl.constexpr,
):
    """Attention's output, a tensor a tile, from what programs have found with their shares of the keys."""
    per_tile: gl.constexpr = tile_k // head_dim
    part = gl.arange(0, PARTS, layout=gl.SliceLayout(1, gl.SliceLayout(2, heads_layout)))
    h = gl.arange(0, per_tile, layout=gl.SliceLayout(0, gl.SliceLayout(2, heads_layout)))
    d = gl.arange(0, head_dim, layout=gl.SliceLayout(0, gl.SliceLayout(0, heads_layout)))
    first = part[:, None] * (num_heads // PARTS) + h[None, :]
    tops = ()
    wholes = ()
    xs = ()
    for _ in gl.static_range(tiles):
        tops = tops + (gl.full([PARTS, per_tile], NOTHING, gl.float32, layout=gl.SliceLayout(2, heads_layout)),)
        wholes = wholes + (gl.full([PARTS, per_tile], 0.0, gl.float32, layout=gl.SliceLayout(2, heads_layout)),)
        xs = xs + (gl.full([PARTS, per_tile, head_dim], 0.0, gl.float32, layout=heads_layout),)
    for start in range(0, num_splits, AT_ONCE):
        lse = ()
        parts = ()
        for tile in gl.static_range(tiles):
            head = first + tile * per_tile
            where = gl.expand_dims(head * head_dim, 2) + spread(d)
            for s in gl.static_range(AT_ONCE):
                there = start + s < num_splits
                lse = lse + (gl.load(found_lse + (start + s) * num_heads + head, mask=(head >= 0) & there,
                                     other=NOTHING, cache_modifier=".cg"),)  # fmt: skip
                parts = parts + (gl.load(found + (start + s) * size + where, mask=(where >= 0) & there, other=0.0,
                                         cache_modifier=".cg"),)  # fmt: skip
        new_tops = ()
        new_wholes = ()
        new_xs = ()
        for tile in gl.static_range(tiles):
            top = tops[tile]
            for s in gl.static_range(AT_ONCE):
                top = gl.maximum(top, lse[tile * AT_ONCE + s])
            kept = gl.exp2(tops[tile] - top)
            whole = wholes[tile] * kept
            x = xs[tile] * gl.expand_dims(kept, 2)
            for s in gl.static_range(AT_ONCE):
                counts = gl.exp2(lse[tile * AT_ONCE + s] - top)
                whole += counts
                x += gl.expand_dims(counts, 2) * parts[tile * AT_ONCE + s].to(gl.float32)
            new_tops = new_tops + (top,)
            new_wholes = new_wholes + (whole,)
            new_xs = new_xs + (x,)
        tops = new_tops
        wholes = new_wholes
        xs = new_xs
    made = ()
    for tile in gl.static_range(tiles):
        rounded = (xs[tile] * gl.expand_dims(1.0 / wholes[tile], 2)).to(gl.bfloat16)
        made = made + (gl.convert_layout(gl.reshape(rounded, [PARTS, tile_k]), layout),)
    return made
