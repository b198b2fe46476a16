"""``fused_qk_norm_rope``: norms of query and key heads, rotation, and the write to the KV cache."""

import torch

from parhelion.ops.fused_qk_norm_rope.contract import FusedQkNormRope
from parhelion.ops.fused_qk_norm_rope.providers import TorchQkNormRope, VllmQkNormRope, update_launcher
from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.rope_and_cache.providers import InductorInPlace

OP = Op(
    FusedQkNormRope,
    (
        ReferenceProvider(),
        InductorInPlace(update_launcher),
        HelionProvider(),
        TorchQkNormRope(),
        VllmQkNormRope(),
    ),
    examples=(
        FusedQkNormRope(3, 1, 64, 1e-6, 16, 128),
        FusedQkNormRope(4, 2, 64, 1e-5, 16, 2048, torch.float32),
        FusedQkNormRope(16, 8, 128, 1e-6, 16, 4096),
        FusedQkNormRope(32, 8, 128, 1e-6, 16, 4096),
    ),
)

__all__ = ["OP", "FusedQkNormRope"]
