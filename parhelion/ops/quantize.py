"""Dynamic quantization to eight bits: the formulas that references and tile programs share.

A value is its code times its scale. Scales are symmetric, from the largest magnitude (``amax``) of a row or of a group
of a row; a code is ``x * (1 / scale)`` rounded to nearest, ties to even, and never saturates. Amax counts as at least
``LEAST_AMAX``, so a row of zeros has a positive scale and zero codes. A row (or group) with a NaN or an infinity has a
scale that is NaN or infinite, and so dequantizes to nothing finite; its int8 codes are then 0 where FP8 has NaN.

A target without E4M3 (sm_80) needs no FP8 codes: there ``weight_only_mm`` takes FP8 weights with a scale a channel
beside activations as they are, and weights with a scale a block are dequantized for ``linear``. int8 codes are built
everywhere.

Helion traces into ``scales_of`` and those below it, so they cost a program nothing. It does not know ``[:, None]``
outside of a kernel's own body: write ``unsqueeze``.
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

TIE_FLIPS = 1e-2
"""The same where a kernel only quantizes: bfloat16 inputs fall on ties of the code's grid in about one row of sixteen,
and there the last bit of the reciprocal decides. Of a few hundred codes, half a percent was seen to flip."""


def per_token_quantized(x: torch.Tensor, quant_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K], float32 or float64, to codes [M, K] and scales [M, 1] (float32; float64 of float64)."""
    scales = scales_of(x.abs().amax(-1, keepdim=True), quant_dtype)
    return codes_of(x, 1.0 / scales, quant_dtype), rounded(scales, torch.float32)


def per_group_quantized(
    x: torch.Tensor, group_size: int, scale_format: ScaleFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K], float32 or float64, to FP8 codes [M, K] and scales [M, K / group_size] (as above)."""
    groups = x.unflatten(-1, (-1, group_size))
    scales = group_scales_of(groups.abs().amax(-1, keepdim=True), FP8, scale_format == "ue8m0")
    return codes_of(groups, 1.0 / scales, FP8).flatten(-2), rounded(scales.squeeze(-1), torch.float32)


def check_groups(name: str, size: int, group_size: int) -> None:
    """Raise ``ValueError`` unless rows of ``size`` elements split into groups of ``group_size``, a power of two."""
    if group_size <= 0 or group_size & (group_size - 1):
        raise ValueError(f"{name}: group_size is {group_size}; it must be a power of two, such as 128")
    if size % group_size:
        raise ValueError(f"{name}: a row of {size} elements does not split into groups of {group_size}")


def code_max(quant_dtype: torch.dtype) -> float:
    """The largest code: 448 for FP8 (E4M3), 127 for int8."""
    return {FP8: 448.0, torch.int8: 127.0}[quant_dtype]


def scales_of(amax: torch.Tensor, quant_dtype: torch.dtype) -> torch.Tensor:
    """The scales of rows or groups with these largest magnitudes, which become the largest code."""
    return torch.clamp(amax, min=LEAST_AMAX) * (1.0 / code_max(quant_dtype))


def power_of_two_scales_of(amax: torch.Tensor) -> torch.Tensor:
    """The least powers of two s with amax <= 448 * s, exactly, by the bits of amax; NaN and infinity stay.

    448 is 1.75 * 2 ** 8. A quarter of the mantissa's range less one, added to the bits, carries into the exponent just
    if the mantissa is above 1.75.
    """
    amax = torch.clamp(amax, min=LEAST_AMAX)
    integer, mantissa_bits, exponent_bits = (
        (torch.int64, 52, 11) if amax.dtype == torch.float64 else (torch.int32, 23, 8)
    )
    carried = amax.view(integer) + ((1 << (mantissa_bits - 2)) - 1)
    exponents = (carried & (((1 << exponent_bits) - 1) << mantissa_bits)) - (8 << mantissa_bits)
    return torch.where(amax < float("inf"), exponents.view(amax.dtype), amax)


def group_scales_of(amax: torch.Tensor, quant_dtype: torch.dtype, ue8m0: bool) -> torch.Tensor:
    """The scales of groups, powers of two (FP8 only) or not."""
    return power_of_two_scales_of(amax) if ue8m0 else scales_of(amax, quant_dtype)


def codes_of(values: torch.Tensor, inverse_scales: torch.Tensor, quant_dtype: torch.dtype) -> torch.Tensor:
    """Codes of values, given 1 / scale in a shape that broadcasts."""
    scaled = values * inverse_scales
    if quant_dtype == torch.int8:
        return torch.round(torch.where(scaled == scaled, scaled, 0.0)).to(torch.int8)
    return scaled.to(quant_dtype)
