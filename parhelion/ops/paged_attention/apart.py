"""Steps of guesses, for tests and benchmarks: rows of several tokens as rows of one, next to each other."""

from __future__ import annotations

from dataclasses import replace

import torch

from parhelion.ops.paged_attention.batch import AttentionBatch


def siblings_apart(batch: AttentionBatch) -> AttentionBatch:
    """The same tokens in the same order, each in a row of its own.

    Args:
        batch: of rows with few tokens; one whose ``seq_len`` is 0 is padding and has a single one.
    """
    num_rows = len(batch.seq_lens)
    counts = batch.query_start_loc.long().diff()
    of = torch.arange(num_rows, device=counts.device).repeat_interleave(counts)
    number = torch.arange(len(of), device=of.device) - batch.query_start_loc.long()[of]
    return replace(
        batch,
        block_table=batch.block_table[of],
        seq_lens=(batch.seq_lens[of] - (counts[of] - 1 - number)).int(),
        query_start_loc=torch.arange(len(of) + 1, dtype=torch.int32, device=of.device),
        max_query_len=len(of),
        max_siblings=1 << (int(counts.max()) - 1).bit_length(),
        row_slots=torch.where(batch.seq_lens[of] == 0, num_rows, of).int(),
    )
