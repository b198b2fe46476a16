"""What row ops compute, by numpy in float64: independent of the contracts' own references."""

from __future__ import annotations

import numpy as np
import torch

from parhelion.ops.all_reduce_rms_norm import AllReduceRmsNorm
from parhelion.ops.contract import Contract
from parhelion.ops.fused_add_rms_norm import FusedAddRmsNorm
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.rms_norm_dynamic_per_token_quant import RmsNormDynamicPerTokenQuant
from parhelion.ops.rms_norm_per_block_quant import RmsNormPerBlockQuant
from parhelion.ops.silu_and_mul import SiluAndMul
from parhelion.ops.silu_and_mul_dynamic_per_token_quant import SiluAndMulDynamicPerTokenQuant
from parhelion.ops.silu_and_mul_per_block_quant import SiluAndMulPerBlockQuant

NORMS = (RmsNorm, FusedAddRmsNorm, RmsNormDynamicPerTokenQuant, RmsNormPerBlockQuant, AllReduceRmsNorm)


def expected_values(contract: Contract, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What a row contract's first output stands for; where that is codes, the values before they are quantized."""
    x = inputs[0].double().numpy()
    if isinstance(contract, (SiluAndMul, SiluAndMulDynamicPerTokenQuant, SiluAndMulPerBlockQuant)):
        gate, up = np.split(x, 2, axis=1)
        with np.errstate(over="ignore"):  # of a gate far below 0: its silu is 0
            x = gate / (1 + np.exp(-gate)) * up
    elif isinstance(contract, NORMS):
        if len(inputs) == 3:  # what the norm reads is the sum as it is stored
            x = (inputs[0].double() + inputs[1].double()).to(contract.dtype).double().numpy()
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + contract.epsilon) * inputs[-1].double().numpy()
    return torch.from_numpy(x)


def within_half_a_step(codes: torch.Tensor, scales: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether every code, times its scale, is as near to its value as the code's grid allows.

    Half a step of int8 is 0.5. E4M3 has 3 bits after the point, so half a step is at most a 16th of the code, and 2^-10
    where it is subnormal. A share of 1e-4 is left to float32's rounding of value and scale.
    """
    wide = codes.double()
    each = scales.double().repeat_interleave(codes.shape[1] // scales.shape[1], dim=1)
    half_step = torch.full_like(wide, 0.5) if codes.dtype == torch.int8 else (wide.abs() / 16).clamp(min=2**-10)
    return bool(((wide * each - values).abs() <= half_step * each * (1 + 1e-4)).all())
