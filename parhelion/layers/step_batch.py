"""What a model's forward pass is given: one step's tokens and where they belong."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parhelion.ops.attention import AttentionMetadata


@dataclass(frozen=True)
class StepBatch:
    """The tokens of a step, row after row: decode rows first, then prefill chunks.

    Attributes:
        token_ids: [num_tokens] int64.
        positions: [num_tokens] int64.
        attention: the rows, as attention needs them.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    attention: AttentionMetadata
