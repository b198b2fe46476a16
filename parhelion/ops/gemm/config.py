"""How a GEMM is cut into tiles: the choice of algorithm, and the untuned choice for a size of M on a target.

One tile program serves all of these; see ``helion_kernel``:

- standard: a program makes one tile of y, with all of K;
- swapped (``swap_ab``): y.T = weight @ x.T, so that the weight fills the 64 rows that Hopper's matrix unit wants on
  its left, and a few tokens need only 16 columns on its right;
- split-K (``split_k`` > 1): several programs share a tile, each with a part of K; their sums go to a buffer, and the
  last to be done adds them in a fixed order, so that repeats are identical to the bit;
- persistent (``pid_type`` "persistent_blocked" or "persistent_interleaved"): as many programs as processors, each
  making many tiles.

The untuned choices follow measurements on an H100: a decode step streams weights, so small M wants many small programs
(about two a processor) with deep pipelines; large M wants large tiles.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import PidType

MAX_SPLIT_K = 16


@dataclass(frozen=True)
class GemmConfig:
    """A choice of algorithm and tiles.

    Attributes:
        block_m, block_n, block_k: of a tile: rows and columns of y, and how much of K a step of the loop takes.
        swap_ab, split_k, pid_type: see the module.
        num_warps, num_stages: Triton's.
        group_m: so many tiles along the first dimension of the grid are made before the next along the second, for the
            sake of the L2 cache.
        programmatic: see ``ops/programmatic.py``.
        ahead: steps of K of the weight that are read before waiting for the kernel before; a power of two, or 0.
    """

    block_m: int
    block_n: int
    block_k: int
    swap_ab: bool = False
    split_k: int = 1
    num_warps: int = 4
    num_stages: int = 3
    group_m: int = 1
    pid_type: PidType = "flat"
    programmatic: bool = False
    ahead: int = 0


@dataclass(frozen=True)
class GemmShape:
    """The static part of a GEMM, as far as configs care.

    Attributes:
        in_features, out_features: K and N.
        x_bytes, weight_bytes: of one element.
        widened: the weight is widened in registers, which is cheaper on the left of the matrix unit.
        group: how much of K has one scale, so that a step of K may not exceed it; None if scales are not by group.
    """

    in_features: int
    out_features: int
    x_bytes: int
    weight_bytes: int
    widened: bool = False
    group: int | None = None


def token_bucket(num_tokens: int) -> int:
    """The next power of two, from 16 to 8192: sizes of M with one config."""
    return min(8192, max(16, 1 << (num_tokens - 1).bit_length()))


def split_span(in_features: int, split_k: int, block_k: int, group: int | None) -> int:
    """How much of K each of ``split_k`` programs takes: as even as whole blocks and groups allow."""
    multiple = max(block_k, group or 0)
    return -(-in_features // (split_k * multiple)) * multiple


@functools.lru_cache(maxsize=4096)
def default_config(shape: GemmShape, bucket: int, target: GemmTarget) -> GemmConfig:
    """The untuned config for M up to ``bucket`` (see ``token_bucket``)."""
    swap_ab = target.wide_mma and (bucket <= 32 or shape.widened)
    block_m, block_n = _tile(shape, bucket, target)
    block_k, num_stages = _depth(shape, block_m, block_n, bucket, target)
    return GemmConfig(
        block_m,
        block_n,
        block_k,
        swap_ab=swap_ab,
        split_k=_split_k(shape, bucket, _tiles(shape, bucket, block_m, block_n), block_k, target),
        num_warps=8 if block_m * block_n >= (128 * 64 if shape.widened else 128 * 128) else 4,
        num_stages=num_stages,
        group_m=8 if bucket > 256 else 1,
    )


def _tile(shape: GemmShape, bucket: int, target: GemmTarget) -> tuple[int, int]:
    """The largest tile of y that still gives every processor work."""
    block_m = min(bucket, 128)
    wanted = target.num_processors * (2 if bucket <= 64 else 1)
    # 256 columns of 128 float32 sums are 128 registers a thread of 8 warps; where operands are widened they need more.
    large = bucket > 256 and target.wide_mma and not shape.widened and shape.group is None
    for block_n in (256, 128) if large else (128,):
        if _tiles(shape, bucket, block_m, block_n) >= wanted:
            return block_m, block_n
    return block_m, 64


def _depth(shape: GemmShape, block_m: int, block_n: int, bucket: int, target: GemmTarget) -> tuple[int, int]:
    """The step of K and the number of pipeline stages: what fits into shared memory, for two programs if M is small."""
    widest = max(shape.x_bytes, shape.weight_bytes)
    block_k = min((256 if bucket <= 64 else 128) // widest, max(32, _next_power_of_two(shape.in_features)))
    if shape.group is not None:
        block_k = min(block_k, shape.group)
    num_stages = 2 if target.is_amd else 4 if bucket <= 256 else 3
    budget = target.shared_bytes // (2 if bucket <= 64 else 1)
    while shared_bytes(shape, block_m, block_n, block_k, num_stages, target) > budget:
        if block_k * widest > 128 or (num_stages == 2 and block_k > 32):
            block_k //= 2
        elif num_stages > 2:
            num_stages -= 1
        else:
            break
    return block_k, num_stages


def shared_bytes(
    shape: GemmShape, block_m: int, block_n: int, block_k: int, num_stages: int, target: GemmTarget
) -> int:
    """Shared memory of a pipeline. Only where the matrix unit reads its operands there is a buffer for every stage."""
    buffers = num_stages if target.wide_mma else num_stages - 1
    return buffers * block_k * (block_m * shape.x_bytes + block_n * shape.weight_bytes)


def _split_k(shape: GemmShape, bucket: int, tiles: int, block_k: int, target: GemmTarget) -> int:
    """How many programs share a tile: enough for all processors, while the sums stay small beside the weight."""
    wanted = target.num_processors * (2 if bucket <= 64 else 1) // tiles
    steps = shape.in_features // (2 * block_k)
    # A float32 sum is 8 bytes, written and read, mostly in the L2 cache: at most twice as many as the weight has.
    affordable = shape.in_features * shape.weight_bytes // (4 * bucket)
    split_k = max(1, min(wanted, steps, affordable, MAX_SPLIT_K))
    return -(-shape.in_features // split_span(shape.in_features, split_k, block_k, shape.group))


def _tiles(shape: GemmShape, bucket: int, block_m: int, block_n: int) -> int:
    return -(-bucket // block_m) * -(-shape.out_features // block_n)


def _next_power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()
