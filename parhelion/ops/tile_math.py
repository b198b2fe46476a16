"""Formulas on tiles that several tile programs share. Helion traces into them, so they cost nothing.

They compute in float32, in registers. ``ops/quantize.py`` says what the quantization promises; these are the same
promises in the fewest instructions, and tests hold the two together. Helion does not know ``[:, None]`` outside of a
kernel's own body: write ``unsqueeze``.
"""

from __future__ import annotations

import torch

from parhelion.ops.quantize import LEAST_AMAX, code_max


def silu_times(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, in float32."""
    gate = gate.to(torch.float32)
    return gate * torch.sigmoid(gate) * up.to(torch.float32)


def added_rows(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """residual + x, rounded once, to the residual's dtype."""
    return (x.to(torch.float32) + residual.to(torch.float32)).to(residual.dtype)


def rms_normed(rows: torch.Tensor, weight: torch.Tensor, hidden_size: int, epsilon: float) -> torch.Tensor:
    """The norm of float32 rows [R, hidden_size], not rounded.

    The weight is of that shape too, expanded with a stride of 0: so its tile has the layout of the rows', and no program
    shuffles it through shared memory.
    """
    factor = torch.rsqrt(torch.sum(rows * rows, dim=-1) / hidden_size + epsilon)
    return rows * factor.unsqueeze(-1) * weight.to(torch.float32)


def rms_normed_groups(rows: torch.Tensor, weight: torch.Tensor, hidden_size: int, epsilon: float) -> torch.Tensor:
    """The same of rows seen as groups [R, groups, group_size]."""
    factor = torch.rsqrt(torch.sum(torch.sum(rows * rows, dim=-1), dim=-1) / hidden_size + epsilon)
    return rows * factor.unsqueeze(-1).unsqueeze(-1) * weight.to(torch.float32)


def scales_of(amax: torch.Tensor, quant_dtype: torch.dtype) -> torch.Tensor:
    """The float32 scales of rows or groups with these largest magnitudes."""
    return torch.clamp(amax, min=LEAST_AMAX) * (1.0 / code_max(quant_dtype))


def power_of_two_scales_of(amax: torch.Tensor) -> torch.Tensor:
    """The least powers of two s with amax <= 448 * s, by the bits of amax, exactly; NaN and infinity stay.

    448 is 1.75 * 2 ** 8. Adding 0x1FFFFF to the bits carries into the exponent just if the mantissa is above 1.75.
    """
    amax = torch.clamp(amax, min=LEAST_AMAX)
    bits = ((amax.view(torch.int32) + 0x1FFFFF) & 0x7F800000) - (8 << 23)
    return torch.where(amax < float("inf"), bits.view(torch.float32), amax)


def group_scales_of(amax: torch.Tensor, quant_dtype: torch.dtype, ue8m0: bool) -> torch.Tensor:
    """The scales of groups, powers of two or not."""
    return power_of_two_scales_of(amax) if ue8m0 else scales_of(amax, quant_dtype)


def codes_of(values: torch.Tensor, inverse_scales: torch.Tensor, quant_dtype: torch.dtype) -> torch.Tensor:
    """Codes of float32 values, given 1 / scale in a shape that broadcasts."""
    scaled = values * inverse_scales
    if quant_dtype == torch.int8:
        return torch.round(torch.where(scaled == scaled, scaled, 0.0)).to(torch.int8)
    return scaled.to(quant_dtype)
