"""From a GEMM's operands to the launches of its tile programs."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from parhelion.ops.gemm.config import GemmConfig, GemmShape, default_config, split_span, token_bucket
from parhelion.ops.gemm.helion_kernel import add_splits, add_splits_helion_config, gemm, gemm_helion_config
from parhelion.ops.gemm.target import GemmTarget, gemm_target, target_of_device
from parhelion.ops.helion_provider import Runner, target_of


def launch_gemm(
    run: Runner,
    x: torch.Tensor,
    weight: torch.Tensor,
    dtype: torch.dtype,
    *,
    scales: torch.Tensor | None = None,
    weight_scales: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    group: int | None = None,
    config: GemmConfig | None = None,
) -> torch.Tensor:
    """y [M, N] of ``dtype``.

    Args:
        x: [M, K].
        weight: [N, K].
        scales, weight_scales: float32: [M, 1] and [N, 1], or by group: [M, K / group] and [N / group, K / group],
            rounded up.
        bias: [N].
        group: None if scales are not by group.
        config: None for the untuned one for M and the device, or for the target that ``run`` builds for.
    """
    num_tokens = x.size(0)
    out_features = weight.size(0)
    y = x.new_empty((num_tokens, out_features), dtype=dtype)
    if num_tokens == 0:
        return y
    name = target_of(run)
    target = target_of_device(x.device) if name is None else gemm_target(name)
    plan = _plan(x.size(1), out_features, x.dtype, weight.dtype, group, token_bucket(num_tokens), target, config)
    if plan.x_as_bytes:
        x = x.view(torch.int8)
    if plan.weight_as_bytes:
        weight = weight.view(torch.int8)
    if bias is not None:
        bias = bias[:, None]
    sums = y[None]
    if plan.split_k > 1:
        sums = y.new_empty((plan.split_k, num_tokens, out_features), dtype=plan.sum_dtype)
    if plan.swap_ab:
        run(gemm, plan.config, weight, x, weight_scales, scales, bias, None, sums.transpose(1, 2), *plan.arguments)
    else:
        run(gemm, plan.config, x, weight, scales, weight_scales, None, bias, sums, *plan.arguments)
    if plan.split_k > 1:
        if group is not None:
            scales = weight_scales = None
        run(add_splits, plan.adding, sums, scales, weight_scales, bias, y, plan.split_k)
    return y


@dataclass(frozen=True)
class _Plan:
    """All of a launch but its tensors.

    Attributes:
        config, adding: the ``helion.Config`` of ``gemm`` and that of ``add_splits``.
        arguments: the last of ``gemm``'s, from ``dtype`` on.
        x_as_bytes, weight_as_bytes: FP8 that must be widened is read as bytes.
    """

    config: Any
    adding: Any
    arguments: tuple[object, ...]
    swap_ab: bool
    split_k: int
    sum_dtype: torch.dtype
    x_as_bytes: bool
    weight_as_bytes: bool


@functools.lru_cache(maxsize=4096)
def _plan(
    in_features: int,
    out_features: int,
    x_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    group: int | None,
    bucket: int,
    target: GemmTarget,
    config: GemmConfig | None,
) -> _Plan:
    """What to launch for M up to ``bucket``."""
    x_as_bytes = x_dtype == torch.float8_e4m3fn and not target.float8
    weight_as_bytes = x_as_bytes or weight_dtype != x_dtype
    dtype = torch.bfloat16 if x_as_bytes else x_dtype
    if config is None:
        shape = GemmShape(in_features, out_features, x_dtype.itemsize, weight_dtype.itemsize, weight_as_bytes, group)
        config = default_config(shape, bucket, target)
    sum_dtype = torch.int32 if dtype == torch.int8 else torch.float32
    span = split_span(in_features, config.split_k, config.block_k, group)
    blocks = (config.block_n, config.block_m) if config.swap_ab else (config.block_m, config.block_n)
    ragged = span * config.split_k != in_features
    how = (config.block_k, config.swap_ab, config.split_k, span, ragged, group or 0)
    return _Plan(
        gemm_helion_config(config),
        add_splits_helion_config(1, 512) if bucket < 64 else add_splits_helion_config(4, 256),
        (dtype, sum_dtype, *blocks, *how),
        config.swap_ab,
        config.split_k,
        sum_dtype,
        x_as_bytes,
        weight_as_bytes,
    )
