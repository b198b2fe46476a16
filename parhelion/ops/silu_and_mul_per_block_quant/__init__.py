"""``silu_and_mul_per_block_quant``: the gated activation, quantized with one scale a group of a row."""

import torch

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.silu_and_mul_per_block_quant.contract import SiluAndMulPerBlockQuant
from parhelion.ops.silu_and_mul_per_block_quant.providers import VllmSiluAndMulPerBlockQuant

OP = Op(
    SiluAndMulPerBlockQuant,
    (ReferenceProvider(), InductorProvider(), HelionProvider(), VllmSiluAndMulPerBlockQuant()),
    examples=(
        SiluAndMulPerBlockQuant(128),
        SiluAndMulPerBlockQuant(384, torch.float32, scale_format="ue8m0"),
        SiluAndMulPerBlockQuant(640),
        SiluAndMulPerBlockQuant(12288, scale_format="ue8m0"),
    ),
)

__all__ = ["OP", "SiluAndMulPerBlockQuant"]
