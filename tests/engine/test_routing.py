"""A request goes where its prefix is, unless too much waits there."""

from __future__ import annotations

from typing import Any

import pytest

from parhelion.config import EngineConfig
from parhelion.engine.messages import AddRequest
from parhelion.engine.replicas.routing import REQUEST_TOKENS, GivenPrefixes, Router

from .requests import add_request

BLOCK = 4


def router(replicas: int = 2, *, num_blocks: int = 1000, **options: Any) -> Router:
    made = Router(EngineConfig(model="any", block_size=BLOCK, **options))
    for replica in range(replicas):
        made.join(replica, num_blocks)
    return made


def request(name: str, prompt: list[int], **params: int) -> AddRequest:
    return add_request(f"{name}/0", prompt, **params)


def prompt_of(first: int, length: int) -> list[int]:
    return list(range(first, first + length))


def test_idle_replicas_take_turns() -> None:
    made = router(3)
    placed = []
    for index in range(6):
        placed.append(made.place(request(f"r{index}", prompt_of(100 * index, 8))))
        made.ended(f"r{index}/0")
    assert placed == [0, 1, 2, 0, 1, 2]


def test_the_shortest_queue_is_that_with_the_fewest_tokens_to_compute() -> None:
    made = router()
    assert made.place(request("long", prompt_of(0, 300))) == 0
    # 300 + 64 are ahead on replica 0; on replica 1 each of these puts 20 + 64 ahead of the next.
    assert [made.place(request(f"r{index}", prompt_of(1000 * index + 1000, 20))) for index in range(6)] == [1] * 5 + [0]


def test_a_prompt_that_is_computed_weighs_no_more_than_a_running_request() -> None:
    made = router()
    assert made.place(request("long", prompt_of(0, 300))) == 0
    assert made.place(request("short", prompt_of(1000, 20))) == 1
    made.began("long/0")
    assert made.place(request("next", prompt_of(2000, 20))) == 0


def test_the_prefix_wins_until_what_waits_outweighs_it() -> None:
    made = router()
    shared = prompt_of(0, 10 * REQUEST_TOKENS)
    assert made.place(request("first", shared)) == 0
    made.ended("first/0")
    placed = []
    for index in range(20):
        placed.append(made.place(request(f"r{index}", [*shared, 5000 + index])))
        made.began(f"r{index}/0")
    # The last token's block is never looked up, so 640 tokens are cached: ten running requests weigh as much.
    assert placed[:11] == [0] * 10 + [1]
    # Now both have the prefix, and the load decides.
    assert set(placed[11:]) == {1}


def test_no_prefix_makes_a_request_wait_or_be_refused_where_another_replica_has_room() -> None:
    made = router(max_num_seqs=2, max_queue_len=1)
    shared = prompt_of(0, 100 * REQUEST_TOKENS)
    made.place(request("first", shared))
    made.ended("first/0")
    placed = []
    for index in range(6):
        placed.append(made.place(request(f"r{index}", [*shared[: REQUEST_TOKENS * 90], 9000 + index])))
        made.began(f"r{index}/0")
    # Two run here and two there, and then one waits here and one there.
    assert placed == [0, 0, 1, 1, 0, 1]


def test_the_longest_of_several_prefixes_wins() -> None:
    made = router()
    short, long = prompt_of(0, 400), prompt_of(0, 800)
    assert made.place(request("short", short)) == 0
    assert made.place(request("other", [7, *long])) == 1
    made.ended("short/0")
    made.ended("other/0")
    assert made.place(request("a", [*short, 1, 2])) == 0
    assert made.place(request("b", [7, *long, 1, 2])) == 1


@pytest.mark.parametrize(("caching", "params"), [(False, {}), (True, {"prompt_logprobs": 1})])
def test_where_no_prefix_is_looked_up_only_the_queue_counts(caching: bool, params: dict[str, int]) -> None:
    made = router(enable_prefix_caching=caching)
    same = prompt_of(0, 800)
    placed = [made.place(request(f"r{index}", same, **params)) for index in range(4)]
    assert placed == [0, 1, 0, 1]


def test_completions_of_one_request_stay_together_whatever_waits() -> None:
    made = router()
    assert {made.place(add_request(f"r#1/{index}", prompt_of(0, 50))) for index in range(8)} == {0}
    for index in range(7):
        made.ended(f"r#1/{index}")
    assert made.place(add_request("r#1/8", prompt_of(0, 50))) == 0
    assert made.place(add_request("r#2/0", prompt_of(500, 50))) == 1


def test_a_replica_that_leaves_names_its_requests_and_comes_back_with_nothing_cached() -> None:
    made = router()
    shared = prompt_of(0, 800)
    assert made.place(request("a", shared)) == 0
    assert made.place(request("b", prompt_of(5000, 10))) == 1
    made.ended("b/0")
    assert made.leave(0) == ["a/0"]
    assert made.replica_of("a/0") is None
    assert made.place(request("a", shared)) == 1
    made.began("a/0")
    made.join(0, 1000)
    assert made.place(request("c", [*shared, 1])) == 1
    assert made.leave(1) == ["a/0", "c/0"]
    assert made.leave(0) == []
    assert made.replicas == []
    assert made.place(request("d", shared)) is None


def test_what_is_over_or_unknown_is_ignored() -> None:
    made = router()
    made.place(request("a", prompt_of(0, 100)))
    for _ in range(2):
        made.ended("a/0")
        made.began("a/0")
    made.ended("never/0")
    assert made.replica_of("a/0") is None


def test_the_record_of_prefixes_is_bounded_and_forgets_the_oldest_and_the_deepest_first() -> None:
    given = GivenPrefixes(4)
    first, second = [b"a", b"b", b"c"], [b"x", b"y"]
    given.note(first)
    given.note(second)
    assert len(given) == 4
    assert given.num_known(first) == 2
    given.note(first[:1])
    given.note([b"z"])
    assert given.num_known(first) == 1
    assert given.num_known(second) == 2
