"""``scaled_mm``: quantized activations by quantized weights, a scale a token and a scale an output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Output, Tensors, Traffic, randn, rounded, wide
from parhelion.ops.gemm.formulas import gemm_traffic, product, random_codes, random_scales
from parhelion.ops.gemm.operands import GemmContract, Operands


@dataclass(frozen=True)
class ScaledMm(GemmContract):
    """y = (codes * scales) @ (weight * weight_scales).T + bias.

    Inputs: codes [M, in_features] of ``quant_dtype``, scales [M, 1] float32, weight [out_features, in_features] codes
    of ``quant_dtype``, weight_scales [out_features, 1] float32 and, with ``bias``, bias [out_features] of ``dtype``.
    Output: y [M, out_features] of ``dtype``. The codes' products are summed in float32 (FP8) or int32 (INT8), the
    scales and the bias are applied to the sum, and that is rounded once.
    """

    in_features: int
    out_features: int
    quant_dtype: torch.dtype = torch.float8_e4m3fn
    dtype: torch.dtype = torch.bfloat16
    bias: bool = False

    name: ClassVar[str] = "scaled_mm"
    # Half a step of bfloat16 as in ``linear``; Hopper's FP8 sums, of 14 significant bits or so, stay well below it.
    outputs: ClassVar[tuple[Output, ...]] = (Output("y", relative=4e-3),)
    instead: ClassVar[str] = "weight_only_mm"

    @property
    def num_weights(self) -> int:  # type: ignore[override]
        """The weight, its scales and, if there is one, the bias."""
        return 2 + self.bias

    @property
    def operands(self) -> Operands:
        return Operands(self.in_features, self.out_features, self.quant_dtype, self.quant_dtype)

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        k, n = self.in_features, self.out_features
        inputs = (
            random_codes((num_tokens, k), self.quant_dtype, device, generator),
            random_scales((num_tokens, 1), 1, self.quant_dtype, device, generator),
            random_codes((n, k), self.quant_dtype, device, generator),
            random_scales((n, 1), k, self.quant_dtype, device, generator),
        )
        return (*inputs, randn((n,), self.dtype, device, generator)) if self.bias else inputs

    def reference(
        self,
        codes: torch.Tensor,
        scales: torch.Tensor,
        weight: torch.Tensor,
        weight_scales: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        sums_dtype = wide(scales).dtype
        y = product(codes.to(sums_dtype), weight.to(sums_dtype)) * wide(scales) * wide(weight_scales).t()
        return rounded(y if bias is None else y + wide(bias), self.dtype)

    def traffic(self, num_tokens: int) -> Traffic:
        return gemm_traffic(
            num_tokens, self.in_features, self.out_features,
            x=self.quant_dtype, weight=self.quant_dtype, y=self.dtype,
            scales=num_tokens + self.out_features, bias=self.bias, unit=self.quant_dtype,
        )  # fmt: skip
