"""``fused_rope_attention``: head norms, rotation, the write to the KV cache, and attention."""

import torch

from parhelion.ops.fused_rope_attention.contract import FusedRopeAttention
from parhelion.ops.fused_rope_attention.providers import FLASH_ATTENTION, TORCH, VLLM
from parhelion.ops.gluon_provider import GluonProvider
from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.paged_attention.providers import InductorPagedAttention
from parhelion.ops.provider import ReferenceProvider
from parhelion.ops.quantize import FP8
from parhelion.ops.registry import Op

OP = Op(
    FusedRopeAttention,
    (
        ReferenceProvider(),
        InductorPagedAttention(),
        HelionProvider(),
        GluonProvider("decode_attention"),
        TORCH,
        FLASH_ATTENTION,
        VLLM,
    ),
    examples=(
        FusedRopeAttention(4, 2, 64, 16, 2048, 0.125, dtype=torch.float32),
        FusedRopeAttention(9, 3, 64, 16, 2048, 0.125),
        FusedRopeAttention(16, 8, 128, 16, 4096, 128**-0.5, 1e-6),
        FusedRopeAttention(32, 8, 128, 16, 4096, 128**-0.5, 1e-6),
        FusedRopeAttention(9, 3, 64, 16, 2048, 0.125, quant_dtype=torch.int8),
        FusedRopeAttention(32, 8, 128, 16, 4096, 128**-0.5, 1e-6, quant_dtype=FP8),
        FusedRopeAttention(32, 8, 128, 16, 4096, 128**-0.5, 1e-6, sliding_window=512, soft_cap=50.0),
    ),
)

__all__ = ["OP", "FusedRopeAttention"]
