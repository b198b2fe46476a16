"""A decoder block of one token as one persistent kernel in Gluon, for Hopper.

Each program streams its share of the four weights through a ring of tiles in shared memory. Some of its warps ask for
tiles as the ring has room, whatever the others wait for: a product's first tiles are there before its input is. The
others multiply. Between two products lies a barrier of all programs, which therefore must all be resident.

On the matrix unit a tile's 64 rows stand on the left, and the token, as FP8 codes of its elements and of what these
lack, on the right. A tile is a piece of all four quarters of K of 16 outputs, and each quarter has two of the right's
eight columns: so there are many small tiles, and every program has as much to read, without sharing sums with others.
"""

from __future__ import annotations

from typing import Any

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from parhelion.ops.decoder_block.gluon_attention import (
    HEADS,
    NOTHING,
    attend,
    cached_keys,
    combined,
    fetch_keys,
    share_of,
)
from parhelion.ops.decoder_block.gluon_ring import (
    COLUMNS,
    PARTS,
    TILE_ROWS,
    arrive,
    encode,
    fetch,
    forget,
    multiply,
    normed,
    places_of,
    wait_for_all,
)
from parhelion.ops.decoder_block.gluon_rows import gluon_decoder_rows
from parhelion.ops.gluon_parts import LOG2_E, rotated, start_successor, sync, wait_for_predecessor


@gluon.jit
def consume(
    ring, full, empty, xbuf, hidden, residual, positions, slot_mapping, kv_cache, seq_lens, input_norm,
    qkv_scales, cos_sin, q_norm, k_norm, out_scales, post_norm, gate_up_scales, down_scales, new_hidden, new_residual,
    scratch, counters, epsilon: gl.constexpr, head_epsilon: gl.constexpr, scale: gl.constexpr, shape: gl.constexpr,
    heads: gl.constexpr, splits: gl.constexpr, cached: gl.constexpr, grid: gl.constexpr, tile_k: gl.constexpr,
    slots: gl.constexpr, programmatic: gl.constexpr,
):  # fmt: skip
    """What the warps that multiply do, and attend."""
    hidden_size: gl.constexpr = shape[0]
    heads_size: gl.constexpr = shape[1]
    qkv_size: gl.constexpr = shape[2]
    inner_size: gl.constexpr = shape[3]
    num_heads: gl.constexpr = heads[0]
    num_kv_heads: gl.constexpr = heads[1]
    head_dim: gl.constexpr = heads[2]
    per_key: gl.constexpr = num_heads // num_kv_heads
    keys_a_program: gl.constexpr = splits[0]
    most_splits: gl.constexpr = splits[1]
    keys: gl.constexpr = cached_keys(tile_k, head_dim)
    acc: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 32])
    token: gl.constexpr = gl.BlockedLayout([1, tile_k // 32], [1, 32], [4, 1], [1, 0])
    token_heads: gl.constexpr = gl.BlockedLayout(
        [1, 1, tile_k // 32], [1, tile_k // head_dim, 32 * head_dim // tile_k], [4, 1, 1], [2, 1, 0]
    )
    row: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    pair: gl.constexpr = gl.BlockedLayout([1, 2], [32, 1], [4, 1], [1, 0])
    queries: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [4, 1], [1, 0])
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [1, 4], [16, 8])
    bf16: gl.constexpr = gl.pointer_type(gl.bfloat16)
    in_tiles: gl.constexpr = hidden_size // PARTS // tile_k
    out_tiles: gl.constexpr = heads_size // PARTS // tile_k
    down_tiles: gl.constexpr = inner_size // PARTS // tile_k
    # What passes between the products, in the order in which it is made.
    made_qkv = scratch.to(bf16, bitcast=True)
    made_out = (scratch + qkv_size // 2).to(bf16, bitcast=True)
    activated = (scratch + (qkv_size + hidden_size) // 2).to(bf16, bitcast=True)
    found = (scratch + (qkv_size + hidden_size + inner_size) // 2).to(bf16, bitcast=True)
    found_lse = scratch + (qkv_size + hidden_size + inner_size + most_splits * heads_size) // 2
    pid = gl.program_id(0)
    c = pid * 0
    weights = ()
    for tile in gl.static_range(in_tiles):
        weights = weights + (gl.load(input_norm + places_of(tile, hidden_size, tile_k, token)),)
    wait_for_predecessor(programmatic)

    # Norm, queries, keys and values.
    seq_len = gl.load(seq_lens)
    position = gl.load(positions)
    total = ()
    for tile in gl.static_range(in_tiles):
        at = places_of(tile, hidden_size, tile_k, token)
        x = gl.load(hidden + at).to(gl.float32) + gl.load(residual + at).to(gl.float32)
        total = total + (x.to(gl.bfloat16),)

    kv_head = pid % num_kv_heads
    split = pid // num_kv_heads
    num_splits, begin, old_end, owns = share_of(seq_len, split, keys_a_program, most_splits)
    works = split < num_splits
    d = gl.arange(0, head_dim, layout=gl.SliceLayout(0, queries))
    cos = gl.load(cos_sin + position * head_dim + d % (head_dim // 2))
    sin = gl.load(cos_sin + position * head_dim + head_dim // 2 + d % (head_dim // 2))
    turned_d = (d + head_dim // 2) % head_dim
    q_weights = None
    k_weights = None
    if q_norm is not None:
        q_weights = (gl.load(q_norm + d).to(gl.float32)[None, :], gl.load(q_norm + turned_d).to(gl.float32)[None, :])
        k_weights = (gl.load(k_norm + d).to(gl.float32)[None, :], gl.load(k_norm + turned_d).to(gl.float32)[None, :])

    xs, factor = normed(total, weights, in_tiles, hidden_size, epsilon)
    factor *= encode(xbuf, xs, in_tiles, tile_k)
    c = multiply(ring, full, empty, xbuf, c, qkv_scales, made_qkv, factor, pid, qkv_size, hidden_size, False, grid,
                  tile_k, slots, acc, row, pair)  # fmt: skip

    # Attention: several programs a key head, each with a share of the keys.
    arrive(counters)
    wait_for_all(counters, grid)
    if works:
        head = gl.arange(0, HEADS, layout=gl.SliceLayout(1, queries))
        is_head = (head < per_key)[:, None] & (d >= 0)[None, :]
        query_at = made_qkv + ((kv_head * per_key + head) * head_dim)[:, None]
        # All of them the same: the own key's and value's.
        key_at = made_qkv + (heads_size + kv_head * head_dim + head * 0)[:, None]
        query = gl.load(query_at + d[None, :], mask=is_head, other=0.0, cache_modifier=".cg")
        query_turned = gl.load(query_at + turned_d[None, :], mask=is_head, other=0.0, cache_modifier=".cg")
        own_key = gl.load(key_at + d[None, :], cache_modifier=".cg")
        own_key_turned = gl.load(key_at + turned_d[None, :], cache_modifier=".cg")
        query = rotated(query, query_turned, q_weights, cos[None, :], sin[None, :], d, head_dim, head_epsilon)
        own_key = rotated(own_key, own_key_turned, k_weights, cos[None, :], sin[None, :], d, head_dim, head_epsilon)
        own_scores = gl.sum(query.to(gl.float32) * own_key.to(gl.float32), axis=1)
        own_scores = gl.convert_layout(own_scores, gl.SliceLayout(1, scores_layout)) * (scale * LOG2_E)
        own_scores = gl.where(owns, own_scores, NOTHING)
        asked = gl.convert_layout(query, gl.DotOperandLayout(0, scores_layout, 2))
        top = own_scores
        sums = gl.where(owns, 1.0, 0.0) + own_scores * 0.0
        out_d = gl.arange(0, head_dim, layout=gl.SliceLayout(0, scores_layout))
        own_value = gl.load(made_qkv + heads_size + (num_kv_heads + kv_head) * head_dim + out_d, cache_modifier=".cg")
        result = sums[:, None] * own_value.to(gl.float32)[None, :]
        for start in range(begin, old_end, keys):
            c, top, sums, result = attend(ring, full, empty, c, asked, old_end - start, scale, top, sums, result,
                                           scores_layout, cached, keys, head_dim, slots)  # fmt: skip
        is_any = sums > 0.0
        result = result * gl.where(is_any, 1.0 / sums, 0.0)[:, None]
        row_head = gl.arange(0, HEADS, layout=gl.SliceLayout(1, scores_layout))
        own_head = kv_head * per_key + row_head
        gl.store(found + split * heads_size + (own_head * head_dim)[:, None] + out_d[None, :], result.to(gl.bfloat16),
                 mask=(row_head < per_key)[:, None] & (out_d >= 0)[None, :])  # fmt: skip
        lse = gl.where(is_any, top + gl.log2(sums), NOTHING)
        gl.store(found_lse + split * num_heads + own_head, lse, mask=row_head < per_key)
        slot = gl.load(slot_mapping)
        if owns & (slot >= 0):
            to = kv_cache + slot * (2 * num_kv_heads * head_dim) + kv_head * head_dim
            gl.store(to + (head * 0)[:, None] + d[None, :], own_key, mask=(head == 0)[:, None] & (d >= 0)[None, :])
            gl.store(to + num_kv_heads * head_dim + out_d, own_value)

    # The output projection.
    arrive(counters + 1)
    wait_for_all(counters + 1, grid)
    if pid == 0:
        gl.store(counters, 0)
    xs = combined(found, found_lse, num_splits, out_tiles, heads_size, num_heads, head_dim, tile_k, token, token_heads)
    factor = encode(xbuf, xs, out_tiles, tile_k)
    c = multiply(ring, full, empty, xbuf, c, out_scales, made_out, factor, pid, hidden_size, heads_size, False, grid,
                  tile_k, slots, acc, row, pair)  # fmt: skip

    # Norm, gate and up.
    weights = ()
    for tile in gl.static_range(in_tiles):
        weights = weights + (gl.load(post_norm + places_of(tile, hidden_size, tile_k, token)),)
    arrive(counters + 2)
    wait_for_all(counters + 2, grid)
    if pid == 0:
        gl.store(counters + 1, 0)
    more = ()
    for tile in gl.static_range(in_tiles):
        more = more + (gl.load(made_out + places_of(tile, hidden_size, tile_k, token), cache_modifier=".cg"),)
    new_total = ()
    for tile in gl.static_range(in_tiles):
        new_total = new_total + ((total[tile].to(gl.float32) + more[tile].to(gl.float32)).to(gl.bfloat16),)
    if pid == 0:
        for tile in gl.static_range(in_tiles):
            gl.store(new_residual + places_of(tile, hidden_size, tile_k, token), new_total[tile])
    xs, factor = normed(new_total, weights, in_tiles, hidden_size, epsilon)
    factor *= encode(xbuf, xs, in_tiles, tile_k)
    c = multiply(ring, full, empty, xbuf, c, gate_up_scales, activated, factor, pid, 2 * inner_size, hidden_size, True,
                  grid, tile_k, slots, acc, row, pair)  # fmt: skip

    # Down.
    arrive(counters + 3)
    wait_for_all(counters + 3, grid)
    if pid == 0:
        gl.store(counters + 2, 0)
    forget(counters + 3, counters + 4, grid)
    xs = ()
    for tile in gl.static_range(down_tiles):
        xs = xs + (gl.load(activated + places_of(tile, inner_size, tile_k, token), cache_modifier=".cg"),)
    factor = encode(xbuf, xs, down_tiles, tile_k)
    multiply(ring, full, empty, xbuf, c, down_scales, new_hidden, factor, pid, hidden_size, inner_size, False, grid,
              tile_k, slots, acc, row, pair)  # fmt: skip


@gluon.jit
def produce(
    ring, full, empty, qkv, out, gate_up, down, kv_cache, block_table, seq_lens, shape: gl.constexpr,
    heads: gl.constexpr, splits: gl.constexpr, cached: gl.constexpr, fetching: gl.constexpr, reading: gl.constexpr,
    block_size: gl.constexpr, grid: gl.constexpr, tile_k: gl.constexpr, slots: gl.constexpr, in_flight: gl.constexpr,
    programmatic: gl.constexpr,
):  # fmt: skip
    """What the warps that fetch do: weights change no more, and the rest is there once the predecessor has ended."""
    hidden: gl.constexpr = shape[0]
    heads_size: gl.constexpr = shape[1]
    qkv_size: gl.constexpr = shape[2]
    inner: gl.constexpr = shape[3]
    num_kv_heads: gl.constexpr = heads[1]
    head_dim: gl.constexpr = heads[2]
    pid = gl.program_id(0)
    c = pid * 0
    c = fetch(ring, full, empty, qkv, c, pid, fetching, qkv_size, hidden, False, grid, tile_k, slots, in_flight)
    wait_for_predecessor(programmatic)
    kv_head = pid % num_kv_heads
    _, begin, end, _ = share_of(gl.load(seq_lens), pid // num_kv_heads, splits[0], splits[1])
    c = fetch_keys(ring, full, empty, kv_cache, block_table, begin, end, kv_head, c, reading, cached, num_kv_heads,
                   head_dim, block_size, cached_keys(tile_k, head_dim), slots, in_flight, False)  # fmt: skip
    c = fetch(ring, full, empty, out, c, pid, fetching, hidden, heads_size, False, grid, tile_k, slots, in_flight)
    c = fetch(ring, full, empty, gate_up, c, pid, fetching, 2 * inner, hidden, True, grid, tile_k, slots, in_flight)
    fetch(ring, full, empty, down, c, pid, fetching, hidden, inner, False, grid, tile_k, slots, in_flight)


@gluon.jit
def _gluon_decoder_block(
    hidden, residual, positions, slot_mapping, kv_cache, block_table, seq_lens, input_norm, qkv, qkv_scales, cos_sin,
    q_norm, k_norm, out, out_scales, post_norm, gate_up, gate_up_scales, down, down_scales, new_hidden, new_residual,
    scratch, counters, epsilon: gl.constexpr, head_epsilon: gl.constexpr, scale: gl.constexpr,
    hidden_size: gl.constexpr, num_heads: gl.constexpr, num_kv_heads: gl.constexpr, head_dim: gl.constexpr,
    intermediate_size: gl.constexpr, block_size: gl.constexpr, num_programs: gl.constexpr, tile_k: gl.constexpr,
    ring: gl.constexpr, in_flight: gl.constexpr, keys_a_program: gl.constexpr, producer_warps: gl.constexpr,
    programmatic: gl.constexpr,
):  # fmt: skip
    heads_size: gl.constexpr = num_heads * head_dim
    shape: gl.constexpr = (hidden_size, heads_size, heads_size + 2 * num_kv_heads * head_dim, intermediate_size)
    heads: gl.constexpr = (num_heads, num_kv_heads, head_dim)
    fetching: gl.constexpr = gl.BlockedLayout([1, 16], [512 // tile_k, tile_k // 16], [producer_warps, 1], [1, 0])
    operand: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2)
    widest: gl.constexpr = hidden_size if hidden_size > heads_size else heads_size
    reach: gl.constexpr = (widest if widest > intermediate_size else intermediate_size) // PARTS
    start_successor(programmatic)
    most_splits: gl.constexpr = 16 if num_programs // num_kv_heads > 16 else num_programs // num_kv_heads
    splits: gl.constexpr = (keys_a_program, most_splits)
    cached: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    reading: gl.constexpr = gl.BlockedLayout([1, 8], [256 // head_dim, head_dim // 8], [producer_warps, 1], [1, 0])
    tiles = gl.allocate_shared_memory(gl.float8e4nv, [ring, TILE_ROWS, tile_k], operand)
    xbuf = gl.allocate_shared_memory(gl.float8e4nv, [reach // tile_k, COLUMNS, tile_k], operand)
    full = gl.allocate_shared_memory(gl.int64, [ring, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [ring, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(ring):
        mbarrier.init(full.index(slot), count=producer_warps * 32)
        mbarrier.init(empty.index(slot), count=1)
    sync()
    gl.warp_specialize(
        [
            (consume, (tiles, full, empty, xbuf, hidden, residual, positions, slot_mapping, kv_cache, seq_lens,
                        input_norm, qkv_scales, cos_sin, q_norm, k_norm, out_scales, post_norm, gate_up_scales,
                        down_scales, new_hidden, new_residual, scratch, counters, epsilon, head_epsilon, scale, shape,
                        heads, splits, cached, num_programs, tile_k, ring, programmatic)),
            (produce, (tiles, full, empty, qkv, out, gate_up, down, kv_cache, block_table, seq_lens, shape, heads,
                        splits, cached, fetching, reading, block_size, num_programs, tile_k, ring, in_flight,
                        programmatic)),
        ],
        [producer_warps],
        [80],
    )  # fmt: skip


def decoder_block(
    hidden: Any, residual: Any, positions: Any, slot_mapping: Any, kv_cache: Any, block_table: Any, seq_lens: Any,
    input_norm: Any, qkv: Any, qkv_scales: Any, cos_sin: Any, q_norm: Any, k_norm: Any, out: Any, out_scales: Any,
    post_norm: Any, gate_up: Any, gate_up_scales: Any, down: Any, down_scales: Any, new_hidden: Any, new_residual: Any,
    scratch: Any, counters: Any, epsilon: Any, head_epsilon: Any, scale: Any, hidden_size: Any, num_heads: Any,
    num_kv_heads: Any, head_dim: Any, intermediate_size: Any, block_size: Any, num_programs: Any, tile_k: Any,
    ring: Any, in_flight: Any, keys_a_program: Any, producer_warps: Any, programmatic: Any, *, _launcher: Any,
) -> None:  # fmt: skip
    """Launch it; see ``DecoderBlock`` for the tensors, and ``DecoderBlockConfig`` for the choices."""
    _launcher(
        _gluon_decoder_block, (num_programs,), hidden, residual, positions, slot_mapping, kv_cache, block_table,
        seq_lens, input_norm, qkv, qkv_scales, cos_sin, q_norm, k_norm, out, out_scales, post_norm, gate_up,
        gate_up_scales, down, down_scales, new_hidden, new_residual, scratch, counters, epsilon, head_epsilon, scale,
        hidden_size, num_heads, num_kv_heads, head_dim, intermediate_size, block_size, num_programs, tile_k, ring,
        in_flight, keys_a_program, producer_warps, programmatic, num_warps=4,
    )  # fmt: skip


def decoder_rows(
    hidden: Any, residual: Any, positions: Any, slot_mapping: Any, kv_cache: Any, block_table: Any, seq_lens: Any,
    row_slots: Any, input_norm: Any, qkv: Any, qkv_scales: Any, cos_sin: Any, q_norm: Any, k_norm: Any, out: Any,
    out_scales: Any, post_norm: Any, gate_up: Any, gate_up_scales: Any, down: Any, down_scales: Any, new_hidden: Any,
    new_residual: Any, scratch: Any, counters: Any, epsilon: Any, head_epsilon: Any, scale: Any, hidden_size: Any,
    num_heads: Any, num_kv_heads: Any, head_dim: Any, intermediate_size: Any, block_size: Any, tokens: Any,
    num_programs: Any, tile_k: Any, ring: Any, in_flight: Any, keys_a_program: Any, parts: Any, down_parts: Any,
    rounds: Any, warps: Any, producer_warps: Any, programmatic: Any, *, _launcher: Any,
) -> None:  # fmt: skip
    """Launch the program of several tokens (``gluon_rows.py``)."""
    _launcher(
        gluon_decoder_rows, (num_programs,), hidden, residual, positions, slot_mapping, kv_cache, block_table,
        seq_lens, row_slots, input_norm, qkv, qkv_scales, cos_sin, q_norm, k_norm, out, out_scales, post_norm, gate_up,
        gate_up_scales, down, down_scales, new_hidden, new_residual, scratch, counters, hidden.size(0),
        block_table.stride(0), epsilon, head_epsilon, scale, hidden_size, num_heads, num_kv_heads, head_dim,
        intermediate_size, block_size, tokens, num_programs, tile_k, ring, in_flight, keys_a_program, parts, down_parts,
        rounds, warps, producer_warps, programmatic, num_warps=warps,
    )  # fmt: skip
