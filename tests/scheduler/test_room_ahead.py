"""Blocks for guesses that a draft model makes at the end of a step, behind what the step samples."""

from __future__ import annotations

from collections.abc import Sequence

from parhelion.scheduler import Request, Scheduler, SchedulerConfig, StepPlan


class Ahead:
    """A guesser whose guesses are made ahead, and never checked."""

    follows = True
    needs_tokens = True
    num_ahead = 3

    def begin_step(self, num_decoding: int, num_running: int) -> None: ...

    def guesses(self, request_id: str, token_ids: Sequence[int], most: int) -> Sequence[int]:
        return ()

    def learn(self, request_id: str, guessed: int, accepted: int) -> None: ...

    def forget(self, request_id: str) -> None: ...


def scheduler_of(num_blocks: int, max_tokens: int) -> Scheduler:
    config = SchedulerConfig(
        num_blocks=num_blocks,
        block_size=4,
        max_num_seqs=2,
        max_num_batched_tokens=8,
        max_model_len=64,
        num_groups=2,
    )
    scheduler = Scheduler(config, Ahead())
    scheduler.add(Request("a", list(range(2, 8)), max_tokens=max_tokens, stop_token_ids=frozenset()))
    return scheduler


def planned(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule()
    assert plan is not None
    assert (plan.follows, plan.num_ahead) == (True, 3)
    scheduler.check_integrity()
    return plan


def test_a_row_that_samples_has_room_for_what_is_guessed_behind_it() -> None:
    scheduler = scheduler_of(num_blocks=8, max_tokens=20)
    plan = planned(scheduler)
    assert [len(each.block_ids) for each in plan.admissions] == [2]
    # Six tokens of the prompt, and three behind them.
    assert [len(each.block_ids) for each in plan.new_blocks] == [1]
    for token in (10, 11, 12):
        scheduler.update(plan, [token])
        plan = planned(scheduler)
        assert not plan.new_blocks
    scheduler.update(plan, [13])
    assert [len(each.block_ids) for each in planned(scheduler).new_blocks] == [1], "ten tokens, and three behind them"


def test_nobody_takes_the_last_free_block_or_more_than_a_request_may_have() -> None:
    assert not planned(scheduler_of(num_blocks=3, max_tokens=4)).new_blocks
    assert not planned(scheduler_of(num_blocks=8, max_tokens=2)).new_blocks


def test_a_newcomer_is_not_given_what_is_held_for_guesses() -> None:
    scheduler = Scheduler(SchedulerConfig(12, 1, max_num_seqs=2, max_num_batched_tokens=16, max_model_len=12), Ahead())
    scheduler.add(Request("a", [2, 3], max_tokens=9, stop_token_ids=frozenset()))
    plan = planned(scheduler)
    assert scheduler.stats().num_blocks_in_use == 5
    scheduler.add(Request("b", [4] * 8, max_tokens=2, stop_token_ids=frozenset()))
    scheduler.update(plan, [5])
    # One block is free less than the newcomer needs, and two are held beyond the next token.
    assert [row.request_id for row in planned(scheduler).rows] == ["a"]
