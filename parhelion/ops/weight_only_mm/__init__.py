"""``weight_only_mm``: unquantized activations by FP8 weights (W8A16)."""

import torch

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.weight_only_mm.contract import WeightOnlyMm
from parhelion.ops.weight_only_mm.providers import TorchWeightOnlyMm

OP = Op(
    WeightOnlyMm,
    (ReferenceProvider(), InductorProvider(), HelionProvider(), TorchWeightOnlyMm()),
    examples=(
        WeightOnlyMm(64, 96),
        WeightOnlyMm(200, 72, torch.float16),
        WeightOnlyMm(2048, 4096),
        WeightOnlyMm(4096, 6144),
    ),
)

__all__ = ["OP", "WeightOnlyMm"]
