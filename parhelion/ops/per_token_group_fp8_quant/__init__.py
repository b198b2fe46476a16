"""``per_token_group_fp8_quant``: FP8 codes with one scale a group of a row."""

import torch

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.per_token_group_fp8_quant.contract import PerTokenGroupFp8Quant
from parhelion.ops.per_token_group_fp8_quant.providers import VllmPerTokenGroupFp8Quant
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op

OP = Op(
    PerTokenGroupFp8Quant,
    (ReferenceProvider(), InductorProvider(), HelionProvider(), VllmPerTokenGroupFp8Quant()),
    examples=(
        PerTokenGroupFp8Quant(128),
        PerTokenGroupFp8Quant(384, torch.float32, scale_format="ue8m0"),
        PerTokenGroupFp8Quant(640),
        PerTokenGroupFp8Quant(4096, scale_format="ue8m0"),
    ),
)

__all__ = ["OP", "PerTokenGroupFp8Quant"]
