"""Steps planned before earlier ones are back: late tokens, aborts, slots and ids that change hands."""

from __future__ import annotations

import pytest

from .simulation import Simulation, make_config, make_request, next_token


def test_a_decode_is_planned_while_its_input_token_is_unknown():
    simulation = Simulation(make_config())
    request = simulation.add(make_request("a", [1, 2], max_tokens=5))
    for expected_start in (0, 2, 3, 4):
        assert simulation.schedule().rows[0].start == expected_start
    assert request.num_pending == 4
    simulation.run_to_end(depth=4)


def test_tokens_planned_after_a_stop_id_are_dropped():
    simulation = Simulation(make_config())
    prompt = [1, 2, 3]
    simulation.add(make_request("a", prompt, max_tokens=9, stop=[next_token(prompt)]))
    for _ in range(4):
        assert simulation.schedule() is not None
    assert len(simulation.update()) == 1
    assert not simulation.scheduler.has_unfinished
    assert [simulation.update() for _ in range(3)] == [[], [], []]
    simulation.check_all_ended()


def test_an_abort_frees_blocks_at_once_and_drops_what_is_in_flight():
    simulation = Simulation(make_config())
    simulation.add(make_request("a", [1] * 9, max_tokens=9))
    simulation.schedule()
    simulation.schedule()
    assert simulation.abort("a")
    assert simulation.scheduler.stats().num_blocks_in_use == 0
    assert not simulation.abort("a")
    assert [simulation.update(), simulation.update()] == [[], []]


def test_aborting_a_waiting_or_unknown_request_touches_nobody_else():
    simulation = Simulation(make_config(max_num_seqs=1))
    for name in "abc":
        simulation.add(make_request(name, [1]))
    simulation.schedule()
    assert simulation.abort("b")
    assert not simulation.abort("nobody")
    simulation.run_to_end(depth=1)
    assert simulation.results["c"].finish_reason == "length"


def test_an_id_may_be_used_again_while_tokens_of_its_last_holder_are_in_flight():
    simulation = Simulation(make_config(max_num_seqs=1))
    simulation.add(make_request("a", [1, 2, 3], max_tokens=9))
    simulation.schedule()
    simulation.schedule()
    simulation.abort("a")
    simulation.add(make_request("a", [4, 4], max_tokens=3))
    assert simulation.schedule().rows[0].slot == 0
    assert simulation.update() == []
    assert simulation.update() == []
    assert [update.token_id for update in simulation.update()] == [next_token([4, 4])]
    simulation.run_to_end(depth=1)


def test_a_fully_planned_request_gives_its_blocks_to_one_that_lacks_them():
    simulation = Simulation(make_config(num_blocks=4, block_size=2))
    simulation.add(make_request("a", [1, 2, 3], max_tokens=2))
    simulation.add(make_request("b", [2], max_tokens=7))
    for _ in range(6):
        assert simulation.schedule() is not None
    assert simulation.scheduler.stats().num_running == 1
    assert simulation.scheduler.stats().preemptions_total == 0
    simulation.run_to_end(depth=6)


def test_steps_must_come_back_in_order():
    simulation = Simulation(make_config())
    simulation.add(make_request("a", [1]))
    first, second = simulation.schedule(), simulation.schedule()
    with pytest.raises(ValueError, match="step 1 came back and the oldest step in flight is step 0"):
        simulation.scheduler.update(second, [1])
    with pytest.raises(ValueError, match="samples 1 tokens, and 2 ids came back"):
        simulation.scheduler.update(first, [1, 2])
    simulation.run_to_end(depth=2)
    with pytest.raises(ValueError, match="oldest step in flight is none"):
        simulation.scheduler.update(first, [1])
