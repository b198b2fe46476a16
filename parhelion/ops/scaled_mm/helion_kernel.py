"""``scaled_mm`` as the shared GEMM. Where there is no FP8, both operands are widened to bfloat16 in registers."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.launch import launch_gemm
from parhelion.ops.helion_provider import Runner
from parhelion.ops.scaled_mm.contract import ScaledMm


def launch(
    contract: ScaledMm,
    run: Runner,
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    config: GemmConfig | None = None,
) -> torch.Tensor:
    """See ``ScaledMm``; with the untuned config unless one is given."""
    return launch_gemm(
        run,
        codes,
        weight,
        contract.dtype,
        scales=scales,
        weight_scales=weight_scales,
        bias=bias,
        config=config,
    )
