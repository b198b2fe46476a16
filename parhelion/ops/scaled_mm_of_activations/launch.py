"""How ``scaled_mm_of_activations`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.candidates import gemm_candidates
from parhelion.ops.gemm.config import GemmConfig, GemmShape, token_bucket
from parhelion.ops.gemm.config import default_config as untuned_config
from parhelion.ops.gemm.program import gemm_program, shared_sums
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.launching import Runner
from parhelion.ops.scaled_mm_of_activations.contract import ScaledMmOfActivations

Config = GemmConfig

_ENTRIES = 32
"""Of ``amax``, in registers of a thread at once."""


def gemm_shape(contract: ScaledMmOfActivations) -> GemmShape:
    """As far as configs care, x is as wide as it comes: so it lies in shared memory."""
    c = contract
    return GemmShape(c.in_features, c.out_features, c.dtype.itemsize, c.quant_dtype.itemsize)


def default_config(contract: ScaledMmOfActivations, bucket: int, target: GemmTarget) -> GemmConfig:
    """Untuned."""
    return untuned_config(gemm_shape(contract), token_bucket(bucket), target)


def candidates(contract: ScaledMmOfActivations, bucket: int, target: GemmTarget) -> list[GemmConfig]:
    """What is worth trying."""
    return gemm_candidates(gemm_shape(contract), bucket, target)


def launch(
    contract: ScaledMmOfActivations,
    run: Runner,
    config: GemmConfig,
    x: torch.Tensor,
    amax: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
) -> torch.Tensor:
    """See ``ScaledMmOfActivations``."""
    num_tokens = x.size(0)
    y = x.new_empty((num_tokens, contract.out_features))
    if num_tokens == 0:
        return y
    program = gemm_program(contract.in_features, contract.quant_dtype, config)
    entries = amax.size(0)
    block_g = min(1 << (entries - 1).bit_length(), max(1, _ENTRIES * 32 * config.num_warps // config.block_m))
    run(
        "scaled_mm_of_activations.scaled_mm_of_activations",
        program.config,
        x,
        amax.view(-1),
        weight,
        weight_scales,
        y.t() if config.swap_ab else y,
        *shared_sums(x, contract.out_features, config, program.sum_dtype),
        entries,
        block_g,
        *program.arguments,
    )
    return y
