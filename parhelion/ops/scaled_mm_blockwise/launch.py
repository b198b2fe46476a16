"""How ``scaled_mm_blockwise`` is launched: as the shared GEMM."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.launch import candidates, default_config, launch_gemm
from parhelion.ops.launching import Runner
from parhelion.ops.scaled_mm_blockwise.contract import ScaledMmBlockwise

__all__ = ["Config", "candidates", "default_config", "launch"]

Config = GemmConfig


def launch(
    contract: ScaledMmBlockwise,
    run: Runner,
    config: GemmConfig,
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``ScaledMmBlockwise``."""
    return launch_gemm(
        run,
        config,
        codes,
        weight,
        contract.dtype,
        scales=scales,
        weight_scales=weight_scales,
        bias=bias,
        group=contract.block,
    )
