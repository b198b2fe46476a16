"""Layers divided among stages, and tensors handed from one to the next."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import combinations, pairwise

import pytest
import torch
import torch.distributed as dist

from parhelion.config import environment_variables
from parhelion.distributed.stages import StageLinks, divide_layers, whole_model
from parhelion.errors import ConfigError


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "head_cost", "sizes"),
    [
        (4, 1, 0.5, [4]),
        (4, 2, 0.0, [2, 2]),
        (3, 2, 0.0, [1, 2]),
        (3, 2, 0.5, [2, 1]),
        (36, 2, 6.4, [21, 15]),
        (7, 3, 1.0, [2, 3, 2]),
        (30, 2, 40.0, [29, 1]),
        (5, 5, 3.0, [1, 1, 1, 1, 1]),
    ],
)
def test_the_head_counts_as_layers_and_every_stage_has_some(
    num_layers: int, num_stages: int, head_cost: float, sizes: list[int]
) -> None:
    stages = divide_layers(num_layers, num_stages, head_cost)
    assert [len(each.layers) for each in stages] == sizes
    assert [index for each in stages for index in each.layers] == list(range(num_layers))
    assert [each.number for each in stages] == list(range(num_stages))
    assert [each.is_first for each in stages] == [True] + [False] * (num_stages - 1)
    assert [each.is_last for each in stages] == [False] * (num_stages - 1) + [True]


@pytest.mark.parametrize("head_cost", [0.0, 0.3, 1.0, 2.5, 9.0])
@pytest.mark.parametrize("num_layers", [2, 3, 6, 9])
def test_no_other_division_has_a_faster_slowest_stage(num_layers: int, head_cost: float) -> None:
    for num_stages in range(2, num_layers + 1):
        costs = []
        for cuts in combinations(range(1, num_layers), num_stages - 1):
            sizes = [float(end - begin) for begin, end in pairwise((0, *cuts, num_layers))]
            costs.append(max(*sizes[:-1], sizes[-1] + head_cost))
        found = [float(len(each.layers)) for each in divide_layers(num_layers, num_stages, head_cost)]
        assert max(*found[:-1], found[-1] + head_cost) == min(costs)


def test_more_stages_than_layers_are_refused_with_the_numbers_that_work() -> None:
    with pytest.raises(ConfigError, match=r"^pp is 4, but the model has 3 layers .*; pp may be 1 to 3$"):
        divide_layers(3, 4)


def test_a_model_that_is_not_divided_begins_and_ends_in_one_stage() -> None:
    stage = whole_model(3)
    assert stage.is_first
    assert stage.is_last
    assert stage.layers == range(3)


@pytest.fixture
def links() -> Iterator[list[StageLinks]]:
    """Of three stages in one process."""
    store = dist.HashStore()

    def join(stage: int) -> StageLinks:
        return StageLinks(dist.ProcessGroupGloo(store, stage, 3, timedelta(seconds=20)), torch.device("cpu"))

    with environment_variables({"GLOO_SOCKET_IFNAME": "lo"}), ThreadPoolExecutor(3) as threads:
        yield list(threads.map(join, range(3)))


def test_tensors_arrive_in_their_order_and_the_sender_does_not_wait_for_them(links: list[StageLinks]) -> None:
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(StageLinks.meet, links))
    sizes = (1, 300, 7)
    for size in sizes:
        links[0].send(torch.full((2, size, 4), float(size)))
    for size in sizes:
        received = links[1].receive((2, size, 4), torch.float32)
        assert torch.equal(received, torch.full((2, size, 4), float(size)))
        links[1].send(-received)
    for size in sizes:
        assert torch.equal(links[2].receive((2, size, 4), torch.float32), torch.full((2, size, 4), -float(size)))
