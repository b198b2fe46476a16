"""Broken books are noticed, and the message says which."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from parhelion.scheduler import IntegrityError, Scheduler

from .simulation import make_config, make_request


def leak_a_block(scheduler: Scheduler) -> None:
    scheduler._kv.pool.allocate(1)


def share_a_block(scheduler: Scheduler) -> None:
    first, second = scheduler._running
    second.blocks[0] = first.blocks[0]


def free_a_slot_in_use(scheduler: Scheduler) -> None:
    scheduler._free_slots.append(scheduler._running[0].slot)


def hold_too_much(scheduler: Scheduler) -> None:
    scheduler._running[0].num_computed = 1


def forget_half_an_entry(scheduler: Scheduler) -> None:
    scheduler._kv.cache._block_of[b"nowhere"] = 3


def swap_the_queue(scheduler: Scheduler) -> None:
    scheduler._running.reverse()


def lose_a_request(scheduler: Scheduler) -> None:
    scheduler._waiting.clear()


def lose_a_token(scheduler: Scheduler) -> None:
    scheduler._waiting[0].token_ids.pop()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (leak_a_block, "has 0 holders and its count says 1"),
        (share_a_block, "has 2 holders and its count says 1"),
        (free_a_slot_in_use, "slots are lost or taken twice"),
        (hold_too_much, "holds 2 blocks for 1 tokens; it needs 1"),
        (forget_half_an_entry, "two tables disagree"),
        (swap_the_queue, "a queue is out of order"),
        (lose_a_request, "queued: .*; unfinished: "),
        (lose_a_token, "known tokens of"),
    ],
)
def test_harm_is_noticed(harm: Callable[[Scheduler], None], words: str):
    scheduler = Scheduler(make_config(max_num_seqs=2))
    for name in "abc":
        scheduler.add(make_request(name, [ord(name) % 5] * 6))
    assert scheduler.schedule() is not None
    scheduler.check_integrity()
    harm(scheduler)
    with pytest.raises(IntegrityError, match=words):
        scheduler.check_integrity()
