"""``fused_rope_attention`` for rows with a single token as a kernel in Gluon.

A program takes a share of a row's keys for one key head, as Helion's does: it makes its own queries from the
projection's output, and the one that comes to the row's last token stores that token's key and value. Rows of one
sequence, as guesses are, are a program's together, so that their keys are read once: the heads of each are columns of
their own, and what the rows bring themselves is one more tile of keys.

Tiles of keys and of their values are on their way to a ring in shared memory from the first instructions on, before the
predecessor has ended. A warp attends to its own 16 keys of every tile, with maxima and sums of its own, so that no warp
waits for another until all that they have found is put together at the end. On the matrix unit the keys, and then the
values, stand where a head's queries usually do, and the heads of a group are columns: the weights of the keys
are then, without being moved, the operand by which the values are multiplied.
"""

from __future__ import annotations

from typing import Any

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from parhelion.ops.decode_attention.gluon_siblings import MOST, bring_keys, rows_of_its_sequence
from parhelion.ops.gluon_parts import LOG2_E, copy, rotated, start_successor, sync, taken_as, wait_for_predecessor

KEYS = gl.constexpr(16)
ROWS = gl.constexpr(16)
A_PASS = gl.constexpr(2)


@gluon.constexpr_function
def score_layout(warps, columns):
    """Of the first rows of the matrix unit's [warps, 16, 16]: what it takes for keys by 8 or 16 columns of heads."""
    registers = [[0, 0, 1], [0, 0, 8]] + [[0, 8, 0]] * (columns == 16)
    lanes = [[0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 2, 0], [0, 4, 0]]
    return gl.DistributedLinearLayout(
        registers, lanes, [[1 << i, 0, 0] for i in range(warps.bit_length() - 1)], [], [warps, columns, KEYS.value]
    )


@gluon.jit
def blocks_of(table, first, end, layout: gl.constexpr, pieces: gl.constexpr, block_size: gl.constexpr):
    """The blocks of a tile's pieces of ``KEYS`` keys from the row's piece ``first`` on, [pieces]; 0 behind ``end``."""
    piece = first + gl.arange(0, pieces, layout=gl.SliceLayout(1, gl.SliceLayout(2, layout)))
    return gl.load(table + piece // (block_size // KEYS), mask=piece < end, other=0)


@gluon.jit
def fill(keys, values, kv_cache, block, first, old_end, kv_head, layout: gl.constexpr, shared: gl.constexpr,
         num_kv_heads: gl.constexpr, head_dim: gl.constexpr, block_size: gl.constexpr,
         pieces: gl.constexpr):  # fmt: skip
    """Ask for a tile's keys and values; zeros where there are none."""
    per_token: gl.constexpr = 2 * num_kv_heads * head_dim
    piece = first + gl.arange(0, pieces, layout=gl.SliceLayout(1, gl.SliceLayout(2, layout)))
    key = gl.arange(0, KEYS, layout=gl.SliceLayout(0, gl.SliceLayout(2, layout)))
    d = gl.arange(0, head_dim, layout=gl.SliceLayout(0, gl.SliceLayout(0, layout)))
    # A warp asks for two keys at a time: the part that is a thread's, and then the part that the compiler knows.
    own = gl.expand_dims((key % A_PASS * per_token)[None, :], 2) + gl.expand_dims(d[None, :], 0)
    known = gl.expand_dims((key // A_PASS * A_PASS * per_token)[None, :], 2)
    begin = kv_cache + kv_head * head_dim + block.to(gl.int64) * (block_size * per_token)
    begin += piece % (block_size // KEYS) * (KEYS * per_token)
    there = gl.expand_dims((piece * KEYS)[:, None] + key[None, :] < old_end, 2)
    place = gl.expand_dims(begin[:, None], 2) + own + known
    copy(taken_as(keys, gl.bfloat16, [pieces, KEYS, head_dim], shared), place, mask=there)
    copy(taken_as(values, gl.bfloat16, [pieces, KEYS, head_dim], shared), place + num_kv_heads * head_dim,
         mask=there)  # fmt: skip
    async_copy.commit_group()


@gluon.jit
def for_each_warp(tile, layout: gl.constexpr, warps: gl.constexpr, shared: gl.constexpr):
    """A tile of keys, for all warps the same."""
    head_dim: gl.constexpr = tile.shape[2]
    own = taken_as(tile, gl.bfloat16, [1, KEYS, head_dim], shared).permute([0, 2, 1]).load(layout)
    own, _ = gl.broadcast(own, gl.full([warps, head_dim, KEYS], 0.0, gl.bfloat16, layout=layout))
    return own


@gluon.jit
def weighed(asked, tile_k, tile_v, counts, top, sums, result, scale: gl.constexpr, scored: gl.constexpr,
            acc: gl.constexpr, warps: gl.constexpr, columns: gl.constexpr):  # fmt: skip
    """Each warp's running maxima, sums and weighted values, with one more tile of keys and values.

    Args:
        asked: queries, [warps, ROWS, head_dim].
        counts: which keys do, [warps, 1 or ROWS, KEYS].
    """
    right: gl.constexpr = gl.DotOperandLayout(1, acc, 2)
    scores = mma_v2(asked, tile_k, gl.full([warps, ROWS, KEYS], 0.0, gl.float32, layout=acc))
    scores = gl.where(counts, scores * (scale * LOG2_E), float("-inf"))
    if columns == 8:
        halves = gl.permute(gl.reshape(scores, [warps, 2, columns, KEYS]), (0, 2, 3, 1))
        scores = gl.convert_layout(gl.split(halves)[0], scored, assert_trivial=True)
    else:
        scores = gl.convert_layout(scores, scored)
    new_top = gl.maximum(top, gl.max(scores, axis=2))
    shares = gl.exp2(scores - gl.expand_dims(new_top, 2))
    kept = gl.exp2(top - new_top)
    sums = sums * kept + gl.sum(shares, axis=2)
    shares = gl.convert_layout(gl.permute(shares.to(gl.bfloat16), (0, 2, 1)), right, assert_trivial=True)
    kept = gl.convert_layout(kept, gl.SliceLayout(1, acc))
    return new_top, sums, mma_v2(tile_v, shares, result * gl.expand_dims(kept, 1))


@gluon.jit
def _gluon_decode_attention(
    qkv, positions, slot_mapping, kv_cache, cos_sin, q_norm, k_norm, block_table, seq_lens, row_slots, out, lse,
    table_stride, table_width, num_splits, epsilon: gl.constexpr, scale: gl.constexpr, num_heads: gl.constexpr,
    num_kv_heads: gl.constexpr, head_dim: gl.constexpr, block_size: gl.constexpr, columns: gl.constexpr,
    is_split: gl.constexpr, ring: gl.constexpr, warps: gl.constexpr, programmatic: gl.constexpr,
):  # fmt: skip
    """Split s of row r, which is token r, for one key head; see ``rope_attention_decode``. Of rows of one sequence the
    first one's program computes all, and the others' end at once.

    Args:
        row_slots: [M], equal for rows of one sequence; None if no row has siblings.
        out: [M, splits, num_heads, head_dim], float32 if ``is_split``.
        lse: float32 [M, splits, num_heads], the base-2 logarithms of the sums; written if ``is_split``.
        table_stride, table_width: between rows of the block table, and of one.
        columns: 8 or 16, at least the heads of a group of all rows of a sequence.
    """
    group: gl.constexpr = num_heads // num_kv_heads
    half: gl.constexpr = head_dim // 2
    has_siblings: gl.constexpr = row_slots is not None
    copying: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 2, 16], [warps, 1, 1], [2, 1, 0])
    merging: gl.constexpr = gl.BlockedLayout([warps, 1, 8], [1, 2, 16], [1, warps, 1], [2, 1, 0])
    rows: gl.constexpr = gl.SliceLayout(0, merging)
    acc: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [warps, 1, 1], [1, 16, 8])
    left: gl.constexpr = gl.DotOperandLayout(0, acc, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, acc, 2)
    scored: gl.constexpr = score_layout(warps, columns)
    shared: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [2, 1, 0])
    bringing: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [warps, 1], [1, 0])
    brought: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    start_successor(programmatic)
    # Neighbours take the heads of a row: together they read whole tokens.
    pid = gl.program_id(0)
    kv_head = pid % num_kv_heads
    if is_split:
        split = pid // num_kv_heads % num_splits
        row = pid // num_kv_heads // num_splits
    else:
        split = 0
        row = pid // num_kv_heads
    ring_k = gl.allocate_shared_memory(gl.bfloat16, [ring, warps, KEYS, head_dim], shared)
    ring_v = gl.allocate_shared_memory(gl.bfloat16, [ring, warps, KEYS, head_dim], shared)
    if has_siblings:
        # The rows' own keys and values, and what is behind them in a tile: of the values it must be a number.
        own_k = gl.allocate_shared_memory(gl.bfloat16, [KEYS // MOST, MOST, head_dim], brought)
        own_v = gl.allocate_shared_memory(gl.bfloat16, [KEYS // MOST, MOST, head_dim], brought)
        own_v.index(1).store(gl.full([MOST, head_dim], 0.0, gl.bfloat16, layout=bringing))

    # What is there before the predecessor has ended.
    table = block_table + row.to(gl.int64) * table_stride
    early = ()
    if not is_split:
        # Not even the row's length is awaited.
        width = table_width * (block_size // KEYS)
        for t in gl.static_range(ring + 1):
            early = early + (blocks_of(table, t * warps, width, copying, warps, block_size),)
    seq_len = gl.load(seq_lens + row)
    position = gl.load(positions + row)
    slot = gl.load(slot_mapping + row)
    d = gl.arange(0, head_dim, layout=gl.SliceLayout(0, rows))
    turned_d = d + half - d // half * head_dim
    q_weights = None
    k_weights = None
    if q_norm is not None:
        q_weights = (gl.load(q_norm + d).to(gl.float32)[None, :], gl.load(q_norm + turned_d).to(gl.float32)[None, :])
        k_weights = (gl.load(k_norm + d).to(gl.float32)[None, :], gl.load(k_norm + turned_d).to(gl.float32)[None, :])
    if is_split:
        share = (seq_len + num_splits * KEYS - 1) // (num_splits * KEYS) * KEYS
        begin = gl.minimum(split * share, seq_len)
        end = gl.minimum(begin + share, seq_len)
    else:
        begin = seq_len * 0
        end = seq_len
    owns = (end == seq_len) & (begin < seq_len)
    # The row's own token comes from qkv, whoever stores it and when.
    old_end = gl.where(owns, end - 1, end)
    first = begin // KEYS
    last = (old_end + KEYS - 1) // KEYS
    if is_split:
        for t in gl.static_range(ring + 1):
            early = early + (blocks_of(table, first + t * warps, last, copying, warps, block_size),)
    else:
        piece = gl.arange(0, warps, layout=gl.SliceLayout(1, gl.SliceLayout(2, copying)))
        known = ()
        for t in gl.static_range(ring + 1):
            known = known + (gl.where(t * warps + piece < last, early[t], 0),)
        early = known
    # None is negative, so this is 0; were they not needed at once, the compiler would ask for one after the other.
    nothing = early[0] | seq_len
    for t in gl.static_range(1, ring):
        nothing = nothing | early[t]
    if has_siblings:
        column = gl.arange(0, columns, layout=gl.SliceLayout(1, rows))
        num_rows = gl.num_programs(0) // (num_kv_heads * num_splits)
        is_behind, is_new = rows_of_its_sequence(row_slots, seq_lens, row, seq_len, num_rows, columns // group,
                                                 gl.SliceLayout(1, bringing))  # fmt: skip
        if is_behind:
            return
        count = gl.sum(is_new.to(gl.int32), axis=0)
        sibling = gl.minimum(column // group, count - 1)
        angle = ((position + sibling) * head_dim)[:, None]
        of_half = (d % half)[None, :]
    else:
        angle = position * head_dim
        of_half = d % half
    cos = gl.load(cos_sin + angle + of_half)
    sin = gl.load(cos_sin + angle + half + of_half)
    nothing = nothing >> 31
    for t in gl.static_range(ring):
        fill(ring_k.index(t), ring_v.index(t), kv_cache, early[t] + nothing, first + t * warps, old_end, kv_head,
             copying, shared, num_kv_heads, head_dim, block_size, warps)  # fmt: skip
    following = early[ring]
    wait_for_predecessor(programmatic)

    # The row's own query, key and value.
    column = gl.arange(0, columns, layout=gl.SliceLayout(1, rows))
    token = qkv + row.to(gl.int64) * ((num_heads + 2 * num_kv_heads) * head_dim)
    if has_siblings:
        its_head = kv_head * group + column % group
        query_at = token + (sibling * ((num_heads + 2 * num_kv_heads) * head_dim) + its_head * head_dim)[:, None]
        num_columns = count * group
    else:
        query_at = token + (kv_head * group + column)[:, None] * head_dim
        # The same in all rows.
        key_at = token + (num_heads + kv_head + column * 0)[:, None] * head_dim
        num_columns = group
    is_head = (column < num_columns)[:, None] & (d >= 0)[None, :]
    query = gl.load(query_at + d[None, :], mask=is_head, other=0.0, cache_modifier=".cg")
    query_turned = gl.load(query_at + turned_d[None, :], mask=is_head, other=0.0, cache_modifier=".cg")
    if has_siblings:
        bring_keys(own_k.index(0), own_v.index(0), token, slot_mapping, kv_cache, cos_sin, k_norm, position, row,
                   is_new, owns, kv_head, epsilon, num_heads, num_kv_heads, head_dim, bringing)  # fmt: skip
    else:
        own_key = gl.load(key_at + d[None, :], cache_modifier=".cg")
        own_key_turned = gl.load(key_at + turned_d[None, :], cache_modifier=".cg")
        own_value = gl.load(token + (num_heads + num_kv_heads + kv_head) * head_dim + d, cache_modifier=".cg")
        cos = cos[None, :]
        sin = sin[None, :]
    query = rotated(query, query_turned, q_weights, cos, sin, d, head_dim, epsilon)
    # The matrix unit has 16 rows.
    asked = query
    if columns == 8:
        asked = gl.permute(gl.join(query, gl.full_like(query, 0.0)), (2, 0, 1)).reshape([ROWS, head_dim])
    asked = gl.expand_dims(gl.convert_layout(asked, gl.SliceLayout(0, left)), 0)
    asked, _ = gl.broadcast(asked, gl.full([warps, ROWS, head_dim], 0.0, gl.bfloat16, layout=left))
    if not has_siblings:
        own_key = rotated(own_key, own_key_turned, k_weights, cos, sin, d, head_dim, epsilon)
        own_score = gl.sum(query.to(gl.float32) * own_key.to(gl.float32), axis=1) * (scale * LOG2_E)
        own_score = gl.where(owns, own_score, float("-inf"))
        stores = owns & (slot >= 0)
        to = kv_cache + slot * (2 * num_kv_heads * head_dim) + kv_head * head_dim
        gl.store(to + (column * 0)[:, None] + d[None, :], own_key,
                 mask=((column == 0) & stores)[:, None] & (d >= 0)[None, :])  # fmt: skip
        gl.store(to + num_kv_heads * head_dim + d, own_value, mask=(d >= 0) & stores)

    # A warp's keys of a tile.
    key = gl.arange(0, KEYS, layout=gl.SliceLayout(0, gl.SliceLayout(1, acc)))
    warp = gl.arange(0, warps, layout=gl.SliceLayout(1, gl.SliceLayout(1, acc)))
    place = (warp * KEYS)[:, None] + key[None, :]
    top = gl.full([warps, columns], -3.0e38, gl.float32, layout=gl.SliceLayout(2, scored))
    sums = gl.full([warps, columns], 0.0, gl.float32, layout=gl.SliceLayout(2, scored))
    result = gl.full([warps, head_dim, columns], 0.0, gl.float32, layout=acc)
    at = seq_len * 0
    left_keys = old_end - begin
    least = 0
    if has_siblings:
        # How many of the new keys a row's heads attend to, all behind the others.
        seen = gl.arange(0, ROWS, layout=gl.SliceLayout(0, gl.SliceLayout(2, acc))) % columns // group + 1
        least = gl.where(owns, -(warps * KEYS), 0)
        sync()
    after = first + ring * warps
    while left_keys > least:
        async_copy.wait_group(ring - 1)
        coming = blocks_of(table, after + warps, last, copying, warps, block_size)
        if has_siblings:
            if left_keys > 0:
                tile_k = ring_k.index(at).permute([0, 2, 1]).load(right)
                tile_v = ring_v.index(at).permute([0, 2, 1]).load(left)
            else:
                tile_k = for_each_warp(own_k, right, warps, shared)
                tile_v = for_each_warp(own_v, left, warps, shared)
            bound = gl.expand_dims(gl.where(left_keys > 0, left_keys, seen)[None, :], 2)
            counts = gl.expand_dims(place, 1) < bound
        else:
            tile_k = ring_k.index(at).permute([0, 2, 1]).load(right)
            tile_v = ring_v.index(at).permute([0, 2, 1]).load(left)
            counts = gl.expand_dims(place < left_keys, 1)
        fill(ring_k.index(at), ring_v.index(at), kv_cache, following, after, old_end, kv_head, copying, shared,
             num_kv_heads, head_dim, block_size, warps)  # fmt: skip
        top, sums, result = weighed(asked, tile_k, tile_v, counts, top, sums, result, scale, scored, acc, warps,
                                    columns)  # fmt: skip
        following = coming
        after += warps
        left_keys -= warps * KEYS
        at = gl.where(at + 1 == ring, 0, at + 1)
    async_copy.wait_group(0)

    # What the warps have found, and the own token. The ring's memory is free for it.
    results_at = taken_as(ring_k, gl.float32, [warps, columns, head_dim],
                          gl.SwizzledSharedLayout(8, 2, 4, [2, 1, 0]))  # fmt: skip
    sums_at = taken_as(ring_v, gl.float32, [2, warps, columns], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    results_at.permute([0, 2, 1]).store(result)
    sums_at.index(0).store(top)
    sums_at.index(1).store(sums)
    by_warp: gl.constexpr = gl.SliceLayout(2, merging)
    by_head: gl.constexpr = gl.SliceLayout(1, rows)
    tops = sums_at.index(0).load(by_warp)
    whole_top = gl.convert_layout(gl.max(tops, axis=0), by_head)
    if not has_siblings:
        whole_top = gl.maximum(whole_top, own_score)
    weights = gl.exp2(tops - gl.convert_layout(whole_top, gl.SliceLayout(0, by_warp))[None, :])
    if not has_siblings:
        own_weight = gl.exp2(own_score - whole_top)
    whole = gl.convert_layout(gl.sum(sums_at.index(1).load(by_warp) * weights, axis=0), by_head)
    if not has_siblings:
        whole += own_weight
    mean = gl.sum(results_at.load(merging) * gl.expand_dims(weights, 2), axis=0)
    if not has_siblings:
        mean = mean + own_weight[:, None] * own_value.to(gl.float32)[None, :]
    is_any = whole > 0.0
    mean = mean * gl.where(is_any, 1.0 / whole, 0.0)[:, None]
    if has_siblings:
        row += sibling
        head = its_head
    else:
        head = kv_head * group + column
    if is_split:
        here = (row * num_splits + split).to(gl.int64) * num_heads + head
        gl.store(lse + here, gl.where(is_any, whole_top + gl.log2(whole), float("-inf")), mask=column < num_columns)
        gl.store(out + here[:, None] * head_dim + d[None, :], mean, mask=is_head)
    else:
        here = row.to(gl.int64) * num_heads + head
        gl.store(out + here[:, None] * head_dim + d[None, :], mean.to(gl.bfloat16), mask=is_head)


def decode_attention(
    qkv: Any, positions: Any, slot_mapping: Any, kv_cache: Any, cos_sin: Any, q_norm: Any, k_norm: Any,
    block_table: Any, seq_lens: Any, row_slots: Any, out: Any, lse: Any, epsilon: Any, scale: Any, num_heads: Any,
    num_kv_heads: Any, head_dim: Any, block_size: Any, columns: Any, is_split: Any, ring: Any, gluon_warps: Any,
    programmatic: Any, *, _launcher: Any,
) -> None:  # fmt: skip
    """Launch it; see ``FusedRopeAttention`` for the tensors, and ``DecodeAttentionConfig`` for the choices."""
    num_splits = lse.size(1)
    _launcher(
        _gluon_decode_attention, (seq_lens.size(0) * num_kv_heads * num_splits,), qkv, positions, slot_mapping,
        kv_cache, cos_sin, q_norm, k_norm, block_table, seq_lens, row_slots, out, lse, block_table.stride(0),
        block_table.size(1), num_splits, epsilon, scale, num_heads, num_kv_heads, head_dim, block_size, columns,
        is_split, ring, gluon_warps, programmatic, num_warps=gluon_warps,
    )  # fmt: skip
