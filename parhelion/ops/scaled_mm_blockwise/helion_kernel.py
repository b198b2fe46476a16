"""``scaled_mm_blockwise`` as the shared GEMM, with scales applied to the sums over each group."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.launch import Operands, launch_gemm
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
) -> torch.Tensor:
    """See ``ScaledMmBlockwise``."""
    return launch_gemm(run, Operands(codes, weight, contract.dtype, scales, weight_scales, bias, contract.block))
