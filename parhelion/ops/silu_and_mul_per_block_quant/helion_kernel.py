"""``silu_and_mul_per_block_quant`` as a tile program: a program takes some neighbouring groups of a row."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.helion_provider import Runner
from parhelion.ops.quantize import FP8, codes_of, group_scales_of
from parhelion.ops.row_config import chunk_config
from parhelion.ops.silu_and_mul_per_block_quant.contract import SiluAndMulPerBlockQuant
from parhelion.ops.tile_math import silu_times


@helion.kernel(static_shapes=False)
def silu_and_mul_per_block_quant(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, ue8m0: hl.constexpr
) -> None:
    num_tokens, _, num_groups, group_size = x.size()
    num_groups = hl.specialize(num_groups)
    group_size = hl.specialize(group_size)
    for rows, groups in hl.tile([num_tokens, num_groups]):
        values = silu_times(x[rows, 0, groups, :], x[rows, 1, groups, :])
        scale = group_scales_of(torch.amax(torch.abs(values), dim=-1), codes.dtype, ue8m0)
        codes[rows, groups, :] = codes_of(values, (1.0 / scale)[:, :, None], codes.dtype)
        scales[rows, groups] = scale


def launch(contract: SiluAndMulPerBlockQuant, run: Runner, x: torch.Tensor) -> Tensors:
    """See ``SiluAndMulPerBlockQuant``."""
    num_tokens = x.shape[0]
    groups = (contract.intermediate_size // contract.group_size, contract.group_size)
    codes = torch.empty((num_tokens, contract.intermediate_size), dtype=FP8, device=x.device)
    scales = torch.empty((num_tokens, groups[0]), dtype=torch.float32, device=x.device)
    run(
        silu_and_mul_per_block_quant,
        chunk_config(num_tokens, *groups),
        x.unflatten(-1, (2, *groups)),
        codes.unflatten(-1, groups),
        scales,
        contract.scale_format == "ue8m0",
    )
    return codes, scales
