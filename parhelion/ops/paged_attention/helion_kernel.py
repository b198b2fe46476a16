"""``paged_attention`` as tile programs: one for rows with a single query token, one for such rows of which several are
of one sequence, one for the others.

All go over a row's keys a tile at a time and keep a running maximum and sum (Milakov and Gimelshein, 2018; Dao et al.,
2022), in powers of two. The first two spread a row's keys over several programs, whose results a program of its own
combines (Flash-Decoding, 2023).
"""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.interpreting import interpreting
from parhelion.ops.paged_attention.blocks import block_of, place_in_block
from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.tile_dot import dot

LOG2_E = 1.4426950408889634


def scored(q: torch.Tensor, k: torch.Tensor, scale: float, soft_cap: float | None) -> torch.Tensor:
    """Scores of queries [m, head_dim] and keys [n, head_dim] as exponents of two: 1.44 is the logarithm of e."""
    scores = dot(q, k.transpose(0, 1))
    if soft_cap is None:
        return scores * (scale * LOG2_E)
    return torch.tanh(scores * (scale / soft_cap)) * (soft_cap * LOG2_E)


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


@helion.kernel(static_shapes=False, dot_precision="ieee")
def paged_attention_siblings(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    row_slots: torch.Tensor,
    parts: torch.Tensor,
    lse: torch.Tensor,
    flat_lse: torch.Tensor,
    max_siblings: hl.constexpr,
    packed: hl.constexpr,
    block_size: hl.constexpr,
    scale: hl.constexpr,
    window: hl.constexpr,
    soft_cap: hl.constexpr,
    programmatic: hl.constexpr,
    kv_tile: hl.constexpr,
) -> None:
    """Split s of the only tokens of row r and of the rows behind it that are of the same sequence.

    The first row of a sequence does it for all of them, so that a key is read once; the programs of the others end at
    once. Their tokens' keys and values are in the cache, where the last token's see all of them and each other's one
    less.

    query [M * num_heads, head_dim]; kv_cache [slots * 2 * num_kv_heads * head_dim]; lse [M, splits, num_kv_heads,
    group], the base-2 logarithm of the sum of the exponentials, and the same flat; parts [M * splits * num_heads,
    head_dim]. ``packed``: at least ``max_siblings`` * group, a power of two. See ``AttentionBatch``.
    """
    num_rows, num_splits, num_kv_heads, group = lse.size()
    num_kv_heads = hl.specialize(num_kv_heads)
    group = hl.specialize(group)
    head_dim = hl.specialize(query.size(1))
    num_heads = num_kv_heads * group
    for row, kv_head, split in hl.grid([num_rows, num_kv_heads, num_splits]):
        start_successor(programmatic)
        slot = row_slots[row]
        seq_len = seq_lens[row]
        # The row before it and those behind it.
        offset = hl.arange(2 * max_siblings) - 1
        near = row + offset
        is_near = (near >= 0) & (near < num_rows)
        near = torch.where(is_near, near, 0)
        is_near = is_near & (row_slots[near] == slot) & (seq_lens[near] == seq_len + offset)
        follows = torch.sum((is_near & (offset < 0)).to(torch.int32), -1)
        count = torch.sum((is_near & (offset >= 0) & (offset < max_siblings)).to(torch.int32), -1)
        wait_for_predecessor(programmatic)
        if follows == 0:
            last = torch.where(seq_len > 0, seq_len + count - 1, 0)
            first = seq_len * 0
            if window is not None:
                first = torch.maximum(seq_len - window, first)
            share = ((last - first + num_splits * 16 - 1) // (num_splits * 16) * 16).to(torch.int32)
            begin = (first + split * share).to(torch.int32)
            end = torch.maximum(torch.minimum(begin + share, last), begin)
            dim = hl.arange(helion.next_power_of_2(head_dim))
            index = hl.arange(packed)
            is_query = index // group < count
            token = row + index // group
            head = kv_head * group + index % group
            # Of each query the first key that it does not see.
            seen_end = seq_len + index // group
            q = hl.load(query, [token * num_heads + head, dim], extra_mask=elements(is_query, dim, head_dim))
            m = hl.full([packed], -3.0e38, dtype=torch.float32)
            l = hl.zeros([packed], dtype=torch.float32)
            acc = hl.zeros([packed, helion.next_power_of_2(head_dim)], dtype=torch.float32)
            per_token = 2 * num_kv_heads * head_dim
            values = num_kv_heads * head_dim
            early = begin + hl.arange(kv_tile)
            block = hl.load(block_table, [row, block_of(early, block_size)], extra_mask=early < end)
            for begin_t in hl.grid(begin, end, kv_tile):
                key = begin_t + hl.arange(kv_tile)
                is_key = elements(key < end, dim, head_dim)
                place = place_in_block(key, block_size) * per_token + kv_head * head_dim
                at = block.to(torch.int64) * (block_size * per_token) + place
                k = hl.load(kv_cache, [at[:, None] + dim[None, :]], extra_mask=is_key)
                scores = scored(q, k, scale, soft_cap)
                is_seen = (key < end)[None, :] & seen(key, seen_end - 1, window)
                scores = torch.where(is_seen, scores, float("-inf"))
                v = hl.load(kv_cache, [at[:, None] + (dim[None, :] + values)], extra_mask=is_key)
                m, l, acc = accumulated(scores, v, m, l, acc)
                # As in the program for rows of any length.
                after = key + kv_tile
                block = hl.load(block_table, [row, block_of(after, block_size)], extra_mask=after < end)
            result = torch.where((l == 0)[:, None], 0.0, acc / l[:, None]).to(parts.dtype)
            at_part = (token * num_splits + split) * num_heads + head
            hl.store(parts, [at_part, dim], result, extra_mask=elements(is_query, dim, head_dim))
            sums = torch.where(l == 0, float("-inf"), m + torch.log2(l))
            hl.store(flat_lse, [at_part], sums, extra_mask=is_query)


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


def weighted(scores: torch.Tensor, m: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights of a tile's scores [m, n], what earlier sums are worth beside them, and the new running maximum.

    The factor is positive, so that it and the maximum's subtraction are one instruction.
    """
    factor = scale * LOG2_E
    new_m = torch.maximum(m, torch.amax(scores, -1) * factor)
    return torch.exp2(scores * factor - new_m[:, None]), torch.exp2(m - new_m), new_m


def seen(key: torch.Tensor, position: torch.Tensor, window: int | None) -> torch.Tensor:
    """Which keys [n] the queries at these positions [m] see, [m, n]."""
    is_seen = key[None, :] <= position[:, None]
    return is_seen if window is None else is_seen & (key[None, :] > position[:, None] - window)


def elements(heads: torch.Tensor, dim: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Which elements there are of [n, dim], given which heads there are; dim's size is a power of two."""
    power = head_dim & (head_dim - 1) == 0
    return heads[:, None] if power else heads[:, None] & (dim < head_dim)[None, :]


def bits_of(dtype: torch.dtype) -> torch.dtype:
    """As what numbers of a type are carried through a loop: what Triton sees to be carried it reads from shared memory,
    not from registers, when it is a product's left operand; what was made from it in the same iteration it does not.
    """
    return torch.int16 if dtype.itemsize == 2 else dtype


def as_index(number: torch.Tensor) -> torch.Tensor | int:
    """A number that chooses along a dimension; the interpreter takes one in a tensor for many of them."""
    return int(number) if interpreting() else number


@helion.kernel(static_shapes=False, dot_precision="ieee")
def paged_attention_varlen(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    out: torch.Tensor,
    num_kv_heads: hl.constexpr,
    group: hl.constexpr,
    block_size: hl.constexpr,
    scale: hl.constexpr,
    window: hl.constexpr,
    soft_cap: hl.constexpr,
    least_query_len: hl.constexpr,
    packed: hl.constexpr,
    late: hl.constexpr,
    programmatic: hl.constexpr,
    kv_tile: hl.constexpr,
) -> None:
    """Rows of any number of query tokens; those with fewer than ``least_query_len`` are left to others.

    query [M * num_heads, head_dim]; kv_cache [slots * 2 * num_kv_heads * head_dim]; out like query. A row's tokens and
    the heads of a group are packed into one dimension, ``packed`` of which make a tile, so that a key is read once for
    all heads that share it. ``kv_tile`` keys are a tile of them. ``scale`` is positive.

    Which row a tile belongs to is found on the device: row r's tiles begin at number
    query_start_loc[r] * group // packed + r, which leaves room enough for each. What follows the last row is one more
    row, of padding, and comes out as 0.

    ``late``: a tile's values are weighted in the iteration after the one that finds the weights, so that the matrix
    unit has that to do while the next weights are found (Shah et al., 2024, "FlashAttention-3", section 3.2).
    """
    head_dim = hl.specialize(query.size(1))
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
        begin = (tile - first_token * group // packed - row).to(torch.int32) * packed
        end = torch.maximum(torch.minimum(begin + packed, query_len * group), begin)
        end = torch.where(is_row & (query_len < least_query_len), begin, end)
        # Indices are plain ranges from here on: for those of its own tiles Helion would mask every score, twice.
        if begin < end:
            dim = hl.arange(helion.next_power_of_2(head_dim))
            index = begin + hl.arange(packed)
            is_query = index < end
            flat = (first_token + index // group) * num_heads + kv_head * group + index % group
            position = prefix + index // group
            is_query = elements(is_query, dim, head_dim)
            q = hl.load(query, [flat, dim], extra_mask=is_query)
            m = hl.full([packed], -3.0e38, dtype=torch.float32)
            l = hl.zeros([packed], dtype=torch.float32)
            acc = hl.zeros([packed, helion.next_power_of_2(head_dim)], dtype=torch.float32)
            # Keys from all_begin to all_end are seen by every query of the tile, those outside kv_begin to kv_end by
            # none.
            all_end = prefix + begin // group + 1
            kv_end = torch.where(seq_len > 0, prefix + (end - 1) // group + 1, 0)
            kv_begin = kv_end * 0
            all_begin = kv_begin
            if window is not None:
                all_begin = torch.maximum(kv_end - window, kv_begin)
                kv_begin = torch.maximum(all_end - window, kv_begin) // block_size * block_size
            # Places in the cache, in elements: of a token's first key head in its block, and of its block.
            table_row = as_index(some_row)
            per_token = 2 * num_kv_heads * head_dim
            values = num_kv_heads * head_dim
            key = kv_begin + hl.arange(kv_tile)
            place = place_in_block(key, block_size) * per_token + kv_head * head_dim
            block = hl.load(block_table, [table_row, block_of(key, block_size)], extra_mask=key < kv_end)
            if late:
                weights = hl.zeros([packed, kv_tile], dtype=bits_of(kv_cache.dtype))
                rescale = hl.full([packed], 1.0, dtype=torch.float32)
                at = hl.zeros([kv_tile], dtype=torch.int64)
                # The last tile's values have no iteration after them.
                last = key + torch.maximum(kv_end - 1 - kv_begin, kv_begin * 0) // kv_tile * kv_tile
                last_block = hl.load(block_table, [table_row, block_of(last, block_size)], extra_mask=last < kv_end)
                last_place = place_in_block(last, block_size) * per_token + kv_head * head_dim + values
                last_at = last_block.to(torch.int64) * (block_size * per_token) + last_place
                is_last = elements(last < kv_end, dim, head_dim)
                last_v = hl.load(kv_cache, [last_at[:, None] + dim[None, :]], extra_mask=is_last)
            for begin_t in hl.grid(kv_begin, kv_end, kv_tile):
                key = begin_t + hl.arange(kv_tile)
                is_key = elements(key < kv_end, dim, head_dim)
                if kv_tile % block_size != 0:
                    place = place_in_block(key, block_size) * per_token + kv_head * head_dim
                if late:
                    is_before = elements(key >= kv_begin + kv_tile, dim, head_dim)
                    v = hl.load(kv_cache, [at[:, None] + (dim[None, :] + values)], extra_mask=is_before)
                at = block.to(torch.int64) * (block_size * per_token) + place
                k = hl.load(kv_cache, [at[:, None] + dim[None, :]], extra_mask=is_key)
                scores = dot(q, k.transpose(0, 1))
                if late:
                    acc = dot(weights.view(kv_cache.dtype), v, acc * rescale[:, None])
                else:
                    v = hl.load(kv_cache, [at[:, None] + (dim[None, :] + values)], extra_mask=is_key)
                if soft_cap is not None:
                    scores = torch.tanh(scores * (scale / soft_cap)) * (soft_cap / scale)
                if (begin_t + kv_tile > all_end) | (begin_t < all_begin):
                    # In a variable: of a branch that sets only one, Helion 1.5 looks for the wrong result.
                    is_seen = seen(key, position, window)
                    scores = torch.where(is_seen, scores, float("-inf"))
                p, alpha, m = weighted(scores, m, scale)
                l = l * alpha + torch.sum(p, -1)
                if late:
                    weights = p.to(kv_cache.dtype).view(bits_of(kv_cache.dtype))
                    rescale = alpha
                else:
                    acc = dot(p.to(kv_cache.dtype), v, acc * alpha[:, None])
                # The blocks of the next tile are found while this one is computed: Triton gives loads by way of a load
                # that is made in the same iteration only a part of the pipeline.
                after = key + kv_tile
                block = hl.load(block_table, [table_row, block_of(after, block_size)], extra_mask=after < kv_end)
            if late:
                acc = dot(weights.view(kv_cache.dtype), last_v, acc * rescale[:, None])
            result = torch.where((l == 0)[:, None], 0.0, acc / l[:, None]).to(out.dtype)
            hl.store(out, [flat, dim], result, extra_mask=is_query)
