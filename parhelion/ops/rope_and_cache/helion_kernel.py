"""``rope_and_cache`` as a tile program: a program takes some heads of one token, halves apart."""

from __future__ import annotations

import functools
from typing import Any

import helion
import helion.language as hl
import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.helion_provider import Runner
from parhelion.ops.rope_and_cache.contract import RopeAndCache

FEW_TOKENS = 32
"""Up to here a program takes half as many heads, so that more of the device has something to do."""


@helion.kernel(static_shapes=False)
def rope_and_cache(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache: torch.Tensor,
    cos_sin: torch.Tensor,
    query: torch.Tensor,
    num_heads: hl.constexpr,
    num_kv_heads: hl.constexpr,
) -> None:
    """Heads lie in halves: qkv [M, heads, 2, half], query alike, kv_cache [slots * 2 * num_kv_heads, 2, half],
    cos_sin [max_position, 2, half].
    """
    num_tokens, all_heads, _, half = qkv.size()
    all_heads = hl.specialize(all_heads)
    half = hl.specialize(half)
    # One tile holds a whole half, and its mask is what makes a store of some of the heads a store of their elements.
    for tile_m, tile_h, tile_d in hl.tile(
        [num_tokens, all_heads, half], block_size=[1, None, helion.next_power_of_2(half)]
    ):
        token = tile_m.begin
        heads = tile_h.index
        raw1 = qkv[token, tile_h, 0, tile_d]
        raw2 = qkv[token, tile_h, 1, tile_d]
        x1 = raw1.to(torch.float32)
        x2 = raw2.to(torch.float32)
        position = positions[token]
        cos = cos_sin[position, 0, tile_d][None, :]
        sin = cos_sin[position, 1, tile_d][None, :]
        is_value = (heads >= num_heads + num_kv_heads)[:, None]
        out1 = torch.where(is_value, raw1, (x1 * cos - x2 * sin).to(raw1.dtype))
        out2 = torch.where(is_value, raw2, (x2 * cos + x1 * sin).to(raw2.dtype))
        is_query = (heads < num_heads)[:, None]
        hl.store(query, [token, tile_h, 0, tile_d], out1, extra_mask=is_query)
        hl.store(query, [token, tile_h, 1, tile_d], out2, extra_mask=is_query)
        # Slots are int64, and so is all that follows from them: a cache may have more than 2^31 elements.
        slot = slot_mapping[token]
        place = slot * (2 * num_kv_heads) + heads - num_heads
        is_stored = ((heads >= num_heads) & (slot >= 0))[:, None]
        hl.store(kv_cache, [place, 0, tile_d], out1, extra_mask=is_stored)
        hl.store(kv_cache, [place, 1, tile_d], out2, extra_mask=is_stored)


def launch(
    contract: RopeAndCache,
    run: Runner,
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache: torch.Tensor,
    cos_sin: torch.Tensor,
) -> Tensors:
    """See ``RopeAndCache``."""
    c = contract
    query = qkv.new_empty((qkv.shape[0], c.num_heads * c.head_dim))
    run(
        rope_and_cache,
        heads_config(c.num_heads + 2 * c.num_kv_heads, c.head_dim, qkv.shape[0]),
        in_halves(qkv, c.head_dim),
        positions,
        slot_mapping,
        kv_cache.view(-1, 2, c.head_dim // 2),
        cos_sin.view(-1, 2, c.head_dim // 2),
        in_halves(query, c.head_dim),
        c.num_heads,
        c.num_kv_heads,
    )
    return query, kv_cache


def in_halves(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[M, heads * head_dim] as [M, heads, 2, head_dim / 2]; its rows may lie apart."""
    return x.unflatten(1, (-1, 2, head_dim // 2))


def heads_config(num_heads: int, head_dim: int, num_tokens: int) -> Any:
    """The untuned config of programs over (tokens, heads): about 2,048 elements a program, 16 a thread."""
    elements = 1024 if num_tokens <= FEW_TOKENS else 2048
    heads = max(1, min(elements // head_dim, 1 << (num_heads - 1).bit_length()))
    heads = 1 << (heads.bit_length() - 1)
    return _config(heads, max(1, min(4, 1 << (heads * head_dim // 512).bit_length() - 1)))


@functools.lru_cache
def _config(heads: int, num_warps: int) -> Any:
    # Neighbouring programs take neighbouring heads of a token, not the same heads of neighbouring tokens.
    return helion.Config(block_sizes=[heads], loop_orders=[[1, 0, 2]], num_warps=num_warps, num_stages=1)
