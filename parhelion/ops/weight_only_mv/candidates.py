"""The configs of programs on the matrix unit that are worth trying."""

from __future__ import annotations

import functools
import itertools
import math

from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.weight_only_mv.config import MvConfig, MvShape

_BLOCKS_N, _BLOCKS_K, _SPLITS, _STAGES = (64, 128), (128, 256, 512), (1, 2, 3, 4, 6, 8, 12, 16, 24), (2, 3, 4)

_FEWEST, _USUAL_PROGRAMS, _MOST = 0.5, 3, 8
"""Programs a processor."""

_OTHER_BYTES = 16 << 10
"""Of shared memory, for x."""

MOST_CANDIDATES = 24


@functools.lru_cache(maxsize=1024)
def matrix_unit_candidates(shape: MvShape, target: GemmTarget) -> tuple[MvConfig, ...]:
    """The most promising first; none where a target has no instructions for products of that size."""
    if not target.wide_mma:
        return ()
    found = [
        MvConfig(block_n, block_k, num_warps, 0, 1, False, True, split_k, num_stages)
        for block_n, block_k, split_k, num_stages in itertools.product(_BLOCKS_N, _BLOCKS_K, _SPLITS, _STAGES)
        for num_warps in ((4,) if block_n == 64 else (4, 8))
    ]
    fitting = [config for config in found if shape.holds(config) and _fits(config, shape, target)]
    return tuple(sorted(fitting, key=lambda config: _distance(config, shape, target))[:MOST_CANDIDATES])


def _fits(config: MvConfig, shape: MvShape, target: GemmTarget) -> bool:
    """In shared memory, with no fewer steps than are on their way, and neither idle processors nor crowded ones."""
    steps = shape.in_features // (config.split_k * config.block_k)
    stages = min(config.num_stages, steps)
    tile = shape.parts * config.block_n * config.block_k
    per_processor = _programs(config, shape) / target.num_processors
    return (
        stages == config.num_stages
        and stages * tile + _OTHER_BYTES <= target.shared_bytes
        and _FEWEST <= per_processor <= _MOST
    )


def _programs(config: MvConfig, shape: MvShape) -> int:
    return -(-shape.out_features // config.block_n) * config.split_k


def _distance(config: MvConfig, shape: MvShape, target: GemmTarget) -> float:
    """From what is usual, in doublings: how many programs, how long a step."""
    usual = _USUAL_PROGRAMS * target.num_processors
    return abs(math.log2(_programs(config, shape) / usual)) + math.log2(_BLOCKS_K[-1] / config.block_k) / 2
