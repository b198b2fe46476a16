"""``paged_attention`` on a CPU: gather a row's blocks and let torch's fused attention do the rest.

A single decode row whose blocks lie side by side, the common case for one user, is attended to in place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from parhelion.ops.attention.metadata import AttentionMetadata, DecodeGroup, PrefillRow


class PagedAttention:
    """Attention of one model's shape, with the scratch memory that its gathers reuse from layer to layer.

    Args:
        num_heads, num_kv_heads, head_dim: the model's.
        scale: factor of the scores, usually head_dim ** -0.5.
    """

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, scale: float) -> None:
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.scale = scale
        self._scratch: torch.Tensor | None = None

    def __call__(
        self,
        query: torch.Tensor,
        key_value: torch.Tensor,
        cache: torch.Tensor,
        metadata: AttentionMetadata,
        sliding_window: int | None = None,
    ) -> torch.Tensor:
        """Append keys and values to the cache, then attend.

        Args:
            query: [num_tokens, num_heads, head_dim], rotated.
            key_value: [num_tokens, 2 * num_kv_heads, head_dim], the keys (rotated) first.
            cache: [num_blocks, block_size, 2 * num_kv_heads, head_dim], likewise; written in place.
            metadata: of the step.
            sliding_window: of this layer.

        Returns:
            [num_tokens, num_heads * head_dim].
        """
        cache.view(-1, *key_value.shape[1:]).index_copy_(0, metadata.slot_mapping, key_value)
        num_tokens = query.shape[0]
        decodes = metadata.decodes
        if decodes is not None and decodes.num_rows == num_tokens:
            return self._decode(query, cache, decodes, sliding_window).view(num_tokens, -1)
        out = torch.empty_like(query)
        if decodes is not None:
            out[: decodes.num_rows] = self._decode(query[: decodes.num_rows], cache, decodes, sliding_window)
        for row in metadata.prefills:
            rows = slice(row.first_token, row.last_token)
            out[rows] = self._prefill(query[rows], key_value[rows], cache, row, sliding_window)
        return out.view(num_tokens, -1)

    def _decode(self, query: torch.Tensor, cache: torch.Tensor, group: DecodeGroup, window: int | None) -> torch.Tensor:
        # The heads that share a key head see the same keys: they become that head's "tokens", so nothing is repeated.
        query = query.view(group.num_rows, self.num_kv_heads, -1, self.head_dim)
        if group.first_block is not None:
            first = group.first_block * cache.shape[1]
            key_value = cache.view(1, -1, *cache.shape[2:])[:, first : first + group.longest]
        else:
            key_value = self._gather(cache, group.blocks, group.num_rows)
        keys, values = key_value.transpose(1, 2).chunk(2, dim=1)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=group.masks[window], scale=self.scale)
        return out.reshape(group.num_rows, self.num_heads, self.head_dim)

    def _prefill(
        self,
        query: torch.Tensor,
        key_value: torch.Tensor,
        cache: torch.Tensor,
        row: PrefillRow,
        window: int | None,
    ) -> torch.Tensor:
        if row.start != 0:
            key_value = self._gather(cache, row.blocks, 1)[0, : row.seq_len]
        keys, values = key_value.transpose(0, 1)[None].chunk(2, dim=1)
        mask = row.masks[window]
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )
        return out[0].transpose(0, 1)

    def _gather(self, cache: torch.Tensor, blocks: torch.Tensor, num_rows: int) -> torch.Tensor:
        """Copy the rows' blocks side by side: [num_rows, tokens, 2 * num_kv_heads, head_dim]."""
        size = blocks.numel() * cache[0].numel()
        # Fresh large buffers cost page faults at each layer; one that grows by doubling costs none.
        if self._scratch is None or self._scratch.numel() < size:
            self._scratch = torch.empty(2 * size, dtype=cache.dtype)
        gathered = self._scratch[:size].view(-1, *cache.shape[1:])
        torch.index_select(cache, 0, blocks, out=gathered)
        return gathered.view(num_rows, -1, *cache.shape[2:])
