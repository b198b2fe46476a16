"""Programs that share a result: whoever is done last puts it together, in the same launch.

Each writes its part to memory and then counts itself. The count is kept on the device, and 0 again after every launch;
launches that use the same counters must not run at the same time, so there are some for each stream.
"""

from __future__ import annotations

import helion.language as hl
import torch

from parhelion.ops.interpreting import interpreting


def arrived_last(arrivals: torch.Tensor, place: int, expected: int) -> bool:
    """Traced into tile programs: count this program, and whether it is the last of ``expected``: then it may read what
    the others wrote.
    """
    if not interpreting():
        # The one thread that counts speaks for all of its program.
        hl.inline_triton("tl.debug_barrier()", args=(), output_like=None)
    before = hl.atomic_add(arrivals, [place], 1, sem="acq_rel")
    is_last: bool = before == expected - 1
    return is_last


def forget_arrivals(arrivals: torch.Tensor, place: int) -> None:
    """Traced into tile programs: the last program leaves the counter as it was before the launch."""
    hl.store(arrivals, [place], 0)
