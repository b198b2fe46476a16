"""On the host, the counters of programs that share a result (see ``arrivals``): kept, as every launch leaves zeros."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from parhelion.platform.driver import current_stream

NUM_COUNTERS = 16384
"""Results that one launch may share out."""

_counters: dict[tuple[torch.device, int], torch.Tensor] = {}


def arrival_counters(device: torch.device, needed: int) -> torch.Tensor:
    """Counters [NUM_COUNTERS] int32, all 0, for launches on the current stream: those of one stream never overlap.

    A stream's first ones may be made while a graph is captured: then each replay sets them to 0 once more.

    Args:
        needed: results that the launch shares out.

    Raises:
        ValueError: there are not so many.
    """
    if needed > NUM_COUNTERS:
        raise ValueError(f"{needed} results cannot be shared out in one launch, {NUM_COUNTERS} at most: give it less")
    stream = _current_stream()(device.index) if device.type == "cuda" else 0
    found = _counters.get((device, stream))
    if found is None:
        found = _counters[device, stream] = torch.zeros(NUM_COUNTERS, dtype=torch.int32, device=device)
    return found


@functools.cache
def _current_stream() -> Callable[[int], int]:
    return current_stream()
