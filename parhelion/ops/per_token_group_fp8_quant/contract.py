"""``per_token_group_fp8_quant``: FP8 codes with one scale a group of a row, as for DeepSeek-V3's block FP8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn, wide
from parhelion.ops.quantize import FP8, TIE_FLIPS, ScaleFormat, check_groups, per_group_quantized


@dataclass(frozen=True)
class PerTokenGroupFp8Quant(Contract):
    """Groups of neighbouring elements of a row quantized to FP8 (E4M3), each with its own scale.

    Input: x [M, hidden_size] of ``dtype``.
    Outputs: codes [M, hidden_size] FP8 and scales [M, hidden_size / group_size] float32, row-major, powers of two if
    ``scale_format`` is ``"ue8m0"`` (see ``ops/quantize.py``).

    Raises:
        ValueError: ``hidden_size`` is no multiple of ``group_size``, or that is no power of two.
    """

    hidden_size: int
    dtype: torch.dtype = torch.bfloat16
    group_size: int = 128
    scale_format: ScaleFormat = "float32"

    name: ClassVar[str] = "per_token_group_fp8_quant"
    instead: ClassVar[str] = "linear"  # as ops/quantize.py says
    outputs: ClassVar[tuple[Output, ...]] = (
        Output("codes", relative=1e-2, scales=1, max_flips=TIE_FLIPS),
        Output("scales", relative=1e-6),
    )

    def __post_init__(self) -> None:
        check_groups(self.name, self.hidden_size, self.group_size)

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        return (randn((num_tokens, self.hidden_size), self.dtype, device, generator),)

    def reference(self, x: torch.Tensor) -> Tensors:
        return per_group_quantized(wide(x), self.group_size, self.scale_format)

    def traffic(self, num_tokens: int) -> Traffic:
        elements = num_tokens * self.hidden_size
        moved = elements * (self.dtype.itemsize + FP8.itemsize) + elements // self.group_size * 4
        return Traffic(moved, 2 * elements)
