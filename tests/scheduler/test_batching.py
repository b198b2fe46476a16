"""What a step holds: decode first, chunks under the budget, requests in the order of the policy."""

from __future__ import annotations

import pytest

from parhelion.errors import ConfigError, InvalidRequestError, QueueFullError

from .simulation import Simulation, make_config, make_request, next_token


def rows_of(plan) -> list[tuple[str, int, int, bool]]:
    return [(row.request_id, row.start, row.num_tokens, row.samples) for row in plan.rows]


def test_an_empty_scheduler_plans_nothing():
    simulation = Simulation(make_config())
    assert simulation.schedule() is None
    assert not simulation.scheduler.has_unfinished


def test_prompts_share_a_step_and_split_over_steps_under_the_budget():
    simulation = Simulation(make_config(max_num_batched_tokens=10))
    simulation.add(make_request("a", [1] * 6))
    simulation.add(make_request("b", [2] * 9))
    assert rows_of(simulation.schedule()) == [("a", 0, 6, True), ("b", 0, 4, False)]
    assert rows_of(simulation.schedule()) == [("a", 6, 1, True), ("b", 4, 5, True)]
    assert rows_of(simulation.schedule()) == [("a", 7, 1, True), ("b", 9, 1, True)]
    simulation.run_to_end(depth=3)


def test_a_partial_prompt_goes_on_before_new_ones_start():
    simulation = Simulation(make_config(max_num_batched_tokens=8))
    simulation.add(make_request("a", [1] * 12))
    simulation.add(make_request("b", [2] * 6))
    assert rows_of(simulation.schedule()) == [("a", 0, 8, False)]
    assert rows_of(simulation.schedule()) == [("a", 8, 4, True), ("b", 0, 4, False)]
    simulation.run_to_end(depth=0)


def test_a_last_chunk_of_one_token_stands_behind_the_decode_rows():
    simulation = Simulation(make_config(max_num_seqs=2, max_num_batched_tokens=2))
    simulation.add(make_request("running", [1], arrival=2.0))
    simulation.schedule()
    simulation.add(make_request("first-in-order", [2, 2], arrival=1.0))
    assert rows_of(simulation.schedule()) == [("running", 1, 1, True), ("first-in-order", 0, 1, False)]
    assert rows_of(simulation.schedule()) == [("running", 2, 1, True), ("first-in-order", 1, 1, True)]
    simulation.run_to_end(depth=3)


def test_blocks_are_taken_just_as_they_are_needed():
    simulation = Simulation(make_config(block_size=4))
    request = simulation.add(make_request("a", [1] * 4, max_tokens=6))
    held = []
    for _ in range(6):
        simulation.schedule()
        held.append((request.num_computed, len(request.blocks)))
    assert held == [(4, 1), (5, 2), (6, 2), (7, 2), (8, 2), (9, 3)]
    assert [[new.block_ids for new in plan.new_blocks] != [] for plan in simulation.plans] == [
        False,
        True,
        False,
        False,
        False,
        True,
    ]
    simulation.run_to_end(depth=6)


def test_no_more_than_max_num_seqs_run():
    simulation = Simulation(make_config(max_num_seqs=2))
    for name in "abc":
        simulation.add(make_request(name, [1]))
    simulation.schedule()
    assert (simulation.scheduler.stats().num_running, simulation.scheduler.stats().num_waiting) == (2, 1)
    simulation.run_to_end(depth=1)


def test_first_come_first_served_goes_by_arrival_and_then_by_turn():
    simulation = Simulation(make_config())
    for name, arrival in (("late", 2.0), ("early", 1.0), ("late-too", 2.0)):
        simulation.add(make_request(name, [1], arrival=arrival, priority=-int(arrival)))
    assert [row.request_id for row in simulation.schedule().rows] == ["early", "late", "late-too"]
    simulation.run_to_end(depth=0)


def test_under_the_priority_policy_lower_values_go_first():
    simulation = Simulation(make_config(policy="priority"))
    for name, priority, arrival in (("b", 1, 0.0), ("c", 1, 1.0), ("a", -3, 2.0)):
        simulation.add(make_request(name, [1], priority=priority, arrival=arrival))
    assert [row.request_id for row in simulation.schedule().rows] == ["a", "b", "c"]
    simulation.run_to_end(depth=0)


def test_a_head_that_does_not_fit_is_not_overtaken():
    simulation = Simulation(make_config(num_blocks=8, block_size=4))
    simulation.add(make_request("a", [1] * 16, max_tokens=4))
    simulation.add(make_request("big", [2] * 16, max_tokens=4))
    simulation.add(make_request("small", [3], max_tokens=4))
    assert [row.request_id for row in simulation.schedule().rows] == ["a"]
    assert [row.request_id for row in simulation.schedule().rows] == ["a"]
    simulation.run_to_end(depth=0)
    assert simulation.scheduler.stats().preemptions_total == 0


def test_generation_ends_at_max_tokens_and_no_step_is_planned_beyond():
    simulation = Simulation(make_config())
    simulation.add(make_request("a", [1], max_tokens=3))
    plans = [simulation.schedule() for _ in range(5)]
    assert [plan is not None for plan in plans] == [True, True, True, False, False]
    assert [plan.rows[0].output_index for plan in plans[:3]] == [0, 1, 2]
    assert [simulation.update()[0].finish_reason for _ in range(3)] == [None, None, "length"]
    simulation.check_all_ended()


@pytest.mark.parametrize("max_tokens", [None, 1000])
def test_generation_ends_at_the_model_length(max_tokens: int | None):
    simulation = Simulation(make_config(max_model_len=12))
    simulation.add(make_request("a", [1] * 5, max_tokens=max_tokens))
    simulation.run_to_end(depth=2)
    assert len(simulation.results["a"].tokens) == 7


@pytest.mark.parametrize("max_tokens", [None, 1000])
def test_generation_ends_where_the_storage_does(max_tokens: int | None):
    simulation = Simulation(make_config(num_blocks=3, block_size=4))
    simulation.add(make_request("a", [1] * 5, max_tokens=max_tokens))
    simulation.run_to_end(depth=2)
    assert len(simulation.results["a"].tokens) == 7
    assert simulation.results["a"].finish_reason == "length"


def test_a_stop_id_ends_the_request_and_is_named():
    simulation = Simulation(make_config())
    prompt = [1, 2, 3]
    simulation.add(make_request("a", prompt, max_tokens=9, stop=[next_token(prompt)]))
    simulation.schedule()
    [update] = simulation.update()
    assert (update.finish_reason, update.stop_token_id) == ("stop", next_token(prompt))
    simulation.check_all_ended()


def test_a_full_queue_refuses_and_names_the_limit():
    simulation = Simulation(make_config(max_queue_len=2))
    simulation.add(make_request("a", [1]))
    simulation.add(make_request("b", [1]))
    with pytest.raises(QueueFullError, match="2 requests are waiting and max_queue_len is 2"):
        simulation.add(make_request("c", [1]))
    simulation.schedule()
    simulation.add(make_request("c", [1]))
    simulation.run_to_end(depth=1)


@pytest.mark.parametrize(
    ("request_id", "prompt_length", "max_tokens", "words", "param"),
    [
        ("new", 0, 4, "no tokens", "prompt"),
        ("new", 20, 4, "max_model_len = 20", "prompt"),
        ("new", 16, 4, "KV cache holds 16", "prompt"),
        ("new", 3, 0, "max_tokens is 0", "max_tokens"),
        ("used", 3, 4, "'used' is in use", "request_id"),
    ],
)
def test_a_request_that_can_never_run_is_refused(
    request_id: str, prompt_length: int, max_tokens: int, words: str, param: str
):
    simulation = Simulation(make_config(num_blocks=4, block_size=4, max_model_len=20))
    simulation.add(make_request("used", [1]))
    with pytest.raises(InvalidRequestError, match=words) as caught:
        simulation.scheduler.add(make_request(request_id, [1] * prompt_length, max_tokens))
    assert caught.value.param == param
    simulation.run_to_end(depth=0)


def test_the_longest_prompt_that_fits_yields_one_token():
    simulation = Simulation(make_config(num_blocks=4, block_size=4))
    simulation.add(make_request("a", [1] * 15, max_tokens=None))
    simulation.run_to_end(depth=1)
    assert len(simulation.results["a"].tokens) == 1


@pytest.mark.parametrize("name", ["num_blocks", "block_size", "max_num_seqs", "max_model_len", "max_queue_len"])
def test_a_limit_below_one_is_refused(name: str):
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        make_config(**{name: 0})


def test_a_budget_below_one_token_a_request_is_refused():
    with pytest.raises(ConfigError, match=r"max_num_batched_tokens \(7\) is below max_num_seqs \(8\)"):
        make_config(max_num_seqs=8, max_num_batched_tokens=7)


def test_stats_count_tokens_steps_and_blocks():
    simulation = Simulation(make_config(block_size=4))
    simulation.add(make_request("a", [1] * 9, max_tokens=3))
    simulation.run_to_end(depth=1)
    simulation.add(make_request("b", [1] * 9, max_tokens=3))
    simulation.run_to_end(depth=1)
    stats = simulation.scheduler.stats()
    assert (stats.prompt_tokens_total, stats.generation_tokens_total, stats.steps_total) == (18, 6, 6)
    assert (stats.prefix_cache_queried_tokens_total, stats.prefix_cache_hit_tokens_total) == (18, 8)
    assert (stats.num_blocks, stats.num_blocks_in_use, stats.num_blocks_cached) == (64, 0, 2)
