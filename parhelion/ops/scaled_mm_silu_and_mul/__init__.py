"""``scaled_mm_silu_and_mul``: the gate and up projections of codes, and the gated activation of what they give."""

import torch

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.scaled_mm_silu_and_mul.contract import ScaledMmSiluAndMul
from parhelion.ops.scaled_mm_silu_and_mul.providers import TorchScaledMmSiluAndMul

OP = Op(
    ScaledMmSiluAndMul,
    (ReferenceProvider(), InductorProvider(), HelionProvider(), TorchScaledMmSiluAndMul()),
    examples=(
        ScaledMmSiluAndMul(64, 96),
        ScaledMmSiluAndMul(200, 72, torch.int8, torch.float32),
        ScaledMmSiluAndMul(2048, 6144),
        ScaledMmSiluAndMul(2048, 6144, torch.int8),
        ScaledMmSiluAndMul(4096, 12288),
    ),
)

__all__ = ["OP", "ScaledMmSiluAndMul"]
