"""``scaled_mm_blockwise``: FP8 activations scaled by token and group of columns, FP8 weights scaled by square block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Output, Tensors, Traffic, randn, rounded
from parhelion.ops.gemm.formulas import dequantized, gemm_traffic, product, random_codes, random_scales
from parhelion.ops.gemm.operands import GemmContract, Operands


@dataclass(frozen=True)
class ScaledMmBlockwise(GemmContract):
    """y = dequantized(codes) @ dequantized(weight).T + bias (DeepSeek-V3 technical report, section 3.3.2).

    Inputs, with G = ceil(in_features / block): codes [M, in_features] float8_e4m3fn, scales [M, G] float32, weight
    [out_features, in_features] float8_e4m3fn, weight_scales [ceil(out_features / block), G] float32 and, with ``bias``,
    bias [out_features] of ``dtype``.
    Output: y [M, out_features] of ``dtype``. Sums over a group are scaled and added up in float32.
    """

    in_features: int
    out_features: int
    dtype: torch.dtype = torch.bfloat16
    block: int = 128
    bias: bool = False

    name: ClassVar[str] = "scaled_mm_blockwise"
    # Half a step of bfloat16, as in ``linear``.
    outputs: ClassVar[tuple[Output, ...]] = (Output("y", relative=4e-3),)

    @property
    def num_weights(self) -> int:  # type: ignore[override]
        """The weight, its scales and, if there is one, the bias."""
        return 2 + self.bias

    @property
    def operands(self) -> Operands:
        return Operands(self.in_features, self.out_features, torch.float8_e4m3fn, torch.float8_e4m3fn, self.block)

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        k, n, dtype = self.in_features, self.out_features, torch.float8_e4m3fn
        groups = -(-k // self.block)
        inputs = (
            random_codes((num_tokens, k), dtype, device, generator),
            random_scales((num_tokens, groups), 1, dtype, device, generator),
            random_codes((n, k), dtype, device, generator),
            random_scales((-(-n // self.block), groups), k, dtype, device, generator),
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
        x = dequantized(codes, scales, self.block)
        return rounded(product(x, dequantized(weight, weight_scales, self.block), bias), self.dtype)

    def traffic(self, num_tokens: int) -> Traffic:
        groups = -(-self.in_features // self.block)
        return gemm_traffic(
            num_tokens, self.in_features, self.out_features,
            x=torch.float8_e4m3fn, weight=torch.float8_e4m3fn, y=self.dtype,
            scales=groups * (num_tokens + -(-self.out_features // self.block)), bias=self.bias,
            unit=torch.float8_e4m3fn,
        )  # fmt: skip
