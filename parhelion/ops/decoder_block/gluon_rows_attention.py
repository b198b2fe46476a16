"""Parts of ``decoder_block``'s program for several tokens: a row's attention for one key head. What earlier steps have
left in the cache comes through the ring; a warp, or two that divide what comes of it, attends to its own 16 keys of
every tile as in ``decode_attention``, so that none waits for another until all is put together.
"""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, mma_v2

from parhelion.ops.decoder_block.gluon_attention import NOTHING, siblings_before, spread
from parhelion.ops.gluon_parts import LOG2_E, rotated, sync, taken_as

KEYS = gl.constexpr(16)
HEADS = gl.constexpr(8)


@gluon.constexpr_function
def score_layout(warps, key_warps):
    """Of the first 8 rows of the matrix unit's [key_warps, 16, 16]: what it takes for keys by 8 columns of heads."""
    registers = [[0, 0, 1], [0, 0, 8]]
    lanes = [[0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 2, 0], [0, 4, 0]]
    same = [[0, 0, 0]] * ((warps // key_warps).bit_length() - 1)
    own = [[1 << i, 0, 0] for i in range(key_warps.bit_length() - 1)]
    return gl.DistributedLinearLayout(registers, lanes, same + own, [], [key_warps, HEADS.value, KEYS.value])


@gluon.jit
def added_up(sums_at, place, parts: gl.constexpr, size: gl.constexpr, there):
    """What all parts of K have found there, in one order."""
    found = ()
    for part in gl.static_range(parts):
        found = found + (gl.load(sums_at + part * size + place, mask=there, other=0.0, cache_modifier=".cg"),)
    total = found[0]
    for part in gl.static_range(1, parts):
        total += found[part]
    return total


@gluon.jit
def norm_weights(weights, d, turned_d):
    """Of the heads' norm, in the order of either."""
    return gl.load(weights + d).to(gl.float32)[None, :], gl.load(weights + turned_d).to(gl.float32)[None, :]


@gluon.jit
def factors_of(squares, row, parts: gl.constexpr, rows: gl.constexpr, size: gl.constexpr, epsilon: gl.constexpr):
    """What a norm multiplies a row by, or each of several, from the squares that all parts of K have added up."""
    square = gl.load(squares + row, cache_modifier=".cg")
    for part in gl.static_range(1, parts):
        square += gl.load(squares + part * rows + row, cache_modifier=".cg")
    return gl.rsqrt(square / size + epsilon)


@gluon.jit
def attend_siblings(
    xbuf, query, qkv_sums, squares, row, before, position, kv_head, cos_sin, k_weights, owns, epsilon: gl.constexpr,
    head_epsilon: gl.constexpr, scale: gl.constexpr, hidden_size: gl.constexpr, heads: gl.constexpr,
    parts: gl.constexpr, size: gl.constexpr, rows: gl.constexpr, warps: gl.constexpr, siblings: gl.constexpr,
    by_row: gl.constexpr,
):  # fmt: skip
    """What a row's queries, [heads, head_dim], find among its own token and those of the rows before it that are of the
    same sequence, and are in no cache yet: the greatest score of each, what the others count beside it, and the
    weighted values. A warp makes key and value of one of them; all go by way of the codes' memory, in which is nothing.

    Args:
        before: how many rows before it.
        owns: whether all this belongs to the program's share of the keys.
        by_row: layout of the queries.
    """
    num_heads: gl.constexpr = heads[0]
    num_kv_heads: gl.constexpr = heads[1]
    head_dim: gl.constexpr = heads[2]
    half: gl.constexpr = head_dim // 2
    each: gl.constexpr = gl.BlockedLayout([1, head_dim // 32], [1, 32], [warps, 1], [1, 0])
    together: gl.constexpr = gl.BlockedLayout([1, siblings, head_dim // 32], [1, 1, 32], [warps, 1, 1], [2, 1, 0])
    of_heads: gl.constexpr = gl.SliceLayout(1, by_row)
    shared: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    d = gl.arange(0, head_dim, layout=gl.SliceLayout(0, each))
    turned_d = d + half - d // half * head_dim
    number = gl.arange(0, siblings, layout=gl.SliceLayout(1, each))
    its_row = gl.maximum(row - number, 0)
    factor = factors_of(squares, its_row, parts, rows, hidden_size, epsilon)[:, None]
    there = (number <= before)[:, None] & (d >= 0)[None, :]
    at = (its_row * size + (num_heads + kv_head) * head_dim)[:, None]
    key = added_up(qkv_sums, at + d[None, :], parts, rows * size, there) * factor
    turned = added_up(qkv_sums, at + turned_d[None, :], parts, rows * size, there) * factor
    value = added_up(qkv_sums, at + num_kv_heads * head_dim + d[None, :], parts, rows * size, there) * factor
    angle = (gl.maximum(position - number, 0) * head_dim)[:, None] + (d % half)[None, :]
    weights = None
    if k_weights is not None:
        weights = norm_weights(k_weights, d, turned_d)
    key = rotated(key.to(gl.bfloat16), turned.to(gl.bfloat16), weights, gl.load(cos_sin + angle),
                  gl.load(cos_sin + angle + half), d, head_dim, head_epsilon)  # fmt: skip
    tiles = taken_as(xbuf, gl.bfloat16, [2, siblings, head_dim], shared)
    tiles.index(0).store(key)
    tiles.index(1).store(value.to(gl.bfloat16))
    sync()
    keys = gl.expand_dims(tiles.index(0).load(gl.SliceLayout(0, together)).to(gl.float32), 0)
    asked = gl.expand_dims(gl.convert_layout(query, gl.SliceLayout(1, together)).to(gl.float32), 1)
    scores = gl.sum(asked * keys, axis=2) * (scale * LOG2_E)
    counts = gl.arange(0, siblings, layout=gl.SliceLayout(0, gl.SliceLayout(2, together))) <= before
    scores = gl.where((owns & counts)[None, :], scores, float("-inf"))
    top = gl.where(owns, gl.max(scores, axis=1), 0.0)
    shares = gl.exp2(scores - top[:, None])
    values = gl.expand_dims(tiles.index(1).load(gl.SliceLayout(0, together)).to(gl.float32), 0)
    found = gl.sum(gl.expand_dims(shares, 2) * values, axis=1)
    sync()
    top = gl.where(owns, top, float("-inf"))
    return (gl.convert_layout(top, of_heads), gl.convert_layout(gl.sum(shares, axis=1), of_heads),
            gl.convert_layout(found, by_row))  # fmt: skip


@gluon.jit
def attend_row(
    ring, full, empty, xbuf, c, qkv_sums, squares, position, slot, row, before, kv_head, begin, old_end, owns, kv_cache,
    cos_sin, q_weights, k_weights, epsilon: gl.constexpr, head_epsilon: gl.constexpr, scale: gl.constexpr,
    hidden_size: gl.constexpr, heads: gl.constexpr, parts: gl.constexpr, size: gl.constexpr, rows: gl.constexpr,
    keys: gl.constexpr, slots: gl.constexpr, warps: gl.constexpr, siblings: gl.constexpr,
):  # fmt: skip
    """A share of a row's keys for one key head: what its queries find, [heads, head_dim] float32, the base-2 logarithm
    of the weights' sum, and which head and element that is. Stores the row's key and value if they belong to the share.

    Args:
        qkv_sums: of the projection, [parts, rows, size], to be added up and multiplied by what ``squares``, of
            [parts, rows], say.
        before: so many rows before it are of the same sequence. Whose share has the row's own key has theirs too.
    """
    num_heads: gl.constexpr = heads[0]
    num_kv_heads: gl.constexpr = heads[1]
    head_dim: gl.constexpr = heads[2]
    half: gl.constexpr = head_dim // 2
    group: gl.constexpr = num_heads // num_kv_heads
    key_warps: gl.constexpr = keys // KEYS
    merging: gl.constexpr = gl.BlockedLayout(
        [key_warps, 1, head_dim // (4 * warps)], [1, 8 // warps, 4 * warps], [1, warps, 1], [2, 1, 0]
    )
    by_row: gl.constexpr = gl.SliceLayout(0, merging)
    by_head: gl.constexpr = gl.SliceLayout(1, by_row)
    acc: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [key_warps, warps // key_warps, 1], [1, 16, 8])
    left: gl.constexpr = gl.DotOperandLayout(0, acc, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, acc, 2)
    scored: gl.constexpr = score_layout(warps, key_warps)
    shared: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [2, 1, 0])

    # The row's own query, key and value.
    factor = factors_of(squares, row, parts, rows, hidden_size, epsilon)
    d = gl.arange(0, head_dim, layout=gl.SliceLayout(0, by_row))
    turned_d = d + half - d // half * head_dim
    head = gl.arange(0, HEADS, layout=by_head)
    of_row = qkv_sums + row * size
    there = d >= 0
    is_head = (head < group)[:, None] & there[None, :]
    query_at = (kv_head * group + head)[:, None] * head_dim
    key_at = (num_heads + kv_head) * head_dim
    cos = gl.load(cos_sin + position * head_dim + d % half)
    sin = gl.load(cos_sin + position * head_dim + half + d % half)
    query = added_up(of_row, query_at + d[None, :], parts, rows * size, is_head) * factor
    query_turned = added_up(of_row, query_at + turned_d[None, :], parts, rows * size, is_head) * factor
    own_key = added_up(of_row, key_at + d, parts, rows * size, there)[None, :] * factor
    own_key_turned = added_up(of_row, key_at + turned_d, parts, rows * size, there)[None, :] * factor
    own_value = added_up(of_row, key_at + num_kv_heads * head_dim + d, parts, rows * size, there) * factor
    own_value = own_value.to(gl.bfloat16)
    query = query.to(gl.bfloat16)
    query_turned = query_turned.to(gl.bfloat16)
    # A function that returns None is beyond Triton 3.6.
    of_heads = None
    if q_weights is not None:
        of_heads = norm_weights(q_weights, d, turned_d)
    query = rotated(query, query_turned, of_heads, cos[None, :], sin[None, :], d, head_dim, head_epsilon)
    own_key = own_key.to(gl.bfloat16)
    own_key_turned = own_key_turned.to(gl.bfloat16)
    if k_weights is not None:
        of_heads = norm_weights(k_weights, d, turned_d)
    own_key = rotated(own_key, own_key_turned, of_heads, cos[None, :], sin[None, :], d, head_dim, head_epsilon)
    own_score = gl.sum(query.to(gl.float32) * own_key.to(gl.float32), axis=1) * (scale * LOG2_E)
    own_score = gl.where(owns, own_score, float("-inf"))
    if owns & (slot >= 0):
        to = kv_cache + slot * (2 * num_kv_heads * head_dim) + kv_head * head_dim
        gl.store(to + d[None, :], own_key)
        gl.store(to + num_kv_heads * head_dim + d, own_value)
    if siblings > 1:
        own_score, own_count, own_found = attend_siblings(
            xbuf, query, qkv_sums, squares, row, before, position, kv_head, cos_sin, k_weights, owns, epsilon,
            head_epsilon, scale, hidden_size, heads, parts, size, rows, warps, siblings, by_row)  # fmt: skip
    # The matrix unit has 16 rows.
    asked = gl.permute(gl.join(query, gl.full_like(query, 0.0)), (2, 0, 1)).reshape([2 * HEADS, head_dim])
    asked = gl.expand_dims(gl.convert_layout(asked, gl.SliceLayout(0, left)), 0)
    asked, _ = gl.broadcast(asked, gl.full([key_warps, 2 * HEADS, head_dim], 0.0, gl.bfloat16, layout=left))

    # A warp's keys of each tile.
    key = gl.arange(0, KEYS, layout=gl.SliceLayout(0, gl.SliceLayout(1, acc)))
    warp = gl.arange(0, key_warps, layout=gl.SliceLayout(1, gl.SliceLayout(1, acc)))
    place = (warp * KEYS)[:, None] + key[None, :]
    top = gl.full([key_warps, HEADS], -3.0e38, gl.float32, layout=gl.SliceLayout(2, scored))
    sums = gl.full([key_warps, HEADS], 0.0, gl.float32, layout=gl.SliceLayout(2, scored))
    result = gl.full([key_warps, head_dim, HEADS], 0.0, gl.float32, layout=acc)
    for start in range(begin, old_end, keys):
        slot_k = c % slots
        slot_v = (c + 1) % slots
        mbarrier.wait(full.index(slot_k), (c // slots) & 1)
        tile = taken_as(ring.index(slot_k), gl.bfloat16, [key_warps, KEYS, head_dim], shared)
        tile_k = tile.permute([0, 2, 1]).load(right)
        mbarrier.wait(full.index(slot_v), ((c + 1) // slots) & 1)
        tile = taken_as(ring.index(slot_v), gl.bfloat16, [key_warps, KEYS, head_dim], shared)
        tile_v = tile.permute([0, 2, 1]).load(left)
        sync()
        mbarrier.arrive(empty.index(slot_k), count=1)
        mbarrier.arrive(empty.index(slot_v), count=1)
        scores = mma_v2(asked, tile_k, gl.full([key_warps, 2 * HEADS, KEYS], 0.0, gl.float32, layout=acc))
        scores = gl.where(gl.expand_dims(place < old_end - start, 1), scores * (scale * LOG2_E), float("-inf"))
        halves = gl.permute(gl.reshape(scores, [key_warps, 2, HEADS, KEYS]), (0, 2, 3, 1))
        scores = gl.convert_layout(gl.split(halves)[0], scored, assert_trivial=True)
        new_top = gl.maximum(top, gl.max(scores, axis=2))
        shares = gl.exp2(scores - gl.expand_dims(new_top, 2))
        kept = gl.exp2(top - new_top)
        sums = sums * kept + gl.sum(shares, axis=2)
        top = new_top
        shares = gl.convert_layout(gl.permute(shares.to(gl.bfloat16), (0, 2, 1)), right, assert_trivial=True)
        kept = gl.convert_layout(kept, gl.SliceLayout(1, acc))
        result = mma_v2(tile_v, shares, result * gl.expand_dims(kept, 1))
        c += 2

    # What the warps have found, and the own token. Nothing is in the codes' memory now.
    by_score: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, scored))
    own_there = gl.convert_layout(own_score, by_score)
    whole_top = gl.maximum(gl.max(top, axis=0), own_there)
    weights = gl.exp2(top - whole_top[None, :])
    own_weight = gl.exp2(own_there - whole_top)
    whole = gl.sum(sums * weights, axis=0)
    if siblings > 1:
        whole += own_weight * gl.convert_layout(own_count, by_score)
    else:
        whole += own_weight
    whole = gl.convert_layout(whole, by_head)
    whole_top = gl.convert_layout(whole_top, by_head)
    own_weight = gl.convert_layout(own_weight, by_head)
    weights = gl.convert_layout(weights, gl.SliceLayout(1, acc))
    results_at = taken_as(xbuf, gl.float32, [key_warps, HEADS, head_dim],
                          gl.SwizzledSharedLayout(8, 2, 4, [2, 1, 0]))  # fmt: skip
    results_at.permute([0, 2, 1]).store(result * gl.expand_dims(weights, 1))
    if siblings == 1:
        own_found = gl.where(owns, own_value.to(gl.float32), 0.0)[None, :]
    mean = gl.sum(results_at.load(merging), axis=0) + own_weight[:, None] * own_found
    is_any = whole > 0.0
    mean = mean * gl.where(is_any, 1.0 / whole, 0.0)[:, None]
    return c, mean, gl.where(is_any, whole_top + gl.log2(whole), -1.0e30), head, d


@gluon.jit
def places(tile: gl.constexpr, begin, k: gl.constexpr, rows: gl.constexpr, tile_k: gl.constexpr, layout: gl.constexpr):
    """Where a tile's elements of all tokens stand, [rows, tile_k], if a token has k and the part begins there."""
    token = gl.arange(0, rows, layout=gl.SliceLayout(1, layout))
    i = gl.arange(0, tile_k, layout=gl.SliceLayout(0, layout))
    return (token * k)[:, None] + (begin + tile * tile_k + i)[None, :]


@gluon.jit
def are_there(count, rows: gl.constexpr, layout: gl.constexpr):
    """[rows, 1], whether there is such a token."""
    return (gl.arange(0, rows, layout=gl.SliceLayout(1, layout)) < count)[:, None]


@gluon.jit
def part_of(
    x, begin, size: gl.constexpr, there, tiles: gl.constexpr, tile_k: gl.constexpr, rows: gl.constexpr,
    layout: gl.constexpr,
):  # fmt: skip
    """A part of what other programs have made of all tokens, [rows, size], a tensor a tile."""
    xs = ()
    for tile in gl.static_range(tiles):
        at = places(tile, begin, size, rows, tile_k, layout)
        xs = xs + (gl.load(x + at, mask=there, other=0.0, cache_modifier=".cg"),)
    return xs


@gluon.jit
def attended_tiles(
    found, found_lse, seq_lens, row_slots, num_tokens, begin, tiles: gl.constexpr, size: gl.constexpr,
    num_heads: gl.constexpr, head_dim: gl.constexpr, tile_k: gl.constexpr, rows: gl.constexpr, tokens: gl.constexpr,
    splits: gl.constexpr, siblings: gl.constexpr, layout: gl.constexpr, heads_layout: gl.constexpr,
):  # fmt: skip
    """A part of attention's output, a tensor [rows, tile_k] a tile, from what programs found with their keys."""
    if splits[1] == 1:
        xs = part_of(found, begin, size, are_there(num_tokens, rows, layout), tiles, tile_k, rows, layout)
    else:
        xs = ()
        per_tile: gl.constexpr = tile_k // head_dim
        token = gl.arange(0, rows, layout=gl.SliceLayout(1, gl.SliceLayout(2, heads_layout)))
        h = gl.arange(0, per_tile, layout=gl.SliceLayout(0, gl.SliceLayout(2, heads_layout)))
        d = gl.arange(0, head_dim, layout=gl.SliceLayout(0, gl.SliceLayout(0, heads_layout)))
        seq_len = gl.load(seq_lens + token, mask=token < num_tokens, other=0)
        seq_len -= siblings_before(row_slots, seq_lens, token, seq_len, token < num_tokens, siblings)
        shared_by = gl.minimum(gl.maximum((seq_len + splits[0] - 1) // splits[0], 1), splits[1])
        for tile in gl.static_range(tiles):
            head = begin // head_dim + tile * per_tile + h
            of_head = token[:, None] * num_heads + head[None, :]
            where = gl.expand_dims(of_head * head_dim, 2) + spread(d)
            lse = ()
            parts = ()
            for s in gl.static_range(splits[1]):
                there = ((s < shared_by) & (token < num_tokens))[:, None] & (head >= 0)[None, :]
                lse = lse + (gl.load(found_lse + s * (tokens * num_heads) + of_head, mask=there, other=NOTHING,
                                     cache_modifier=".cg"),)  # fmt: skip
                parts = parts + (gl.load(found + s * (tokens * size) + where,
                                         mask=gl.expand_dims(there, 2) & (where >= 0), other=0.0,
                                         cache_modifier=".cg"),)  # fmt: skip
            top = lse[0]
            for s in gl.static_range(1, splits[1]):
                top = gl.maximum(top, lse[s])
            whole = gl.exp2(lse[0] - top)
            x = gl.expand_dims(whole, 2) * parts[0].to(gl.float32)
            for s in gl.static_range(1, splits[1]):
                share = gl.exp2(lse[s] - top)
                whole += share
                x += gl.expand_dims(share, 2) * parts[s].to(gl.float32)
            x = (x * gl.expand_dims(1.0 / whole, 2)).to(gl.bfloat16)
            xs = xs + (gl.convert_layout(gl.reshape(x, [rows, tile_k]), layout),)
    return xs
