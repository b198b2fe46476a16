"""``scaled_mm_silu_and_mul``: the gate and up projections of codes, and the gated activation of what they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, rounded, wide
from parhelion.ops.gemm.formulas import gemm_traffic, product, random_codes, random_scales
from parhelion.ops.silu_and_mul.contract import gated

AMAX_COLUMNS = 64
"""So many columns of the activation share an entry of ``amax``."""


@dataclass(frozen=True)
class ScaledMmSiluAndMul(Contract):
    """silu(gate) * up of [gate, up] = (codes * scales) @ (weight * weight_scales).T, and how large that is.

    Inputs: codes [M, in_features] of ``quant_dtype``, scales [M, 1] float32, weight [2 * intermediate_size,
    in_features] codes of ``quant_dtype``, the gate's rows first, and weight_scales [2 * intermediate_size, 1] float32.
    Outputs: activated [M, intermediate_size] of ``dtype``; amax [ceil(intermediate_size / 64), M] float32, for each 64
    columns of a row the largest magnitude of ``activated``, NaN if there is one among them.

    Unlike ``scaled_mm`` followed by ``silu_and_mul_dynamic_per_token_quant``, which rounds gate and up to ``dtype`` and
    quantizes their product as it is, gate and up stay float32 here, and the product is rounded once.
    ``scaled_mm_of_activations`` takes both outputs.
    """

    in_features: int
    intermediate_size: int
    quant_dtype: torch.dtype = torch.float8_e4m3fn
    dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "scaled_mm_silu_and_mul"
    # Half a step of bfloat16; Hopper's FP8 sums, of 14 significant bits or so, stay well below it. The largest
    # magnitude of a few columns may be one whole step off.
    outputs: ClassVar[tuple[Output, ...]] = (Output("activated", relative=4e-3), Output("amax", relative=8e-3))
    num_weights: ClassVar[int] = 2
    instead: ClassVar[str] = "weight_only_mm"  # as ops/quantize.py says

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        k, n = self.in_features, 2 * self.intermediate_size
        return (
            random_codes((num_tokens, k), self.quant_dtype, device, generator),
            random_scales((num_tokens, 1), 1, self.quant_dtype, device, generator),
            random_codes((n, k), self.quant_dtype, device, generator),
            random_scales((n, 1), k, self.quant_dtype, device, generator),
        )

    def reference(
        self, codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor
    ) -> Tensors:
        sums_dtype = wide(scales).dtype
        both = product(codes.to(sums_dtype), weight.to(sums_dtype)) * wide(scales) * wide(weight_scales).t()
        activated = rounded(gated(both), self.dtype)
        return activated, column_amax(activated)

    def traffic(self, num_tokens: int) -> Traffic:
        k, n = self.in_features, self.intermediate_size
        gemm = gemm_traffic(
            num_tokens, k, 2 * n, x=self.quant_dtype, weight=self.quant_dtype, y=self.dtype,
            scales=num_tokens + 2 * n, unit=self.quant_dtype,
        )  # fmt: skip
        # One row of activations for two of the product, and a number for each 64 of them.
        saved = num_tokens * n * self.dtype.itemsize
        return Traffic(
            gemm.bytes - saved + 4 * num_tokens * -(-n // AMAX_COLUMNS), gemm.flops + 7 * num_tokens * n, gemm.unit
        )


def column_amax(x: torch.Tensor) -> torch.Tensor:
    """The largest magnitudes [ceil(K / 64), M] of x [M, K]; float32, or float64 if x is."""
    magnitudes = F.pad(wide(x).abs(), (0, -x.size(1) % AMAX_COLUMNS))
    return magnitudes.unflatten(1, (-1, AMAX_COLUMNS)).amax(-1).t().contiguous()
