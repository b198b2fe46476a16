"""How ``linear`` is launched: as the shared GEMM."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.candidates import gemm_candidates
from parhelion.ops.gemm.config import GemmConfig, GemmShape, token_bucket
from parhelion.ops.gemm.config import default_config as default_gemm_config
from parhelion.ops.gemm.launch import gemm_shape, launch_gemm
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.launching import Runner
from parhelion.ops.linear.contract import Linear

Config = GemmConfig


def default_config(contract: Linear, bucket: int, target: GemmTarget) -> GemmConfig:
    """Untuned."""
    return default_gemm_config(_shape(contract, target), token_bucket(bucket), target)


def candidates(contract: Linear, bucket: int, target: GemmTarget) -> list[GemmConfig]:
    """What is worth trying."""
    return gemm_candidates(_shape(contract, target), bucket, target)


def launch(
    contract: Linear,
    run: Runner,
    config: GemmConfig,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``Linear``."""
    return launch_gemm(run, config, x, weight, contract.dtype, bias=bias)


def _shape(contract: Linear, target: GemmTarget) -> GemmShape:
    return gemm_shape(contract.in_features, contract.out_features, contract.dtype, contract.dtype, target)
