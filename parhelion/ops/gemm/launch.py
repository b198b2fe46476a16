"""From a GEMM's operands to the launches of its tile programs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parhelion.ops.gemm.config import GemmConfig, GemmShape, default_config, split_span, token_bucket
from parhelion.ops.gemm.helion_kernel import add_splits, add_splits_helion_config, gemm, gemm_helion_config
from parhelion.ops.gemm.target import GemmTarget, gemm_target, target_of_device
from parhelion.ops.helion_provider import Runner, target_of


@dataclass(frozen=True)
class Operands:
    """The inputs of a GEMM.

    Attributes:
        x: [M, K].
        weight: [N, K].
        dtype: of the result.
        scales, weight_scales: float32: [M, 1] and [N, 1], or by group: [M, K / group] and [N / group, K / group],
            rounded up.
        bias: [N].
        group: None if scales are not by group.
    """

    x: torch.Tensor
    weight: torch.Tensor
    dtype: torch.dtype
    scales: torch.Tensor | None = None
    weight_scales: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    group: int | None = None


def launch_gemm(run: Runner, operands: Operands, config: GemmConfig | None = None) -> torch.Tensor:
    """y [M, N]; with the untuned config for M and the device, or for the target that ``run`` builds for, unless one is
    given."""
    name = target_of(run)
    target = target_of_device(operands.x.device) if name is None else gemm_target(name)
    num_tokens, in_features = operands.x.shape
    out_features = operands.weight.size(0)
    y = operands.x.new_empty((num_tokens, out_features), dtype=operands.dtype)
    if num_tokens == 0:
        return y
    x, weight, dtype = _readable(operands, target)
    if config is None:
        widened = weight.dtype != dtype
        shape = GemmShape(in_features, out_features, x.element_size(), weight.element_size(), widened, operands.group)
        config = default_config(shape, token_bucket(num_tokens), target)
    sum_dtype = torch.int32 if dtype == torch.int8 else torch.float32
    bias = None if operands.bias is None else operands.bias[:, None]
    sums = y[None]
    if config.split_k > 1:
        sums = y.new_empty((config.split_k, num_tokens, out_features), dtype=sum_dtype)
    span = split_span(in_features, config.split_k, config.block_k, operands.group)
    blocks = (config.block_n, config.block_m) if config.swap_ab else (config.block_m, config.block_n)
    how = (
        dtype,
        sum_dtype,
        *blocks,
        config.block_k,
        config.swap_ab,
        config.split_k,
        span,
        span * config.split_k != in_features,
        operands.group or 0,
    )
    if config.swap_ab:
        inputs = (weight, x, operands.weight_scales, operands.scales, bias, None, sums.transpose(1, 2))
    else:
        inputs = (x, weight, operands.scales, operands.weight_scales, None, bias, sums)
    run(gemm, gemm_helion_config(config), *inputs, *how)
    if config.split_k > 1:
        scales, weight_scales = (None, None) if operands.group else (operands.scales, operands.weight_scales)
        adding = add_splits_helion_config(1, 512) if num_tokens < 64 else add_splits_helion_config(4, 256)
        run(add_splits, adding, sums, scales, weight_scales, bias, y, config.split_k)
    return y


def _readable(operands: Operands, target: GemmTarget) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    """x, weight and the dtype that their products are of: FP8 as bytes where it must be widened for that."""
    x, weight = operands.x, operands.weight
    if x.dtype == weight.dtype and (x.dtype != torch.float8_e4m3fn or target.float8):
        return x, weight, x.dtype
    if x.dtype == torch.float8_e4m3fn:
        return x.view(torch.int8), weight.view(torch.int8), torch.bfloat16
    return x, weight.view(torch.int8), x.dtype
