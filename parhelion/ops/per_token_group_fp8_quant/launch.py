"""How ``per_token_group_fp8_quant`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner
from parhelion.ops.per_token_group_fp8_quant.contract import PerTokenGroupFp8Quant
from parhelion.ops.quantize import FP8
from parhelion.ops.row_config import chunk_candidates, chunk_config

Config = KernelConfig


def default_config(contract: PerTokenGroupFp8Quant, bucket: int, target: GemmTarget) -> KernelConfig:
    """Untuned, the same on all targets."""
    return chunk_config(bucket, contract.hidden_size // contract.group_size, contract.group_size)


def candidates(contract: PerTokenGroupFp8Quant, bucket: int, target: GemmTarget) -> list[KernelConfig]:
    """What is worth trying."""
    return chunk_candidates(bucket, contract.hidden_size // contract.group_size, contract.group_size)


def launch(contract: PerTokenGroupFp8Quant, run: Runner, config: KernelConfig, x: torch.Tensor) -> Tensors:
    """See ``PerTokenGroupFp8Quant``."""
    groups = (contract.hidden_size // contract.group_size, contract.group_size)
    codes = torch.empty_like(x, dtype=FP8)
    scales = torch.empty((x.shape[0], groups[0]), dtype=torch.float32, device=x.device)
    run(
        "per_token_group_fp8_quant.per_token_group_fp8_quant",
        config,
        x.unflatten(-1, groups),
        codes.unflatten(-1, groups),
        scales,
        contract.scale_format == "ue8m0",
        config.programmatic,
    )
    return codes, scales
