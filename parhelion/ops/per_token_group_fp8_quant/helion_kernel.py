"""``per_token_group_fp8_quant`` as a tile program: a program takes some neighbouring groups of a row."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.helion_provider import Runner
from parhelion.ops.per_token_group_fp8_quant.contract import PerTokenGroupFp8Quant
from parhelion.ops.quantize import FP8, codes_of, group_scales_of
from parhelion.ops.row_config import chunk_config


@helion.kernel(static_shapes=False)
def per_token_group_fp8_quant(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, ue8m0: hl.constexpr) -> None:
    num_tokens, num_groups, group_size = x.size()
    num_groups = hl.specialize(num_groups)
    group_size = hl.specialize(group_size)
    for rows, groups in hl.tile([num_tokens, num_groups]):
        values = x[rows, groups, :].to(torch.float32)
        scale = group_scales_of(torch.amax(torch.abs(values), dim=-1), codes.dtype, ue8m0)
        codes[rows, groups, :] = codes_of(values, (1.0 / scale)[:, :, None], codes.dtype)
        scales[rows, groups] = scale


def launch(contract: PerTokenGroupFp8Quant, run: Runner, x: torch.Tensor) -> Tensors:
    """See ``PerTokenGroupFp8Quant``."""
    groups = (contract.hidden_size // contract.group_size, contract.group_size)
    codes = torch.empty_like(x, dtype=FP8)
    scales = torch.empty((x.shape[0], groups[0]), dtype=torch.float32, device=x.device)
    run(
        per_token_group_fp8_quant,
        chunk_config(x.shape[0], *groups),
        x.unflatten(-1, groups),
        codes.unflatten(-1, groups),
        scales,
        contract.scale_format == "ue8m0",
    )
    return codes, scales
