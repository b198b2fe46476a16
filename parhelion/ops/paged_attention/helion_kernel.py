"""``paged_attention`` as tile programs: one for rows with a single query token, one for the others.

Both go over a row's keys a tile at a time and keep a running maximum and sum (Milakov and Gimelshein, 2018; Dao et al.,
2022), in powers of two. The first spreads a row's keys over several programs, whose results a third program combines
(Flash-Decoding, 2023).
"""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.tile_dot import dot


def scored(q: torch.Tensor, k: torch.Tensor, scale: float, soft_cap: float | None) -> torch.Tensor:
    """Scores of queries [m, head_dim] and keys [n, head_dim] as exponents of two: 1.44 is the logarithm of e."""
    scores = dot(q, k.transpose(0, 1))
    if soft_cap is None:
        return scores * (scale * 1.4426950408889634)
    return torch.tanh(scores * (scale / soft_cap)) * (soft_cap * 1.4426950408889634)


def accumulated(
    scores: torch.Tensor, v: torch.Tensor, m: torch.Tensor, l: torch.Tensor, acc: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The running maximum, sum and output with the tile's scores [m, n] and values [n, head_dim] in them.

    The maximum begins at a finite number, so that rows that have seen nothing yet give no NaN.
    """
    new_m = torch.maximum(m, torch.amax(scores, -1))
    p = torch.exp2(scores - new_m[:, None])
    alpha = torch.exp2(m - new_m)
    return new_m, l * alpha + torch.sum(p, -1), dot(p.to(v.dtype), v, acc * alpha[:, None])


@helion.kernel(static_shapes=False, dot_precision="ieee")
def paged_attention_decode(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    block_size: hl.constexpr,
    scale: hl.constexpr,
    window: hl.constexpr,
    soft_cap: hl.constexpr,
    mixed: hl.constexpr,
    by_row: hl.constexpr,
    programmatic: hl.constexpr,
    kv_tile: hl.constexpr,
) -> None:
    """Split s of row r's only token.

    query [M * num_heads, head_dim]; kv_cache [slots, 2 * num_kv_heads, head_dim]; lse [num_rows, splits, num_kv_heads,
    group]: the base-2 logarithm of the sum of the exponentials. out like query or, ``by_row``, partial results in
    float32: [num_rows * splits * num_heads, head_dim]. ``mixed``: rows may have any number of tokens, and only those
    with one are done; else row r is token r. ``kv_tile``: None leaves it to the config.
    """
    num_rows, num_splits, num_kv_heads, group = lse.size()
    num_kv_heads = hl.specialize(num_kv_heads)
    group = hl.specialize(group)
    head_dim = hl.specialize(query.size(-1))
    # A group's heads are the rows of the dot products, which have at least 16.
    for tile_r, tile_k, tile_s, tile_g in hl.tile(
        [num_rows, num_kv_heads, num_splits, group], block_size=[1, 1, 1, max(16, helion.next_power_of_2(group))]
    ):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        row = tile_r.begin
        kv_head = tile_k.begin
        split = tile_s.begin
        seq_len = seq_lens[row]
        token = query_start_loc[row] if mixed else row
        query_len = query_start_loc[row + 1] - token if mixed else 1
        first = seq_len * 0
        if window is not None:
            first = torch.maximum(seq_len - window, first)
        share = (seq_len - first + num_splits * 16 - 1) // (num_splits * 16) * 16
        begin = first + split * share
        end = torch.maximum(torch.minimum(begin + share, seq_len), begin)
        if query_len == 1:
            heads = kv_head * group + tile_g.index
            q = query[token * (num_kv_heads * group) + heads, :]
            m = hl.full([tile_g], -3.0e38, dtype=torch.float32)
            l = hl.zeros([tile_g], dtype=torch.float32)
            acc = hl.zeros([tile_g, head_dim], dtype=torch.float32)
            for tile_t in hl.tile(begin, end, block_size=kv_tile):
                block = block_table[row, tile_t.index // block_size].to(torch.int64)
                slot = block * block_size + tile_t.index % block_size
                k = kv_cache[slot, kv_head, :]
                scores = scored(q, k, scale, soft_cap)
                scores = torch.where((tile_t.index < end)[None, :], scores, float("-inf"))
                v = kv_cache[slot, num_kv_heads + kv_head, :]
                m, l, acc = accumulated(scores, v, m, l, acc)
            result = torch.where((l == 0)[:, None], 0.0, acc / l[:, None]).to(out.dtype)
            place = (row if by_row else token) * num_splits + split
            out[place * (num_kv_heads * group) + heads, :] = result
            lse[row, split, kv_head, tile_g] = torch.where(l == 0, float("-inf"), m + torch.log2(l))


@helion.kernel(static_shapes=False)
def paged_attention_combine(
    parts: torch.Tensor,
    lse: torch.Tensor,
    query_start_loc: torch.Tensor,
    out: torch.Tensor,
    mixed: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    """The splits of a row's only token, weighted by their sums.

    parts [num_rows, splits, num_heads, head_dim] float32, lse [num_rows, splits, num_heads],
    out [M, num_heads, head_dim].
    """
    num_rows, num_splits, num_heads, head_dim = parts.size()
    num_heads = hl.specialize(num_heads)
    head_dim = hl.specialize(head_dim)
    for tile_r, tile_h in hl.tile([num_rows, num_heads], block_size=[1, 1]):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        row = tile_r.begin
        head = tile_h.begin
        token = query_start_loc[row] if mixed else row
        query_len = query_start_loc[row + 1] - token if mixed else 1
        if query_len == 1:
            m = hl.full([], -3.0e38, dtype=torch.float32)
            l = hl.zeros([], dtype=torch.float32)
            acc = hl.zeros([head_dim], dtype=torch.float32)
            for tile_s in hl.tile(num_splits):
                sums = lse[row, tile_s, head]
                new_m = torch.maximum(m, torch.amax(sums, -1))
                weights = torch.exp2(sums - new_m)
                alpha = torch.exp2(m - new_m)
                l = l * alpha + torch.sum(weights, -1)
                acc = acc * alpha + torch.sum(parts[row, tile_s, head, :] * weights[:, None], 0)
                m = new_m
            out[token, head, :] = torch.where(l == 0, 0.0, acc / l).to(out.dtype)


@helion.kernel(static_shapes=False, dot_precision="ieee")
def paged_attention_varlen(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    out: torch.Tensor,
    group: hl.constexpr,
    block_size: hl.constexpr,
    scale: hl.constexpr,
    window: hl.constexpr,
    soft_cap: hl.constexpr,
    least_query_len: hl.constexpr,
    packed: hl.constexpr,
    programmatic: hl.constexpr,
    kv_tile: hl.constexpr,
) -> None:
    """Rows of any number of query tokens; those with fewer than ``least_query_len`` are left to others.

    query [M * num_heads, head_dim]; kv_cache [slots, 2 * num_kv_heads, head_dim]; out like query. A row's tokens and
    the heads of a group are packed into one dimension, ``packed`` of which make a tile, so that a key is read once for
    all heads that share it. ``kv_tile``: None leaves it to the config.

    Which row a tile belongs to is found on the device: row r's tiles begin at number
    query_start_loc[r] * group // packed + r, which leaves room enough for each. What follows the last row is one more
    row, of padding, and comes out as 0.
    """
    head_dim = hl.specialize(query.size(1))
    num_kv_heads = hl.specialize(kv_cache.size(1)) // 2
    num_heads = num_kv_heads * group
    num_tokens = query.size(0) // num_heads
    num_rows = seq_lens.size(0)
    num_tiles = num_tokens * group // packed + num_rows + 1
    for program, kv_head in hl.grid([num_tiles, num_kv_heads]):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        # A row's last tiles see the most keys: they go first.
        tile = num_tiles - 1 - program
        row = hl.zeros([], dtype=torch.int32) - 1
        for tile_r in hl.tile(num_rows + 1):
            starts = query_start_loc[tile_r] * group // packed + tile_r.index
            row = row + torch.sum((starts <= tile).to(torch.int32), -1).to(torch.int32)
        is_row = row < num_rows
        some_row = torch.where(is_row, row, 0)
        first_token = query_start_loc[row]
        query_len = torch.where(is_row, query_start_loc[some_row + 1], num_tokens) - first_token
        seq_len = torch.where(is_row, seq_lens[some_row], 0)
        prefix = seq_len - query_len
        begin = (tile - first_token * group // packed - row) * packed
        end = torch.maximum(torch.minimum(begin + packed, query_len * group), begin)
        end = torch.where(is_row & (query_len < least_query_len), begin, end)
        for tile_m in hl.tile(begin, end, block_size=packed):
            token = tile_m.index // group
            flat = (first_token + token) * num_heads + kv_head * group + tile_m.index % group
            position = prefix + token
            q = query[flat, :]
            m = hl.full([tile_m], -3.0e38, dtype=torch.float32)
            l = hl.zeros([tile_m], dtype=torch.float32)
            acc = hl.zeros([tile_m, head_dim], dtype=torch.float32)
            kv_end = torch.where(seq_len > 0, prefix + (end - 1) // group + 1, 0)
            kv_begin = kv_end * 0
            if window is not None:
                kv_begin = torch.maximum(prefix + begin // group + 1 - window, kv_begin)
            for tile_t in hl.tile(kv_begin, kv_end, block_size=kv_tile):
                block = block_table[some_row, tile_t.index // block_size].to(torch.int64)
                slot = block * block_size + tile_t.index % block_size
                k = kv_cache[slot, kv_head, :]
                scores = scored(q, k, scale, soft_cap)
                is_seen = tile_t.index[None, :] <= position[:, None]
                if window is not None:
                    is_seen = is_seen & (tile_t.index[None, :] > position[:, None] - window)
                scores = torch.where(is_seen, scores, float("-inf"))
                v = kv_cache[slot, num_kv_heads + kv_head, :]
                m, l, acc = accumulated(scores, v, m, l, acc)
            out[flat, :] = torch.where((l == 0)[:, None], 0.0, acc / l[:, None]).to(out.dtype)
