"""Parts of ``fused_rope_attention``'s kernel in Gluon, where rows next to each other are of one sequence, each a token
further than the one before: the first row's program computes all of them.
"""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from triton.experimental import gluon

from parhelion.ops.gluon_parts import rotated

MOST = gl.constexpr(8)


@gluon.jit
def rows_of_its_sequence(row_slots, seq_lens, row, seq_len, num_rows, most: gl.constexpr, layout: gl.constexpr):
    """Whether the row before is of the same sequence, and which of the ``MOST`` rows from the row's own on are,
    [MOST].

    Args:
        most: a bound of a sequence's rows.
        layout: of the rows.
    """
    number = gl.arange(0, MOST, layout=layout)
    is_row = (number < most) & (row + number < num_rows)
    slot = gl.load(row_slots + row)
    slots = gl.load(row_slots + row + number, mask=is_row, other=-2)
    lens = gl.load(seq_lens + row + number, mask=is_row, other=-2)
    slot_before = gl.load(row_slots + row - 1, mask=row > 0, other=-2)
    len_before = gl.load(seq_lens + row - 1, mask=row > 0, other=-2)
    is_behind = (slot_before == slot) & (len_before == seq_len - 1)
    return is_behind, (slots == slot) & (lens == seq_len + number)


@gluon.jit
def bring_keys(
    keys, values, token, slot_mapping, kv_cache, cos_sin, k_norm, position, row, is_new, owns, kv_head,
    epsilon: gl.constexpr, num_heads: gl.constexpr, num_kv_heads: gl.constexpr, head_dim: gl.constexpr,
    layout: gl.constexpr,
):  # fmt: skip
    """Make the rows' own keys and values, and leave them in shared memory, [MOST, head_dim], and in the cache if they
    belong to the program's share; zeros where there are no rows.

    Args:
        token: of the first row, what the projection put out.
        is_new: [MOST], which rows there are.
        layout: of all of them, [MOST, head_dim].
    """
    per_token: gl.constexpr = 2 * num_kv_heads * head_dim
    half: gl.constexpr = head_dim // 2
    number = gl.arange(0, MOST, layout=gl.SliceLayout(1, layout))
    d = gl.arange(0, head_dim, layout=gl.SliceLayout(0, layout))
    turned_d = d + half - d // half * head_dim
    there = is_new[:, None] & (d >= 0)[None, :]
    key_at = token + (number * ((num_heads + 2 * num_kv_heads) * head_dim))[:, None] + (num_heads + kv_head) * head_dim
    slot = gl.load(slot_mapping + row + number, mask=is_new, other=-1)
    angle = cos_sin + ((position + number) * head_dim)[:, None] + (d % half)[None, :]
    cos = gl.load(angle, mask=there, other=0.0)
    sin = gl.load(angle + half, mask=there, other=0.0)
    weights = None
    if k_norm is not None:
        weights = (gl.load(k_norm + d).to(gl.float32)[None, :], gl.load(k_norm + turned_d).to(gl.float32)[None, :])
    key = gl.load(key_at + d[None, :], mask=there, other=0.0, cache_modifier=".cg")
    turned = gl.load(key_at + turned_d[None, :], mask=there, other=0.0, cache_modifier=".cg")
    value = gl.load(key_at + num_kv_heads * head_dim + d[None, :], mask=there, other=0.0, cache_modifier=".cg")
    key = rotated(key, turned, weights, cos, sin, d, head_dim, epsilon)
    keys.store(key)
    values.store(value)
    stores = there & ((slot >= 0) & owns)[:, None]
    to = kv_cache + (slot * per_token + kv_head * head_dim)[:, None] + d[None, :]
    gl.store(to, key, mask=stores)
    gl.store(to + num_kv_heads * head_dim, value, mask=stores)
