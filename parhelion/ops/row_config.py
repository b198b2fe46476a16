"""The configs of row kernels: memory-bound, so the untuned ones are within a few percent of the best there is.

A thread reads 16 elements of a row, two loads of 16 bytes in bfloat16: enough bytes in flight, few enough registers.
With fewer rows than there are processors only the time of one row counts, and it is spread over twice as many threads.
A config is valid on every target: 16 warps are 1,024 threads where a warp has 64.
"""

from __future__ import annotations

import functools

from parhelion.ops.kernel_config import KernelConfig

FEW_ROWS = 128

MOST_WARPS = 16


@functools.lru_cache(maxsize=4096)
def row_config(row_elements: int, bucket: int) -> KernelConfig:
    """For programs that hold one whole row of ``row_elements`` elements in registers, and M up to ``bucket``."""
    return KernelConfig(block_sizes=(1,), num_warps=_warps(row_elements, 8 if bucket <= FEW_ROWS else 16))


def row_candidates(row_elements: int, bucket: int) -> list[KernelConfig]:
    """The untuned config, then a thread with half, twice and four times as much to do, and short rows by twos."""
    usual = row_config(row_elements, bucket)
    warps = [usual.num_warps * 2, usual.num_warps // 2, usual.num_warps // 4]
    others = [KernelConfig(block_sizes=(1,), num_warps=each) for each in warps if 1 <= each <= MOST_WARPS]
    if row_elements <= 2048 and bucket > FEW_ROWS:
        others.append(KernelConfig(block_sizes=(2,), num_warps=usual.num_warps))
    return [usual, *others]


@functools.lru_cache(maxsize=4096)
def chunk_config(bucket: int, row_chunks: int, chunk_elements: int) -> KernelConfig:
    """For a grid over (rows, chunks of a row), where chunks do not depend on each other.

    A program takes as many neighbouring chunks of one row as make 2,048 elements, or half of that while the whole grid
    would leave processors idle.
    """
    elements = 1024 if bucket * row_chunks * chunk_elements <= FEW_ROWS * 2048 else 2048
    return _chunks(row_chunks, chunk_elements, elements, 8 if elements == 1024 else 16)


def chunk_candidates(bucket: int, row_chunks: int, chunk_elements: int) -> list[KernelConfig]:
    """The untuned config, then larger and smaller programs with more and with fewer threads."""
    found = [chunk_config(bucket, row_chunks, chunk_elements)]
    for elements in (256, 512, 1024, 2048, 4096):
        found += [_chunks(row_chunks, chunk_elements, elements, each) for each in (4, 8, 16)]
    return list(dict.fromkeys(found))


def _chunks(row_chunks: int, chunk_elements: int, elements: int, elements_per_thread: int) -> KernelConfig:
    chunks = max(1, elements // chunk_elements)
    chunks = min(chunks, 1 << (row_chunks - 1).bit_length())
    # Neighbouring programs take neighbouring chunks of a row, not the same chunk of neighbouring rows.
    return KernelConfig(
        block_sizes=(1, chunks),
        loop_orders=((1, 0),),
        num_warps=_warps(chunks * chunk_elements, elements_per_thread),
    )


def _warps(elements: int, elements_per_thread: int) -> int:
    """The power of two, at most 16, that gives a thread at least so many elements."""
    warps = max(1, min(MOST_WARPS, elements // (32 * elements_per_thread)))
    return 1 << (warps.bit_length() - 1)
