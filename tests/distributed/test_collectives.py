"""Costs of collectives: what must hold of any, and the limits that formulas give."""

from __future__ import annotations

import pytest

from parhelion.distributed.collectives import LINK_FRACTION, Fabric, network, nvlink
from parhelion.errors import ConfigError

NVLINK = nvlink(450, "test")
FABRIC = Fabric(NVLINK, network(50), 8)


def test_one_rank_exchanges_nothing() -> None:
    assert FABRIC.all_reduce_us(1e9, 1) == FABRIC.all_gather_us(1e9, 1) == 0.0
    assert FABRIC.sends_us(1e9, 8, 1) == 0.0


@pytest.mark.parametrize("num_ranks", [2, 4, 8, 64, 512])
def test_costs_grow_with_bytes_and_never_fall_below_a_launch(num_ranks: int) -> None:
    sizes = [0, 1e3, 1e5, 1e7, 1e9]
    for collective in (FABRIC.all_reduce_us, FABRIC.all_gather_us):
        costs = [collective(size, num_ranks) for size in sizes]
        assert costs == sorted(costs)
        assert costs[0] > 5.0


def test_a_large_all_reduce_moves_what_a_ring_must() -> None:
    must = 2 * 7 / 8 * 1e9 / (450e9 * LINK_FRACTION) * 1e6
    assert must < NVLINK.all_reduce_us(1e9, 8) < 1.02 * must


def test_a_small_all_reduce_takes_a_tree() -> None:
    # 2 log2(8) hops of 0.6 us after 6.6 us.
    assert NVLINK.all_reduce_us(0, 8) == pytest.approx(6.6 + 6 * 0.6)


def test_between_nodes_each_gpu_moves_its_part_of_the_sum() -> None:
    inside, across = NVLINK.all_gather_us(1e9, 8), FABRIC.between.all_reduce_us(1e9 / 8, 2)
    assert FABRIC.all_reduce_us(1e9, 16) == pytest.approx(2 * inside + across)


def test_hand_overs_cross_the_network_where_a_node_is_full() -> None:
    inside, across = FABRIC.inside.send_us(1e6), FABRIC.between.send_us(1e6)
    assert FABRIC.sends_us(1e6, 2, 4) == pytest.approx(3 * inside)
    assert FABRIC.sends_us(1e6, 2, 8) == pytest.approx(6 * inside + across)
    assert FABRIC.sends_us(1e6, 8, 4) == pytest.approx(3 * across)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("nan")])
def test_a_network_without_bandwidth_is_refused(bandwidth: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        network(bandwidth)
