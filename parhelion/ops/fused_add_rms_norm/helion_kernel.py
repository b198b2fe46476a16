"""``fused_add_rms_norm`` as a tile program: a program takes a row whole, and the residual is updated in place."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.tile_math import added_rows, rms_normed


@helion.kernel(static_shapes=False)
def fused_add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    epsilon: float,
    programmatic: hl.constexpr,
) -> None:
    num_tokens, hidden_size = x.size()
    hidden_size = hl.specialize(hidden_size)
    for rows in hl.tile(num_tokens):
        start_successor(programmatic)
        scale = weight[rows, :]
        wait_for_predecessor(programmatic)
        total = added_rows(x[rows, :], residual[rows, :])
        residual[rows, :] = total
        y[rows, :] = rms_normed(total.to(torch.float32), scale, hidden_size, epsilon).to(y.dtype)
