"""``silu_and_mul_per_block_quant``: the gated activation, quantized with one scale a group of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn, wide
from parhelion.ops.quantize import CODE_FLIPS, FP8, ScaleFormat, check_groups, per_group_quantized
from parhelion.ops.silu_and_mul.contract import gated


@dataclass(frozen=True)
class SiluAndMulPerBlockQuant(Contract):
    """``silu_and_mul`` in float32, quantized per group without rounding in between.

    Input: x [M, 2 * intermediate_size] of ``dtype``, the gate first.
    Outputs: codes [M, intermediate_size] FP8 and scales [M, intermediate_size / group_size] float32, row-major, powers
    of two if ``scale_format`` is ``"ue8m0"`` (see ``ops/quantize.py``).

    Raises:
        ValueError: ``intermediate_size`` is no multiple of ``group_size``, or that is no power of two.
    """

    intermediate_size: int
    dtype: torch.dtype = torch.bfloat16
    group_size: int = 128
    scale_format: ScaleFormat = "float32"

    name: ClassVar[str] = "silu_and_mul_per_block_quant"
    instead: ClassVar[str] = "linear"  # as ops/quantize.py says
    outputs: ClassVar[tuple[Output, ...]] = (
        Output("codes", relative=4e-2, scales=1, max_flips=CODE_FLIPS),
        Output("scales", relative=4e-3),
    )

    def __post_init__(self) -> None:
        check_groups(self.name, self.intermediate_size, self.group_size)

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        return (randn((num_tokens, 2 * self.intermediate_size), self.dtype, device, generator),)

    def reference(self, x: torch.Tensor) -> Tensors:
        return per_group_quantized(gated(wide(x)), self.group_size, self.scale_format)

    def traffic(self, num_tokens: int) -> Traffic:
        elements = num_tokens * self.intermediate_size
        moved = elements * (2 * self.dtype.itemsize + FP8.itemsize) + elements // self.group_size * 4
        return Traffic(moved, 7 * elements)
