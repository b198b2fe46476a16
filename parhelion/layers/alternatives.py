"""One computation in several ways, of which at each size of M the one that was measured to be quickest runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parhelion.layers.program import Call, Plan, Program, cover
from parhelion.ops.contract import Contract
from parhelion.ops.launching import BUCKETS, bucket_index
from parhelion.ops.resolve import Resolver
from parhelion.ops.ways import Times, Way, quickest

RESIDUAL = "residual"
"""The value of a layer whose rows are its tokens."""


class Alternatives:
    """Programs that compute the same.

    Args:
        ways: at least one.
        choices: of each bucket of M, which of them runs.
        rows: where in the values the tensor stands that has M rows.

    Attributes:
        num_values: as of ``Program``.
    """

    def __init__(self, ways: Sequence[Program], choices: Sequence[int], rows: int) -> None:
        self.num_values = max(way.num_values for way in ways)
        self._rows = rows
        self._chosen = tuple(ways[choice] for choice in choices)

    def __call__(self, values: list[Any]) -> None:
        """Run on values; see ``Program``."""
        self._chosen[bucket_index(values[self._rows].shape[0])](values)

    def contracts_at(self, num_tokens: int) -> tuple[Contract, ...]:
        """What is called for M = ``num_tokens``, in order."""
        return self._chosen[bucket_index(num_tokens)].contracts


class LayerPrograms:
    """Makes programs of a model's layers, each covered by the plan that is quickest at each size of M; by the first
    where nothing is known. Layers that are alike are decided once.

    Args:
        plans: at least one.
        resolver: finds the providers, and knows times.
    """

    def __init__(self, plans: Sequence[Plan], resolver: Resolver) -> None:
        self._plans = plans
        self._resolver = resolver
        self._choices: dict[tuple[Contract, ...], list[int]] = {}

    def program(
        self, calls: Sequence[Call], names: Sequence[str], alike: Sequence[Call] | None = None, rows: str = RESIDUAL
    ) -> Program | Alternatives:
        """A layer's calls, covered.

        Args:
            names: as of ``Program``.
            alike: the layer whose ways are compared. A model's first layer differs from the others in one call, and
                nobody measures it: it is computed as they are. None for the layer itself.
            rows: name of the value that has M rows.
        """
        choices = self._chosen(calls if alike is None else alike)
        used = sorted({0, *choices})
        programs = [Program(cover(calls, self._plans[number]), self._resolver, names) for number in used]
        if len(programs) == 1:
            return programs[0]
        return Alternatives(programs, [used.index(choice) for choice in choices], names.index(rows))

    def _chosen(self, calls: Sequence[Call]) -> list[int]:
        """Which plan covers such a layer at each bucket of M."""
        key = _contracts(calls)
        if key not in self._choices:
            self._choices[key] = chosen_ways([_contracts(cover(calls, plan)) for plan in self._plans], self._resolver)
        return self._choices[key]


def chosen_ways(ways: Sequence[Way], times: Times) -> list[int]:
    """Of several lists of contracts that do the same, which takes least at each bucket of M."""
    return [quickest(ways, bucket, times) for bucket in BUCKETS]


def _contracts(calls: Sequence[Call]) -> tuple[Contract, ...]:
    return tuple(call.contract for call in calls)
