"""``rms_norm_per_block_quant``: a norm whose output is quantized with one scale a group of a row."""

import torch

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.rms_norm_per_block_quant.contract import RmsNormPerBlockQuant
from parhelion.ops.rms_norm_per_block_quant.providers import VllmRmsNormPerBlockQuant

OP = Op(
    RmsNormPerBlockQuant,
    (ReferenceProvider(), InductorProvider(), HelionProvider(), VllmRmsNormPerBlockQuant()),
    examples=(
        RmsNormPerBlockQuant(128),
        RmsNormPerBlockQuant(384, dtype=torch.float32, scale_format="ue8m0"),
        RmsNormPerBlockQuant(640, add_residual=True),
        RmsNormPerBlockQuant(4096, scale_format="ue8m0"),
        RmsNormPerBlockQuant(4096, add_residual=True),
    ),
)

__all__ = ["OP", "RmsNormPerBlockQuant"]
