"""How ``weight_only_mm`` is launched: as the shared GEMM."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.launch import candidates, default_config, launch_gemm
from parhelion.ops.launching import Runner
from parhelion.ops.weight_only_mm.contract import WeightOnlyMm

__all__ = ["Config", "candidates", "default_config", "launch"]

Config = GemmConfig


def launch(
    contract: WeightOnlyMm,
    run: Runner,
    config: GemmConfig,
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``WeightOnlyMm``."""
    return launch_gemm(
        run,
        config,
        x,
        weight,
        contract.dtype,
        weight_scales=weight_scales,
        bias=bias,
    )
