"""One computation in several ways, of which at each size of M the one that was measured to be quickest runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parhelion.layers.program import Call, Plan, Program, cover
from parhelion.ops.contract import Contract
from parhelion.ops.launching import BUCKETS, bucket_index
from parhelion.ops.paged_attention.single_tokens import has_single_tokens
from parhelion.ops.registry import needs_single_rows
from parhelion.ops.resolve import Resolver
from parhelion.ops.ways import OfAnyRows, Times, Way, quickest

RESIDUAL = "residual"
"""The value of a layer whose rows are its tokens."""

ATTENTION = "attention"
"""The value of a layer that says which rows a step has."""


@dataclass(frozen=True)
class Choices:
    """Which of several ways runs, at each bucket of M.

    Attributes:
        single_rows: where each token is the only one of its row; a few rows may be of one sequence, as guesses are.
        any_rows: in every other step.
    """

    single_rows: tuple[int, ...]
    any_rows: tuple[int, ...]

    @property
    def used(self) -> list[int]:
        """Those of which some step runs one, and the first."""
        return sorted({0, *self.single_rows, *self.any_rows})


class Alternatives:
    """Programs that compute the same.

    Args:
        ways: by number.
        choices: which of them runs.
        rows: where in the values the tensor stands that has M rows.
        attention: where the step's ``AttentionBatch`` stands; None where all steps run the same.

    Attributes:
        num_values: as of ``Program``.
    """

    def __init__(self, ways: Mapping[int, Program], choices: Choices, rows: int, attention: int | None = None) -> None:
        self.num_values = max(way.num_values for way in ways.values())
        self._rows = rows
        self._attention = attention
        self._of_single_rows = tuple(ways[choice] for choice in choices.single_rows)
        self._of_any_rows = tuple(ways[choice] for choice in choices.any_rows)

    def __call__(self, values: list[Any]) -> None:
        """Run on values; see ``Program``."""
        num_tokens = values[self._rows].shape[0]
        index = bucket_index(num_tokens)
        way = self._of_any_rows[index]
        if self._attention is not None and has_single_tokens(values[self._attention], num_tokens):
            way = self._of_single_rows[index]
        way(values)

    def contracts_at(self, num_tokens: int) -> tuple[Contract, ...]:
        """What is called for M = ``num_tokens``, in order: where there is a difference, in steps of single tokens."""
        return self._of_single_rows[bucket_index(num_tokens)].contracts


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
        self._choices: dict[tuple[Contract, ...], Choices] = {}

    def program(
        self, calls: Sequence[Call], names: Sequence[str], alike: Sequence[Call] | None = None, rows: str = RESIDUAL
    ) -> Program | Alternatives:
        """A layer's calls, covered.

        Args:
            names: as of ``Program``.
            alike: the layer whose ways are compared. A model's first layer differs from the others in one call, and
                nobody measures it: it is computed as they are, or where they are one call and it is not, as they are
                in steps of any rows. None for the layer itself.
            rows: name of the value that has M rows.
        """
        alike = calls if alike is None else alike
        choices = self._chosen(alike)
        if not all(self._is_alike(calls, alike, number) for number in choices.used):
            choices = Choices(choices.any_rows, choices.any_rows)
        programs = {
            number: Program(cover(calls, self._plans[number]), self._resolver, names) for number in choices.used
        }
        if len(programs) == 1:
            return programs[0]
        differs = choices.single_rows != choices.any_rows
        return Alternatives(programs, choices, names.index(rows), names.index(ATTENTION) if differs else None)

    def _chosen(self, calls: Sequence[Call]) -> Choices:
        """Which plan covers such a layer."""
        key = _contracts(calls)
        if key not in self._choices:
            ways = [_contracts(cover(calls, plan)) for plan in self._plans]
            times = self._resolver
            self._choices[key] = Choices(tuple(chosen_ways(ways, times)), tuple(chosen_ways(ways, OfAnyRows(times))))
        return self._choices[key]

    def _is_alike(self, calls: Sequence[Call], alike: Sequence[Call], number: int) -> bool:
        """Whether a plan covers both with what needs rows of single tokens, or neither."""
        ours, theirs = (needs_single_rows(_contracts(cover(each, self._plans[number]))) for each in (calls, alike))
        return ours == theirs


def chosen_ways(ways: Sequence[Way], times: Times) -> list[int]:
    """Of several lists of contracts that do the same, which takes least at each bucket of M."""
    return [quickest(ways, bucket, times) for bucket in BUCKETS]


def _contracts(calls: Sequence[Call]) -> tuple[Contract, ...]:
    return tuple(call.contract for call in calls)
