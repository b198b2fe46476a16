"""``fused_rope_attention`` for rows with a single token as a kernel in Gluon.

A program takes a share of a row's keys for one key head, as Helion's does: it makes its own queries from the
projection's output, and the one that comes to the row's last token stores that token's key and value.
"""

from __future__ import annotations

from typing import Any

import triton.experimental.gluon.language as gl
from triton.experimental import gluon

from parhelion.ops.decoder_block.gluon_attention import (
    HEADS,
    KEYS,
    LOG2_E,
    NOTHING,
    attend,
    keys_and_values,
    places,
    rotated,
)
from parhelion.ops.decoder_block.gluon_ring import run_asm


@gluon.jit
def _gluon_decode_attention(
    qkv, positions, slot_mapping, kv_cache, cos_sin, q_norm, k_norm, block_table, seq_lens, out, lse, table_stride,
    num_splits, epsilon: gl.constexpr, scale: gl.constexpr, num_heads: gl.constexpr, num_kv_heads: gl.constexpr,
    head_dim: gl.constexpr, block_size: gl.constexpr, is_split: gl.constexpr, tile_keys: gl.constexpr,
    ring: gl.constexpr, heads_first: gl.constexpr, warps: gl.constexpr, programmatic: gl.constexpr,
):  # fmt: skip
    """Split s of row r, which is token r, for one key head; see ``rope_attention_decode``.

    Args:
        out: [M, splits, num_heads, head_dim], float32 if ``is_split``.
        lse: float32 [M, splits, num_heads], the base-2 logarithms of the sums; written if ``is_split``.
        tile_keys, ring: of no use to this kernel, which loads a tile of 64 keys when it needs it.
    """
    group: gl.constexpr = num_heads // num_kv_heads
    half: gl.constexpr = head_dim // 2
    queries: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [warps, 1], [1, 0])
    keys: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [warps, 1], [1, 0])
    scores: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [1, warps], [16, 8])
    pid = gl.program_id(0)
    if programmatic:
        run_asm("griddepcontrol.launch_dependents; mov.u32 $0, 0;", pid)
    num_rows = gl.num_programs(0) // (num_kv_heads * num_splits)
    if heads_first:
        kv_head = pid % num_kv_heads
        split = pid // num_kv_heads % num_splits
        row = pid // num_kv_heads // num_splits
    else:
        row = pid % num_rows
        kv_head = pid // num_rows % num_kv_heads
        split = pid // num_rows // num_kv_heads
    seq_len = gl.load(seq_lens + row)
    position = gl.load(positions + row)
    slot = gl.load(slot_mapping + row)
    table = block_table + row.to(gl.int64) * table_stride
    share = (seq_len + num_splits * 16 - 1) // (num_splits * 16) * 16
    begin = split * share
    end = gl.maximum(gl.minimum(begin + share, seq_len), begin)
    # The row's own token comes from qkv, whoever stores it and when.
    owns = (end == seq_len) & (begin < seq_len)
    old_end = gl.where(owns, end - 1, end)
    d = gl.arange(0, head_dim, layout=gl.SliceLayout(0, queries))
    turned_d = (d + half) % head_dim
    cos = gl.load(cos_sin + position * head_dim + d % half)
    sin = gl.load(cos_sin + position * head_dim + half + d % half)
    q_weights = (1.0, 1.0)
    k_weights = (1.0, 1.0)
    if q_norm is not None:
        q_weights = (gl.load(q_norm + d).to(gl.float32)[None, :], gl.load(q_norm + turned_d).to(gl.float32)[None, :])
        k_weights = (gl.load(k_norm + d).to(gl.float32)[None, :], gl.load(k_norm + turned_d).to(gl.float32)[None, :])
    if programmatic:
        run_asm("griddepcontrol.wait; mov.u32 $0, 0;", pid)

    token = qkv + row * ((num_heads + 2 * num_kv_heads) * head_dim)
    head = gl.arange(0, HEADS, layout=gl.SliceLayout(1, queries))
    is_head = (head < group)[:, None] & (d >= 0)[None, :]
    query_at = token + ((kv_head * group + head) * head_dim)[:, None]
    # All of them the same: the own key's.
    key_at = token + ((num_heads + kv_head) * head_dim + head * 0)[:, None]
    query = gl.load(query_at + d[None, :], mask=is_head, other=0.0)
    query_turned = gl.load(query_at + turned_d[None, :], mask=is_head, other=0.0)
    own_key = gl.load(key_at + d[None, :])
    own_key_turned = gl.load(key_at + turned_d[None, :])
    query = rotated(query, query_turned, q_norm is not None, q_weights, cos, sin, d, head_dim, epsilon)
    own_key = rotated(own_key, own_key_turned, q_norm is not None, k_weights, cos, sin, d, head_dim, epsilon)
    top = gl.convert_layout(gl.sum(query.to(gl.float32) * own_key.to(gl.float32), axis=1), gl.SliceLayout(1, scores))
    top = gl.where(owns, top * (scale * LOG2_E), NOTHING)
    asked = gl.convert_layout(query, gl.DotOperandLayout(0, scores, 2))
    sums = gl.where(owns, 1.0, 0.0) + top * 0.0
    out_d = gl.arange(0, head_dim, layout=gl.SliceLayout(0, scores))
    own_value = gl.load(token + (num_heads + num_kv_heads + kv_head) * head_dim + out_d)
    result = sums[:, None] * own_value.to(gl.float32)[None, :]
    for start in range(begin, old_end, KEYS):
        at, there = places(table, start, old_end, kv_head, keys, num_kv_heads, head_dim, block_size)
        key, value = keys_and_values(kv_cache, at, there, keys, num_kv_heads, head_dim)
        top, sums, result = attend(asked, key, value, old_end - start, scale, top, sums, result, scores)
    is_any = sums > 0.0
    result = result * gl.where(is_any, 1.0 / sums, 0.0)[:, None]

    row_head = gl.arange(0, HEADS, layout=gl.SliceLayout(1, scores))
    first = (row * num_splits + split) * num_heads + kv_head * group
    to = out + first.to(gl.int64) * head_dim + (row_head * head_dim)[:, None] + out_d[None, :]
    is_row_head = (row_head < group)[:, None] & (out_d >= 0)[None, :]
    if is_split:
        gl.store(to, result, mask=is_row_head)
        gl.store(lse + first + row_head, gl.where(is_any, top + gl.log2(sums), float("-inf")), mask=row_head < group)
    else:
        gl.store(to, result.to(gl.bfloat16), mask=is_row_head)
    if owns & (slot >= 0):
        cached = kv_cache + slot * (2 * num_kv_heads * head_dim) + kv_head * head_dim
        gl.store(cached + (head * 0)[:, None] + d[None, :], own_key, mask=(head == 0)[:, None] & (d >= 0)[None, :])
        gl.store(cached + num_kv_heads * head_dim + out_d, own_value)


def decode_attention(
    qkv: Any, positions: Any, slot_mapping: Any, kv_cache: Any, cos_sin: Any, q_norm: Any, k_norm: Any,
    block_table: Any, seq_lens: Any, out: Any, lse: Any, epsilon: Any, scale: Any, num_heads: Any, num_kv_heads: Any,
    head_dim: Any, block_size: Any, is_split: Any, tile_keys: Any, ring: Any, heads_first: Any, gluon_warps: Any,
    programmatic: Any, *, _launcher: Any,
) -> None:  # fmt: skip
    """Launch it; see ``FusedRopeAttention`` for the tensors, and ``DecodeAttentionConfig`` for the choices."""
    num_splits = lse.size(1)
    _launcher(
        _gluon_decode_attention, (seq_lens.size(0) * num_kv_heads * num_splits,), qkv, positions, slot_mapping,
        kv_cache, cos_sin, q_norm, k_norm, block_table, seq_lens, out, lse, block_table.stride(0), num_splits, epsilon,
        scale, num_heads, num_kv_heads, head_dim, block_size, is_split, tile_keys, ring, heads_first, gluon_warps,
        programmatic, num_warps=gluon_warps,
    )  # fmt: skip
