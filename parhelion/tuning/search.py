"""Finding a row's best config among many: successive halving (Jamieson and Talwalkar, 2016).

Everyone is timed a little, the best third more, and the best three at length, their outputs checked as well. One that
computes something else is struck, and the next ones have their turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from parhelion.ops.kernel_timer import Timing
from parhelion.tuning.jobs import Outcome

FIRST = Timing(rounds=3, warmup=1)
SECOND = Timing(rounds=8, warmup=1)
FULL = Timing(rounds=20, warmup=2)

FINALISTS = 3

_HOPELESS = 1.1
"""A config whose time is so many times the best one known does not get into the last round."""

TimeConfigs = Callable[[Sequence[Any], Timing, bool], dict[Any, Outcome]]
"""Configs timed so long, and checked or not: the outcomes that there are."""


def search(time: TimeConfigs, configs: Sequence[Any], known_us: float | None) -> None:
    """Time configs, the promising ones at length.

    Args:
        time: keeps what it finds.
        known_us: the best time so far; None if there is none.
    """
    order = list(configs)
    if len(order) > FINALISTS:
        medians = _medians(time, order, FIRST)
        order = sorted(medians, key=medians.__getitem__)
        third = order[: math.ceil(len(order) / 3)]
        if len(third) > FINALISTS:
            again = _medians(time, third, SECOND)
            # Should all of these be wrong, those behind them have their turn after all.
            order = sorted(again, key=again.__getitem__) + order[len(third) :]
            medians |= again
        if known_us is not None:
            order = [config for config in order if medians[config] <= _HOPELESS * known_us]
    while order:
        finalists, order = order[:FINALISTS], order[FINALISTS:]
        if any(outcome.problem is None for outcome in time(finalists, FULL, True).values()):
            return


def _medians(time: TimeConfigs, configs: Sequence[Any], timing: Timing) -> dict[Any, float]:
    """Microseconds of those that work."""
    outcomes = time(configs, timing, False)
    return {config: each.time_us.median for config, each in outcomes.items() if each.time_us is not None}
