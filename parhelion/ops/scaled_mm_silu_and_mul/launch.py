"""How ``scaled_mm_silu_and_mul`` is launched."""

from __future__ import annotations

from dataclasses import replace

import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.gemm.candidates import gemm_candidates
from parhelion.ops.gemm.config import GemmConfig, GemmShape, token_bucket
from parhelion.ops.gemm.config import default_config as untuned_config
from parhelion.ops.gemm.program import gemm_program, shared_sums
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.launching import Runner
from parhelion.ops.scaled_mm_silu_and_mul.contract import AMAX_COLUMNS, ScaledMmSiluAndMul

Config = GemmConfig
"""Columns of a tile are those of the activation: of the weight a program reads twice as many rows."""

_WIDTHS = (AMAX_COLUMNS, 2 * AMAX_COLUMNS)
"""Columns of a tile: a program writes whole entries of ``amax``."""

_MOST_SUMS = 128
"""Of both products, in registers of a thread."""


def gemm_shape(contract: ScaledMmSiluAndMul) -> GemmShape:
    """As far as configs care, one product whose weight has two codes, one of the gate and one of up, in a place."""
    code = contract.quant_dtype.itemsize
    return GemmShape(contract.in_features, contract.intermediate_size, code, 2 * code)


def default_config(contract: ScaledMmSiluAndMul, bucket: int, target: GemmTarget) -> GemmConfig:
    """Untuned."""
    config = untuned_config(gemm_shape(contract), token_bucket(bucket), target)
    block_n = min(config.block_n, _WIDTHS[-1])
    return replace(config, block_n=block_n, num_warps=8 if config.block_m * block_n >= 128 * 64 else config.num_warps)


def candidates(contract: ScaledMmSiluAndMul, bucket: int, target: GemmTarget) -> list[GemmConfig]:
    """What is worth trying."""
    found = [each for each in gemm_candidates(gemm_shape(contract), bucket, target) if _fits(each)]
    return list(dict.fromkeys((default_config(contract, bucket, target), *found)))


def launch(
    contract: ScaledMmSiluAndMul,
    run: Runner,
    config: GemmConfig,
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
) -> Tensors:
    """See ``ScaledMmSiluAndMul``.

    Raises:
        ValueError: the config's tiles do not have 64 columns, or a multiple.
    """
    if config.block_n % AMAX_COLUMNS:
        raise ValueError(f"{contract.name}: block_n = {config.block_n} is no multiple of {AMAX_COLUMNS} columns")
    num_tokens, columns = codes.size(0), contract.intermediate_size
    activated = codes.new_empty((num_tokens, columns), dtype=contract.dtype)
    # The last tile may go on after the last column.
    entries = -(-columns // config.block_n) * (config.block_n // AMAX_COLUMNS)
    amax = codes.new_empty((entries, num_tokens), dtype=torch.float32)
    if num_tokens > 0:
        program = gemm_program(contract.in_features, contract.quant_dtype, config)
        run(
            "scaled_mm_silu_and_mul.scaled_mm_silu_and_mul",
            program.config,
            codes,
            scales,
            weight.view(2, columns, -1),
            weight_scales.view(2, columns, 1),
            activated.t() if config.swap_ab else activated,
            amax,
            *shared_sums(codes, columns, config, program.sum_dtype, results=2),
            AMAX_COLUMNS,
            *program.arguments,
        )
    wanted = -(-columns // AMAX_COLUMNS)
    return activated, amax if entries == wanted else amax[:wanted]


def _fits(config: GemmConfig) -> bool:
    sums = 2 * config.block_m * config.block_n // (32 * config.num_warps)
    return config.block_n in _WIDTHS and sums <= _MOST_SUMS
