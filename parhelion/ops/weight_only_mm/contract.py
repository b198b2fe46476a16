"""``weight_only_mm``: unquantized activations by FP8 weights (W8A16). Serves FP8 checkpoints where a GPU has no FP8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Output, Tensors, Traffic, randn, rounded, wide
from parhelion.ops.gemm.formulas import gemm_traffic, product, random_codes, random_scales
from parhelion.ops.gemm.operands import GemmContract, Operands


@dataclass(frozen=True)
class WeightOnlyMm(GemmContract):
    """y = x @ (weight * weight_scales).T + bias.

    Inputs: x [M, in_features] of ``dtype``, weight [out_features, in_features] float8_e4m3fn, weight_scales
    [out_features, 1] float32 and, with ``bias``, bias [out_features] of ``dtype``. Weight codes are finite: what a NaN
    code gives is up to the provider.
    Output: y [M, out_features] of ``dtype``. Codes are widened to ``dtype`` without a rounding, sums are kept in
    float32, scaled, and rounded once.
    """

    in_features: int
    out_features: int
    dtype: torch.dtype = torch.bfloat16
    bias: bool = False

    name: ClassVar[str] = "weight_only_mm"
    # Half a step of bfloat16, as in ``linear``.
    outputs: ClassVar[tuple[Output, ...]] = (Output("y", relative=4e-3),)

    @property
    def num_weights(self) -> int:  # type: ignore[override]
        """The weight, its scales and, if there is one, the bias."""
        return 2 + self.bias

    @property
    def operands(self) -> Operands:
        return Operands(self.in_features, self.out_features, self.dtype, torch.float8_e4m3fn)

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        k, n = self.in_features, self.out_features
        inputs = (
            randn((num_tokens, k), self.dtype, device, generator),
            random_codes((n, k), torch.float8_e4m3fn, device, generator),
            random_scales((n, 1), k, torch.float8_e4m3fn, device, generator),
        )
        return (*inputs, randn((n,), self.dtype, device, generator)) if self.bias else inputs

    def reference(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        weight_scales: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        y = product(wide(x), weight.to(wide(x).dtype)) * wide(weight_scales).t()
        return rounded(y if bias is None else y + wide(bias), self.dtype)

    def traffic(self, num_tokens: int) -> Traffic:
        return gemm_traffic(
            num_tokens, self.in_features, self.out_features,
            x=self.dtype, weight=torch.float8_e4m3fn, y=self.dtype,
            scales=self.out_features, bias=self.bias, unit=self.dtype,
        )  # fmt: skip
