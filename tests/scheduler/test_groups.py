"""Requests that take turns, so that several steps are under way and no request waits for itself."""

from __future__ import annotations

import pytest

from parhelion.errors import ConfigError
from parhelion.scheduler import AWAITED, KNOWN, StepPlan

from .simulation import Simulation, make_config, make_request, next_token


def simulation_of(num_requests: int, num_groups: int, max_tokens: int = 12, **limits: int) -> Simulation:
    simulation = Simulation(make_config(num_groups=num_groups, **limits))
    for index in range(num_requests):
        simulation.add(make_request(f"r{index}", [index % 5, 1, 2], max_tokens=max_tokens))
    return simulation


def names(plan: StepPlan | None) -> set[str]:
    assert plan is not None
    return {row.request_id for row in plan.rows}


@pytest.mark.parametrize(("num_requests", "num_groups", "sizes"), [(8, 2, [4, 4]), (8, 3, [3, 3, 2]), (2, 3, [1, 1])])
def test_requests_are_spread_over_as_many_steps_as_there_are_groups(
    num_requests: int, num_groups: int, sizes: list[int]
) -> None:
    simulation = simulation_of(num_requests, num_groups)
    steps = [names(simulation.schedule()) for _ in sizes]
    assert [len(step) for step in steps] == sizes
    assert len(set.union(*steps)) == num_requests
    assert simulation.schedule() is None, "all of them are being sampled"
    for step in steps:
        simulation.update()
        assert names(simulation.schedule()) == step
    simulation.run_to_end(depth=num_groups - 1)


def test_groups_are_even_again_after_requests_have_ended() -> None:
    simulation = simulation_of(6, 2)
    for name in names(simulation.schedule()):
        simulation.schedule()
        assert simulation.abort(name)
    simulation.update()
    simulation.update()
    assert [len(names(simulation.schedule())) for _ in range(2)] == [2, 1]


def test_chunks_of_a_prompt_need_not_wait_for_each_other() -> None:
    simulation = Simulation(make_config(num_groups=3, max_num_batched_tokens=8))
    simulation.add(make_request("a", [1] * 20))
    plans = [simulation.schedule() for _ in range(3)]
    assert [(row.start, row.num_tokens) for plan in plans if plan for row in plan.rows] == [(0, 8), (8, 8), (16, 4)]
    assert simulation.schedule() is None
    simulation.run_to_end(depth=2)


def test_a_row_brings_the_token_that_was_sampled_before_it() -> None:
    simulation = Simulation(make_config(num_groups=2))
    simulation.add(make_request("a", [1, 2]))
    first = simulation.schedule()
    simulation.update()
    second = simulation.schedule()
    assert first is not None
    assert second is not None
    assert [first.rows[0].first_token, second.rows[0].first_token] == [KNOWN, next_token([1, 2])]


def test_a_step_may_await_what_the_oldest_one_is_sampling_and_no_other() -> None:
    simulation = simulation_of(6, 2)
    steps = [simulation.schedule() for _ in range(2)]
    assert simulation.schedule() is None
    ahead = simulation.schedule(ahead=True)
    assert ahead is not None
    assert names(ahead) == names(steps[0])
    assert ahead.awaits == 0
    assert {row.first_token for row in ahead.rows} == {AWAITED}
    assert simulation.schedule(ahead=True) is None
    simulation.update()
    later = simulation.schedule(ahead=True)
    assert later is not None
    assert (names(later), later.awaits) == (names(steps[1]), 1)
    simulation.run_to_end(depth=2)


def test_who_need_not_wait_does_not_await_anything() -> None:
    simulation = simulation_of(4, 2)
    first = names(simulation.schedule())
    simulation.schedule()
    simulation.update()
    plan = simulation.schedule(ahead=True)
    assert plan is not None
    assert (names(plan), plan.awaits) == (first, None)


def test_with_one_group_the_worker_knows_better() -> None:
    simulation = Simulation(make_config())
    simulation.add(make_request("a", [1, 2]))
    plans = [simulation.schedule() for _ in range(3)]
    assert [row.first_token for plan in plans if plan for row in plan.rows] == [KNOWN] * 3


def test_whoever_lacks_a_block_lets_others_go_first_instead_of_stopping_everything() -> None:
    simulation = Simulation(make_config(num_groups=2, num_blocks=6, block_size=4))
    old = simulation.add(make_request("old", [1] * 5, max_tokens=11))
    new = simulation.add(make_request("new", [2] * 6, max_tokens=11))
    simulation.schedule()
    while old.num_computed < 12:
        simulation.schedule()
        simulation.update()
    simulation.update()
    # It is the newer one's turn, which needs a fourth block, and both have three.
    assert new.planned_step < old.planned_step
    assert simulation.scheduler.stats().num_blocks_in_use == 6
    assert names(simulation.schedule()) == {"old"}
    simulation.run_to_end(depth=1)
    assert simulation.scheduler.stats().preemptions_total > 0


def test_at_least_one_group() -> None:
    with pytest.raises(ConfigError, match="num_groups is 0; it must be at least 1"):
        make_config(num_groups=0)
