"""``silu_and_mul_per_block_quant`` as a tile program: a program takes some neighbouring groups of a row."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.quantize import codes_of, group_scales_of
from parhelion.ops.tile_math import silu_times


@helion.kernel(static_shapes=False)
def silu_and_mul_per_block_quant(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    ue8m0: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    num_tokens, _, num_groups, group_size = x.size()
    num_groups = hl.specialize(num_groups)
    group_size = hl.specialize(group_size)
    for rows, groups in hl.tile([num_tokens, num_groups]):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        values = silu_times(x[rows, 0, groups, :], x[rows, 1, groups, :])
        scale = group_scales_of(torch.amax(torch.abs(values), dim=-1), codes.dtype, ue8m0)
        codes[rows, groups, :] = codes_of(values, (1.0 / scale)[:, :, None], codes.dtype)
        scales[rows, groups] = scale
