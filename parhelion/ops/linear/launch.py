"""How ``linear`` is launched: as the shared GEMM."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.launch import candidates, default_config, launch_gemm
from parhelion.ops.launching import Runner
from parhelion.ops.linear.contract import Linear

__all__ = ["Config", "candidates", "default_config", "launch"]

Config = GemmConfig


def launch(
    contract: Linear,
    run: Runner,
    config: GemmConfig,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``Linear``."""
    return launch_gemm(run, config, x, weight, contract.dtype, bias=bias)
