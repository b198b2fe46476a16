"""A row while it is being tuned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from parhelion.ops.contract import Contract
from parhelion.ops.tile_programs import provider_of
from parhelion.packs.format import NEVER_SERVE, TILE_PROGRAMS
from parhelion.tuning.jobs import Outcome, Request
from parhelion.tuning.plan import PlannedRow, program_bucket
from parhelion.tuning.programmatic_twins import is_programmatic
from parhelion.tuning.timed_config import timed_request

Choice = tuple[str, Any]
"""A provider and, of a tile program, its config."""


class RowState:
    """What is known of a row so far.

    Args:
        planned: the row.
        floor_us: what the device allows at best.
        untuned: the tile program's config without measuring.

    Attributes:
        tried: the configs that were timed, or were meant to be.
        gpu_s: seconds of the device.
        evaluations: configs that were timed.
        seeds: configs that packs brought.
        chosen: by a step; None for the fastest by itself.
        problems: who failed, and why.
    """

    def __init__(self, planned: PlannedRow, floor_us: float, untuned: Any) -> None:
        self.planned = planned
        self.floor_us = floor_us
        self.untuned = untuned
        self.tried: set[Any] = set()
        self.gpu_s = 0.0
        self.seeds: set[Any] = set()
        self.chosen: Choice | None = None
        self.problems: dict[Choice, str] = {}
        self._final: dict[Choice, Outcome] = {}
        self._ranking: list[Outcome] | None = None
        self._timed: dict[Any, float] = {}

    @property
    def contract(self) -> Contract:
        return self.planned.contract

    @property
    def bucket(self) -> int:
        return self.planned.bucket

    @property
    def weight(self) -> int:
        return self.planned.weight

    def choice(self, config: Any) -> Choice:
        """The tile programs that a config is for, with it."""
        return provider_of(self.contract.name, config), config

    @property
    def evaluations(self) -> int:
        return len(self._timed)

    @property
    def is_unmet(self) -> bool:
        """Whether nothing was even tried."""
        return not self._final and not self.problems

    @property
    def shares_programs(self) -> bool:
        """Whether rows of other groups ask for the same programs to be timed."""
        return timed_request(self.contract, self.bucket, self.untuned) is not None

    def request(self, config: Any) -> Request:
        """What builds a config to be timed."""
        return timed_request(self.contract, self.bucket, config) or self.whole_request(config)

    def whole_request(self, config: Any) -> Request:
        """What builds a config to serve the row."""
        return self.contract, program_bucket(self.contract, self.bucket), config

    def likely_to_serve(self) -> list[Request]:
        """What builds the tile program to serve, if it is the fastest; and the fastest that is programmatic."""
        ranking = self.ranking()
        likely = [*ranking[:1], *[each for each in ranking if is_programmatic(each.config)][:1]]
        return [self.whole_request(each.config) for each in likely if each.provider in TILE_PROGRAMS]

    def met(self, choice: Choice, outcome: Outcome, seconds: float, is_final: bool) -> None:
        """Take in an outcome.

        Args:
            is_final: it was timed at length and checked.
        """
        self.gpu_s += seconds
        if choice[0] in TILE_PROGRAMS:
            self._timed[choice[1]] = math.inf if outcome.time_us is None else outcome.time_us.median
        if outcome.problem is not None:
            self.problems[choice] = outcome.problem
        elif is_final:
            self._final[choice] = outcome
            self._ranking = None

    def strike(self, choice: Choice, problem: str) -> None:
        """It turns out that it cannot serve."""
        self._final.pop(choice, None)
        self._ranking = None
        self.problems[choice] = problem
        if self.chosen == choice:
            self.chosen = None

    def quickest(self, configs: Iterable[Any], count: int) -> list[Any]:
        """So many of the configs, those that took least here first, however short they were timed."""
        return sorted(configs, key=lambda config: self._timed.get(config, math.inf))[:count]

    def ranking(self) -> list[Outcome]:
        """All that may serve, the fastest first."""
        # Whoever watches the tuner is shown all rows at every trial.
        if self._ranking is None:
            self._ranking = _by_time(each for (name, _), each in self._final.items() if name not in NEVER_SERVE)
        return self._ranking

    @property
    def fastest(self) -> Outcome | None:
        """The fastest by itself; None if nothing is known to work."""
        return next(iter(self.ranking()), None)

    @property
    def time_us(self) -> float | None:
        """Of the fastest."""
        fastest = self.fastest
        return None if fastest is None else median_us(fastest)

    @property
    def best_config(self) -> Any | None:
        """The fastest tile program's; None if none is known to work."""
        return next((each.config for each in self.ranking() if each.provider in TILE_PROGRAMS), None)

    @property
    def serving(self) -> Outcome | None:
        """Who serves: chosen by a step, else the fastest."""
        return self.fastest if self.chosen is None else self._final[self.chosen]

    def others(self, tile_programs: int) -> list[Outcome]:
        """The other providers, those that may not serve included, and so many other configs, the fastest first."""
        serving, kept, found = self.serving, 0, []
        for each in _by_time(self._final.values()):
            if each is serving:
                continue
            if each.provider in TILE_PROGRAMS:
                kept += 1
                if kept > tile_programs:
                    continue
            found.append(each)
        return found

    def untuned_us(self) -> float:
        """Of the untuned config; 0 if it is not known to work."""
        outcome = self._final.get(self.choice(self.untuned))
        return 0.0 if outcome is None else median_us(outcome)


def median_us(outcome: Outcome) -> float:
    """Of an outcome that has a time."""
    assert outcome.time_us is not None
    return outcome.time_us.median


def step_us(rows: Iterable[RowState]) -> dict[int, float]:
    """Microseconds of a step at each bucket; a row that has no time yet counts with its floor, and one that is called
    instead of others only where no others are.
    """
    total: dict[int, float] = {}
    instead: dict[int, float] = {}
    for row in rows:
        time_us = row.floor_us if row.time_us is None else row.time_us
        counted = instead if row.planned.is_alternative else total
        counted[row.bucket] = counted.get(row.bucket, 0.0) + time_us * row.weight
    return instead | total


def costliest(rows: Sequence[RowState], count: int) -> list[RowState]:
    """The rows whose share of their step is the largest."""
    total = step_us(rows)
    return sorted(rows, key=lambda row: -((row.time_us or 0.0) * row.weight / total[row.bucket]))[:count]


def _by_time(outcomes: Iterable[Outcome]) -> list[Outcome]:
    # Whoever was met first, the order of equals is the same.
    timed = (each for each in outcomes if each.time_us is not None)
    return sorted(timed, key=lambda each: (median_us(each), each.provider, repr(each.config)))
