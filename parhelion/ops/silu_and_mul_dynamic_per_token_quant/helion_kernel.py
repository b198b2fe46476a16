"""``silu_and_mul_dynamic_per_token_quant`` as a tile program: a program takes a row whole."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.quantize import codes_of, scales_of
from parhelion.ops.tile_math import silu_times


@helion.kernel(static_shapes=False)
def silu_and_mul_dynamic_per_token_quant(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, programmatic: hl.constexpr
) -> None:
    num_tokens, _, intermediate_size = x.size()
    intermediate_size = hl.specialize(intermediate_size)
    for rows in hl.tile(num_tokens):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        values = silu_times(x[rows, 0, :], x[rows, 1, :])
        scale = scales_of(torch.amax(torch.abs(values), dim=-1), codes.dtype)
        codes[rows, :] = codes_of(values, (1.0 / scale)[:, None], codes.dtype)
        scales[rows] = scale
