"""``dynamic_per_token_scaled_int8_quant``: int8 codes with one scale a row."""

import torch

from parhelion.ops.dynamic_per_token_scaled_int8_quant.contract import DynamicPerTokenScaledInt8Quant
from parhelion.ops.dynamic_per_token_scaled_int8_quant.providers import VllmDynamicPerTokenScaledInt8Quant
from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op

OP = Op(
    DynamicPerTokenScaledInt8Quant,
    (ReferenceProvider(), InductorProvider(), HelionProvider(), VllmDynamicPerTokenScaledInt8Quant()),
    examples=(
        DynamicPerTokenScaledInt8Quant(64),
        DynamicPerTokenScaledInt8Quant(576, torch.float32),
        DynamicPerTokenScaledInt8Quant(640),
        DynamicPerTokenScaledInt8Quant(4096),
    ),
)

__all__ = ["OP", "DynamicPerTokenScaledInt8Quant"]
