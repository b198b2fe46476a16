"""Dynamic quantization to eight bits: the formulas that every contract with quantized outputs shares.

A value is its code times its scale. Scales are symmetric, from the largest magnitude (``amax``) of a row or of a group
of a row; a code is ``x * (1 / scale)`` rounded to nearest, ties to even, and never saturates. Amax counts as at least
``LEAST_AMAX``, so a row of zeros has a positive scale and zero codes. A row (or group) with a NaN or an infinity has a
scale that is NaN or infinite, and so dequantizes to nothing finite; its int8 codes are then 0 where FP8 has NaN.
"""

from __future__ import annotations

from typing import Literal

import torch

from parhelion.ops.contract import rounded

ScaleFormat = Literal["float32", "ue8m0"]
"""``ue8m0``: the scale is a power of two, rounded up (OCP Microscaling's scale type); it is stored as float32 all the
same. Packing its exponents into bytes, as DeepGEMM wants them on Blackwell, is that library's adapter's business."""

FP8 = torch.float8_e4m3fn

LEAST_AMAX = 1e-10

CODE_FLIPS = 0.05
"""Share of codes that may be one step off where a kernel computes something before it quantizes: one that rounds the
activation to bfloat16 in between, as vLLM's do, moves about 3% of the codes over a rounding border."""

TIE_FLIPS = 5e-3
"""The same where a kernel only quantizes: bfloat16 inputs fall on ties of the code's grid in about one row of sixteen,
and there the last bit of the reciprocal decides."""


def code_max(quant_dtype: torch.dtype) -> float:
    """The largest code: 448 for FP8 (E4M3), 127 for int8."""
    return {FP8: 448.0, torch.int8: 127.0}[quant_dtype]


def per_token_quantized(x: torch.Tensor, quant_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K], float32 or float64, to codes [M, K] and scales [M, 1] (float32; float64 of float64)."""
    scales = _amax(x) * (1.0 / code_max(quant_dtype))
    return _codes(x, scales, quant_dtype), rounded(scales, torch.float32)


def per_group_quantized(
    x: torch.Tensor, group_size: int, scale_format: ScaleFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K], float32 or float64, to FP8 codes [M, K] and scales [M, K / group_size] (as above)."""
    groups = x.unflatten(-1, (-1, group_size))
    amax = _amax(groups)
    scales = _least_power_of_two(amax) if scale_format == "ue8m0" else amax * (1.0 / code_max(FP8))
    return _codes(groups, scales, FP8).flatten(-2), rounded(scales.squeeze(-1), torch.float32)


def check_groups(name: str, size: int, group_size: int) -> None:
    """Raise ``ValueError`` unless rows of ``size`` elements split into groups of ``group_size``, a power of two."""
    if group_size <= 0 or group_size & (group_size - 1):
        raise ValueError(f"{name}: group_size is {group_size}; it must be a power of two, such as 128")
    if size % group_size:
        raise ValueError(f"{name}: a row of {size} elements does not split into groups of {group_size}")


def _amax(x: torch.Tensor) -> torch.Tensor:
    return x.abs().amax(-1, keepdim=True).clamp(min=LEAST_AMAX)


def _least_power_of_two(amax: torch.Tensor) -> torch.Tensor:
    """The least power of two s with amax <= 448 * s; NaN and infinity stay."""
    # amax = mantissa * 2 ** exponent with mantissa in [0.5, 1); 448 = 0.875 * 2 ** 9.
    mantissa, exponent = torch.frexp(amax)
    scale = torch.ldexp(torch.ones_like(amax), torch.where(mantissa <= 0.875, exponent - 9, exponent - 8))
    return torch.where(amax.isfinite(), scale, amax)


def _codes(x: torch.Tensor, scales: torch.Tensor, quant_dtype: torch.dtype) -> torch.Tensor:
    scaled = x * (1.0 / scales)
    return scaled.round().nan_to_num(nan=0.0).to(torch.int8) if quant_dtype == torch.int8 else scaled.to(quant_dtype)
