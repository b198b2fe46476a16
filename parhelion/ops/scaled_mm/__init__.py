"""``scaled_mm``: FP8 or INT8 codes by codes, with a scale a token and a scale an output channel."""

import torch

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.scaled_mm.contract import ScaledMm
from parhelion.ops.scaled_mm.cutlass import CutlassScaledMm
from parhelion.ops.scaled_mm.providers import TorchScaledMm, VllmScaledMm

OP = Op(
    ScaledMm,
    (
        ReferenceProvider(),
        InductorProvider(),
        HelionProvider(),
        TorchScaledMm(),
        CutlassScaledMm(),
        VllmScaledMm(),
    ),
    examples=(
        ScaledMm(64, 96),
        ScaledMm(200, 72, torch.int8, torch.float32, bias=True),
        ScaledMm(2048, 4096),
        ScaledMm(2048, 4096, torch.int8),
        ScaledMm(4096, 6144),
    ),
)

__all__ = ["OP", "ScaledMm"]
