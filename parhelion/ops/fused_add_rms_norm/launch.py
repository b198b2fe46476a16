"""How ``fused_add_rms_norm`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.fused_add_rms_norm.contract import FusedAddRmsNorm
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner
from parhelion.ops.row_config import row_candidates, row_config

Config = KernelConfig


def default_config(contract: FusedAddRmsNorm, bucket: int, target: GemmTarget) -> KernelConfig:
    """Untuned, the same on all targets."""
    return row_config(contract.hidden_size, bucket)


def candidates(contract: FusedAddRmsNorm, bucket: int, target: GemmTarget) -> list[KernelConfig]:
    """What is worth trying."""
    return row_candidates(contract.hidden_size, bucket)


def launch(
    contract: FusedAddRmsNorm,
    run: Runner,
    config: KernelConfig,
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
) -> Tensors:
    """See ``FusedAddRmsNorm``."""
    y = torch.empty_like(x)
    run(
        "fused_add_rms_norm.fused_add_rms_norm",
        config,
        x,
        residual,
        weight.expand_as(x),
        y,
        contract.epsilon,
        config.programmatic,
    )
    return y, residual
