"""``weight_only_mv``: few tokens, unquantized, by a weight of codes, with a norm before and an activation behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn, rounded, wide
from parhelion.ops.gemm.formulas import product, random_codes, random_scales
from parhelion.ops.rms_norm_dynamic_per_token_quant.contract import (
    RESIDUAL,
    norm_with_optional_residual,
    sample_norm_inputs,
)
from parhelion.ops.silu_and_mul.contract import gated


@dataclass(frozen=True)
class WeightOnlyMv(Contract):
    """y = f(norm(x + residual) @ (weight * weight_scales).T), the norm, the addition and f each if there is one.

    Inputs: x [M, in_features] of ``dtype``; residual [M, in_features] of ``dtype`` if ``add_residual``; norm_weight
    [in_features] of ``dtype`` if there is an ``epsilon``; weight codes of ``quant_dtype`` and weight_scales float32,
    [out_features, in_features] and [out_features, 1], twice as many rows, the gate's first, if ``gated``.
    Outputs: y [M, out_features] of ``dtype``; if ``add_residual``, then the new residual, a tensor of its own.

    The new residual is rounded to ``dtype`` before the norm reads it, as in ``fused_add_rms_norm``. What the norm
    gives stays float32, unlike there, and so do sums, gate and up: y is rounded once. Without quantized activations it
    is closer to what the checkpoint says than ``scaled_mm``. FP8 codes are finite. A tile program may read what goes
    into the product with 8 bits an element, as many as bfloat16 has.

    A matrix-vector product: of several tokens each reads all of the weight.
    """

    in_features: int
    out_features: int
    quant_dtype: torch.dtype = torch.float8_e4m3fn
    dtype: torch.dtype = torch.bfloat16
    epsilon: float | None = None
    add_residual: bool = False
    gated: bool = False

    name: ClassVar[str] = "weight_only_mv"
    instead: ClassVar[str] = "weight_only_mm"  # as ops/quantize.py says

    def __post_init__(self) -> None:
        if self.add_residual and self.epsilon is None:
            raise ValueError(f"{self.name}: a residual is added only before a norm, and there is no epsilon")

    @property
    def outputs(self) -> tuple[Output, ...]:  # type: ignore[override]  # depends on add_residual
        # Half a step of bfloat16, as in ``weight_only_mm``.
        y = Output("y", relative=4e-3)
        return (y, RESIDUAL) if self.add_residual else (y,)

    @property
    def num_weights(self) -> int:  # type: ignore[override]  # depends on epsilon
        """The norm's weight if there is a norm, the weight and its scales."""
        return 2 if self.epsilon is None else 3

    @property
    def rows(self) -> int:
        """Of the weight."""
        return self.out_features * (2 if self.gated else 1)

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        k, n = self.in_features, self.rows
        if self.epsilon is None:
            x: Tensors = (randn((num_tokens, k), self.dtype, device, generator),)
        else:
            x = sample_norm_inputs(num_tokens, k, self.add_residual, self.dtype, device, generator)
        return (
            *x,
            random_codes((n, k), self.quant_dtype, device, generator),
            random_scales((n, 1), k, self.quant_dtype, device, generator),
        )

    def reference(self, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor | Tensors:
        *before, weight, weight_scales = others
        residual: Tensors = ()
        x_or_normed = wide(x)
        if self.epsilon is not None:
            x_or_normed, residual = norm_with_optional_residual(x, tuple(before), self.epsilon, self.dtype)
        y = product(x_or_normed, weight.to(x_or_normed.dtype)) * wide(weight_scales).t()
        y = rounded(gated(y) if self.gated else y, self.dtype)
        return (y, *residual) if residual else y

    def traffic(self, num_tokens: int) -> Traffic:
        k, n, element = self.in_features, self.rows, self.dtype.itemsize
        # x, and the residual read and written; the norm's weight; y.
        activations = num_tokens * k * (3 if self.add_residual else 1) + num_tokens * self.out_features
        activations += 0 if self.epsilon is None else k
        flops = 2 * k * n + (0 if self.epsilon is None else 5 * k) + (5 * self.out_features if self.gated else 0)
        return Traffic(n * k * self.quant_dtype.itemsize + 4 * n + activations * element, num_tokens * flops)
