"""``rms_norm_dynamic_per_token_quant``: a norm whose output is quantized with one scale a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn, wide
from parhelion.ops.fused_add_rms_norm.contract import added
from parhelion.ops.quantize import CODE_FLIPS, FP8, per_token_quantized
from parhelion.ops.rms_norm.contract import normalized

RESIDUAL = Output("residual", relative=4e-3)


@dataclass(frozen=True)
class RmsNormDynamicPerTokenQuant(Contract):
    """``rms_norm`` in float32, quantized per row without rounding in between; optionally of ``residual + x``.

    Inputs: x [M, hidden_size], residual [M, hidden_size] if ``add_residual``, weight [hidden_size], all of ``dtype``.
    Outputs: codes [M, hidden_size] of ``quant_dtype`` and scales [M, 1] float32 (see ``ops/quantize.py``); if
    ``add_residual``, then the new residual, rounded to ``dtype`` before the norm reads it, in place.
    """

    hidden_size: int
    epsilon: float = 1e-6
    dtype: torch.dtype = torch.bfloat16
    quant_dtype: torch.dtype = FP8
    add_residual: bool = False

    name: ClassVar[str] = "rms_norm_dynamic_per_token_quant"
    instead: ClassVar[str] = "weight_only_mm"  # as ops/quantize.py says
    num_weights: ClassVar[int] = 1

    @property
    def outputs(self) -> tuple[Output, ...]:  # type: ignore[override]  # depends on add_residual
        codes = Output("codes", relative=4e-2, scales=1, max_flips=CODE_FLIPS)
        scales = Output("scales", relative=4e-3)
        return (codes, scales, RESIDUAL) if self.add_residual else (codes, scales)

    @property
    def mutated(self) -> tuple[int, ...]:  # type: ignore[override]  # depends on add_residual
        return (1,) if self.add_residual else ()

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        return sample_norm_inputs(num_tokens, self.hidden_size, self.add_residual, self.dtype, device, generator)

    def reference(self, x: torch.Tensor, *residual_and_weight: torch.Tensor) -> Tensors:
        normed, residual = norm_with_optional_residual(x, residual_and_weight, self.epsilon, self.dtype)
        return (*per_token_quantized(normed, self.quant_dtype), *residual)

    def traffic(self, num_tokens: int) -> Traffic:
        elements = num_tokens * self.hidden_size
        moved = (3 if self.add_residual else 1) * elements * self.dtype.itemsize  # x; the residual is read and written
        moved += self.hidden_size * self.dtype.itemsize + elements * self.quant_dtype.itemsize + num_tokens * 4
        return Traffic(moved, (7 if self.add_residual else 6) * elements)


def sample_norm_inputs(
    num_tokens: int,
    hidden_size: int,
    add_residual: bool,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> Tensors:
    """(x, residual, weight), or (x, weight), for the contracts of quantizing norms."""
    rows = tuple(randn((num_tokens, hidden_size), dtype, device, generator) for _ in range(1 + add_residual))
    return (*rows, randn((hidden_size,), dtype, device, generator))


def norm_with_optional_residual(
    x: torch.Tensor, residual_and_weight: Tensors, epsilon: float, dtype: torch.dtype
) -> tuple[torch.Tensor, Tensors]:
    """The norm, not rounded, of x or of the new residual; and that residual, if there is one."""
    *residual, weight = residual_and_weight
    totals = tuple(added(x, each, dtype) for each in residual)
    return normalized(wide(totals[0] if totals else x), wide(weight), epsilon), totals
