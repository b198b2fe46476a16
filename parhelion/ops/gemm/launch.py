"""From a GEMM's operands to the launches of its tile programs."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from parhelion.ops.arrival_counters import arrival_counters
from parhelion.ops.gemm.candidates import gemm_candidates
from parhelion.ops.gemm.config import GemmConfig, GemmShape, token_bucket
from parhelion.ops.gemm.config import default_config as untuned_config
from parhelion.ops.gemm.operands import GemmContract
from parhelion.ops.gemm.program import tiling
from parhelion.ops.gemm.target import GemmTarget, gemm_target, target_of_device
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner, target_of


def shape_of(contract: GemmContract, target: GemmTarget) -> GemmShape:
    """What configs depend on."""
    o = contract.operands
    widened = o.weight_dtype != o.x_dtype or (o.x_dtype == torch.float8_e4m3fn and not target.float8)
    return GemmShape(o.in_features, o.out_features, o.x_dtype.itemsize, o.weight_dtype.itemsize, widened, o.group)


def default_config(contract: GemmContract, bucket: int, target: GemmTarget) -> GemmConfig:
    """Untuned."""
    return untuned_config(shape_of(contract, target), token_bucket(bucket), target)


def candidates(contract: GemmContract, bucket: int, target: GemmTarget) -> list[GemmConfig]:
    """What is worth trying."""
    return gemm_candidates(shape_of(contract, target), bucket, target)


def launch_gemm(
    run: Runner,
    config: GemmConfig,
    x: torch.Tensor,
    weight: torch.Tensor,
    dtype: torch.dtype,
    *,
    scales: torch.Tensor | None = None,
    weight_scales: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    group: int | None = None,
) -> torch.Tensor:
    """y [M, N] of ``dtype``.

    Args:
        x: [M, K].
        weight: [N, K].
        scales, weight_scales: float32: [M, 1] and [N, 1], or by group: [M, K / group] and [N / group, K / group],
            rounded up.
        bias: [N].
        group: None if scales are not by group.
    """
    num_tokens = x.size(0)
    out_features = weight.size(0)
    y = x.new_empty((num_tokens, out_features), dtype=dtype)
    if num_tokens == 0:
        return y
    name = target_of(run)
    target = target_of_device(x.device) if name is None else gemm_target(name)
    plan = _plan(x.size(1), x.dtype, weight.dtype, group, token_bucket(num_tokens), target, config)
    if plan.x_as_bytes:
        x = x.view(torch.int8)
    if plan.weight_as_bytes:
        weight = weight.view(torch.int8)
    if bias is not None:
        bias = bias[:, None]
    parts = arrivals = None
    if plan.split_k > 1:
        parts = y.new_empty((plan.split_k, num_tokens, out_features), dtype=plan.sum_dtype)
        tiles = -(-num_tokens // config.block_m) * -(-out_features // config.block_n)
        arrivals = arrival_counters(x.device, tiles)
    if plan.swap_ab:
        swapped = None if parts is None else parts.transpose(1, 2)
        run(
            "gemm.gemm", plan.config,
            weight, x, weight_scales, scales, bias, None, y.t(), swapped, arrivals, *plan.arguments,
        )  # fmt: skip
    else:
        run(
            "gemm.gemm", plan.config,
            x, weight, scales, weight_scales, None, bias, y, parts, arrivals, *plan.arguments,
        )  # fmt: skip
    return y


@dataclass(frozen=True)
class _Plan:
    """All of a launch but its tensors.

    Attributes:
        config: the tile program's.
        arguments: its last ones, from ``dtype`` on.
        x_as_bytes, weight_as_bytes: FP8 that must be widened is read as bytes.
    """

    config: KernelConfig
    arguments: tuple[object, ...]
    swap_ab: bool
    split_k: int
    sum_dtype: torch.dtype
    x_as_bytes: bool
    weight_as_bytes: bool


@functools.lru_cache(maxsize=4096)
def _plan(
    in_features: int,
    x_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    group: int | None,
    bucket: int,
    target: GemmTarget,
    config: GemmConfig,
) -> _Plan:
    """What to launch for M up to ``bucket``."""
    x_as_bytes = x_dtype == torch.float8_e4m3fn and not target.float8
    weight_as_bytes = x_as_bytes or weight_dtype != x_dtype
    dtype = torch.bfloat16 if x_as_bytes else x_dtype
    sum_dtype = torch.int32 if dtype == torch.int8 else torch.float32
    t = tiling(in_features, config, group)
    how = (config.block_k, config.swap_ab, config.split_k, t.span, t.ragged, group or 0, config.programmatic, t.head)
    return _Plan(
        t.config,
        (dtype, sum_dtype, *t.blocks, *how),
        config.swap_ab,
        config.split_k,
        sum_dtype,
        x_as_bytes,
        weight_as_bytes,
    )
