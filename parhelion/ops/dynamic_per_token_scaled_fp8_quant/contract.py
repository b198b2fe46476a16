"""``dynamic_per_token_scaled_fp8_quant``: FP8 codes with one scale a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.dynamic_per_token_quant import DynamicPerTokenQuant
from parhelion.ops.quantize import FP8


@dataclass(frozen=True)
class DynamicPerTokenScaledFp8Quant(DynamicPerTokenQuant):
    """Rows quantized to FP8 (E4M3); see ``DynamicPerTokenQuant``."""

    name: ClassVar[str] = "dynamic_per_token_scaled_fp8_quant"
    instead: ClassVar[str] = "weight_only_mm"  # as ops/quantize.py says
    quant_dtype: ClassVar[torch.dtype] = FP8
