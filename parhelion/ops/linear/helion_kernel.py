"""``linear`` as the shared GEMM."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.launch import launch_gemm
from parhelion.ops.helion_provider import Runner
from parhelion.ops.linear.contract import Linear


def launch(
    contract: Linear,
    run: Runner,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    config: GemmConfig | None = None,
) -> torch.Tensor:
    """See ``Linear``; with the untuned config unless one is given."""
    return launch_gemm(run, x, weight, contract.dtype, bias=bias, config=config)
