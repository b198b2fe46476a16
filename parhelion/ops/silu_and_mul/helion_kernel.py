"""``silu_and_mul`` as a tile program: a program takes a chunk of a row."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.tile_math import silu_times


@helion.kernel(static_shapes=False)
def silu_and_mul(x: torch.Tensor, y: torch.Tensor, programmatic: hl.constexpr) -> None:
    num_tokens, _, intermediate_size = x.size()
    intermediate_size = hl.specialize(intermediate_size)
    for rows, columns in hl.tile([num_tokens, intermediate_size]):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        y[rows, columns] = silu_times(x[rows, 0, columns], x[rows, 1, columns]).to(y.dtype)
