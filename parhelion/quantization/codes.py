"""Codes and scales of a weight, by channel or by block: the formulas of ``ops/quantize.py`` applied to weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from parhelion.ops.quantize import FP8, per_token_quantized

_MOST_ELEMENTS = 1 << 25
"""Of a weight that is quantized by channel at a time: in float32, three times over, they take 400 MB, where all of an
output head would take gigabytes.
"""


def quantize_per_channel(weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize with a scale an output channel, rounding to nearest.

    Args:
        weight: [N, K], any float dtype.
        dtype: float8_e4m3fn or int8.

    Returns:
        Codes [N, K] in that dtype and scales [N, 1] float32.
    """
    codes = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    scales = torch.empty((len(weight), 1), dtype=torch.float32, device=weight.device)
    rows = max(1, _MOST_ELEMENTS // max(1, weight.shape[1]))
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        codes[part], scales[part] = per_token_quantized(weight[part].float(), dtype)
    return codes, scales


def quantize_per_block(
    weight: torch.Tensor, block: int = 128, dtype: torch.dtype = FP8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize with a scale a square block, rounding to nearest; blocks at the right and lower edges may be partial.

    Args:
        weight: [N, K], any float dtype.
        block: side of a block.
        dtype: float8_e4m3fn or int8.

    Returns:
        Codes [N, K] in that dtype and scales [ceil(N / block), ceil(K / block)] float32.
    """
    rows, columns = weight.shape
    padded = F.pad(weight.float(), (0, -columns % block, 0, -rows % block))
    by_block = padded.unflatten(0, (-1, block)).unflatten(2, (-1, block)).transpose(1, 2)
    codes, scales = per_token_quantized(by_block.flatten(2).flatten(0, 1), dtype)
    restored = codes.view(by_block.shape).transpose(1, 2).reshape(padded.shape)
    return restored[:rows, :columns].contiguous(), scales.view(by_block.shape[:2])


def expand_block_scales(scales: torch.Tensor, block: int, rows: int, columns: int) -> torch.Tensor:
    """Scales [ceil(rows / block), ceil(columns / block)] repeated to [rows, columns]."""
    return scales.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]


def code_max(codes: torch.dtype) -> float:
    """The largest code of a type: 127 for int8 (symmetric, so -128 is left out), 448 for FP8 (E4M3)."""
    return 127.0 if codes == torch.int8 else float(torch.finfo(codes).max)
