"""Which candidates are worth compiling, and which of the compiled ones worth timing.

A static model of a GEMM orders its configs; it knows no device, only proportions, so it is trusted to say which half of
a list not to try, not which config is best. Of other ops a few configs are all there are, and their order is the op's.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from itertools import zip_longest
from typing import Any

from parhelion.ops.contract import Contract
from parhelion.ops.gemm.config import GemmConfig, GemmShape, shared_bytes, split_span
from parhelion.ops.gemm.launch import shape_of
from parhelion.ops.gemm.operands import GemmContract
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.launching import launch_module
from parhelion.ops.tile_programs import all_candidates
from parhelion.tuning.programs import Program
from parhelion.tuning.target import Target

REGISTERS = 65536
"""Of one processor (CUDA C++ Programming Guide, technical specifications; CDNA's are more)."""

_WARPS = 64
"""That one processor holds."""

# One processor of an H100: its share of 3.0 TB/s of memory and of what it multiplies, and what a load takes. Other
# devices differ in size and less in proportion.
_BYTES_PER_US = 23_000
_FLOPS_PER_US = {1: 12e6, 2: 6e6, 4: 0.5e6}
_LATENCY_US = 0.9
_CACHE_FACTOR = 2.5
"""How much faster what is in the L2 cache comes."""

_STEP_US = 0.04
"""What a step of the loop over K costs beside its loads and products."""

_OVERHEAD_REGISTERS = 48
_ARRIVAL_US = 0.8
"""What the last program of a split K waits for: its own part to be written, the count, the other parts."""


def gemm_of(contract: Contract, target: GemmTarget) -> GemmShape | None:
    """The static part of a contract's GEMM, of one that is more than that as its op says; None if it is none."""
    if isinstance(contract, GemmContract):
        return shape_of(contract, target)
    of_op = getattr(launch_module(contract.name), "gemm_shape", None)
    return None if of_op is None else of_op(contract)


def ranked(contract: Contract, bucket: int, target: GemmTarget) -> list[Any]:
    """All candidates, the most promising first, but so that the first ones differ in their tiles."""
    found = all_candidates(contract, bucket, target)
    shape = gemm_of(contract, target)
    if shape is None:
        return spread(found, [algorithm(config) for config in found])
    by_time = sorted(found, key=lambda config: predicted_us(config, shape, bucket, target))
    return spread(by_time, [_tile(config) for config in by_time])


def algorithm(config: Any) -> object:
    """Which of an op's algorithms a config is for: the same for all where it has one. GEMMs are told apart by tiles."""
    return type(config), getattr(config, "on_matrix_unit", False), getattr(config, "lookup_ahead", True)


def kept(candidates: Sequence[Any], count: int, always: Sequence[Any]) -> list[Any]:
    """``count`` candidates, ``always`` first and counted among them."""
    return list(dict.fromkeys((*always, *candidates)))[: max(count, len(dict.fromkeys(always)))]


def spread(values: Sequence[Any], kinds: Sequence[Hashable]) -> list[Any]:
    """The values in turns: the first of every kind, then the second of every kind, and so on."""
    by_kind: dict[Hashable, list[Any]] = {}
    for value, kind in zip(values, kinds, strict=True):
        by_kind.setdefault(kind, []).append(value)
    missing = object()
    return [
        value for turn in zip_longest(*by_kind.values(), fillvalue=missing) for value in turn if value is not missing
    ]


def predicted_us(config: GemmConfig, shape: GemmShape, bucket: int, target: GemmTarget) -> float:
    """A GEMM's time by bytes, waves over the processors, bytes in flight and tiles; good for comparing configs."""
    span = split_span(shape.in_features, config.split_k, config.block_k, shape.group)
    steps = math.ceil(span / config.block_k)
    tiles = math.ceil(bucket / config.block_m) * math.ceil(shape.out_features / config.block_n)
    programs = tiles * config.split_k
    step_bytes = config.block_k * (config.block_m * shape.x_bytes + config.block_n * shape.weight_bytes)
    resident = _resident(config, shape, target)
    if resident == 0:
        return math.inf
    turns = math.ceil(programs / target.num_processors)
    active = min(resident, turns)
    waves = math.ceil(turns / active)
    # Little's law: no more bytes arrive within a load's latency than are asked for at once.
    in_flight = active * max(1, config.num_stages - 1) * step_bytes
    rate = _BYTES_PER_US * in_flight / (in_flight + _BYTES_PER_US * _LATENCY_US / 2)
    streaming = turns * steps * config.block_k * config.block_n * shape.weight_bytes / rate
    if bucket > config.block_m:
        # Programs that share a tile of the weight read it once between them.
        streaming /= math.ceil(bucket / config.block_m)
    loading = turns * steps * step_bytes / (_CACHE_FACTOR * rate)
    multiplying = turns * steps * _step_flops(config, target) / _FLOPS_PER_US[max(shape.x_bytes, shape.weight_bytes)]
    waiting = waves * _LATENCY_US + turns * steps * _STEP_US / active
    working = max(streaming, loading, multiplying) + waiting
    sums = 8 * bucket * shape.out_features * config.split_k / (_CACHE_FACTOR * _BYTES_PER_US * target.num_processors)
    return working + (sums + _ARRIVAL_US if config.split_k > 1 else 0.0)


def why_dropped(programs: Sequence[Program], target: Target) -> str | None:
    """Why built programs are not worth timing, or cannot run; None if they are."""
    for program in programs:
        binary = program.binary
        threads = binary.num_warps * target.warp_size
        if binary.shared_bytes > target.max_shared_bytes:
            return f"{binary.kernel} wants {binary.shared_bytes} bytes of shared memory, of {target.max_shared_bytes}"
        if target.backend == "cuda" and binary.registers * threads > REGISTERS:
            return f"{binary.kernel} wants {binary.registers} registers for each of {threads} threads, of {REGISTERS}"
    return None


def spilled_bytes(programs: Sequence[Program]) -> int:
    """The most that a thread of one of the programs keeps in memory for want of registers."""
    return max((program.binary.stack_bytes for program in programs), default=0)


def _tile(config: GemmConfig) -> Hashable:
    return config.block_m, config.block_n, config.block_k, config.swap_ab


def _resident(config: GemmConfig, shape: GemmShape, target: GemmTarget) -> int:
    """Programs that a processor holds at once."""
    needed = shared_bytes(shape, config.block_m, config.block_n, config.block_k, config.num_stages, target)
    threads = 32 * config.num_warps
    registers = config.block_m * config.block_n // threads + _OVERHEAD_REGISTERS
    return min(
        target.shared_bytes // max(1, needed), _WARPS // config.num_warps, REGISTERS // (min(registers, 255) * threads)
    )


def _step_flops(config: GemmConfig, target: GemmTarget) -> float:
    """Of one step of K, what the matrix unit's shape wastes included."""
    left, right = (config.block_n, config.block_m) if config.swap_ab else (config.block_m, config.block_n)
    if target.wide_mma:
        # Four warps take 64 rows at a time, and eight 128.
        rows = 64 * max(1, config.num_warps // 4)
        left = math.ceil(left / rows) * rows
    return 2.0 * left * right * config.block_k
