"""The untuned configs of row kernels: memory-bound, and within a few percent of the best there is.

A thread reads 16 elements of a row, two loads of 16 bytes in bfloat16: enough bytes in flight, few enough registers.
With fewer rows than there are processors only the time of one row counts, and it is spread over twice as many threads.
A config is valid on every target: 16 warps are 1,024 threads where a warp has 64.
"""

from __future__ import annotations

import functools
from typing import Any

FEW_ROWS = 128


def row_config(row_elements: int, num_rows: int) -> Any:
    """A ``helion.Config`` for programs that hold one whole row of ``row_elements`` elements in registers."""
    return _config((1,), _warps(row_elements, 8 if num_rows <= FEW_ROWS else 16))


def chunk_config(num_rows: int, row_chunks: int, chunk_elements: int) -> Any:
    """A ``helion.Config`` for a grid over (rows, chunks of a row), where chunks do not depend on each other.

    A program takes as many neighbouring chunks of one row as make 2,048 elements, or half of that while the whole grid
    would leave processors idle.
    """
    elements = 1024 if num_rows * row_chunks * chunk_elements <= FEW_ROWS * 2048 else 2048
    chunks = max(1, elements // chunk_elements)
    chunks = min(chunks, 1 << (row_chunks - 1).bit_length())
    return _config((1, chunks), _warps(chunks * chunk_elements, 8 if elements == 1024 else 16))


def _warps(elements: int, elements_per_thread: int) -> int:
    """The power of two, at most 16, that gives a thread at least so many elements."""
    warps = max(1, min(16, elements // (32 * elements_per_thread)))
    return 1 << (warps.bit_length() - 1)


@functools.lru_cache
def _config(block_sizes: tuple[int, ...], num_warps: int) -> Any:
    import helion

    # Neighbouring programs take neighbouring chunks of a row, not the same chunk of neighbouring rows.
    orders = [[1, 0]] if len(block_sizes) == 2 else []
    return helion.Config(block_sizes=list(block_sizes), loop_orders=orders, num_warps=num_warps, num_stages=1)
