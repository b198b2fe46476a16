"""Statistics against NumPy's, and the stopwatch."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.platform.measure import percentile, seconds_of, summarize, time_rounds

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@given(VALUES, st.floats(0, 100))
def test_percentiles_are_numpys_linear_ones(values: list[float], percent: float) -> None:
    ours = percentile(sorted(values), percent)
    # Both interpolate in float64, in another order of operations: a few units in the last place of the largest value.
    assert ours == pytest.approx(float(np.percentile(values, percent)), rel=1e-9, abs=1e-6)


@given(VALUES)
def test_a_summary_is_ordered_and_within_the_sample(values: list[float]) -> None:
    summary = summarize(values)
    ordered = [summary.minimum, summary.p10, summary.median, summary.p90, summary.p99, summary.maximum]
    # Interpolation rounds, so neighbours may be out of order by a rounding error.
    assert all(low <= high + 1e-6 for low, high in pairwise(ordered))
    assert (summary.count, summary.minimum, summary.maximum) == (len(values), min(values), max(values))


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to summarize"):
        summarize([])


def test_rounds_are_timed_and_warm_up_is_not_counted() -> None:
    calls: list[int] = []
    assert len(time_rounds(lambda: calls.append(1), rounds=3, warmup=2)) == 3
    assert len(calls) == 5
    assert seconds_of(lambda: time.sleep(0.01)) >= 0.01
