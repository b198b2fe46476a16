"""Tokens of a step that check guesses, beside those that prompts need."""

from __future__ import annotations

import random
from collections.abc import Sequence

from parhelion.scheduler import StepPlan

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
