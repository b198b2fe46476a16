"""How ``dynamic_per_token_scaled_fp8_quant`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.dynamic_per_token_quant import DynamicPerTokenQuant
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner
from parhelion.ops.row_config import row_candidates, row_config

Config = KernelConfig


def default_config(contract: DynamicPerTokenQuant, bucket: int, target: GemmTarget) -> KernelConfig:
    """Untuned, the same on all targets."""
    return row_config(contract.hidden_size, bucket)


def candidates(contract: DynamicPerTokenQuant, bucket: int, target: GemmTarget) -> list[KernelConfig]:
    """What is worth trying."""
    return row_candidates(contract.hidden_size, bucket)


def launch(contract: DynamicPerTokenQuant, run: Runner, config: KernelConfig, x: torch.Tensor) -> Tensors:
    """See ``DynamicPerTokenQuant``."""
    codes = torch.empty_like(x, dtype=contract.quant_dtype)
    scales = torch.empty((x.shape[0], 1), dtype=torch.float32, device=x.device)
    kernel = "dynamic_per_token_scaled_fp8_quant.dynamic_per_token_scaled_quant"
    run(kernel, config, x, codes, scales.squeeze(1), config.programmatic)
    return codes, scales
