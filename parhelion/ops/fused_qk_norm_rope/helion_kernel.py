"""``fused_qk_norm_rope`` as a tile program: a program takes some heads of one token, halves apart."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor


@helion.kernel(static_shapes=False)
def fused_qk_norm_rope(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache: torch.Tensor,
    cos_sin: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    query: torch.Tensor,
    epsilon: float,
    num_heads: hl.constexpr,
    num_kv_heads: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    """Heads lie in halves: qkv [M, heads, 2, half], query alike, kv_cache [slots * 2 * num_kv_heads, 2, half],
    cos_sin [max_position, 2, half], weights [2, half].
    """
    num_tokens, all_heads, _, half = qkv.size()
    all_heads = hl.specialize(all_heads)
    half = hl.specialize(half)
    # One tile holds a whole half, and its mask is what makes a store of some of the heads a store of their elements.
    for tile_m, tile_h, tile_d in hl.tile(
        [num_tokens, all_heads, half], block_size=[1, None, helion.next_power_of_2(half)]
    ):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        token = tile_m.begin
        heads = tile_h.index
        is_query = (heads < num_heads)[:, None]
        is_value = (heads >= num_heads + num_kv_heads)[:, None]
        raw1 = qkv[token, tile_h, 0, tile_d]
        raw2 = qkv[token, tile_h, 1, tile_d]
        x1 = raw1.to(torch.float32)
        x2 = raw2.to(torch.float32)
        squares = torch.sum(x1 * x1, dim=-1) + torch.sum(x2 * x2, dim=-1)
        factor = torch.rsqrt(squares / (2 * half) + epsilon)[:, None]
        weight1 = torch.where(is_query, q_weight[0, tile_d][None, :], k_weight[0, tile_d][None, :])
        weight2 = torch.where(is_query, q_weight[1, tile_d][None, :], k_weight[1, tile_d][None, :])
        x1 = x1 * factor * weight1.to(torch.float32)
        x2 = x2 * factor * weight2.to(torch.float32)
        position = positions[token]
        cos = cos_sin[position, 0, tile_d][None, :]
        sin = cos_sin[position, 1, tile_d][None, :]
        out1 = torch.where(is_value, raw1, (x1 * cos - x2 * sin).to(raw1.dtype))
        out2 = torch.where(is_value, raw2, (x2 * cos + x1 * sin).to(raw2.dtype))
        hl.store(query, [token, tile_h, 0, tile_d], out1, extra_mask=is_query)
        hl.store(query, [token, tile_h, 1, tile_d], out2, extra_mask=is_query)
        # Slots are int64, and so is all that follows from them: a cache may have more than 2^31 elements.
        slot = slot_mapping[token]
        place = slot * (2 * num_kv_heads) + heads - num_heads
        is_stored = ((heads >= num_heads) & (slot >= 0))[:, None]
        hl.store(kv_cache, [place, 0, tile_d], out1, extra_mask=is_stored)
        hl.store(kv_cache, [place, 1, tile_d], out2, extra_mask=is_stored)
