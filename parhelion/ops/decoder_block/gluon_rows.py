"""A decoder block of up to 16 tokens, of a row each, as one persistent kernel in Gluon, for Hopper. It has the ring of
tiles, the warps that fill it and the barriers in common with that of one token (``gluon_kernel.py``).

Of 16 tokens no program could hold all that a product takes, nor read it in time. So K is divided: a program multiplies
its part of K, of 64 outputs at a time, as FP8 codes with scales of their own, and leaves the sums to the programs that
have the other parts of the same outputs, its group. These add them up, each its share of the outputs, once all of the
group have arrived. Queries, keys and values are added up by those who attend.

Rows next to each other may be of one sequence, as guesses are. What the rows before it have is in no cache yet when a
row attends, so its program makes their keys and values as well.

Gate and up may be made in rounds. Then one round is added up while the next is multiplied, and the down projection
begins with what all but the last have made, while that is added up.
"""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from parhelion.ops.decoder_block.gluon_attention import cached_keys, fetch_keys, share_of, siblings_before
from parhelion.ops.decoder_block.gluon_ring import TILE_ROWS, arrive, forget, tell_last, wait_for_all
from parhelion.ops.decoder_block.gluon_rows_attention import (
    HEADS,
    KEYS,
    are_there,
    attend_row,
    attended_tiles,
    part_of,
    places,
)
from parhelion.ops.decoder_block.gluon_rows_products import (
    encode_rows,
    fetch_part,
    finish,
    finish_gated,
    made_early,
    multiplied_in,
    multiply_part,
    normed_rows,
    weights_of_part,
)
from parhelion.ops.gluon_parts import start_successor, sync, wait_for_predecessor
from parhelion.ops.paged_attention.tiling import SIBLINGS

OF_GROUPS = gl.constexpr(64)
"""Counters of a product's groups, which begin behind as many of all programs."""

MOST_SIBLINGS = gl.constexpr(max(SIBLINGS))
"""Rows of a sequence, where it is said whose they are: one program is for any number of them."""


@gluon.constexpr_function
def codes_tiles(shape, head_dim, rows, grid, tile_k, parts, down_parts, rounds):
    """Tiles of codes that there is room for: for a part of each product, and for what warps find that attend."""
    early = made_early(shape[3], grid, rounds)
    longest = max(shape[0] // parts, shape[1] // parts, early // down_parts, (shape[3] - early) // down_parts)
    found = cached_keys(tile_k, head_dim) // KEYS.value * HEADS.value * head_dim * 4
    return max(longest // tile_k, -(-found // (2 * rows * tile_k)))


@gluon.jit
def consume(
    ring, full, empty, xbuf, hidden, residual, positions, slot_mapping, kv_cache, seq_lens, row_slots, input_norm,
    qkv_scales, cos_sin, q_norm, k_norm, out_scales, post_norm, gate_up_scales, down_scales, new_hidden, new_residual,
    scratch, counters, num_tokens, epsilon: gl.constexpr, head_epsilon: gl.constexpr, scale: gl.constexpr,
    shape: gl.constexpr, heads: gl.constexpr, splits: gl.constexpr, cached: gl.constexpr, tokens: gl.constexpr,
    rows: gl.constexpr, parts: gl.constexpr, down_parts: gl.constexpr, grid: gl.constexpr, tile_k: gl.constexpr,
    slots: gl.constexpr, rounds: gl.constexpr, warps: gl.constexpr, siblings: gl.constexpr, programmatic: gl.constexpr,
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
    keys: gl.constexpr = cached_keys(tile_k, head_dim)
    acc: gl.constexpr = multiplied_in(2 * rows)
    of_tokens: gl.constexpr = gl.BlockedLayout([1, tile_k // 32], [1, 32], [warps, 1], [1, 0])
    of_heads: gl.constexpr = gl.BlockedLayout(
        [1, 1, tile_k // 32], [1, tile_k // head_dim, 32 * head_dim // tile_k], [warps, 1, 1], [2, 1, 0]
    )
    bf16: gl.constexpr = gl.pointer_type(gl.bfloat16)
    groups: gl.constexpr = grid // parts
    down_groups: gl.constexpr = grid // down_parts
    in_tiles: gl.constexpr = hidden_size // parts // tile_k
    out_tiles: gl.constexpr = heads_size // parts // tile_k
    # Gate and up are made in rounds, in each of which a program adds up so many units of 64 outputs.
    units: gl.constexpr = 2 * inner_size // TILE_ROWS
    passes: gl.constexpr = (units + grid * rounds - 1) // (grid * rounds)
    of_round: gl.constexpr = passes * grid
    early: gl.constexpr = made_early(inner_size, grid, rounds)
    early_tiles: gl.constexpr = early // down_parts // tile_k
    late_tiles: gl.constexpr = (inner_size - early) // down_parts // tile_k
    # What passes between the products, in the order in which it is made.
    qkv_sums = scratch
    out_sums = qkv_sums + parts * rows * qkv_size
    gate_up_sums = out_sums + parts * rows * hidden_size
    down_sums = gate_up_sums + parts * rows * 2 * inner_size
    squares = down_sums + down_parts * rows * hidden_size
    found_lse = squares + 2 * grid * rows
    found = (found_lse + splits[1] * tokens * num_heads).to(bf16, bitcast=True)
    activated = found + splits[1] * tokens * heads_size
    pid = gl.program_id(0)
    part = pid % parts
    group = pid // parts
    c = pid * 0
    token = gl.arange(0, rows, layout=gl.SliceLayout(1, of_tokens))
    there = are_there(num_tokens, rows, of_tokens)
    begin = part * (hidden_size // parts)
    weights = weights_of_part(input_norm, begin, in_tiles, tile_k, of_tokens)
    wait_for_predecessor(programmatic)

    # Norm, queries, keys and values.
    total = ()
    for tile in gl.static_range(in_tiles):
        at = places(tile, begin, hidden_size, rows, tile_k, of_tokens)
        x = gl.load(hidden + at, mask=there, other=0.0).to(gl.float32)
        x += gl.load(residual + at, mask=there, other=0.0).to(gl.float32)
        total = total + (x.to(gl.bfloat16),)
    xs, own_squares = normed_rows(total, weights, in_tiles)
    gl.store(squares + pid * rows + token, own_squares)
    counts = encode_rows(xbuf, xs, in_tiles, tile_k, rows)
    c = multiply_part(ring, full, empty, xbuf, c, qkv_scales, qkv_sums + part * (rows * qkv_size), counts, group,
                      qkv_size // TILE_ROWS, qkv_size, in_tiles, False, False, groups, rows, slots, acc)  # fmt: skip

    # Attention: a program, or several with a share of the keys each, for every row's key head.
    kv_head = pid % num_kv_heads
    row = pid // num_kv_heads % tokens
    split = pid // num_kv_heads // tokens
    is_row = row < num_tokens
    seq_len = gl.load(seq_lens + row, mask=is_row, other=0)
    position = gl.load(positions + row, mask=is_row, other=0)
    slot = gl.load(slot_mapping + row, mask=is_row, other=-1)
    before = siblings_before(row_slots, seq_lens, row, seq_len, is_row, siblings)
    num_splits, begin_key, old_end, owns = share_of(seq_len - before, split, splits[0], splits[1])
    arrive(counters)
    wait_for_all(counters, grid)
    if is_row & (split < num_splits):
        c, mean, lse, head, d = attend_row(
            ring, full, empty, xbuf, c, qkv_sums, squares, position, slot, row, before, kv_head, begin_key, old_end,
            owns, kv_cache, cos_sin, q_norm, k_norm, epsilon, head_epsilon, scale, hidden_size, heads, parts, qkv_size,
            rows, keys, slots, warps, siblings)  # fmt: skip
        own_head = (split * tokens + row) * num_heads + kv_head * per_key + head
        gl.store(found + (own_head * head_dim)[:, None] + d[None, :], mean.to(gl.bfloat16),
                 mask=(head < per_key)[:, None] & (d >= 0)[None, :])  # fmt: skip
        if splits[1] > 1:
            gl.store(found_lse + own_head, lse, mask=head < per_key)

    # The output projection.
    arrive(counters + 1)
    wait_for_all(counters + 1, grid)
    if pid == 0:
        gl.store(counters, 0)
    xs = attended_tiles(found, found_lse, seq_lens, row_slots, num_tokens, part * (heads_size // parts), out_tiles,
                        heads_size, num_heads, head_dim, tile_k, rows, tokens, splits, siblings, of_tokens,
                        of_heads)  # fmt: skip
    counts = encode_rows(xbuf, xs, out_tiles, tile_k, rows)
    c = multiply_part(ring, full, empty, xbuf, c, out_scales, out_sums + part * (rows * hidden_size), counts, group,
                      hidden_size // TILE_ROWS, hidden_size, out_tiles, False, False, groups, rows, slots,
                      acc)  # fmt: skip
    arrive(counters + OF_GROUPS + group)
    wait_for_all(counters + OF_GROUPS + group, parts)
    finish(out_sums, hidden, residual, new_residual, num_tokens, group, part, hidden_size, groups, parts, rows, warps)

    # Norm, gate and up.
    weights = weights_of_part(post_norm, begin, in_tiles, tile_k, of_tokens)
    arrive(counters + 2)
    wait_for_all(counters + 2, grid)
    if pid == 0:
        gl.store(counters + 1, 0)
    if part == 0:
        gl.store(counters + OF_GROUPS + group, 0)
    total = part_of(new_residual, begin, hidden_size, there, in_tiles, tile_k, rows, of_tokens)
    xs, own_squares = normed_rows(total, weights, in_tiles)
    gl.store(squares + (grid + pid) * rows + token, own_squares)
    counts = encode_rows(xbuf, xs, in_tiles, tile_k, rows)
    # What one round has made is added up in the next, when all parts of it are there.
    own_sums = gate_up_sums + part * (rows * 2 * inner_size)
    squares += (grid + group * parts) * rows
    gate_up_arrived = counters + 2 * OF_GROUPS + group
    # Triton 3.6 cannot lower the program if this loop, of a single round, is not one to it.
    for each in range(gl.minimum(pid, 0), rounds):
        first = each * of_round
        end = gl.minimum(first + of_round, units)
        c = multiply_part(ring, full, empty, xbuf, c, gate_up_scales, own_sums, counts, first + group, first + groups,
                          2 * inner_size, in_tiles, True, False, groups, rows, slots, acc)  # fmt: skip
        if each > 0:
            wait_for_all(gate_up_arrived, parts * each)
            finish_gated(gate_up_sums, squares, activated, group, part, epsilon, hidden_size, inner_size, groups, parts,
                         rows, warps, (each - 1) * passes, passes)  # fmt: skip
            arrive(counters + 3)
        c = multiply_part(ring, full, empty, xbuf, c, gate_up_scales, own_sums, counts, first + groups + group, end,
                          2 * inner_size, in_tiles, True, False, groups, rows, slots, acc)  # fmt: skip
        arrive(gate_up_arrived)

    # Down, first what all rounds but the last have made.
    down_part = pid % down_parts
    down_group = pid // down_parts
    own_sums = down_sums + down_part * (rows * hidden_size)
    down_units: gl.constexpr = hidden_size // TILE_ROWS
    if rounds > 1:
        wait_for_all(counters + 3, grid * (rounds - 1))
        xs = part_of(activated, down_part * (early_tiles * tile_k), inner_size, there, early_tiles, tile_k, rows,
                     of_tokens)  # fmt: skip
        counts = encode_rows(xbuf, xs, early_tiles, tile_k, rows)
        c = multiply_part(ring, full, empty, xbuf, c, down_scales, own_sums, counts, down_group, down_groups,
                          hidden_size, early_tiles, False, False, down_groups, rows, slots, acc)  # fmt: skip
    wait_for_all(gate_up_arrived, parts * rounds)
    finish_gated(gate_up_sums, squares, activated, group, part, epsilon, hidden_size, inner_size, groups, parts, rows,
                 warps, (rounds - 1) * passes, passes)  # fmt: skip
    arrive(counters + 3)
    if rounds > 1:
        c = multiply_part(ring, full, empty, xbuf, c, down_scales, own_sums, counts, down_groups + down_group,
                          down_units, hidden_size, early_tiles, False, False, down_groups, rows, slots,
                          acc)  # fmt: skip
    wait_for_all(counters + 3, grid * rounds)
    if pid == 0:
        gl.store(counters + 2, 0)
    if part == 0:
        gl.store(gate_up_arrived, 0)
    forget(counters + 3, counters + 4, grid)
    xs = part_of(activated, early + down_part * (late_tiles * tile_k), inner_size, there, late_tiles, tile_k, rows,
                 of_tokens)  # fmt: skip
    counts = encode_rows(xbuf, xs, late_tiles, tile_k, rows)
    multiply_part(ring, full, empty, xbuf, c, down_scales, own_sums, counts, down_group, down_units, hidden_size,
                  late_tiles, False, rounds > 1, down_groups, rows, slots, acc)  # fmt: skip
    arrive(counters + 3 * OF_GROUPS + down_group)
    wait_for_all(counters + 3 * OF_GROUPS + down_group, down_parts)
    forget(counters + 3 * OF_GROUPS + down_group, counters + 4 * OF_GROUPS + down_group, down_parts)
    finish(down_sums, None, None, new_hidden, num_tokens, down_group, down_part, hidden_size, down_groups, down_parts,
           rows, warps)  # fmt: skip


@gluon.jit
def produce(
    ring, full, empty, qkv, out, gate_up, down, kv_cache, block_table, seq_lens, row_slots, num_tokens, table_stride,
    shape: gl.constexpr, heads: gl.constexpr, splits: gl.constexpr, cached: gl.constexpr, fetching: gl.constexpr,
    reading: gl.constexpr, block_size: gl.constexpr, tokens: gl.constexpr, parts: gl.constexpr,
    down_parts: gl.constexpr, grid: gl.constexpr, tile_k: gl.constexpr, slots: gl.constexpr, in_flight: gl.constexpr,
    rounds: gl.constexpr, siblings: gl.constexpr, programmatic: gl.constexpr,
):  # fmt: skip
    """What the warps that fetch do: weights change no more, and the rest is there once the predecessor has ended."""
    hidden: gl.constexpr = shape[0]
    heads_size: gl.constexpr = shape[1]
    qkv_size: gl.constexpr = shape[2]
    inner: gl.constexpr = shape[3]
    num_kv_heads: gl.constexpr = heads[1]
    head_dim: gl.constexpr = heads[2]
    groups: gl.constexpr = grid // parts
    in_tiles: gl.constexpr = hidden // parts // tile_k
    out_tiles: gl.constexpr = heads_size // parts // tile_k
    early: gl.constexpr = made_early(inner, grid, rounds)
    early_tiles: gl.constexpr = early // down_parts // tile_k
    late_tiles: gl.constexpr = (inner - early) // down_parts // tile_k
    pid = gl.program_id(0)
    part = pid % parts
    group = pid // parts
    c = pid * 0
    c = fetch_part(ring, full, empty, qkv, c, group, part * (in_tiles * tile_k), fetching, qkv_size, hidden, in_tiles,
                   False, groups, tile_k, slots, in_flight)  # fmt: skip
    wait_for_predecessor(programmatic)
    row = pid // num_kv_heads % tokens
    seq_len = gl.load(seq_lens + row, mask=row < num_tokens, other=0)
    seq_len -= siblings_before(row_slots, seq_lens, row, seq_len, row < num_tokens, siblings)
    _, begin, end, _ = share_of(seq_len, pid // num_kv_heads // tokens, splits[0], splits[1])
    table = block_table + row.to(gl.int64) * table_stride
    c = fetch_keys(ring, full, empty, kv_cache, table, begin, end, pid % num_kv_heads, c, reading, cached, num_kv_heads,
                   head_dim, block_size, cached_keys(tile_k, head_dim), slots, in_flight, True)  # fmt: skip
    c = fetch_part(ring, full, empty, out, c, group, part * (out_tiles * tile_k), fetching, hidden, heads_size,
                   out_tiles, False, groups, tile_k, slots, in_flight)  # fmt: skip
    c = fetch_part(ring, full, empty, gate_up, c, group, part * (in_tiles * tile_k), fetching, 2 * inner, hidden,
                   in_tiles, True, groups, tile_k, slots, in_flight)  # fmt: skip
    part = pid % down_parts
    group = pid // down_parts
    if rounds > 1:
        c = fetch_part(ring, full, empty, down, c, group, part * (early_tiles * tile_k), fetching, hidden, inner,
                       early_tiles, False, grid // down_parts, tile_k, slots, in_flight)  # fmt: skip
    c = fetch_part(ring, full, empty, down, c, group, early + part * (late_tiles * tile_k), fetching, hidden, inner,
               late_tiles, False, grid // down_parts, tile_k, slots, in_flight)  # fmt: skip
    tell_last(full, c, slots, in_flight)


@gluon.jit
def gluon_decoder_rows(
    hidden, residual, positions, slot_mapping, kv_cache, block_table, seq_lens, row_slots, input_norm, qkv, qkv_scales,
    cos_sin, q_norm, k_norm, out, out_scales, post_norm, gate_up, gate_up_scales, down, down_scales, new_hidden,
    new_residual, scratch, counters, num_tokens, table_stride, epsilon: gl.constexpr, head_epsilon: gl.constexpr,
    scale: gl.constexpr, hidden_size: gl.constexpr, num_heads: gl.constexpr, num_kv_heads: gl.constexpr,
    head_dim: gl.constexpr, intermediate_size: gl.constexpr, block_size: gl.constexpr, tokens: gl.constexpr,
    num_programs: gl.constexpr, tile_k: gl.constexpr, ring: gl.constexpr, in_flight: gl.constexpr,
    keys_a_program: gl.constexpr, parts: gl.constexpr, down_parts: gl.constexpr, rounds: gl.constexpr,
    warps: gl.constexpr, producer_warps: gl.constexpr, programmatic: gl.constexpr,
):  # fmt: skip
    heads_size: gl.constexpr = num_heads * head_dim
    shape: gl.constexpr = (hidden_size, heads_size, heads_size + 2 * num_kv_heads * head_dim, intermediate_size)
    heads: gl.constexpr = (num_heads, num_kv_heads, head_dim)
    rows: gl.constexpr = tokens if tokens > 8 else 8
    siblings: gl.constexpr = 1 if row_slots is None else MOST_SIBLINGS
    fetching: gl.constexpr = gl.BlockedLayout([1, 16], [512 // tile_k, tile_k // 16], [producer_warps, 1], [1, 0])
    operand: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2)
    num_tiles: gl.constexpr = codes_tiles(shape, head_dim, rows, num_programs, tile_k, parts, down_parts, rounds)
    start_successor(programmatic)
    splits: gl.constexpr = (keys_a_program, num_programs // num_kv_heads // tokens)
    cached: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    reading: gl.constexpr = gl.BlockedLayout([1, 8], [256 // head_dim, head_dim // 8], [producer_warps, 1], [1, 0])
    tiles = gl.allocate_shared_memory(gl.float8e4nv, [ring, TILE_ROWS, tile_k], operand)
    xbuf = gl.allocate_shared_memory(gl.float8e4nv, [num_tiles, 2 * rows, tile_k], operand)
    full = gl.allocate_shared_memory(gl.int64, [ring, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [ring, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(ring):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=1)
    sync()
    gl.warp_specialize(
        [
            (consume, (tiles, full, empty, xbuf, hidden, residual, positions, slot_mapping, kv_cache, seq_lens,
                        row_slots, input_norm, qkv_scales, cos_sin, q_norm, k_norm, out_scales, post_norm,
                        gate_up_scales, down_scales, new_hidden, new_residual, scratch, counters, num_tokens, epsilon,
                        head_epsilon, scale, shape, heads, splits, cached, tokens, rows, parts, down_parts,
                        num_programs, tile_k, ring, rounds, warps, siblings, programmatic)),
            (produce, (tiles, full, empty, qkv, out, gate_up, down, kv_cache, block_table, seq_lens, row_slots,
                        num_tokens, table_stride, shape, heads, splits, cached, fetching, reading, block_size, tokens,
                        parts, down_parts, num_programs, tile_k, ring, in_flight, rounds, siblings, programmatic)),
        ],
        [producer_warps],
        [80],
    )  # fmt: skip
