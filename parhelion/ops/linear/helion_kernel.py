"""``linear`` as the shared GEMM."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.launch import Operands, launch_gemm
from parhelion.ops.helion_provider import Runner
from parhelion.ops.linear.contract import Linear


def launch(
    contract: Linear, run: Runner, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """See ``Linear``."""
    return launch_gemm(run, Operands(x, weight, contract.dtype, bias=bias))
