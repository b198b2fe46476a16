"""Steps in which each token is the only one of its row."""

from __future__ import annotations

from parhelion.ops.paged_attention.batch import AttentionBatch


def has_single_rows(batch: AttentionBatch, num_tokens: int) -> bool:
    """Whether row i has token i and no other, so that no token attends to what another one of the step writes."""
    return num_tokens == batch.seq_lens.shape[0] and 1 in (batch.max_query_len, num_tokens)
