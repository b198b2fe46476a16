"""Configs that differ from one in a single choice, by one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from parhelion.ops.contract import Contract
from parhelion.ops.gemm.config import MAX_SPLIT_K, GemmConfig, GemmShape, shared_bytes, split_span
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.tile_programs import module_for
from parhelion.tuning.prune import gemm_of

_SPLITS = (1, 2, 3, 4, 5, 6, 8, 10, 12, MAX_SPLIT_K)
_DEPTHS = (32, 64, 128, 256, 512)
_STAGES = (1, 2, 3, 4, 5, 6, 7)
_WARPS = (2, 4, 8)
_WIDTHS = (32, 64, 128, 256)
_AHEAD = (0, 1, 2, 4)
_ORDERS = (1, 2, 4, 8, 16)

_MOST_SUMS = 256
"""Registers of a thread: what sums take beyond is spilled."""


def neighbours(config: Any, contract: Contract, bucket: int, target: GemmTarget) -> list[Any]:
    """The configs that are one step away: of a GEMM by its own rules, else those among the op's candidates that differ
    in one field, launched as programmatically as this one."""
    shape = gemm_of(contract, target)
    if shape is None or not isinstance(config, GemmConfig):
        overlap = {
            name: getattr(config, name) for name in ("programmatic", "ahead", "prefetched") if hasattr(config, name)
        }
        own = module_for(contract.name, config).candidates(contract, bucket, target)
        found = [replace(each, **overlap) for each in own]
        return [each for each in dict.fromkeys(found) if _differing_fields(each, config) == 1]
    moved = (normal(each, shape) for each in _moves(config, bucket))
    return [each for each in dict.fromkeys(moved) if each != config and fits(each, shape, target)]


def normal(config: GemmConfig, shape: GemmShape) -> GemmConfig:
    """The same config without programs that have no part of K, and with steps that groups of scales allow."""
    block_k = config.block_k if shape.group is None else min(config.block_k, shape.group)
    span = split_span(shape.in_features, config.split_k, block_k, shape.group)
    return replace(config, block_k=block_k, split_k=-(-shape.in_features // span))


def fits(config: GemmConfig, shape: GemmShape, target: GemmTarget) -> bool:
    """Whether its pipeline fits in shared memory, and its sums in registers."""
    needed = shared_bytes(shape, config.block_m, config.block_n, config.block_k, config.num_stages, target)
    return needed <= target.shared_bytes and config.block_m * config.block_n <= _MOST_SUMS * 32 * config.num_warps


def _moves(config: GemmConfig, bucket: int) -> Iterator[GemmConfig]:
    for split_k in _beside(_SPLITS, config.split_k):
        yield replace(config, split_k=split_k)
    for block_k in _beside(_DEPTHS, config.block_k):
        yield replace(config, block_k=block_k)
    for num_stages in _beside(_STAGES, config.num_stages):
        yield replace(config, num_stages=num_stages)
    for num_warps in _beside(_WARPS, config.num_warps):
        yield replace(config, num_warps=num_warps)
    for block_n in _beside(_WIDTHS, config.block_n):
        yield replace(config, block_n=block_n)
    if config.programmatic:
        for ahead in _beside(_AHEAD, config.ahead):
            yield replace(config, ahead=ahead)
    # With one row of tiles there is no order.
    if bucket > config.block_m:
        for group_m in _beside(_ORDERS, config.group_m):
            yield replace(config, group_m=group_m)


def _beside(steps: tuple[int, ...], value: int) -> list[int]:
    """The next smaller and the next larger step."""
    return [*[step for step in steps if step < value][-1:], *[step for step in steps if step > value][:1]]


def _differing_fields(a: Any, b: Any) -> int:
    if type(a) is not type(b):
        return -1
    return sum(getattr(a, field.name) != getattr(b, field.name) for field in dataclasses.fields(a))
