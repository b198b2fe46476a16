"""``rope_and_cache``: rotary position embedding (Su et al., 2021) and the write to the KV cache, in one launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn, rounded, wide


@dataclass(frozen=True)
class RopeAndCache(Contract):
    """Rotate each query and key head by its token's angles; store keys and values at the token's slot.

    The rotation is the half-rotation form of GPT-NeoX and Llama checkpoints: with x1, x2 the halves of a head,
    out1 = x1 * cos - x2 * sin and out2 = x2 * cos + x1 * sin, computed in float32 and rounded once.

    Inputs:
        qkv [M, (num_heads + 2 * num_kv_heads) * head_dim]: query heads, key heads, value heads.
        positions [M] int64, below max_position.
        slot_mapping [M] int64: block_id * block_size + offset; -1 stores nothing. No slot stands there twice.
        kv_cache [num_blocks, block_size, 2 * num_kv_heads, head_dim]: keys first; written in place.
        cos_sin [max_position, head_dim] float32: cosines, then sines.
    Outputs: query [M, num_heads * head_dim], rotated, and kv_cache. A launcher may overwrite qkv.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    max_position: int
    dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "rope_and_cache"
    free: ClassVar[tuple[str, ...]] = ("max_position",)
    # Half a step of bfloat16 is 2^-9 of the value; over many elements the norm of the error is about half of that.
    outputs: ClassVar[tuple[Output, ...]] = (Output("query", relative=4e-3), Output("kv_cache", relative=4e-3))
    mutated: ClassVar[tuple[int, ...]] = (3,)
    num_weights: ClassVar[int] = 1

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        return sample_heads(self, num_tokens, device, generator)

    def reference(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        kv_cache: torch.Tensor,
        cos_sin: torch.Tensor,
    ) -> Tensors:
        query, key, value = split_heads(wide(qkv), self.num_heads, self.num_kv_heads, self.head_dim)
        cos, sin = angles(cos_sin, positions, query.dtype)
        query = rounded(rotated(query, cos, sin), self.dtype).flatten(1)
        return query, stored(kv_cache, slot_mapping, torch.cat((rotated(key, cos, sin), value), 1))

    def traffic(self, num_tokens: int) -> Traffic:
        return heads_traffic(self, num_tokens)


def split_heads(
    qkv: torch.Tensor, num_heads: int, num_kv_heads: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views of the query, key and value heads, each [M, heads, head_dim]."""
    heads = qkv.view(qkv.shape[0], num_heads + 2 * num_kv_heads, head_dim)
    query, key, value = heads.split((num_heads, num_kv_heads, num_kv_heads), 1)
    return query, key, value


def angles(cos_sin: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the tokens, each [M, 1, head_dim / 2]."""
    cos, sin = cos_sin[positions].to(dtype)[:, None].chunk(2, -1)
    return cos, sin


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads [M, heads, head_dim] turned by angles [M, 1, head_dim / 2]; shared by every contract that rotates."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def stored(kv_cache: torch.Tensor, slot_mapping: torch.Tensor, key_value: torch.Tensor) -> torch.Tensor:
    """A copy of the cache with keys and values [M, 2 * num_kv_heads, head_dim] at their slots."""
    return store_(kv_cache.clone(), slot_mapping, key_value)


def store_(kv_cache: torch.Tensor, slot_mapping: torch.Tensor, key_value: torch.Tensor) -> torch.Tensor:
    """Write keys and values [M, 2 * num_kv_heads, head_dim] to their slots, without a word to the host.

    Padding tokens, whose slot is -1, repeat what the first real token writes; if there is none, they write back what
    slot 0 holds. So shapes do not depend on how many there are.
    """
    flat = kv_cache.view(-1, *kv_cache.shape[2:])
    real = slot_mapping >= 0
    first = real.int().argmax()
    tokens = torch.where(real, torch.arange(len(slot_mapping), device=slot_mapping.device), first)
    slots = slot_mapping[tokens].clamp(min=0)
    values = torch.where(real.any(), key_value[tokens].to(flat.dtype), flat[:1])
    flat.index_copy_(0, slots, values)
    return kv_cache


def rotary_table(max_position: int, head_dim: int, base: float = 1e6) -> torch.Tensor:
    """[max_position, head_dim] float32: the cosines, then the sines, of positions times inverse frequencies."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turned = torch.outer(torch.arange(max_position, dtype=torch.float64), frequencies)
    return torch.cat((turned.cos(), turned.sin()), -1).float()


def sample_heads(c: RopeAndCache, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
    """Inputs of ``rope_and_cache``: tokens at random positions and slots."""
    num_blocks = -(-num_tokens // c.block_size) + 2
    slots = torch.randperm(num_blocks * c.block_size, generator=generator)[:num_tokens]
    return (
        randn((num_tokens, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim), c.dtype, device, generator),
        torch.randint(c.max_position, (num_tokens,), generator=generator).to(device),
        slots.to(device),
        randn((num_blocks, c.block_size, 2 * c.num_kv_heads, c.head_dim), c.dtype, device, generator),
        rotary_table(c.max_position, c.head_dim).to(device),
    )


def heads_traffic(c: RopeAndCache, num_tokens: int) -> Traffic:
    """qkv read, query and the cache's slots written; positions, slots and the tokens' rows of the table read.

    A rotation is 3 operations an element of the query and key heads.
    """
    elements = num_tokens * (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    rotations = num_tokens * (c.num_heads + c.num_kv_heads) * c.head_dim
    return Traffic(2 * elements * c.dtype.itemsize + num_tokens * (16 + 4 * c.head_dim), 3 * rotations)
