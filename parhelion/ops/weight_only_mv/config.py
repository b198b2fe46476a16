"""How a matrix-vector product is cut into programs.

All that counts is that enough of the weight is asked for at a time, and before the predecessor has ended: so a program
is small enough to hold most of its rows in registers, and there are at least two of them a processor.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace

from parhelion.ops.gemm.target import GemmTarget

AHEAD = (1, 2, 4)
"""Steps that a program may have in flight."""

_BLOCKS_N, _BLOCKS_K, _BLOCKS, _WARPS = (2, 4, 8, 16), (512, 1024, 2048, 4096), (1, 2), (4, 8)

_LONG = 2048
"""Steps of which even many are not many barriers: x is shuffled through shared memory in each."""

_LOAD_BYTES = 16
"""The widest load: a step has one for every thread at least."""

_MOST_REGISTERS = 128
"""For codes in flight, sums and x, half of all that a thread has."""

_MOST_BYTES_AHEAD = 512
"""Of the weight, in a thread's registers while it waits; afterwards the matrix unit takes them from there."""

_USUAL_THREAD_BYTES, _USUAL_PROGRAMS = 96, 3
"""In flight, and a processor: where the search begins."""

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
        on_matrix_unit: the matrix unit multiplies; then a program makes one block of columns, and has the following.
        split_k: among how many programs K is divided.
        num_stages: how many steps of the weight are on their way at a time, those ahead excepted.
    """

    block_n: int
    block_k: int
    num_warps: int = 8
    ahead: int = 1
    blocks: int = 1
    programmatic: bool = False
    on_matrix_unit: bool = False
    split_k: int = 1
    num_stages: int = 1


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

    def holds(self, config: MvConfig) -> bool:
        """Whether programs on the matrix unit take whole blocks of K, of which those ahead are a power of two."""
        steps, rest = divmod(self.in_features, config.split_k * config.block_k)
        return rest == 0 and config.ahead <= steps and config.ahead & (config.ahead - 1) == 0

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
    step_bytes, steps = _step_bytes(config, shape), shape.steps(config.block_k)
    # The next step is on its way before this one is used.
    codes = step_bytes * min(config.ahead + 1, config.blocks * steps) // 4
    sums = step_bytes if steps > 1 else 0
    along_k = min(32 * config.num_warps, config.block_k // _LOAD_BYTES)
    x = config.block_k * (steps if config.blocks > 1 else 1) // along_k
    return step_bytes >= _LOAD_BYTES and codes + sums + x <= _MOST_REGISTERS


def _step_bytes(config: MvConfig, shape: MvShape) -> int:
    """Of the weight, for a thread; it has as many products."""
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


def all_ahead(shape: MvShape, config: MvConfig) -> list[MvConfig]:
    """The config of programs on the matrix unit, and those that have more of the weight ahead, in registers."""
    bytes_ahead = shape.parts * config.block_n * config.block_k // (32 * config.num_warps)
    found = [replace(config, ahead=ahead) for ahead in AHEAD if ahead * bytes_ahead <= _MOST_BYTES_AHEAD]
    return [config, *(each for each in found if shape.holds(each) and each != config)]
