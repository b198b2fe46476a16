"""The oracle of ``paged_attention``: one query token at a time, in float64."""

from __future__ import annotations

import torch


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    query_start_loc: list[int],
    seq_lens: list[int],
    scale: float,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """Causal grouped-query attention over paged keys and values.

    Args:
        query: [num_tokens, num_heads, head_dim]; the rows' tokens one row after the other.
        key_cache, value_cache: [num_blocks, block_size, num_kv_heads, head_dim].
        block_table: [num_rows, max_blocks] block ids by position.
        query_start_loc: [num_rows + 1] offsets into the tokens.
        seq_lens: [num_rows] tokens of each row in the cache, the queries' own included.
        scale: factor of the scores.
        sliding_window: tokens that a query sees, itself included; None is all.

    Returns:
        [num_tokens, num_heads, head_dim] float64.
    """
    block_size, num_kv_heads = key_cache.shape[1], key_cache.shape[2]
    group = query.shape[1] // num_kv_heads
    out = torch.zeros(query.shape, dtype=torch.float64)
    for row, seq_len in enumerate(seq_lens):
        first, last = query_start_loc[row], query_start_loc[row + 1]
        for token in range(first, last):
            position = seq_len - (last - token)
            lowest = 0 if sliding_window is None else max(0, position + 1 - sliding_window)
            seen = range(lowest, position + 1)
            blocks = [int(block_table[row, p // block_size]) for p in seen]
            offsets = [p % block_size for p in seen]
            keys = key_cache[blocks, offsets].double().repeat_interleave(group, dim=1)
            values = value_cache[blocks, offsets].double().repeat_interleave(group, dim=1)
            scores = torch.einsum("hd,shd->hs", query[token].double(), keys) * scale
            out[token] = torch.einsum("hs,shd->hd", scores.softmax(-1), values)
    return out
