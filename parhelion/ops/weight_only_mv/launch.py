"""How ``weight_only_mv`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner
from parhelion.ops.weight_only_mv.config import MvConfig, MvShape, mv_candidates
from parhelion.ops.weight_only_mv.contract import WeightOnlyMv

Config = MvConfig


def default_config(contract: WeightOnlyMv, bucket: int, target: GemmTarget) -> MvConfig:
    """Untuned, the same for any number of tokens."""
    return mv_candidates(_shape(contract), target)[0]


def candidates(contract: WeightOnlyMv, bucket: int, target: GemmTarget) -> list[MvConfig]:
    """What is worth trying."""
    return list(mv_candidates(_shape(contract), target))


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
    if x.size(0) > 0:
        run(
            "weight_only_mv.weight_only_mv",
            KernelConfig(num_warps=config.num_warps, programmatic=config.programmatic),
            x,
            residual,
            norm_weight,
            weight.view(parts, -1, depth),
            weight_scales.view(parts, -1),
            y,
            total,
            contract.epsilon or 0.0,
            contract.gated,
            config.block_n,
            config.block_k,
            config.blocks,
            min(config.ahead, config.blocks * -(-depth // config.block_k)),
            config.programmatic,
        )
    return y if total is None else (y, total)


def _shape(contract: WeightOnlyMv) -> MvShape:
    return MvShape(contract.in_features, contract.out_features, 2 if contract.gated else 1)
