"""Several lists of contracts that compute the same block of a model, and which of them takes least."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from parhelion.ops.contract import Contract
from parhelion.ops.registry import needs_other_ranks, needs_single_rows, own_parts

Way = Sequence[Contract]
"""What a block calls, in order."""


OVERLAP = 1.03
"""What a sum of launches may differ from the block that they make."""


class Times(Protocol):
    """What is known of how long things take."""

    def time_us(self, contract: Contract, num_tokens: int) -> float | None:
        """Microseconds of one launch by itself; None if nobody knows."""

    def block_us(self, way: Way, num_tokens: int) -> float | None:
        """Microseconds of a whole block among others like it, of which a rank calls nothing with others; None if nobody
        measured it.
        """


@dataclass(frozen=True)
class OfAnyRows:
    """What is known of steps whose rows may have several tokens: nothing of what has no programs for them.

    Attributes:
        times: of all.
    """

    times: Times

    def time_us(self, contract: Contract, num_tokens: int) -> float | None:
        """See ``Times``."""
        return None if needs_single_rows((contract,)) else self.times.time_us(contract, num_tokens)

    def block_us(self, way: Way, num_tokens: int) -> float | None:
        """See ``Times``."""
        return None if needs_single_rows(way) else self.times.block_us(way, num_tokens)


def quickest(ways: Sequence[Way], num_tokens: int, times: Times) -> int:
    """Which takes least; the first unless another is known to be quicker.

    Two ways of which both were measured as whole blocks are compared by that: kernels overlap, some more than others.
    Else the times of launches are added up, of what the two do not have in common; where one of them was measured as a
    block, the later of the two must save more than a sum may be off by.

    Args:
        ways: with what several ranks call together; blocks are measured without, as what a rank does by itself.
    """
    best = 0
    for number in range(1, len(ways)):
        two = ways[number], ways[best]
        found = _in_blocks(two, num_tokens, times)
        if found is None:
            found = _in_launches(two, num_tokens, times)
            if found is not None and _is_measured(two[0], num_tokens, times) != _is_measured(two[1], num_tokens, times):
                # A block that was measured and lost its time again, as where a row of it was replaced, may be slower.
                found = found[0] * OVERLAP, found[1]
        if found is not None and found[0] < found[1]:
            best = number
    return best


def _is_measured(way: Way, num_tokens: int, times: Times) -> bool:
    return times.block_us(own_parts(way), num_tokens) is not None


def _in_blocks(two: tuple[Way, Way], num_tokens: int, times: Times) -> tuple[float, float] | None:
    """Of each the time of its block, and what exchanges take beyond the part of a rank that is in the block; None if
    something of that is not known.
    """
    blocks = [times.block_us(own_parts(way), num_tokens) for way in two]
    together = [Counter(each for each in way if needs_other_ranks(each)) for way in two]
    ours, theirs = (
        _beyond_own_us(each, num_tokens, times) for each in (together[0] - together[1], together[1] - together[0])
    )
    new, old = blocks
    if new is None or old is None or ours is None or theirs is None:
        return None
    return new + ours, old + theirs


def _in_launches(two: tuple[Way, Way], num_tokens: int, times: Times) -> tuple[float, float] | None:
    """The sums of what either does not have in common with the other; None if they are not known."""
    new, old = Counter(two[0]), Counter(two[1])
    ours, theirs = (sum_us(each, num_tokens, times) for each in (new - old, old - new))
    return None if ours is None or theirs is None else (ours, theirs)


def _beyond_own_us(together: Counter[Contract], num_tokens: int, times: Times) -> float | None:
    own = Counter(own_parts(together.elements()))
    whole_us, own_us = (sum_us(each, num_tokens, times) for each in (together, own))
    return None if whole_us is None or own_us is None else whole_us - own_us


def sum_us(contracts: Counter[Contract], num_tokens: int, times: Times) -> float | None:
    """Microseconds of so many launches of each; None if one of them is not known."""
    total = 0.0
    for contract, count in contracts.items():
        found = times.time_us(contract, num_tokens)
        if found is None:
            return None
        total += count * found
    return total
