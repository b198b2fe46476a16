"""``scaled_mm_blockwise``: FP8 codes by codes, scaled by groups of 128 and blocks of 128 x 128."""

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.scaled_mm_blockwise.contract import ScaledMmBlockwise
from parhelion.ops.scaled_mm_blockwise.providers import (
    DeepGemmScaledMmBlockwise,
    FlashInferScaledMmBlockwise,
    TorchScaledMmBlockwise,
    VllmScaledMmBlockwise,
)

OP = Op(
    ScaledMmBlockwise,
    (
        ReferenceProvider(),
        InductorProvider(),
        HelionProvider(),
        TorchScaledMmBlockwise(),
        DeepGemmScaledMmBlockwise(),
        FlashInferScaledMmBlockwise(),
        VllmScaledMmBlockwise(),
    ),
    examples=(
        ScaledMmBlockwise(128, 192),
        ScaledMmBlockwise(320, 144),
        ScaledMmBlockwise(2048, 4096),
        ScaledMmBlockwise(4096, 6144),
    ),
)

__all__ = ["OP", "ScaledMmBlockwise"]
