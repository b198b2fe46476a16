"""The GEMM configs that are worth trying for a shape, a size of M and a target."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

from parhelion.ops.gemm.config import (
    MAX_SPLIT_K,
    GemmConfig,
    GemmShape,
    default_config,
    shared_bytes,
    split_span,
    token_bucket,
)
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import PidType

SMALL_BUCKET = 64
"""Up to here a GEMM streams its weight: tiles hold all of M, and K is split so that every processor has work."""

MOST_PROGRAMS = 8
"""Programs a processor, beyond which splitting K only adds sums to be written and read."""


@functools.lru_cache(maxsize=1024)
def gemm_candidates(shape: GemmShape, bucket: int, target: GemmTarget) -> list[GemmConfig]:
    """The untuned config first, then all that fit: in shared memory, in registers, and in work for all processors."""
    usual = default_config(shape, token_bucket(bucket), target)
    found = _streaming(shape, bucket, target) if bucket <= SMALL_BUCKET else _tiled(shape, bucket, target)
    return list(dict.fromkeys((usual, *(each for each in found if _fits(each, shape, target)))))


def _streaming(shape: GemmShape, bucket: int, target: GemmTarget) -> list[GemmConfig]:
    """For a few tokens: the weight's tile, the depth of the pipeline, and among how many programs K is divided."""
    block_m = max(16, bucket)
    swaps = (True,) if target.wide_mma and bucket < SMALL_BUCKET else (True, False) if target.wide_mma else (False,)
    found = []
    for swap_ab, block_n, block_k, stages in itertools.product(swaps, (64, 128), _depths(shape), (2, 3, 4, 5, 6)):
        for split_k in _splits(shape, -(-shape.out_features // block_n), block_k, target):
            config = GemmConfig(block_m, block_n, block_k, swap_ab, split_k, 4, stages)
            found += [config, replace(config, num_warps=8)] if block_n == 128 else [config]
    return found


def _tiled(shape: GemmShape, bucket: int, target: GemmTarget) -> list[GemmConfig]:
    """For many tokens: the tile of y, the order in which tiles are made, and one program a tile or a processor."""
    pids: tuple[PidType, ...] = ("flat", "persistent_interleaved")
    swaps = (False, True) if target.wide_mma and (shape.widened or bucket <= 256) else (False,)
    found = []
    for block_m, block_n in ((64, 64), (64, 128), (128, 64), (128, 128), (64, 256), (128, 256), (256, 128)):
        if block_m > bucket:
            continue
        tiles = -(-bucket // block_m) * -(-shape.out_features // block_n)
        splits = (1, 2, 4) if tiles < target.num_processors else (1,)
        orders = (8, 1) if tiles > 2 * target.num_processors else (8,)
        persistent = pids if tiles > target.num_processors else pids[:1]
        for block_k, stages, swap_ab, split_k in itertools.product(_depths(shape), (3, 4, 5), swaps, splits):
            for pid_type, group_m in itertools.product(persistent, orders):
                warps = (8,) if block_m * block_n > 128 * 128 else (4, 8)
                found += [
                    GemmConfig(block_m, block_n, block_k, swap_ab, split_k, each, stages, group_m, pid_type)
                    for each in warps
                    if split_k == 1 or split_k <= shape.in_features // (2 * block_k)
                ]
    return found


def _depths(shape: GemmShape) -> tuple[int, ...]:
    """Steps of K: 64 to 512 bytes of the wider operand."""
    widest = max(shape.x_bytes, shape.weight_bytes)
    depths = [each // widest for each in (64, 128, 256, 512) if each // widest <= max(32, shape.in_features)]
    if shape.group is not None:
        depths = [each for each in depths if each <= shape.group]
    return tuple(depths)


def _splits(shape: GemmShape, tiles: int, block_k: int, target: GemmTarget) -> tuple[int, ...]:
    """Numbers of programs for a tile: one, and from half of the processors busy to where each has several."""
    steps = max(1, shape.in_features // block_k)
    found = []
    for wanted in (1, 2, 3, 4, 6, 8, 12, 16):
        if wanted > min(MAX_SPLIT_K, steps) or tiles * wanted > MOST_PROGRAMS * target.num_processors:
            break
        # What is left once spans are whole blocks.
        span = split_span(shape.in_features, wanted, block_k, shape.group)
        split_k = -(-shape.in_features // span)
        # To divide nothing costs nothing, so that is worth trying however few programs there are.
        if split_k == 1 or 2 * tiles * split_k >= target.num_processors or wanted == 16:
            found.append(split_k)
    return tuple(dict.fromkeys(found))


def _fits(config: GemmConfig, shape: GemmShape, target: GemmTarget) -> bool:
    """Whether its pipeline fits in shared memory, and its sums in half the registers of its threads."""
    stages = config.num_stages
    needed = shared_bytes(shape, config.block_m, config.block_n, config.block_k, stages, target)
    sums = config.block_m * config.block_n // (32 * config.num_warps)
    return needed <= target.shared_bytes and sums <= 128
