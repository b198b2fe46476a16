"""How ``silu_and_mul_dynamic_per_token_quant`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner
from parhelion.ops.row_config import row_candidates, row_config
from parhelion.ops.silu_and_mul_dynamic_per_token_quant.contract import SiluAndMulDynamicPerTokenQuant

Config = KernelConfig


def default_config(contract: SiluAndMulDynamicPerTokenQuant, bucket: int, target: GemmTarget) -> KernelConfig:
    """Untuned, the same on all targets. A row of the input is two of the output, so its threads read twice as much."""
    return row_config(2 * contract.intermediate_size, bucket)


def candidates(contract: SiluAndMulDynamicPerTokenQuant, bucket: int, target: GemmTarget) -> list[KernelConfig]:
    """What is worth trying."""
    return row_candidates(2 * contract.intermediate_size, bucket)


def launch(contract: SiluAndMulDynamicPerTokenQuant, run: Runner, config: KernelConfig, x: torch.Tensor) -> Tensors:
    """See ``SiluAndMulDynamicPerTokenQuant``."""
    codes = torch.empty((x.shape[0], contract.intermediate_size), dtype=contract.quant_dtype, device=x.device)
    scales = torch.empty((x.shape[0], 1), dtype=torch.float32, device=x.device)
    halves = x.unflatten(-1, (2, contract.intermediate_size))
    kernel = "silu_and_mul_dynamic_per_token_quant.silu_and_mul_dynamic_per_token_quant"
    run(kernel, config, halves, codes, scales.squeeze(1), config.programmatic)
    return codes, scales
