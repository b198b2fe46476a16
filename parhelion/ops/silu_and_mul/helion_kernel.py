"""``silu_and_mul`` as a tile program: a program takes a chunk of a row."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.helion_provider import Runner
from parhelion.ops.row_config import chunk_config
from parhelion.ops.silu_and_mul.contract import SiluAndMul
from parhelion.ops.tile_math import silu_times


@helion.kernel(static_shapes=False)
def silu_and_mul(x: torch.Tensor, y: torch.Tensor) -> None:
    num_tokens, _, intermediate_size = x.size()
    intermediate_size = hl.specialize(intermediate_size)
    for rows, columns in hl.tile([num_tokens, intermediate_size]):
        y[rows, columns] = silu_times(x[rows, 0, columns], x[rows, 1, columns]).to(y.dtype)


def launch(contract: SiluAndMul, run: Runner, x: torch.Tensor) -> torch.Tensor:
    """See ``SiluAndMul``."""
    halves = x.unflatten(-1, (2, contract.intermediate_size))
    y = x.new_empty((x.shape[0], contract.intermediate_size))
    run(silu_and_mul, chunk_config(x.shape[0], contract.intermediate_size, 1), halves, y)
    return y
