"""The counters of programs that share a result: kept for the next launch, which finds them as the first one did."""

from __future__ import annotations

import pytest
import torch

from parhelion.ops.arrival_counters import NUM_COUNTERS, arrival_counters

CPU = torch.device("cpu")


def test_they_are_the_same_for_every_launch_of_a_stream():
    assert arrival_counters(CPU, 1) is arrival_counters(CPU, NUM_COUNTERS)


def test_a_launch_that_needs_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="16385 results cannot be shared out in one launch, 16384 at most"):
        arrival_counters(CPU, NUM_COUNTERS + 1)
