"""``silu_and_mul_dynamic_per_token_quant`` as a tile program: a program takes a row whole."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.helion_provider import Runner
from parhelion.ops.quantize import codes_of, scales_of
from parhelion.ops.row_config import row_config
from parhelion.ops.silu_and_mul_dynamic_per_token_quant.contract import SiluAndMulDynamicPerTokenQuant
from parhelion.ops.tile_math import silu_times


@helion.kernel(static_shapes=False)
def silu_and_mul_dynamic_per_token_quant(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
    num_tokens, _, intermediate_size = x.size()
    intermediate_size = hl.specialize(intermediate_size)
    for rows in hl.tile(num_tokens):
        values = silu_times(x[rows, 0, :], x[rows, 1, :])
        scale = scales_of(torch.amax(torch.abs(values), dim=-1), codes.dtype)
        codes[rows, :] = codes_of(values, (1.0 / scale)[:, None], codes.dtype)
        scales[rows] = scale


def launch(contract: SiluAndMulDynamicPerTokenQuant, run: Runner, x: torch.Tensor) -> Tensors:
    """See ``SiluAndMulDynamicPerTokenQuant``."""
    codes = torch.empty((x.shape[0], contract.intermediate_size), dtype=contract.quant_dtype, device=x.device)
    scales = torch.empty((x.shape[0], 1), dtype=torch.float32, device=x.device)
    halves = x.unflatten(-1, (2, contract.intermediate_size))
    # A row of the input is two of the output: its threads have twice as much to read.
    config = row_config(2 * contract.intermediate_size, x.shape[0])
    run(silu_and_mul_dynamic_per_token_quant, config, halves, codes, scales.squeeze(1))
    return codes, scales
