"""What ``dynamic_per_token_scaled_fp8_quant`` and ``dynamic_per_token_scaled_int8_quant`` have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn, wide
from parhelion.ops.quantize import TIE_FLIPS, per_token_quantized


@dataclass(frozen=True)
class DynamicPerTokenQuant(Contract):
    """Rows quantized with one scale each.

    Input: x [M, hidden_size] of ``dtype``.
    Outputs: codes [M, hidden_size] of ``quant_dtype`` and scales [M, 1] float32 (see ``ops/quantize.py``).
    """

    hidden_size: int
    dtype: torch.dtype = torch.bfloat16

    quant_dtype: ClassVar[torch.dtype]
    outputs: ClassVar[tuple[Output, ...]] = (
        Output("codes", relative=1e-2, scales=1, max_flips=TIE_FLIPS),
        Output("scales", relative=1e-6),
    )

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        return (randn((num_tokens, self.hidden_size), self.dtype, device, generator),)

    def reference(self, x: torch.Tensor) -> Tensors:
        return per_token_quantized(wide(x), self.quant_dtype)

    def traffic(self, num_tokens: int) -> Traffic:
        elements = num_tokens * self.hidden_size
        moved = elements * (self.dtype.itemsize + self.quant_dtype.itemsize) + num_tokens * 4
        return Traffic(moved, 2 * elements)
