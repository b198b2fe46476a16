"""How ``rms_norm_per_block_quant`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner
from parhelion.ops.quantize import FP8
from parhelion.ops.rms_norm_per_block_quant.contract import RmsNormPerBlockQuant
from parhelion.ops.row_config import row_candidates, row_config

Config = KernelConfig


def default_config(contract: RmsNormPerBlockQuant, bucket: int, target: GemmTarget) -> KernelConfig:
    """Untuned, the same on all targets."""
    return row_config(contract.hidden_size, bucket)


def candidates(contract: RmsNormPerBlockQuant, bucket: int, target: GemmTarget) -> list[KernelConfig]:
    """What is worth trying."""
    return row_candidates(contract.hidden_size, bucket)


def launch(
    contract: RmsNormPerBlockQuant,
    run: Runner,
    config: KernelConfig,
    x: torch.Tensor,
    *residual_and_weight: torch.Tensor,
) -> Tensors:
    """See ``RmsNormPerBlockQuant``."""
    *residual, weight = residual_and_weight
    kernel = "fused_add_rms_norm_per_block_quant" if residual else "rms_norm_per_block_quant"
    groups = (contract.hidden_size // contract.group_size, contract.group_size)
    codes = torch.empty_like(x, dtype=FP8)
    scales = torch.empty((x.shape[0], groups[0]), dtype=torch.float32, device=x.device)
    run(
        f"rms_norm_per_block_quant.{kernel}",
        config,
        *(each.unflatten(-1, groups) for each in (x, *residual, weight.expand_as(x))),
        codes.unflatten(-1, groups),
        scales,
        contract.epsilon,
        contract.scale_format == "ue8m0",
        config.programmatic,
    )
    return (codes, scales, *residual)
