"""The untuned config of row kernels: memory-bound, one row a program, and within a few percent of the best there is."""

from __future__ import annotations

import functools
from typing import Any


@functools.lru_cache
def row_config(row_elements: int, rows: int = 1) -> Any:
    """A ``helion.Config`` for programs that hold ``rows`` whole rows of ``row_elements`` elements.

    A thread holds about 16 elements of a row: enough loads in flight, few enough registers.
    """
    import helion

    warps = max(1, min(16, rows * row_elements // (32 * 16)))
    return helion.Config(block_sizes=[rows], num_warps=1 << (warps.bit_length() - 1), num_stages=1)
