"""``rms_norm`` as a tile program: a program takes some rows whole."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.tile_math import rms_normed


@helion.kernel(static_shapes=False)
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, epsilon: float, programmatic: hl.constexpr
) -> None:
    num_tokens, hidden_size = x.size()
    hidden_size = hl.specialize(hidden_size)
    for rows in hl.tile(num_tokens):
        start_successor(programmatic)
        scale = weight[rows, :]
        wait_for_predecessor(programmatic)
        y[rows, :] = rms_normed(x[rows, :].to(torch.float32), scale, hidden_size, epsilon).to(y.dtype)
