"""A block is found again only behind the same prefix, and the first one with a content wins."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parhelion.scheduler.prefix_cache import PrefixCache, extend_hashes

from .simulation import Simulation, make_config, make_request


def hashes_of(tokens: list[int], block_size: int) -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, tokens, block_size, len(tokens) // block_size)
    return hashes


def test_a_hash_depends_on_all_tokens_before_it():
    left, right = hashes_of([1, 2, 9, 9], 2), hashes_of([2, 1, 9, 9], 2)
    assert left[0] != right[0]
    assert left[1] != right[1]


@given(st.lists(st.integers(0, 2**31 - 1), max_size=40), st.integers(1, 5), st.integers(0, 8))
def test_hashes_taken_in_parts_equal_hashes_taken_at_once(tokens: list[int], block_size: int, first: int):
    whole = hashes_of(tokens, block_size)
    parts: list[bytes] = []
    extend_hashes(parts, tokens, block_size, min(first, len(whole)))
    extend_hashes(parts, tokens, block_size, len(whole))
    assert parts == whole


@given(st.lists(st.integers(0, 1), max_size=24), st.lists(st.integers(0, 1), max_size=24))
def test_hashes_agree_exactly_as_far_as_the_tokens_do(left: list[int], right: list[int]):
    for index, (a, b) in enumerate(zip(hashes_of(left, 3), hashes_of(right, 3), strict=False)):
        assert (a == b) == (left[: 3 * index + 3] == right[: 3 * index + 3])


def test_the_first_block_with_a_content_stays():
    cache = PrefixCache()
    cache.register(b"a", 1)
    cache.register(b"a", 2)
    assert cache.longest_prefix([b"a"], 1) == [1]
    assert 2 not in cache


def test_a_prefix_ends_at_the_first_block_that_is_gone():
    cache = PrefixCache()
    for block, block_hash in enumerate((b"a", b"b", b"c")):
        cache.register(block_hash, block)
    cache.forget(1)
    assert cache.longest_prefix([b"a", b"b", b"c"], 3) == [0]


def first_admission(simulation: Simulation, name: str, prompt: list[int], **others: object) -> int:
    """Cached tokens of a request that then runs to its end."""
    simulation.add(make_request(name, prompt, **others))
    plan = simulation.schedule()
    assert plan is not None
    simulation.run_to_end(depth=0)
    return plan.admissions[0].num_cached_tokens


def test_a_second_equal_prompt_reuses_full_blocks_and_computes_at_least_one_token():
    simulation = Simulation(make_config(block_size=4))
    assert first_admission(simulation, "a", [1, 2, 3, 4] * 2) == 0
    assert first_admission(simulation, "b", [1, 2, 3, 4] * 2) == 4
    assert first_admission(simulation, "c", [1, 2, 3, 4] * 2 + [1]) == 8
    assert first_admission(simulation, "d", [1, 2, 3, 4, 1, 2, 3, 3, 1]) == 4


def test_outputs_are_reused_as_the_prefix_of_a_next_turn():
    simulation = Simulation(make_config(block_size=2))
    simulation.add(make_request("turn-1", [1, 2], max_tokens=5))
    simulation.run_to_end(depth=1)
    answer = simulation.results["turn-1"].tokens
    assert first_admission(simulation, "turn-2", [1, 2, *answer, 3]) == 6


def test_running_requests_share_the_blocks_of_a_prefix():
    simulation = Simulation(make_config(block_size=4))
    prompt = [1, 2, 3, 4, 4, 3, 2, 1, 2]
    simulation.add(make_request("a", prompt, max_tokens=20))
    simulation.schedule()
    simulation.update()
    simulation.add(make_request("b", prompt, max_tokens=20))
    plan = simulation.schedule()
    assert plan.admissions[0].block_ids[:2] == tuple(simulation.results["a"].request.blocks[:2])
    assert simulation.scheduler.stats().num_blocks_in_use == 4
    simulation.run_to_end(depth=1)


def test_blocks_of_a_step_in_flight_are_not_found_before_it_is_back():
    simulation = Simulation(make_config(block_size=4))
    simulation.add(make_request("a", [1] * 9))
    simulation.schedule()
    simulation.add(make_request("b", [1] * 9))
    plan = simulation.schedule()
    assert plan.admissions[0].num_cached_tokens == 0
    simulation.run_to_end(depth=2)


def test_a_request_without_look_up_computes_all_and_still_serves_others():
    simulation = Simulation(make_config(block_size=4))
    first_admission(simulation, "a", [1] * 9)
    assert first_admission(simulation, "b", [1] * 9, use_prefix_cache_lookup=False) == 0
    assert simulation.scheduler.stats().prefix_cache_queried_tokens_total == 9
    assert first_admission(simulation, "c", [1] * 9) == 8


def test_without_prefix_caching_nothing_is_kept():
    simulation = Simulation(make_config(enable_prefix_caching=False))
    first_admission(simulation, "a", [1] * 9)
    assert first_admission(simulation, "b", [1] * 9) == 0
    assert simulation.scheduler.stats().num_blocks_cached == 0


def test_the_prefix_survives_longer_than_what_follows_it():
    simulation = Simulation(make_config(num_blocks=4, block_size=4))
    first_admission(simulation, "a", [1] * 12, max_tokens=1)
    first_admission(simulation, "b", [2] * 6, max_tokens=1)  # takes the blank block and the tail of a's
    assert first_admission(simulation, "c", [1] * 13, max_tokens=1) == 8


def test_every_update_says_how_many_prompt_tokens_were_cached():
    simulation = Simulation(make_config(block_size=4))
    first_admission(simulation, "a", [1] * 9)
    simulation.add(make_request("b", [1] * 9, max_tokens=2))
    simulation.schedule()
    assert [update.num_cached_tokens for update in simulation.update()] == [8]
    simulation.run_to_end(depth=0)
