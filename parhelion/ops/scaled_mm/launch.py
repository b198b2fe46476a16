"""How ``scaled_mm`` is launched: as the shared GEMM."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.candidates import gemm_candidates
from parhelion.ops.gemm.config import GemmConfig, GemmShape, token_bucket
from parhelion.ops.gemm.config import default_config as default_gemm_config
from parhelion.ops.gemm.launch import gemm_shape, launch_gemm
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.launching import Runner
from parhelion.ops.scaled_mm.contract import ScaledMm

Config = GemmConfig


def default_config(contract: ScaledMm, bucket: int, target: GemmTarget) -> GemmConfig:
    """Untuned."""
    return default_gemm_config(_shape(contract, target), token_bucket(bucket), target)


def candidates(contract: ScaledMm, bucket: int, target: GemmTarget) -> list[GemmConfig]:
    """What is worth trying."""
    return gemm_candidates(_shape(contract, target), bucket, target)


def launch(
    contract: ScaledMm,
    run: Runner,
    config: GemmConfig,
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``ScaledMm``."""
    return launch_gemm(
        run,
        config,
        codes,
        weight,
        contract.dtype,
        scales=scales,
        weight_scales=weight_scales,
        bias=bias,
    )


def _shape(contract: ScaledMm, target: GemmTarget) -> GemmShape:
    return gemm_shape(contract.in_features, contract.out_features, contract.quant_dtype, contract.quant_dtype, target)
