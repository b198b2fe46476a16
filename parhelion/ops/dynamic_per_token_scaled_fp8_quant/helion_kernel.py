"""``dynamic_per_token_scaled_fp8_quant`` as a tile program: a program takes a row whole. int8 has the same program."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.quantize import codes_of, scales_of


@helion.kernel(static_shapes=False)
def dynamic_per_token_scaled_quant(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, programmatic: hl.constexpr
) -> None:
    num_tokens, hidden_size = x.size()
    hidden_size = hl.specialize(hidden_size)
    for rows in hl.tile(num_tokens):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        values = x[rows, :].to(torch.float32)
        scale = scales_of(torch.amax(torch.abs(values), dim=-1), codes.dtype)
        codes[rows, :] = codes_of(values, (1.0 / scale)[:, None], codes.dtype)
        scales[rows] = scale
