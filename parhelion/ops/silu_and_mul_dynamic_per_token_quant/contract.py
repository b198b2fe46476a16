"""``silu_and_mul_dynamic_per_token_quant``: the gated activation, quantized with one scale a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn, wide
from parhelion.ops.quantize import CODE_FLIPS, FP8, per_token_quantized
from parhelion.ops.silu_and_mul.contract import gated


@dataclass(frozen=True)
class SiluAndMulDynamicPerTokenQuant(Contract):
    """``silu_and_mul`` in float32, quantized per row without rounding in between.

    Input: x [M, 2 * intermediate_size] of ``dtype``, the gate first.
    Outputs: codes [M, intermediate_size] of ``quant_dtype`` and scales [M, 1] float32 (see ``ops/quantize.py``).
    """

    intermediate_size: int
    dtype: torch.dtype = torch.bfloat16
    quant_dtype: torch.dtype = FP8

    name: ClassVar[str] = "silu_and_mul_dynamic_per_token_quant"
    instead: ClassVar[str] = "weight_only_mm"  # as ops/quantize.py says
    outputs: ClassVar[tuple[Output, ...]] = (
        Output("codes", relative=4e-2, scales=1, max_flips=CODE_FLIPS),
        Output("scales", relative=4e-3),
    )

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        return (randn((num_tokens, 2 * self.intermediate_size), self.dtype, device, generator),)

    def reference(self, x: torch.Tensor) -> Tensors:
        return per_token_quantized(gated(wide(x)), self.quant_dtype)

    def traffic(self, num_tokens: int) -> Traffic:
        elements = num_tokens * self.intermediate_size
        moved = elements * (2 * self.dtype.itemsize + self.quant_dtype.itemsize) + num_tokens * 4
        return Traffic(moved, 7 * elements)
