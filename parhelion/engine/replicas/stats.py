"""Counts of several engines as one, and of an engine that was started again as if it had never ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from parhelion.types import EngineStats, ReplicaStats

_SUMMED = tuple(field.name for field in fields(EngineStats) if field.name not in ("speculation_gain", "replicas"))
_TOTALS = tuple(name for name in _SUMMED if name.endswith("_total"))


def only_totals(stats: EngineStats) -> EngineStats:
    """What is left of an engine that has ended."""
    return EngineStats(**{name: getattr(stats, name) for name in _TOTALS})


def with_totals(stats: EngineStats, past: EngineStats) -> EngineStats:
    """An engine's counts, those named ``*_total`` with the ones of its predecessors."""
    return replace(stats, **{name: getattr(stats, name) + getattr(past, name) for name in _TOTALS})


def of_all(replicas: Sequence[ReplicaStats]) -> EngineStats:
    """Sums over replicas, what guesses gain as the mean of those that serve, and the replicas themselves."""
    gains = [each.stats.speculation_gain for each in replicas if each.state.serves]
    return EngineStats(
        **{name: sum(getattr(each.stats, name) for each in replicas) for name in _SUMMED},
        speculation_gain=sum(gains) / len(gains) if gains else 1.0,
        replicas=tuple(replicas),
    )
