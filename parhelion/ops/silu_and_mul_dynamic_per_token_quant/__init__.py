"""``silu_and_mul_dynamic_per_token_quant``: the gated activation, quantized with one scale a row."""

import torch

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.silu_and_mul_dynamic_per_token_quant.contract import SiluAndMulDynamicPerTokenQuant

OP = Op(
    SiluAndMulDynamicPerTokenQuant,
    (ReferenceProvider(), InductorProvider(), HelionProvider()),
    examples=(
        SiluAndMulDynamicPerTokenQuant(64),
        SiluAndMulDynamicPerTokenQuant(1536, torch.float32, torch.int8),
        SiluAndMulDynamicPerTokenQuant(640),
        SiluAndMulDynamicPerTokenQuant(12288),
    ),
)

__all__ = ["OP", "SiluAndMulDynamicPerTokenQuant"]
