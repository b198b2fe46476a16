"""Out of blocks, the newest request gives up its own and later goes on as if nothing had happened."""

from __future__ import annotations

import pytest

from parhelion.scheduler.request import NO_SLOT

from .simulation import Simulation, make_config, make_request


def crowd(depth: int, num_blocks: int, **others: object) -> Simulation:
    simulation = Simulation(make_config(num_blocks=num_blocks, block_size=2, **others))
    for index in range(6):
        simulation.add(make_request(f"r{index}", [index % 5, 1, 2], max_tokens=12))
    simulation.run_to_end(depth)
    return simulation


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("caching", [True, False])
def test_output_is_that_of_a_roomy_pool(depth: int, caching: bool):
    tight = crowd(depth, num_blocks=9, enable_prefix_caching=caching)
    roomy = crowd(depth, num_blocks=90, enable_prefix_caching=caching)
    assert tight.scheduler.stats().preemptions_total > 0
    assert roomy.scheduler.stats().preemptions_total == 0
    for name, result in tight.results.items():
        assert result.tokens == roomy.results[name].tokens


def test_the_oldest_runs_in_every_step_until_it_ends():
    simulation = crowd(depth=0, num_blocks=9)
    steps_of_oldest = [plan.step for plan in simulation.plans if "r0" in [row.request_id for row in plan.rows]]
    assert steps_of_oldest == list(range(12))
    assert simulation.scheduler.stats().preemptions_total > 0


def test_under_the_priority_policy_the_worst_priority_gives_way():
    simulation = Simulation(make_config(num_blocks=6, block_size=2, policy="priority"))
    worst = simulation.add(make_request("worst", [1], max_tokens=9, priority=5, arrival=0.0))
    best = simulation.add(make_request("best", [2], max_tokens=9, priority=0, arrival=1.0))
    while worst.slot != NO_SLOT or not worst.was_admitted:
        simulation.schedule()
        simulation.update()
    assert best.slot != NO_SLOT
    simulation.run_to_end(depth=0)


def preempt_newest(simulation: Simulation) -> None:
    """Plan without reading back until the first preemption."""
    while simulation.scheduler.stats().preemptions_total == 0:
        assert simulation.schedule() is not None


def test_tokens_in_flight_at_preemption_are_kept_and_awaited():
    simulation = Simulation(make_config(num_blocks=6, block_size=2))
    old = simulation.add(make_request("old", [1], max_tokens=11))
    new = simulation.add(make_request("new", [2], max_tokens=11))
    preempt_newest(simulation)
    assert (new.slot, old.slot) == (NO_SLOT, 0)
    in_flight = new.num_pending
    assert in_flight > 0
    plan = simulation.schedule()
    assert plan is None or not plan.admissions, "it waits for its tokens"
    while simulation.in_flight:
        simulation.update()
    assert len(simulation.results["new"].tokens) == in_flight
    simulation.run_to_end(depth=1)
    resumed = [a for p in simulation.plans for a in p.admissions if a.request_id == "new"][-1]
    assert len(resumed.token_ids) == 1 + in_flight
    assert resumed.num_prompt_tokens == 1


def test_a_request_may_end_while_it_waits_preempted():
    simulation = Simulation(make_config(num_blocks=6, block_size=2))
    simulation.add(make_request("old", [1], max_tokens=11))
    new = simulation.add(make_request("new", [2], max_tokens=11))
    preempt_newest(simulation)
    new.stop_token_ids = frozenset(range(5))
    simulation.update()
    assert simulation.results["new"].finish_reason == "stop"
    assert "new" not in [request.request_id for request in simulation.scheduler._waiting]
    simulation.run_to_end(depth=1)


def test_a_chunk_of_an_earlier_stay_makes_no_block_of_a_later_one_known():
    config = make_config(num_blocks=7, block_size=2, max_num_seqs=2, max_num_batched_tokens=2)
    simulation = Simulation(config)
    simulation.add(make_request("old", [1, 1, 1], max_tokens=11))
    for _ in range(2):
        simulation.schedule()
    new = simulation.add(make_request("new", [2] * 8, max_tokens=2))
    preempt_newest(simulation)
    assert new.num_pending == 0, "it was preempted amid its prompt"
    simulation.abort("old")
    assert simulation.schedule().admissions[0].request_id == "new"
    while simulation.in_flight:
        simulation.update()
        assert new.num_registered <= new.num_computed // config.block_size
    simulation.run_to_end(depth=1)


def test_a_newcomer_leaves_room_for_the_next_tokens_of_those_that_run():
    simulation = Simulation(make_config(num_blocks=4, block_size=4))
    simulation.add(make_request("a", [1] * 7, max_tokens=5))
    simulation.schedule()
    simulation.add(make_request("b", [2] * 8, max_tokens=2))
    assert [row.request_id for row in simulation.schedule().rows] == ["a"]
    simulation.run_to_end(depth=1)
    assert simulation.scheduler.stats().preemptions_total == 0


def two_that_outgrow_the_pool() -> Simulation:
    simulation = Simulation(make_config(num_blocks=9, block_size=2))
    simulation.add(make_request("old", [1], max_tokens=17))
    simulation.add(make_request("new", [2], max_tokens=17))
    return simulation


def test_a_newcomer_gets_no_blocks_in_the_step_that_preempts_but_need_not_wait_for_tokens_of_others():
    rehearsal = two_that_outgrow_the_pool()
    preempt_newest(rehearsal)
    simulation = two_that_outgrow_the_pool()
    for _ in rehearsal.plans[:-1]:
        simulation.schedule()
    simulation.add(make_request("newcomer", [3], max_tokens=2))
    plan = simulation.schedule()
    assert simulation.scheduler.stats().preemptions_total == 1
    assert [row.request_id for row in plan.rows] == ["old"]
    assert simulation.results["new"].request.num_pending > 0
    assert [row.request_id for row in simulation.schedule().rows] == ["old", "newcomer"]
    simulation.run_to_end(depth=1)
