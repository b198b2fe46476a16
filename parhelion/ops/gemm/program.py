"""What a ``GemmConfig`` tells the tile programs that are GEMMs, also those with more before or behind the products."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from parhelion.ops.arrival_counters import arrival_counters
from parhelion.ops.gemm.config import GemmConfig, split_span
from parhelion.ops.kernel_config import KernelConfig


@dataclass(frozen=True)
class Tiling:
    """How programs divide K and the output.

    Attributes:
        config: a tile program's.
        blocks: rows and columns of a tile, as the tile program has them.
        span: how much of K a program takes. ragged: all spans cover more than K, or not whole blocks of it.
        head: how much of its span a program reads of the weight before it waits.
    """

    config: KernelConfig
    blocks: tuple[int, int]
    span: int
    ragged: bool
    head: int


def tiling(in_features: int, config: GemmConfig, group: int | None = None) -> Tiling:
    """Of a config, for any M.

    Args:
        group: how much of K has a scale of its own; None if scales are not by group.
    """
    span = split_span(in_features, config.split_k, config.block_k, group)
    ragged = span * config.split_k != in_features
    # What is read ahead must be whole steps that every program has.
    head = config.ahead * config.block_k
    if not config.programmatic or ragged or group is not None or head > span:
        head = 0
    return Tiling(
        KernelConfig(
            l2_groupings=(config.group_m,),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            pid_type=config.pid_type,
            programmatic=config.programmatic,
        ),
        (config.block_n, config.block_m) if config.swap_ab else (config.block_m, config.block_n),
        span,
        ragged,
        head,
    )


@dataclass(frozen=True)
class GemmProgram:
    """All of a launch but its tensors.

    Attributes:
        config: the tile program's.
        arguments: its last ones: the dtype of sums, a tile's rows, columns and step of K, ``swap_ab``, ``split_k``,
            ``span``, ``ragged``, ``programmatic`` and ``head``, as ``gemm``'s tile program describes them.
        sum_dtype: int32 for int8 codes, else float32.
    """

    config: KernelConfig
    arguments: tuple[object, ...]
    sum_dtype: torch.dtype


@functools.lru_cache(maxsize=4096)
def gemm_program(in_features: int, quant_dtype: torch.dtype, config: GemmConfig) -> GemmProgram:
    """What to launch for codes [M, in_features] by codes [N, in_features], for any M."""
    sum_dtype = torch.int32 if quant_dtype == torch.int8 else torch.float32
    t = tiling(in_features, config)
    how = (config.block_k, config.swap_ab, config.split_k, t.span, t.ragged, config.programmatic, t.head)
    return GemmProgram(t.config, (sum_dtype, *t.blocks, *how), sum_dtype)


def shared_sums(
    x: torch.Tensor, columns: int, config: GemmConfig, dtype: torch.dtype, results: int = 1
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What programs that share tiles need, both None if they do not: their parts, and the counters of the tiles.

    Args:
        x: [M, K]; says how many tokens there are and where.
        columns: of the output.
        dtype: of sums.
        results: sums of one place of the output.

    Returns:
        Parts [results, split_k, M, columns], or [results, split_k, columns, M] as a view if ``swap_ab``; counters as
        ``arrival_counters`` gives them.
    """
    if config.split_k == 1:
        return None, None
    num_tokens = x.size(0)
    parts = x.new_empty((results, config.split_k, num_tokens, columns), dtype=dtype)
    tiles = -(-num_tokens // config.block_m) * -(-columns // config.block_n)
    return parts.transpose(2, 3) if config.swap_ab else parts, arrival_counters(x.device, tiles)
