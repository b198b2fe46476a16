"""What ``paged_attention`` needs to know of a step's rows, shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

MOST_DECODES = 256
"""Up to so many tokens a step is measured with rows that decode one each, beyond with prompts."""


@dataclass(frozen=True)
class AttentionBatch:
    """The rows of a step: each has some query tokens, one after the other, and its keys and values in blocks.

    A padding row has ``seq_len`` 0; it may have query tokens, which see nothing. Tokens behind the last row's are
    padding too.

    Attributes:
        block_table: [num_rows, max_blocks] int32, block ids by position. Entries behind a row's last block are never
            followed by the tile programs, but some libraries copy what they name: they must be valid ids, such as 0.
        seq_lens: [num_rows] int32, tokens in the cache after this step, the queries' own included.
        query_start_loc: [num_rows + 1] int32, offsets of the rows' tokens.
        max_query_len: a bound of the tokens of a row. 1 says that every row has one token, padding rows too: then row
            i is token i, as far as there are rows.
        max_seq_len: a bound of ``seq_lens``. With CUDA graphs these two are bounds of the bucket: launch shapes depend
            on them and on the tensors' shapes, and on nothing else.
        max_siblings: a power of two. Above 1 it says that every row has one token, as a ``max_query_len`` of 1 does,
            but that up to so many rows next to each other may be of one sequence, each a token further than the one
            before, as guesses are: they attend to one another's tokens.
        row_slots: [num_rows] int32, equal for rows of one sequence and for padding; None unless rows have siblings.
        cpu: what the CPU provider prepared for this batch.
    """

    block_table: torch.Tensor
    seq_lens: torch.Tensor
    query_start_loc: torch.Tensor
    max_query_len: int
    max_seq_len: int
    max_siblings: int = 1
    row_slots: torch.Tensor | None = None
    cpu: object | None = None
