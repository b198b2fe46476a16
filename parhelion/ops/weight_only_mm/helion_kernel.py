"""``weight_only_mm`` as the shared GEMM, with the weight widened in registers, by integer operations."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.launch import launch_gemm
from parhelion.ops.helion_provider import Runner
from parhelion.ops.weight_only_mm.contract import WeightOnlyMm


def launch(
    contract: WeightOnlyMm,
    run: Runner,
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    config: GemmConfig | None = None,
) -> torch.Tensor:
    """See ``WeightOnlyMm``; with the untuned config unless one is given."""
    return launch_gemm(
        run,
        x,
        weight,
        contract.dtype,
        weight_scales=weight_scales,
        bias=bias,
        config=config,
    )
