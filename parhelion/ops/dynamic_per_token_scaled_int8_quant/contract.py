"""``dynamic_per_token_scaled_int8_quant``: int8 codes with one scale a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.dynamic_per_token_quant import DynamicPerTokenQuant


@dataclass(frozen=True)
class DynamicPerTokenScaledInt8Quant(DynamicPerTokenQuant):
    """Rows quantized to int8, symmetrically: no code is -128; see ``DynamicPerTokenQuant``."""

    name: ClassVar[str] = "dynamic_per_token_scaled_int8_quant"
    quant_dtype: ClassVar[torch.dtype] = torch.int8
