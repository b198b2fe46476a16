"""``scaled_mm_of_activations``: activations, quantized by what is known of their size, by quantized weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn, rounded, wide
from parhelion.ops.gemm.formulas import gemm_traffic, product, random_codes, random_scales
from parhelion.ops.quantize import codes_of, scales_of
from parhelion.ops.scaled_mm_silu_and_mul.contract import AMAX_COLUMNS, column_amax


@dataclass(frozen=True)
class ScaledMmOfActivations(Contract):
    """y = (codes * scales) @ (weight * weight_scales).T, with codes and scales made of x.

    Inputs: x [M, in_features] of ``dtype``, amax [ceil(in_features / 64), M] float32, weight [out_features,
    in_features] codes of ``quant_dtype``, weight_scales [out_features, 1] float32.
    Output: y [M, out_features] of ``dtype``.

    The largest of a token's entries of amax is its row's largest magnitude, which gives the row's scale, and with it
    the codes, as in ``dynamic_per_token_scaled_fp8_quant`` and ``dynamic_per_token_scaled_int8_quant`` (see
    ``ops/quantize.py``). No x may be larger than its row's entries say: codes do not saturate.
    """

    in_features: int
    out_features: int
    quant_dtype: torch.dtype = torch.float8_e4m3fn
    dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "scaled_mm_of_activations"
    # Half a step of bfloat16 as in ``scaled_mm``, and ``TIE_FLIPS`` of the codes a step off, which is about 0.09 of an
    # FP8 code: 0.09 * sqrt(0.01).
    outputs: ClassVar[tuple[Output, ...]] = (Output("y", relative=1e-2),)
    num_weights: ClassVar[int] = 2
    instead: ClassVar[str] = "weight_only_mm"  # as ops/quantize.py says

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        k, n = self.in_features, self.out_features
        x = randn((num_tokens, k), self.dtype, device, generator)
        return (
            x,
            column_amax(x),
            random_codes((n, k), self.quant_dtype, device, generator),
            random_scales((n, 1), k, self.quant_dtype, device, generator),
        )

    def related(
        self, x: torch.Tensor, amax: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor
    ) -> Tensors:
        """amax is x's."""
        return x, column_amax(x), weight, weight_scales

    def reference(
        self, x: torch.Tensor, amax: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor
    ) -> torch.Tensor:
        x = wide(x)
        scales = scales_of(wide(amax).amax(0).unsqueeze(1), self.quant_dtype)
        codes = codes_of(x, 1.0 / scales, self.quant_dtype)
        y = product(codes.to(x.dtype), weight.to(x.dtype)) * scales * wide(weight_scales).t()
        return rounded(y, self.dtype)

    def traffic(self, num_tokens: int) -> Traffic:
        return gemm_traffic(
            num_tokens, self.in_features, self.out_features,
            x=self.dtype, weight=self.quant_dtype, y=self.dtype,
            scales=num_tokens * -(-self.in_features // AMAX_COLUMNS) + self.out_features, unit=self.quant_dtype,
        )  # fmt: skip
