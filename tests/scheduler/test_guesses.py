"""Tokens of a step that check guesses, beside those that prompts need."""

from __future__ import annotations

import random
from collections.abc import Sequence

from parhelion.scheduler import DRAFTED, StepPlan

from .simulation import Guesses, Simulation, guesses_behind, make_config, make_request


class Eager(Guesses):
    """Never rests, and guesses as much as it may."""

    def __init__(self, most: int) -> None:
        super().__init__("here", most, random.Random(0))

    def begin_step(self, num_decoding: int, num_running: int) -> None: ...

    def guesses(self, request_id: str, token_ids: Sequence[int], most: int) -> Sequence[int]:
        self.learn(request_id, 0, 0)
        return guesses_behind(token_ids, min(most, self._most), self.chances)


def decoding(simulation: Simulation, names: str) -> StepPlan:
    """Let these requests begin, and plan a step that they decode in."""
    for name in names:
        simulation.add(make_request(name, [1, 2], max_tokens=60))
    simulation.schedule()
    simulation.update()
    plan = simulation.schedule()
    assert plan is not None
    return plan


def tokens_of(plan: StepPlan) -> dict[str, int]:
    return {row.request_id: row.num_tokens for row in plan.rows}


def test_guesses_take_what_is_left_of_the_budget_where_no_prompt_needs_it() -> None:
    simulation = Simulation(make_config(max_num_seqs=4, max_num_batched_tokens=8), Eager(5))
    assert tokens_of(decoding(simulation, "ab")) == {"a": 6, "b": 2}


def test_a_prompt_gets_on_however_much_there_is_to_guess() -> None:
    simulation = Simulation(make_config(max_num_seqs=4, max_num_batched_tokens=8), Eager(5))
    decoding(simulation, "ab")
    simulation.add(make_request("long", [3] * 12))
    computed = []
    for _ in range(5):
        simulation.update()
        plan = simulation.schedule()
        assert plan is not None
        computed.append(tokens_of(plan).get("long", 0))
        assert {"a", "b"} <= tokens_of(plan).keys()
    assert sum(computed[:4]) >= 12, computed
    simulation.run_to_end(depth=0)


def on_device(num_blocks: int = 64, most: int = 3, max_tokens: int = 60, **limits: int) -> Simulation:
    """Requests "a" and "b", whose prompts are computed, and which never rest."""
    guesses = Guesses("on device", most, random.Random(1))
    guesses.begin_step = lambda num_decoding, num_running: None  # type: ignore[method-assign]
    guesses.guesses = lambda request_id, token_ids, room: (DRAFTED,) * min(room, most)  # type: ignore[method-assign]
    guesses.follows = True
    simulation = Simulation(make_config(num_blocks, **limits), guesses)
    for name in "ab":
        simulation.add(make_request(name, [1, 2], max_tokens=max_tokens))
    simulation.schedule()
    return simulation


def test_rows_behind_unchecked_guesses_are_planned_once_and_no_further() -> None:
    simulation = on_device()
    plans = [simulation.schedule() for _ in range(2)]
    assert [[(row.start, row.unchecked, len(row.guesses)) for row in plan.rows] for plan in plans if plan] == [
        [(2, 0, 3)] * 2,
        [(6, 3, 3)] * 2,
    ]
    # Where a third row begins is up to two steps.
    assert simulation.schedule() is None
    simulation.update()
    assert simulation.schedule() is None
    simulation.update()
    known = [len(result.request.token_ids) for result in simulation.results.values()]
    third = simulation.schedule()
    assert third is not None
    assert [row.start for row in third.rows] == [length + 3 for length in known]
    simulation.run_to_end(depth=1)


def test_a_request_that_guesses_in_flight_may_end_waits_for_them() -> None:
    simulation = on_device(max_tokens=5)
    assert simulation.schedule() is not None
    # Its prompt's token, and with all that is guessed its fifth.
    assert simulation.schedule() is None
    assert not any(result.request.fully_planned for result in simulation.results.values())
    simulation.run_to_end(depth=1)


def test_nobody_gives_up_blocks_for_a_place_that_may_lie_before() -> None:
    simulation = on_device(most=2, block_size=5)
    assert simulation.schedule() is not None
    # Each holds a block, which ends where its next row begins if all guesses are right; all others are gone.
    pool = simulation.scheduler._kv.pool
    taken = pool.allocate(pool.num_free)
    assert simulation.scheduler.schedule() is None
    assert simulation.scheduler.stats().num_running == 2
    pool.release(taken)
    plan = simulation.schedule()
    assert plan is not None
    assert [(row.start, len(row.guesses)) for row in plan.rows] == [(5, 2)] * 2
    simulation.run_to_end(depth=1)
