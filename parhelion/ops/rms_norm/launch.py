"""How ``rms_norm`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner
from parhelion.ops.rms_norm.contract import RmsNorm
from parhelion.ops.row_config import row_candidates, row_config

Config = KernelConfig


def default_config(contract: RmsNorm, bucket: int, target: GemmTarget) -> KernelConfig:
    """Untuned, the same on all targets."""
    return row_config(contract.hidden_size, bucket)


def candidates(contract: RmsNorm, bucket: int, target: GemmTarget) -> list[KernelConfig]:
    """What is worth trying."""
    return row_candidates(contract.hidden_size, bucket)


def launch(contract: RmsNorm, run: Runner, config: KernelConfig, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """See ``RmsNorm``."""
    y = torch.empty_like(x)
    run("rms_norm.rms_norm", config, x, weight.expand_as(x), y, contract.epsilon, config.programmatic)
    return y
