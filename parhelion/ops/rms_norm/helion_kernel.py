"""``rms_norm`` as a tile program: a program takes some rows whole."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.helion_provider import Runner
from parhelion.ops.rms_norm.contract import RmsNorm
from parhelion.ops.row_config import row_config
from parhelion.ops.tile_math import rms_normed


@helion.kernel(static_shapes=False)
def rms_norm(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, epsilon: float) -> None:
    num_tokens, hidden_size = x.size()
    hidden_size = hl.specialize(hidden_size)
    for rows in hl.tile(num_tokens):
        y[rows, :] = rms_normed(x[rows, :].to(torch.float32), weight[rows, :], hidden_size, epsilon).to(y.dtype)


def launch(contract: RmsNorm, run: Runner, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """See ``RmsNorm``."""
    y = torch.empty_like(x)
    run(rms_norm, row_config(contract.hidden_size, x.shape[0]), x, weight.expand_as(x), y, contract.epsilon)
    return y
