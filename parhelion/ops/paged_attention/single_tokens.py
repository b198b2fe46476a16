"""Steps in which each row has one token."""

from __future__ import annotations

from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.paged_attention.single_rows import has_single_rows
from parhelion.ops.paged_attention.tiling import SIBLINGS


def has_single_tokens(batch: AttentionBatch, num_tokens: int) -> bool:
    """Whether row i has token i and no other. A few rows next to each other may be of one sequence
    (``max_siblings``), not more than there are programs for.
    """
    is_row_each = num_tokens == batch.seq_lens.shape[0]
    return has_single_rows(batch, num_tokens) or (is_row_each and batch.max_siblings in SIBLINGS)
