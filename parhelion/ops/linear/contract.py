"""``linear``: activations by a weight, in one dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Output, Tensors, Traffic, randn, rounded, wide
from parhelion.ops.gemm.formulas import gemm_traffic, product
from parhelion.ops.gemm.operands import GemmContract, Operands


@dataclass(frozen=True)
class Linear(GemmContract):
    """y = x @ weight.T + bias.

    Inputs: x [M, in_features], weight [out_features, in_features] and, with ``bias``, bias [out_features], all of
    ``dtype``.
    Output: y [M, out_features] of ``dtype``; sums are kept in float32 and rounded once.
    """

    in_features: int
    out_features: int
    dtype: torch.dtype = torch.bfloat16
    bias: bool = False

    name: ClassVar[str] = "linear"
    # Half a step of bfloat16 is 2^-9 of the value; over many elements the norm of the error is about half of that.
    outputs: ClassVar[tuple[Output, ...]] = (Output("y", relative=4e-3),)
    instead: ClassVar[str] = "torch"

    @property
    def num_weights(self) -> int:  # type: ignore[override]
        """The weight and, if there is one, the bias."""
        return 1 + self.bias

    @property
    def operands(self) -> Operands:
        return Operands(self.in_features, self.out_features, self.dtype, self.dtype)

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        k, n = self.in_features, self.out_features
        x = randn((num_tokens, k), self.dtype, device, generator)
        weight = randn((n, k), self.dtype, device, generator, k**-0.5)
        return (x, weight, randn((n,), self.dtype, device, generator)) if self.bias else (x, weight)

    def reference(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return rounded(product(wide(x), wide(weight), bias), self.dtype)

    def traffic(self, num_tokens: int) -> Traffic:
        return gemm_traffic(
            num_tokens, self.in_features, self.out_features,
            x=self.dtype, weight=self.dtype, y=self.dtype, bias=self.bias, unit=self.dtype,
        )  # fmt: skip
