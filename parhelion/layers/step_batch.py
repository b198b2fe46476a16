"""What a model's forward pass is given: one step's tokens and where they belong."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parhelion.ops.paged_attention.batch import AttentionBatch


@dataclass(frozen=True)
class StepBatch:
    """The tokens of a step, row after row: decode rows first, then prefill chunks.

    Attributes:
        token_ids: [num_tokens] int64.
        positions: [num_tokens] int64.
        slot_mapping: [num_tokens] int64, block_id * block_size + offset: where each token's key and value go.
        attention: the rows, as attention needs them.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    attention: AttentionBatch
