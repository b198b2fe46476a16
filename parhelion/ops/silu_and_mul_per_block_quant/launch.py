"""How ``silu_and_mul_per_block_quant`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner
from parhelion.ops.quantize import FP8
from parhelion.ops.row_config import chunk_candidates, chunk_config
from parhelion.ops.silu_and_mul_per_block_quant.contract import SiluAndMulPerBlockQuant

Config = KernelConfig


def default_config(contract: SiluAndMulPerBlockQuant, bucket: int, target: GemmTarget) -> KernelConfig:
    """Untuned, the same on all targets."""
    return chunk_config(bucket, contract.intermediate_size // contract.group_size, contract.group_size)


def candidates(contract: SiluAndMulPerBlockQuant, bucket: int, target: GemmTarget) -> list[KernelConfig]:
    """What is worth trying."""
    return chunk_candidates(bucket, contract.intermediate_size // contract.group_size, contract.group_size)


def launch(contract: SiluAndMulPerBlockQuant, run: Runner, config: KernelConfig, x: torch.Tensor) -> Tensors:
    """See ``SiluAndMulPerBlockQuant``."""
    num_tokens = x.shape[0]
    groups = (contract.intermediate_size // contract.group_size, contract.group_size)
    codes = torch.empty((num_tokens, contract.intermediate_size), dtype=FP8, device=x.device)
    scales = torch.empty((num_tokens, groups[0]), dtype=torch.float32, device=x.device)
    run(
        "silu_and_mul_per_block_quant.silu_and_mul_per_block_quant",
        config,
        x.unflatten(-1, (2, *groups)),
        codes.unflatten(-1, groups),
        scales,
        contract.scale_format == "ue8m0",
        config.programmatic,
    )
    return codes, scales
