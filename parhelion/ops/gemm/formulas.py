"""The references of the GEMM contracts, and how they are counted."""

from __future__ import annotations

import torch

from parhelion.ops.contract import MathUnit, Traffic, wide

_UNITS: dict[torch.dtype, MathUnit] = {
    torch.float8_e4m3fn: "float8",
    torch.int8: "int8",
    torch.bfloat16: "bfloat16",
    torch.float16: "bfloat16",
    torch.float32: "float32",
}


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [M, K] times the transpose of weight [N, K], plus bias [N]; in the wider dtype of x and weight."""
    y = x @ weight.t()
    return y if bias is None else y + wide(bias)


def dequantized(codes: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    """Codes [R, C] times their scales, in float32, or float64 if the scales are.

    Args:
        scales: [R, C / group], a scale for so many columns of a row, or [R / group, C / group], a scale for a square;
            both rounded up.
    """
    values = codes.to(wide(scales).dtype)
    scales = wide(scales).repeat_interleave(group, dim=1)[:, : codes.size(1)]
    if scales.size(0) != codes.size(0):
        scales = scales.repeat_interleave(group, dim=0)[: codes.size(0)]
    return values * scales


def gemm_traffic(
    num_tokens: int,
    in_features: int,
    out_features: int,
    *,
    x: torch.dtype,
    weight: torch.dtype,
    y: torch.dtype,
    scales: int = 0,
    bias: bool = False,
    unit: torch.dtype,
) -> Traffic:
    """Bytes and FLOPs of [M, K] by [N, K] to [M, N].

    Args:
        scales: float32 scales that are read, of activations and weights together.
        unit: the dtype that the multiplications are done in.
    """
    values = num_tokens * in_features * x.itemsize + out_features * in_features * weight.itemsize
    values += num_tokens * out_features * y.itemsize + (out_features * y.itemsize if bias else 0)
    return Traffic(values + 4 * scales, 2 * num_tokens * in_features * out_features, _UNITS[unit])


def random_codes(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> torch.Tensor:
    """Codes as a quantizer of normal numbers gives them: the largest of a row near the end of the dtype's range."""
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    values = torch.randn(shape, generator=generator) * (largest / 4)
    values = values.clamp(-largest, largest)
    return (values.round() if dtype == torch.int8 else values).to(dtype).to(device)


def random_scales(
    shape: tuple[int, ...], columns: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> torch.Tensor:
    """Scales for codes of that dtype that make values of about 1 / sqrt(columns), half to one and a half of it."""
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    return ((torch.rand(shape, generator=generator) + 0.5) * (4 / largest / columns**0.5)).to(device)
