"""``scaled_mm_blockwise`` as the shared GEMM, with scales applied to the sums over each group."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.launch import launch_gemm
from parhelion.ops.helion_provider import Runner
from parhelion.ops.scaled_mm_blockwise.contract import ScaledMmBlockwise


def launch(
    contract: ScaledMmBlockwise,
    run: Runner,
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    config: GemmConfig | None = None,
) -> torch.Tensor:
    """See ``ScaledMmBlockwise``; with the untuned config unless one is given."""
    return launch_gemm(
        run,
        codes,
        weight,
        contract.dtype,
        scales=scales,
        weight_scales=weight_scales,
        bias=bias,
        group=contract.block,
        config=config,
    )
