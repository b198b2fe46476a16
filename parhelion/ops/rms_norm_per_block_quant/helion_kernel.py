"""``rms_norm_per_block_quant`` as tile programs: a program takes a row whole, as groups by elements of a group."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.quantize import codes_of, group_scales_of
from parhelion.ops.tile_math import added_rows, rms_normed_groups


@helion.kernel(static_shapes=False)
def rms_norm_per_block_quant(
    x: torch.Tensor,
    weight: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    epsilon: float,
    ue8m0: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    num_tokens, num_groups, group_size = x.size()
    num_groups = hl.specialize(num_groups)
    group_size = hl.specialize(group_size)
    for rows in hl.tile(num_tokens):
        start_successor(programmatic)
        norm_weight = weight[rows, :, :]
        wait_for_predecessor(programmatic)
        wide = x[rows, :, :].to(torch.float32)
        normed = rms_normed_groups(wide, norm_weight, num_groups * group_size, epsilon)
        scale = group_scales_of(torch.amax(torch.abs(normed), dim=-1), codes.dtype, ue8m0)
        codes[rows, :, :] = codes_of(normed, (1.0 / scale)[:, :, None], codes.dtype)
        scales[rows, :] = scale


@helion.kernel(static_shapes=False)
def fused_add_rms_norm_per_block_quant(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    epsilon: float,
    ue8m0: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    num_tokens, num_groups, group_size = x.size()
    num_groups = hl.specialize(num_groups)
    group_size = hl.specialize(group_size)
    for rows in hl.tile(num_tokens):
        start_successor(programmatic)
        norm_weight = weight[rows, :, :]
        wait_for_predecessor(programmatic)
        total = added_rows(x[rows, :, :], residual[rows, :, :])
        residual[rows, :, :] = total
        wide = total.to(torch.float32)
        normed = rms_normed_groups(wide, norm_weight, num_groups * group_size, epsilon)
        scale = group_scales_of(torch.amax(torch.abs(normed), dim=-1), codes.dtype, ue8m0)
        codes[rows, :, :] = codes_of(normed, (1.0 / scale)[:, :, None], codes.dtype)
        scales[rows, :] = scale
