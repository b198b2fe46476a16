"""Self-attention: project, normalize and rotate heads, attend over the paged cache, project back."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parhelion.layers.linear import Linear
from parhelion.layers.norm import RMSNorm
from parhelion.ops.attention import AttentionMetadata, PagedAttention
from parhelion.ops.elementwise import ElementwiseOps


@dataclass(frozen=True)
class SelfAttention:
    """Grouped-query attention with rotary positions (Ainslie et al., 2023).

    Attributes:
        qkv: hidden to (num_heads + 2 * num_kv_heads) * head_dim, queries first, then keys, then values.
        out: num_heads * head_dim to hidden.
        attend: the paged attention of this shape.
        q_norm, k_norm: normalization of each head before rotation (Qwen3), or None.
        sliding_window: tokens that a query sees, or None.
        ops: who computes the rotation.
    """

    qkv: Linear
    out: Linear
    attend: PagedAttention
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    sliding_window: int | None
    ops: ElementwiseOps

    def __call__(
        self,
        hidden: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        cache: torch.Tensor,
        metadata: AttentionMetadata,
    ) -> torch.Tensor:
        """[num_tokens, hidden] to the same; cache is [num_blocks, block_size, 2 * num_kv_heads, head_dim]."""
        heads = self.attend.num_heads
        rotated = heads + self.attend.num_kv_heads
        qkv = self.qkv(hidden).view(hidden.shape[0], -1, self.attend.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            qkv[:, :heads] = self.q_norm(qkv[:, :heads])
            qkv[:, heads:rotated] = self.k_norm(qkv[:, heads:rotated])
        self.ops.rotary_embedding(qkv[:, :rotated], *rotation)
        return self.out(self.attend(qkv[:, :heads], qkv[:, heads:], cache, metadata, self.sliding_window))
