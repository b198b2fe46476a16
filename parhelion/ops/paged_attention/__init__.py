"""``paged_attention``: causal attention of a mixed batch to keys and values in blocks."""

import torch

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.paged_attention.contract import PagedAttention
from parhelion.ops.paged_attention.providers import (
    FlashAttention3,
    FlashInferPagedAttention,
    InductorPagedAttention,
    TorchPagedAttention,
    VllmFlashAttention,
)
from parhelion.ops.provider import ReferenceProvider
from parhelion.ops.registry import Op

OP = Op(
    PagedAttention,
    (
        ReferenceProvider(),
        InductorPagedAttention(),
        HelionProvider(),
        TorchPagedAttention(),
        FlashAttention3(),
        FlashInferPagedAttention(),
        VllmFlashAttention(),
    ),
    examples=(
        PagedAttention(4, 2, 64, 16, 0.125, dtype=torch.float32),
        PagedAttention(9, 3, 64, 16, 0.125),
        PagedAttention(16, 8, 128, 16, 128**-0.5),
        PagedAttention(32, 8, 128, 16, 128**-0.5),
        PagedAttention(32, 8, 128, 16, 128**-0.5, sliding_window=512, soft_cap=50.0),
    ),
)

__all__ = ["OP", "AttentionBatch", "PagedAttention"]
