"""``fused_add_rms_norm``: the residual add before a norm, and the norm."""

import torch

from parhelion.ops.fused_add_rms_norm.contract import FusedAddRmsNorm
from parhelion.ops.fused_add_rms_norm.providers import (
    FlashInferFusedAddRmsNorm,
    TorchFusedAddRmsNorm,
    VllmFusedAddRmsNorm,
)
from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op

OP = Op(
    FusedAddRmsNorm,
    (
        ReferenceProvider(),
        InductorProvider(),
        HelionProvider(),
        TorchFusedAddRmsNorm(),
        FlashInferFusedAddRmsNorm(),
        VllmFusedAddRmsNorm(),
    ),
    examples=(
        FusedAddRmsNorm(64),
        FusedAddRmsNorm(576, 1e-5, torch.float32),
        FusedAddRmsNorm(2048),
        FusedAddRmsNorm(4096),
    ),
)

__all__ = ["OP", "FusedAddRmsNorm"]
