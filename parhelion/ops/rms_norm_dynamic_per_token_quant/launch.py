"""How ``rms_norm_dynamic_per_token_quant`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner
from parhelion.ops.rms_norm_dynamic_per_token_quant.contract import RmsNormDynamicPerTokenQuant
from parhelion.ops.row_config import row_candidates, row_config

Config = KernelConfig


def default_config(contract: RmsNormDynamicPerTokenQuant, bucket: int, target: GemmTarget) -> KernelConfig:
    """Untuned, the same on all targets."""
    return row_config(contract.hidden_size, bucket)


def candidates(contract: RmsNormDynamicPerTokenQuant, bucket: int, target: GemmTarget) -> list[KernelConfig]:
    """What is worth trying."""
    return row_candidates(contract.hidden_size, bucket)


def launch(
    contract: RmsNormDynamicPerTokenQuant,
    run: Runner,
    config: KernelConfig,
    x: torch.Tensor,
    *residual_and_weight: torch.Tensor,
) -> Tensors:
    """See ``RmsNormDynamicPerTokenQuant``."""
    *residual, weight = residual_and_weight
    kernel = "fused_add_rms_norm_dynamic_per_token_quant" if residual else "rms_norm_dynamic_per_token_quant"
    codes = torch.empty_like(x, dtype=contract.quant_dtype)
    scales = torch.empty((x.shape[0], 1), dtype=torch.float32, device=x.device)
    run(
        f"rms_norm_dynamic_per_token_quant.{kernel}",
        config,
        x,
        *residual,
        weight.expand_as(x),
        codes,
        scales.squeeze(1),
        contract.epsilon,
        config.programmatic,
    )
    return (codes, scales, *residual)
