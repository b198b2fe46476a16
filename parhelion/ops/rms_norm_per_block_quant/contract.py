"""``rms_norm_per_block_quant``: a norm whose output is quantized with one scale a group of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic
from parhelion.ops.quantize import CODE_FLIPS, FP8, ScaleFormat, check_groups, per_group_quantized
from parhelion.ops.rms_norm_dynamic_per_token_quant.contract import (
    RESIDUAL,
    norm_with_optional_residual,
    sample_norm_inputs,
)


@dataclass(frozen=True)
class RmsNormPerBlockQuant(Contract):
    """``rms_norm`` in float32, quantized per group without rounding in between; optionally of ``residual + x``.

    Inputs: x [M, hidden_size], residual [M, hidden_size] if ``add_residual``, weight [hidden_size], all of ``dtype``.
    Outputs: codes [M, hidden_size] FP8 and scales [M, hidden_size / group_size] float32, row-major, powers of two if
    ``scale_format`` is ``"ue8m0"`` (see ``ops/quantize.py``); if ``add_residual``, then the new residual, rounded to
    ``dtype`` before the norm reads it, in place.

    Raises:
        ValueError: ``hidden_size`` is no multiple of ``group_size``, or that is no power of two.
    """

    hidden_size: int
    epsilon: float = 1e-6
    dtype: torch.dtype = torch.bfloat16
    group_size: int = 128
    scale_format: ScaleFormat = "float32"
    add_residual: bool = False

    name: ClassVar[str] = "rms_norm_per_block_quant"
    instead: ClassVar[str] = "linear"  # as ops/quantize.py says
    num_weights: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_groups(self.name, self.hidden_size, self.group_size)

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
        return (*per_group_quantized(normed, self.group_size, self.scale_format), *residual)

    def traffic(self, num_tokens: int) -> Traffic:
        elements = num_tokens * self.hidden_size
        moved = (3 if self.add_residual else 1) * elements * self.dtype.itemsize  # x; the residual is read and written
        moved += self.hidden_size * self.dtype.itemsize + elements * FP8.itemsize + elements // self.group_size * 4
        return Traffic(moved, (7 if self.add_residual else 6) * elements)
