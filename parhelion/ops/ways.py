"""Several lists of contracts that compute the same block of a model, and which of them takes least."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from parhelion.ops.contract import Contract

Way = Sequence[Contract]
"""What a block calls, in order."""


class Times(Protocol):
    """What is known of how long things take."""

    def time_us(self, contract: Contract, num_tokens: int) -> float | None:
        """Microseconds of one launch by itself; None if nobody knows."""

    def block_us(self, way: Way, num_tokens: int) -> float | None:
        """Microseconds of a whole block among others like it; None if nobody measured it."""


def quickest(ways: Sequence[Way], num_tokens: int, times: Times) -> int:
    """Which takes least; the first unless another is known to be quicker.

    Two ways of which both were measured as whole blocks are compared by that: kernels overlap, some more than others.
    Else the times of launches are added up, of what the two do not have in common.
    """
    best = 0
    for number in range(1, len(ways)):
        new, old = (times.block_us(way, num_tokens) for way in (ways[number], ways[best]))
        if new is None or old is None:
            ours, theirs = Counter(ways[number]), Counter(ways[best])
            new, old = (sum_us(each, num_tokens, times) for each in (ours - theirs, theirs - ours))
        if new is not None and old is not None and new < old:
            best = number
    return best


def sum_us(contracts: Counter[Contract], num_tokens: int, times: Times) -> float | None:
    """Microseconds of so many launches of each; None if one of them is not known."""
    total = 0.0
    for contract, count in contracts.items():
        found = times.time_us(contract, num_tokens)
        if found is None:
            return None
        total += count * found
    return total
