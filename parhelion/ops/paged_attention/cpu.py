"""``paged_attention`` on a CPU: gather a row's blocks and let torch's fused attention do the rest.

Blocks that lie side by side, the common case for one user, are attended to in place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.paged_attention.contract import PagedAttention
from parhelion.ops.paged_attention.cpu_batch import CpuAttentionBatch, DecodeGroup, PrefillRow
from parhelion.ops.provider import BaseProvider


class CpuPagedAttention(BaseProvider):
    """``scaled_dot_product_attention`` over views of the cache, or over gathered copies."""

    name = "torch"

    def why_not(self, device: torch.device) -> str | None:
        return None if device.type == "cpu" else f"it gathers on the host, and this is {device.type}"

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, PagedAttention)
        return None if contract.soft_cap is None else "torch's fused attention has no soft cap"

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, PagedAttention)
        return _CpuLauncher(contract, _Scratch())


class _Scratch:
    """Memory that gathers reuse: fresh large buffers cost page faults, one that grows by doubling costs none."""

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None

    def take(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        if self._buffer is None or self._buffer.numel() < size:
            self._buffer = torch.empty(2 * size, dtype=dtype)
        return self._buffer[:size]


class _CpuLauncher:
    def __init__(self, contract: PagedAttention, scratch: _Scratch) -> None:
        self._c = contract
        self._scratch = scratch

    def __call__(self, query: torch.Tensor, kv_cache: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        plan = batch.cpu
        assert isinstance(plan, CpuAttentionBatch)
        parts = [self._decode(query[group.tokens], kv_cache, group) for group in plan.groups]
        parts += [self._prefill(query[row.first_token : row.last_token], kv_cache, row) for row in plan.prefills]
        out = torch.cat(parts) if len(parts) > 1 else parts[0]
        return out if plan.order is None else out.index_select(0, plan.order)

    def _decode(self, query: torch.Tensor, cache: torch.Tensor, group: DecodeGroup) -> torch.Tensor:
        c = self._c
        # The heads that share a key head see the same keys: they become that head's "tokens", so nothing is repeated.
        # So do a row's queries; each stands there with its heads side by side.
        queries, heads = query.shape[0] // group.num_rows, c.num_heads // c.num_kv_heads
        grouped = query.view(-1, c.num_kv_heads, heads, c.head_dim)
        if queries > 1:
            grouped = grouped.unflatten(0, (-1, queries)).transpose(1, 2).flatten(2, 3)
        if group.first_block is not None:
            key_value = _adjacent(cache, group.first_block, group.longest)[None]
        else:
            key_value = self._gather(cache, group.blocks, group.num_rows)
        keys, values = key_value.transpose(1, 2).split(c.num_kv_heads, 1)
        mask = group.mask(c.sliding_window, heads)
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=c.scale)
        if queries > 1:
            out = out.unflatten(2, (queries, heads)).transpose(1, 2)
        return out.reshape(query.shape)

    def _prefill(self, query: torch.Tensor, cache: torch.Tensor, row: PrefillRow) -> torch.Tensor:
        c = self._c
        if row.first_block is not None:
            key_value = _adjacent(cache, row.first_block, row.seq_len)
        else:
            key_value = self._gather(cache, row.blocks, 1)[0, : row.seq_len]
        keys, values = key_value.transpose(0, 1)[None].split(c.num_kv_heads, 1)
        mask = row.masks[c.sliding_window]
        out = F.scaled_dot_product_attention(
            query.view(1, -1, c.num_heads, c.head_dim).transpose(1, 2),
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=c.scale,
            enable_gqa=c.num_heads != c.num_kv_heads,
        )
        return out[0].transpose(0, 1).reshape(query.shape)

    def _gather(self, cache: torch.Tensor, blocks: torch.Tensor, num_rows: int) -> torch.Tensor:
        """Copy the rows' blocks side by side: [num_rows, tokens, 2 * num_kv_heads, head_dim]."""
        gathered = self._scratch.take(blocks.numel() * cache[0].numel(), cache.dtype).view(-1, *cache.shape[1:])
        torch.index_select(cache, 0, blocks, out=gathered)
        return gathered.view(num_rows, -1, *cache.shape[2:])


def _adjacent(cache: torch.Tensor, first_block: int, num_tokens: int) -> torch.Tensor:
    """[num_tokens, 2 * num_kv_heads, head_dim] of blocks that lie side by side: a view."""
    first = first_block * cache.shape[1]
    return cache.view(-1, *cache.shape[2:])[first : first + num_tokens]


def attend_one_token(contract: PagedAttention) -> Launcher:
    """Attention of one token over its own row, as a function that TorchInductor can compile.

    Its third input is not a batch but a tuple: the row's blocks [num_blocks] int64, or None where they lie side by
    side; the place in the cache of the row's first token, which matters only then; and the number of the row's tokens.
    """
    c = contract

    def attend(query: torch.Tensor, kv_cache: torch.Tensor, row: tuple[torch.Tensor | None, int, int]) -> torch.Tensor:
        blocks, first, num_tokens = row
        if blocks is not None:
            kv_cache, first = kv_cache[blocks], 0
        # Not by a comparison: rows on either side of it would need code of their own.
        seen = num_tokens if c.sliding_window is None else torch.sym_min(num_tokens, c.sliding_window)
        key_value = kv_cache.view(-1, *kv_cache.shape[2:]).narrow(0, first + num_tokens - seen, seen)
        keys, values = key_value.transpose(0, 1)[None].split(c.num_kv_heads, 1)
        grouped = query.view(1, c.num_kv_heads, -1, c.head_dim)
        return F.scaled_dot_product_attention(grouped, keys, values, scale=c.scale).reshape(query.shape)

    return attend
