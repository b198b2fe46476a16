"""Batches of ``paged_attention`` for tests and benchmarks: rows of given lengths, their blocks in random order."""

from __future__ import annotations

import itertools

import torch

from parhelion.ops.contract import randn
from parhelion.ops.paged_attention.batch import MOST_DECODES, AttentionBatch

CONTEXT = 576
"""Tokens in the cache of a sampled decode row: 512 of a prompt and half of 128 answered."""

BOUND = 4096
"""Of the lengths of sampled rows, as an engine has one that no step exceeds."""

PROMPT = 1024
"""Tokens of a sampled prompt."""


def sampled_lens(num_tokens: int) -> tuple[list[int], list[int]]:
    """The query and sequence lengths of the rows that stand for M = ``num_tokens``."""
    if num_tokens <= MOST_DECODES:
        # Lengths differ from row to row, as they do in a server, and are CONTEXT on average.
        return [1] * num_tokens, [CONTEXT + 16 * (row % 5 - 2) for row in range(num_tokens)]
    whole, rest = divmod(num_tokens, PROMPT)
    lens = [PROMPT] * whole + [rest] * (rest > 0)
    return lens, lens


def sample_rows(
    query_lens: list[int],
    seq_lens: list[int],
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
    bound: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, AttentionBatch]:
    """Query, cache and batch for rows of these lengths.

    Args:
        shape: num_heads, num_kv_heads, head_dim, block_size.
        bound: of the sequences' lengths, if it is not the longest.
    """
    num_heads, num_kv_heads, head_dim, block_size = shape
    needed = [-(-seq_len // block_size) for seq_len in seq_lens]
    num_blocks, width = sum(needed) + 2, max(needed, default=0) or 1
    # The block table in one look-up, so that sizes alone matter: it is also made where tensors hold nothing.
    order = torch.randperm(num_blocks, generator=generator)
    places = [
        [begin + min(block, count - 1) if count else 0 for block in range(width)]
        for begin, count in zip(itertools.accumulate([0, *needed]), needed, strict=False)
    ]
    batch = AttentionBatch(
        block_table=order[torch.tensor(places)].int().to(device),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32).to(device),
        query_start_loc=torch.tensor([0, *itertools.accumulate(query_lens)], dtype=torch.int32).to(device),
        max_query_len=max(query_lens),
        max_seq_len=max(bound, *seq_lens),
    )
    query = randn((sum(query_lens), num_heads * head_dim), dtype, device, generator)
    kv_cache = randn((num_blocks, block_size, 2 * num_kv_heads, head_dim), dtype, device, generator)
    return query, kv_cache, batch


def places(batch: AttentionBatch, num_tokens: int, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and slots [num_tokens] int64 of a batch's tokens, which are the last of their rows."""
    starts = batch.query_start_loc.long()
    counts = starts.diff()
    rows = torch.arange(len(counts), device=starts.device).repeat_interleave(counts, output_size=num_tokens)
    tokens = torch.arange(num_tokens, device=starts.device)
    positions = batch.seq_lens.long()[rows] - starts[1:][rows] + tokens
    blocks = batch.block_table[rows, positions // block_size].long()
    return positions, blocks * block_size + positions % block_size
