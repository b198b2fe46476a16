"""``scaled_mm_of_activations``: activations, quantized by what is known of their size, by quantized weights."""

import torch

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.scaled_mm_of_activations.contract import ScaledMmOfActivations
from parhelion.ops.scaled_mm_of_activations.providers import TorchScaledMmOfActivations

OP = Op(
    ScaledMmOfActivations,
    (ReferenceProvider(), InductorProvider(), HelionProvider(), TorchScaledMmOfActivations()),
    examples=(
        ScaledMmOfActivations(96, 64),
        ScaledMmOfActivations(200, 72, torch.int8, torch.float32),
        ScaledMmOfActivations(6144, 2048),
        ScaledMmOfActivations(6144, 2048, torch.int8),
        ScaledMmOfActivations(12288, 4096),
    ),
)

__all__ = ["OP", "ScaledMmOfActivations"]
