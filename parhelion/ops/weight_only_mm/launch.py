"""How ``weight_only_mm`` is launched: as the shared GEMM."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.candidates import gemm_candidates
from parhelion.ops.gemm.config import GemmConfig, GemmShape, token_bucket
from parhelion.ops.gemm.config import default_config as default_gemm_config
from parhelion.ops.gemm.launch import gemm_shape, launch_gemm
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.launching import Runner
from parhelion.ops.quantize import FP8
from parhelion.ops.weight_only_mm.contract import WeightOnlyMm

Config = GemmConfig


def default_config(contract: WeightOnlyMm, bucket: int, target: GemmTarget) -> GemmConfig:
    """Untuned."""
    return default_gemm_config(_shape(contract, target), token_bucket(bucket), target)


def candidates(contract: WeightOnlyMm, bucket: int, target: GemmTarget) -> list[GemmConfig]:
    """What is worth trying."""
    return gemm_candidates(_shape(contract, target), bucket, target)


def launch(
    contract: WeightOnlyMm,
    run: Runner,
    config: GemmConfig,
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``WeightOnlyMm``."""
    return launch_gemm(
        run,
        config,
        x,
        weight,
        contract.dtype,
        weight_scales=weight_scales,
        bias=bias,
    )


def _shape(contract: WeightOnlyMm, target: GemmTarget) -> GemmShape:
    return gemm_shape(contract.in_features, contract.out_features, contract.dtype, FP8, target)
