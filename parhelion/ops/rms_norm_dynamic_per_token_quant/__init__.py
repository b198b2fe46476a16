"""``rms_norm_dynamic_per_token_quant``: a norm whose output is quantized with one scale a row."""

import torch

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.rms_norm_dynamic_per_token_quant.contract import RmsNormDynamicPerTokenQuant
from parhelion.ops.rms_norm_dynamic_per_token_quant.providers import VllmRmsNormDynamicPerTokenQuant

OP = Op(
    RmsNormDynamicPerTokenQuant,
    (ReferenceProvider(), InductorProvider(), HelionProvider(), VllmRmsNormDynamicPerTokenQuant()),
    examples=(
        RmsNormDynamicPerTokenQuant(64),
        RmsNormDynamicPerTokenQuant(576, dtype=torch.float32, quant_dtype=torch.int8),
        RmsNormDynamicPerTokenQuant(640, add_residual=True),
        RmsNormDynamicPerTokenQuant(4096),
        RmsNormDynamicPerTokenQuant(4096, add_residual=True),
    ),
)

__all__ = ["OP", "RmsNormDynamicPerTokenQuant"]
