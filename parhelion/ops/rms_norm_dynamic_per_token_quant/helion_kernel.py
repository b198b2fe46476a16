"""``rms_norm_dynamic_per_token_quant`` as tile programs: a program takes a row whole, with a residual or without."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.quantize import codes_of, scales_of
from parhelion.ops.tile_math import added_rows, rms_normed


@helion.kernel(static_shapes=False)
def rms_norm_dynamic_per_token_quant(
    x: torch.Tensor,
    weight: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    epsilon: float,
    programmatic: hl.constexpr,
) -> None:
    num_tokens, hidden_size = x.size()
    hidden_size = hl.specialize(hidden_size)
    for rows in hl.tile(num_tokens):
        start_successor(programmatic)
        norm_weight = weight[rows, :]
        wait_for_predecessor(programmatic)
        normed = rms_normed(x[rows, :].to(torch.float32), norm_weight, hidden_size, epsilon)
        scale = scales_of(torch.amax(torch.abs(normed), dim=-1), codes.dtype)
        codes[rows, :] = codes_of(normed, (1.0 / scale)[:, None], codes.dtype)
        scales[rows] = scale


@helion.kernel(static_shapes=False)
def fused_add_rms_norm_dynamic_per_token_quant(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    epsilon: float,
    programmatic: hl.constexpr,
) -> None:
    num_tokens, hidden_size = x.size()
    hidden_size = hl.specialize(hidden_size)
    for rows in hl.tile(num_tokens):
        start_successor(programmatic)
        norm_weight = weight[rows, :]
        wait_for_predecessor(programmatic)
        total = added_rows(x[rows, :], residual[rows, :])
        residual[rows, :] = total
        normed = rms_normed(total.to(torch.float32), norm_weight, hidden_size, epsilon)
        scale = scales_of(torch.amax(torch.abs(normed), dim=-1), codes.dtype)
        codes[rows, :] = codes_of(normed, (1.0 / scale)[:, None], codes.dtype)
        scales[rows] = scale
