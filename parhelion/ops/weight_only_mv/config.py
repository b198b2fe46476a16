"""How a matrix-vector product is cut into programs: the configs worth trying, in the order of their promise.

All that counts is that enough of the weight is asked for at a time, and before the predecessor has ended: so a program
is small enough to hold most of its rows in registers, and there are at least two of them a processor.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

from parhelion.ops.gemm.target import GemmTarget

AHEAD = (1, 2, 4)
"""Steps that a program may have in flight."""

_BLOCKS_N, _BLOCKS_K, _BLOCKS, _WARPS = (2, 4, 8, 16), (512, 1024, 2048, 4096), (1, 2), (4, 8)

_LONG = 2048
"""Steps of which even many are not many barriers: x is shuffled through shared memory in each."""

_THREAD_BYTES = 256
"""Of the weight, what a thread may hold in registers: a quarter of all there are."""

_THREAD_SUMS = 64
"""And so many of the sums, which are kept of every step's column."""

_USUAL_THREAD_BYTES, _USUAL_PROGRAMS = 96, 3
"""In flight, and a processor: what most shapes were quickest with on an H100."""

MOST_CANDIDATES = 40


@dataclass(frozen=True)
class MvConfig:
    """A choice of programs.

    Attributes:
        block_n, block_k: columns of y that a program makes at a time, and how much of K a step takes.
        num_warps: Triton's.
        ahead: steps of the weight in flight at a time, and before waiting for the kernel before; at most all there are.
        blocks: of columns that a program makes one after the other, of an x that it has in registers.
        programmatic: see ``ops/programmatic.py``.
    """

    block_n: int
    block_k: int
    num_warps: int = 8
    ahead: int = 1
    blocks: int = 1
    programmatic: bool = False


@dataclass(frozen=True)
class MvShape:
    """The static part as far as configs care.

    Attributes:
        in_features, out_features: K and N.
        parts: rows of the weight for a column of y, each of one byte an element.
    """

    in_features: int
    out_features: int
    parts: int = 1

    def steps(self, block_k: int) -> int:
        """Of K."""
        return -(-self.in_features // block_k)


@functools.lru_cache(maxsize=1024)
def mv_candidates(shape: MvShape, target: GemmTarget) -> tuple[MvConfig, ...]:
    """What fits in registers, the most promising first; at least one."""
    found = [
        MvConfig(block_n, block_k, num_warps, min(ahead, blocks * shape.steps(block_k)), blocks)
        for block_k, block_n, num_warps, ahead, blocks in itertools.product(
            _depths(shape), _BLOCKS_N, _WARPS, AHEAD, _BLOCKS
        )
    ]
    fitting = [config for config in dict.fromkeys(found) if _fits(config, shape)]
    return tuple(sorted(fitting, key=lambda config: _distance(config, shape, target))[:MOST_CANDIDATES])


def _depths(shape: MvShape) -> list[int]:
    """Steps that take all of K in one or two, the largest ones, and the largest that K is a multiple of."""
    widest = max(_BLOCKS_K[0], 1 << (shape.in_features - 1).bit_length())
    whole = [each for each in _BLOCKS_K if shape.in_features % each == 0]
    return [
        each
        for each in _BLOCKS_K
        if each <= widest and (each >= _LONG or shape.steps(each) <= 2 or each == max(whole, default=0))
    ]


def _fits(config: MvConfig, shape: MvShape) -> bool:
    sums = _step_bytes(config, shape) if shape.steps(config.block_k) > 1 else 0
    return 16 <= _step_bytes(config, shape) * config.ahead <= _THREAD_BYTES and sums <= _THREAD_SUMS


def _step_bytes(config: MvConfig, shape: MvShape) -> int:
    """Of the weight for a thread; also how many sums it has."""
    return shape.parts * config.block_n * config.block_k // (32 * config.num_warps)


def _distance(config: MvConfig, shape: MvShape, target: GemmTarget) -> float:
    """From what is usual, in doublings. Each step has x shuffled for itself, and one that ends beyond K reads nothing
    there.
    """
    programs, steps = -(-shape.out_features // (config.block_n * config.blocks)), shape.steps(config.block_k)
    waste = steps * config.block_k / shape.in_features
    in_flight = _step_bytes(config, shape) * config.ahead
    return (
        abs(math.log2(in_flight / _USUAL_THREAD_BYTES))
        + abs(math.log2(programs / (_USUAL_PROGRAMS * target.num_processors))) / 4
        + math.log2(steps) / 2
        + 2 * math.log2(waste)
    )
