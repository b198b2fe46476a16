"""``fused_rope_attention`` for rows with a single token as one tile program, and what puts its parts together.

What ``fused_qk_norm_rope`` and ``paged_attention`` do with such rows, in one launch: a program makes its own queries
from the projection's output, and the one that comes to a row's last token stores that token's key and value. Where a
row's keys are spread over several programs, a second launch combines what they have found. The last of them could do
that, but a program that waits for its stores, counts itself and reads the others' takes longer than the launch.
"""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.interpreting import interpreting
from parhelion.ops.l2_prefetch import prefetch
from parhelion.ops.paged_attention.blocks import block_of, place_in_block
from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.quantize import codes_of, scales_of
from parhelion.ops.tile_dot import dot

LOG2_E = 1.4426950408889634


def dims(size: int) -> torch.Tensor:
    """0 to ``size``; the interpreter wants all that it is given together to be of one type."""
    return hl.arange(size, dtype=torch.int64) if interpreting() else hl.arange(size)


def inside(number: int, size: int) -> int:
    """A number that may be beyond a dimension where its loads are masked: the interpreter looks there all the same."""
    return min(number, size - 1) if interpreting() else number


def exponents(scores: torch.Tensor, scale: float, soft_cap: float | None) -> torch.Tensor:
    """Scores as exponents of two."""
    if soft_cap is None:
        return scores * (scale * LOG2_E)
    return torch.tanh(scores * (scale / soft_cap)) * (soft_cap * LOG2_E)


@helion.kernel(static_shapes=False, dot_precision="ieee")
def rope_attention_decode(
    qkv: torch.Tensor,
    flat_qkv: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache: torch.Tensor,
    cos_sin: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    parts: torch.Tensor,
    lse: torch.Tensor,
    epsilon: float,
    block_size: hl.constexpr,
    scale: hl.constexpr,
    window: hl.constexpr,
    soft_cap: hl.constexpr,
    is_split: hl.constexpr,
    programmatic: hl.constexpr,
    ahead: hl.constexpr,
    prefetched: hl.constexpr,
    lookup_ahead: hl.constexpr,
    kv_tile: hl.constexpr,
) -> None:
    """Split s of row r, which is token r.

    Where heads are rotated they lie in halves: qkv [M, num_heads + 2 * num_kv_heads, 2, half], cos_sin [max_position,
    2, half], weights [2, half]; half is a power of two.

    Args:
        flat_qkv: qkv with whole heads, [M, num_heads + 2 * num_kv_heads, head_dim].
        kv_cache: [slots * 2 * num_kv_heads * head_dim].
        q_weight, k_weight: None: heads are not normalized.
        parts: what a split has found, [M, splits, num_kv_heads, group, head_dim], in float32 if ``is_split``.
        lse: float32 [M, splits, num_kv_heads, group], the base-2 logarithms of the sums; written if ``is_split``.
        ahead: of a split's keys, how many are read, with their values, before it waits for its predecessor; a power of
            two, or 0. What earlier steps left in the cache changes no more.
        prefetched: how many of the keys behind those, with their values, it asks for meanwhile, so that they are in the
            L2 cache by then; a power of two, or 0, which it must be unless ``programmatic``.
        lookup_ahead: a tile's block numbers are loaded while the tile before it is computed, not when its keys are.
        kv_tile: keys of a tile; None leaves it to the config.
    """
    num_rows, num_splits, num_kv_heads, group = lse.size()
    num_kv_heads = hl.specialize(num_kv_heads)
    group = hl.specialize(group)
    half = hl.specialize(qkv.size(3))
    keys = hl.register_block_size(128) if kv_tile is None else kv_tile
    # A group's heads are the rows of the dot products, which have at least 16.
    for tile_r, tile_k, tile_s, tile_g, tile_d in hl.tile(
        [num_rows, num_kv_heads, num_splits, group, half],
        block_size=[1, 1, 1, max(16, helion.next_power_of_2(group)), half],
    ):
        start_successor(programmatic)
        row = tile_r.begin
        kv_head = tile_k.begin
        split = tile_s.begin
        dim = dims(2 * half)
        seq_len = seq_lens[row]
        position = positions[row]
        slot = slot_mapping[row]
        cos = cos_sin[position, 0, tile_d]
        sin = cos_sin[position, 1, tile_d]
        first = seq_len * 0
        if window is not None:
            first = torch.maximum(seq_len - window, first)
        # Of 32 bits, as the lengths are: a processor's registers are what limits its programs.
        share = ((seq_len - first + num_splits * 16 - 1) // (num_splits * 16) * 16).to(torch.int32)
        begin = (first + split * share).to(torch.int32)
        end = torch.maximum(torch.minimum(begin + share, seq_len), begin)
        # The row's own token comes from qkv, whoever stores it and when.
        owns = (end == seq_len) & (begin < seq_len)
        old_end = torch.where(owns, end - 1, end)
        # Places in the cache, in elements: of a token's key of this head, and of its value behind it.
        per_token = 2 * num_kv_heads * (2 * half)
        values = num_kv_heads * (2 * half)
        own_head = kv_head * (2 * half)
        if ahead > 0:
            early = begin + hl.arange(ahead)
            is_early = early < old_end
            early_block = hl.load(block_table, [row, block_of(early, block_size)], extra_mask=is_early).to(torch.int64)
            early_at = early_block * (block_size * per_token) + (
                place_in_block(early, block_size) * per_token + own_head
            )
            early_place = early_at[:, None] + dim[None, :]
            early_key = hl.load(kv_cache, [early_place], extra_mask=is_early[:, None])
            early_value = hl.load(kv_cache, [early_place + values], extra_mask=is_early[:, None])
        if prefetched > 0:
            soon = begin + ahead + hl.arange(prefetched)
            soon_block = hl.load(block_table, [row, block_of(soon, block_size)], extra_mask=soon < old_end)
            soon_at = soon_block.to(torch.int64) * (block_size * per_token)
            soon_at = soon_at + (place_in_block(soon, block_size) * per_token + own_head)
            # Of keys that there are not, those of block 0 are asked for, which there always is.
            # A line has 64 elements of two bytes.
            offsets = soon_at[:, None] + (hl.arange(half // 32) * 64)[None, :]
            prefetch(kv_cache, offsets)
            prefetch(kv_cache, offsets + values)
        wait_for_predecessor(programmatic)
        heads = kv_head * group + tile_g.index
        key_head = num_kv_heads * group + kv_head
        q1 = qkv[row, heads, 0, tile_d].to(torch.float32)
        q2 = qkv[row, heads, 1, tile_d].to(torch.float32)
        k1 = qkv[row, key_head, 0, tile_d].to(torch.float32)
        k2 = qkv[row, key_head, 1, tile_d].to(torch.float32)
        value = hl.load(flat_qkv, [row, key_head + num_kv_heads, dim])
        if q_weight is not None:
            q_factor = torch.rsqrt((torch.sum(q1 * q1, -1) + torch.sum(q2 * q2, -1)) / (2 * half) + epsilon)
            q1 = q1 * q_factor[:, None] * q_weight[0, tile_d].to(torch.float32)[None, :]
            q2 = q2 * q_factor[:, None] * q_weight[1, tile_d].to(torch.float32)[None, :]
            k_factor = torch.rsqrt((torch.sum(k1 * k1, -1) + torch.sum(k2 * k2, -1)) / (2 * half) + epsilon)
            k1 = k1 * k_factor * k_weight[0, tile_d].to(torch.float32)  # type: ignore[index]
            k2 = k2 * k_factor * k_weight[1, tile_d].to(torch.float32)  # type: ignore[index]
        query1 = (q1 * cos[None, :] - q2 * sin[None, :]).to(qkv.dtype)
        query2 = (q2 * cos[None, :] + q1 * sin[None, :]).to(qkv.dtype)
        query = hl.join(query1, query2).permute(0, 2, 1).reshape(query1.size(0), 2 * half)
        key1 = (k1 * cos - k2 * sin).to(qkv.dtype)
        key2 = (k2 * cos + k1 * sin).to(qkv.dtype)
        key = hl.join(key1, key2).permute(1, 0).reshape(2 * half)
        m = hl.full([tile_g], -3.0e38, dtype=torch.float32)
        l = hl.zeros([tile_g], dtype=torch.float32)
        acc = hl.zeros([tile_g, 2 * half], dtype=torch.float32)
        later = begin
        if ahead > 0:
            early_scores = exponents(dot(query, early_key.transpose(0, 1)), scale, soft_cap)
            early_scores = torch.where((early < old_end)[None, :], early_scores, float("-inf"))
            m = torch.maximum(m, torch.amax(early_scores, -1))
            early_p = torch.exp2(early_scores - m[:, None])
            l = torch.sum(early_p, -1)
            acc = dot(early_p.to(early_value.dtype), early_value)
            later = torch.minimum(begin + ahead, old_end)
        # Triton gives loads by way of a load that is made in the same iteration only half of the pipeline. One that is
        # made in the iteration before and carried to this one is not pipelined: every iteration waits for it.
        if lookup_ahead:
            tokens = later + hl.arange(keys)
            block = hl.load(block_table, [row, block_of(tokens, block_size)], extra_mask=tokens < old_end)
        for tile_t in hl.tile(later, old_end, block_size=keys):
            token = tile_t.begin + hl.arange(keys)
            is_old = token < old_end
            if not lookup_ahead:
                block = hl.load(block_table, [row, block_of(token, block_size)], extra_mask=is_old)
            at = block.to(torch.int64) * (block_size * per_token)
            at = at + (place_in_block(token, block_size) * per_token + own_head)
            old = at[:, None] + dim[None, :]
            old_key = hl.load(kv_cache, [old], extra_mask=is_old[:, None])
            scores = exponents(dot(query, old_key.transpose(0, 1)), scale, soft_cap)
            scores = torch.where(is_old[None, :], scores, float("-inf"))
            old_value = hl.load(kv_cache, [old + values], extra_mask=is_old[:, None])
            new_m = torch.maximum(m, torch.amax(scores, -1))
            p = torch.exp2(scores - new_m[:, None])
            alpha = torch.exp2(m - new_m)
            l = l * alpha + torch.sum(p, -1)
            acc = dot(p.to(old_value.dtype), old_value, acc * alpha[:, None])
            m = new_m
            if lookup_ahead:
                after = tile_t.end + hl.arange(keys)
                block = hl.load(block_table, [row, block_of(after, block_size)], extra_mask=after < old_end)
        # Behind the loop: before it, Helion would have its loads wait for the store, one after the other.
        if owns & (slot >= 0):
            # Slots are int64, and so is all that follows from them: a cache may have more than 2^31 elements.
            place = slot * per_token + own_head + dim
            hl.store(kv_cache, [place], key)
            hl.store(kv_cache, [place + values], value)
        product = torch.sum(query.to(torch.float32) * key.to(torch.float32)[None, :], -1)
        own = torch.where(owns, exponents(product, scale, soft_cap), float("-inf"))
        last_m = torch.maximum(m, own)
        own_p = torch.exp2(own - last_m)
        old_p = torch.exp2(m - last_m)
        sums = l * old_p + own_p
        weight = own_p.to(qkv.dtype).to(torch.float32)
        mean = (acc * old_p[:, None] + weight[:, None] * value.to(torch.float32)[None, :]) / sums[:, None]
        result = torch.where((sums == 0)[:, None], 0.0, mean)
        parts[row, split, kv_head, tile_g, :] = result.to(parts.dtype)
        if is_split:
            lse[row, split, kv_head, tile_g] = torch.where(sums == 0, float("-inf"), last_m + torch.log2(sums))


@helion.kernel(static_shapes=False)
def combine_and_quantize(
    parts: torch.Tensor,
    lse: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    most_splits: hl.constexpr,
    together: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    """What the splits of each row have found, weighted by their sums and quantized; a program takes a row.

    parts [M, splits, num_heads, head_dim] float32, lse [M, splits, num_heads], codes [M, num_heads, head_dim],
    scales [M]. There are at most ``most_splits``, of which ``together`` are added up at a time; powers of two.
    """
    num_rows, num_splits, num_heads, head_dim = parts.size()
    num_heads = hl.specialize(num_heads)
    head_dim = hl.specialize(head_dim)
    for tile_r in hl.tile(num_rows, block_size=1):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        row = tile_r.begin
        head = dims(helion.next_power_of_2(num_heads))
        dim = dims(head_dim)
        is_head = head < num_heads
        split = dims(most_splits)
        logs = hl.load(lse, [row, split, head], extra_mask=(split < num_splits)[:, None] & is_head[None, :])
        logs = torch.where((split < num_splits)[:, None], logs, float("-inf"))
        highest = torch.clamp(torch.amax(logs, 0), min=-3.0e38)
        total_weight = hl.zeros([helion.next_power_of_2(num_heads)], dtype=torch.float32)
        total = hl.zeros([helion.next_power_of_2(num_heads), head_dim], dtype=torch.float32)
        for tile_s in hl.tile(num_splits, block_size=together):
            for number in range(together):
                part = tile_s.begin + number
                is_part = is_head & (part < num_splits)
                part = inside(part, num_splits)
                log = hl.load(lse, [row, part, head], extra_mask=is_part)
                weight = torch.where(is_part, torch.exp2(log - highest), 0.0)
                found = hl.load(parts, [row, part, head, dim], extra_mask=is_part[:, None])
                total_weight = total_weight + weight
                total = total + found * weight[:, None]
        values = torch.where((total_weight == 0)[:, None], 0.0, total / total_weight[:, None])
        scale = scales_of(torch.amax(torch.amax(torch.abs(values), -1), -1), codes.dtype)
        hl.store(codes, [row, head, dim], codes_of(values, 1.0 / scale, codes.dtype), extra_mask=is_head[:, None])
        scales[row] = scale
