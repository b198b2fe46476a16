"""How ``weight_only_mv`` is launched."""

from __future__ import annotations

from dataclasses import replace

import torch

from parhelion.ops.arrival_counters import arrival_counters
from parhelion.ops.contract import Tensors
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner
from parhelion.ops.quantize import FP8
from parhelion.ops.weight_only_mv.candidates import matrix_unit_candidates
from parhelion.ops.weight_only_mv.config import AHEAD, MvConfig, MvShape, all_ahead, mv_candidates
from parhelion.ops.weight_only_mv.contract import WeightOnlyMv

Config = MvConfig


def default_config(contract: WeightOnlyMv, bucket: int, target: GemmTarget) -> MvConfig:
    """Untuned, the same for any number of tokens."""
    return mv_candidates(_shape(contract), target)[0]


def candidates(contract: WeightOnlyMv, bucket: int, target: GemmTarget) -> list[MvConfig]:
    """What is worth trying."""
    shape = _shape(contract)
    found = list(mv_candidates(shape, target))
    return found + list(matrix_unit_candidates(shape, target)) if contract.quant_dtype == FP8 else found


def launch(
    contract: WeightOnlyMv, run: Runner, config: MvConfig, x: torch.Tensor, *others: torch.Tensor
) -> torch.Tensor | Tensors:
    """See ``WeightOnlyMv``."""
    *before, weight, weight_scales = others
    norm_weight = None if contract.epsilon is None else before[-1]
    residual = before[0] if contract.add_residual else None
    parts, depth = 2 if contract.gated else 1, contract.in_features
    y = x.new_empty((x.size(0), contract.out_features), dtype=contract.dtype)
    total = None if residual is None else torch.empty_like(residual)
    if x.size(0) == 0:
        return y if total is None else (y, total)
    compiled = KernelConfig(num_warps=config.num_warps, num_stages=config.num_stages, programmatic=config.programmatic)
    given = (x, residual, norm_weight, weight.view(parts, -1, depth), weight_scales.view(parts, -1), y, total)
    if config.on_matrix_unit:
        shared = _shared(config, y, parts)
        run("weight_only_mv.on_matrix_unit", compiled, *given, *shared, *_on_matrix_unit(contract, config))
    else:
        run(
            "weight_only_mv.weight_only_mv", compiled, *given,
            contract.epsilon or 0.0,
            contract.gated,
            config.block_n,
            config.block_k,
            config.blocks,
            min(config.ahead, _steps(contract, config)),
            config.programmatic,
        )  # fmt: skip
    return y if total is None else (y, total)


def _shared(config: MvConfig, y: torch.Tensor, parts: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Where programs that share a tile leave their sums, and count themselves."""
    if config.split_k == 1:
        return None, None
    num_tokens, out_features = y.shape
    tiles = -(-out_features // config.block_n) * num_tokens
    sums = y.new_empty((config.split_k, parts, num_tokens, out_features), dtype=torch.float32)
    return sums, arrival_counters(y.device, tiles)


def _on_matrix_unit(contract: WeightOnlyMv, config: MvConfig) -> tuple[object, ...]:
    """The last arguments of the tile program, from ``epsilon`` on.

    Raises:
        ValueError: K is no multiple of what the config has programs take at a time.
    """
    steps, rest = divmod(contract.in_features, config.split_k * config.block_k)
    if rest:
        raise ValueError(f"{config.split_k} programs with steps of {config.block_k} do not make {contract.key()}")
    span, ahead = steps * config.block_k, max(each for each in (0, *AHEAD) if each <= min(config.ahead, steps))
    reach = span if contract.epsilon is None else contract.in_features
    return (
        contract.epsilon or 0.0,
        contract.gated,
        config.block_n,
        config.block_k,
        config.split_k,
        span,
        ahead * config.block_k,
        1 << (reach - 1).bit_length(),
        config.programmatic,
    )


def with_more_or_less_ahead(contract: WeightOnlyMv, config: MvConfig) -> list[MvConfig]:
    """The config, and those that differ in how much is in flight."""
    if config.on_matrix_unit:
        return all_ahead(_shape(contract), config)
    steps = _steps(contract, config)
    return list(dict.fromkeys([config, *(replace(config, ahead=min(ahead, steps)) for ahead in AHEAD)]))


def _steps(contract: WeightOnlyMv, config: MvConfig) -> int:
    """Of a program."""
    return config.blocks * _shape(contract).steps(config.block_k)


def _shape(contract: WeightOnlyMv) -> MvShape:
    return MvShape(contract.in_features, contract.out_features, 2 if contract.gated else 1)
