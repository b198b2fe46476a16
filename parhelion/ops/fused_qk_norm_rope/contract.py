"""``fused_qk_norm_rope``: norms of query and key heads, rotation and the write to the KV cache, in one launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn, rounded, wide
from parhelion.ops.rms_norm.contract import normalized
from parhelion.ops.rope_and_cache.contract import (
    RopeAndCache,
    angles,
    heads_traffic,
    rotated,
    sample_heads,
    split_heads,
    stored,
)


@dataclass(frozen=True)
class FusedQkNormRope(Contract):
    """``rms_norm`` of each query and key head over head_dim, then ``rope_and_cache``; rounded once, at the end.

    Inputs: those of ``RopeAndCache``, then q_weight [head_dim] and k_weight [head_dim].
    Outputs: query [M, num_heads * head_dim], and kv_cache, which is written in place. A launcher may overwrite qkv.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    epsilon: float
    block_size: int
    max_position: int
    dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "fused_qk_norm_rope"
    free: ClassVar[tuple[str, ...]] = ("max_position",)
    outputs: ClassVar[tuple[Output, ...]] = RopeAndCache.outputs
    mutated: ClassVar[tuple[int, ...]] = (3,)
    num_weights: ClassVar[int] = 3

    @property
    def without_norm(self) -> RopeAndCache:
        """The same heads in ``rope_and_cache``."""
        return RopeAndCache(
            self.num_heads, self.num_kv_heads, self.head_dim, self.block_size, self.max_position, self.dtype
        )

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        heads = sample_heads(self.without_norm, num_tokens, device, generator)
        weights = tuple(randn((self.head_dim,), self.dtype, device, generator) for _ in range(2))
        return (*heads, *weights)

    def reference(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        kv_cache: torch.Tensor,
        cos_sin: torch.Tensor,
        q_weight: torch.Tensor,
        k_weight: torch.Tensor,
    ) -> Tensors:
        query, key, value = split_heads(wide(qkv), self.num_heads, self.num_kv_heads, self.head_dim)
        cos, sin = angles(cos_sin, positions, query.dtype)
        query = rotated(normalized(query, wide(q_weight), self.epsilon), cos, sin)
        key = rotated(normalized(key, wide(k_weight), self.epsilon), cos, sin)
        return rounded(query, self.dtype).flatten(1), stored(kv_cache, slot_mapping, torch.cat((key, value), 1))

    def traffic(self, num_tokens: int) -> Traffic:
        rope = heads_traffic(self.without_norm, num_tokens)
        normed = num_tokens * (self.num_heads + self.num_kv_heads) * self.head_dim
        return Traffic(rope.bytes + 2 * self.head_dim * self.dtype.itemsize, rope.flops + 4 * normed)
