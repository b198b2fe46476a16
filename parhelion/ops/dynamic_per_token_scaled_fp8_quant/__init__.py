"""``dynamic_per_token_scaled_fp8_quant``: FP8 codes with one scale a row."""

import torch

from parhelion.ops.dynamic_per_token_scaled_fp8_quant.contract import DynamicPerTokenScaledFp8Quant
from parhelion.ops.dynamic_per_token_scaled_fp8_quant.providers import VllmDynamicPerTokenScaledFp8Quant
from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op

OP = Op(
    DynamicPerTokenScaledFp8Quant,
    (ReferenceProvider(), InductorProvider(), HelionProvider(), VllmDynamicPerTokenScaledFp8Quant()),
    examples=(
        DynamicPerTokenScaledFp8Quant(64),
        DynamicPerTokenScaledFp8Quant(576, torch.float32),
        DynamicPerTokenScaledFp8Quant(640),
        DynamicPerTokenScaledFp8Quant(4096),
    ),
)

__all__ = ["OP", "DynamicPerTokenScaledFp8Quant"]
