"""One computation in several ways, of which at each size of M the one that was measured to be quickest runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from parhelion.layers.program import Call, Plan, Program, cover
from parhelion.ops.contract import Contract
from parhelion.ops.launching import BUCKETS, bucket_index
from parhelion.ops.resolve import Resolver

RESIDUAL = 1
"""Where in a layer's values the tensor stands whose rows are its tokens."""

TimeUs = Callable[[Contract, int], float | None]
"""Microseconds of a contract at an M, as far as they are known."""


class Alternatives:
    """Programs that compute the same.

    Args:
        ways: at least one.
        choices: of each bucket of M, which of them runs.

    Attributes:
        num_values: as of ``Program``.
    """

    def __init__(self, ways: Sequence[Program], choices: Sequence[int]) -> None:
        self.num_values = max(way.num_values for way in ways)
        self._chosen = tuple(ways[choice] for choice in choices)

    def __call__(self, values: list[Any]) -> None:
        """Run on values; see ``Program``."""
        self._chosen[bucket_index(values[RESIDUAL].shape[0])](values)


def layer_program(
    calls: Sequence[Call], plans: Sequence[Plan], resolver: Resolver, names: Sequence[str]
) -> Program | Alternatives:
    """A layer's calls, covered by the plan that is quickest at each size of M; by the first where nothing is known.

    Args:
        names: as of ``Program``.
    """
    covered = [cover(calls, plan) for plan in plans]
    choices = chosen_ways([[call.contract for call in each] for each in covered], resolver.time_us)
    used = sorted({0, *choices})
    programs = [Program(covered[number], resolver, names) for number in used]
    if len(programs) == 1:
        return programs[0]
    return Alternatives(programs, [used.index(choice) for choice in choices])


def chosen_ways(ways: Sequence[Sequence[Contract]], time_us: TimeUs) -> list[int]:
    """Of several lists of contracts that do the same, which takes least at each bucket of M."""
    return [quickest(ways, bucket, time_us) for bucket in BUCKETS]


def quickest(ways: Sequence[Sequence[Contract]], num_tokens: int, time_us: TimeUs) -> int:
    """Which takes least; the first unless another is known to be quicker.

    Only what two lists do not have in common is compared.
    """
    best = 0
    for number in range(1, len(ways)):
        ours, theirs = Counter(ways[number]), Counter(ways[best])
        new, old = (_sum(each, num_tokens, time_us) for each in (ours - theirs, theirs - ours))
        if new is not None and old is not None and new < old:
            best = number
    return best


def _sum(contracts: Counter[Contract], num_tokens: int, time_us: TimeUs) -> float | None:
    total = 0.0
    for contract, count in contracts.items():
        found = time_us(contract, num_tokens)
        if found is None:
            return None
        total += count * found
    return total
