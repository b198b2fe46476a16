"""The one stopwatch and the one set of statistics of all benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """A sample in a few numbers, in the sample's own unit: the median, and how far the rest lies from it.

    Percentiles are interpolated linearly between the two nearest values (the definition of NumPy's default).
    """

    count: int
    median: float
    p10: float
    p90: float
    p99: float
    minimum: float
    maximum: float


def summarize(values: Sequence[float]) -> Summary:
    """The summary of a sample.

    Raises:
        ValueError: the sample is empty.
    """
    if not values:
        raise ValueError("there is nothing to summarize: no round was measured")
    ordered = sorted(values)
    return Summary(
        count=len(ordered),
        median=percentile(ordered, 50),
        p10=percentile(ordered, 10),
        p90=percentile(ordered, 90),
        p99=percentile(ordered, 99),
        minimum=ordered[0],
        maximum=ordered[-1],
    )


def scaled(summary: Summary, factor: float) -> Summary:
    """A summary in another unit."""
    return Summary(
        summary.count,
        *(
            factor * value
            for value in (summary.median, summary.p10, summary.p90, summary.p99, summary.minimum, summary.maximum)
        ),
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which that share of a sorted sample lies, interpolated linearly."""
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def time_rounds(work: Callable[[], object], *, rounds: int, warmup: int = 1) -> list[float]:
    """Wall-clock seconds of each of so many calls, after some that are not counted."""
    for _ in range(warmup):
        work()
    return [seconds_of(work) for _ in range(rounds)]
