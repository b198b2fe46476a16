"""How ``silu_and_mul`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner
from parhelion.ops.row_config import chunk_candidates
from parhelion.ops.silu_and_mul.contract import SiluAndMul

Config = KernelConfig


def default_config(contract: SiluAndMul, bucket: int, target: GemmTarget) -> KernelConfig:
    """Untuned, the same on all targets."""
    return KernelConfig(block_sizes=(1, 1024), loop_orders=((1, 0),), num_warps=8)


def candidates(contract: SiluAndMul, bucket: int, target: GemmTarget) -> list[KernelConfig]:
    """What is worth trying."""
    others = chunk_candidates(bucket, contract.intermediate_size, 1)
    return list(dict.fromkeys((default_config(contract, bucket, target), *others)))


def launch(contract: SiluAndMul, run: Runner, config: KernelConfig, x: torch.Tensor) -> torch.Tensor:
    """See ``SiluAndMul``."""
    halves = x.unflatten(-1, (2, contract.intermediate_size))
    y = x.new_empty((x.shape[0], contract.intermediate_size))
    run("silu_and_mul.silu_and_mul", config, halves, y, config.programmatic)
    return y
