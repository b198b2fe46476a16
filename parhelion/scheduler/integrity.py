"""What must hold between any two calls of the scheduler, said in words where it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from parhelion.scheduler.config import SchedulerConfig
from parhelion.scheduler.kv_blocks import KVBlocks
from parhelion.scheduler.request import NO_SLOT, Request, RequestStatus


class IntegrityError(AssertionError):
    """The scheduler's books do not agree with each other: a bug in it, not a user's mistake."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise IntegrityError(message)


def check_blocks(kv: KVBlocks, running: Sequence[Request]) -> None:
    """Reference counts are the number of holders; every block is held, blank or cached, and only one of these."""
    pool, cache = kv.pool, kv.cache
    holders = Counter(block_id for request in running for block_id in request.blocks)
    blank, cached = Counter(pool.blank_blocks), Counter(pool.cached_blocks)
    for block_id in range(pool.num_blocks):
        counted, recorded = holders[block_id], pool.num_holders(block_id)
        _require(counted == recorded, f"block {block_id} has {counted} holders and its count says {recorded}")
        places = blank[block_id] + cached[block_id]
        _require(
            places == (0 if recorded else 1),
            f"block {block_id} has {recorded} holders and is {places} times among the free ones",
        )
        _require(not blank[block_id] or block_id not in cache, f"blank block {block_id} is in the prefix cache")
        _require(not cached[block_id] or block_id in cache, f"cached block {block_id} is not in the prefix cache")
    inverse = {block_hash: block_id for block_id, block_hash in cache.hash_of.items()}
    _require(inverse == dict(cache.block_of), "the prefix cache's two tables disagree")


def check_running(
    running: Sequence[Request], free_slots: Sequence[int], config: SchedulerConfig, guesses: bool = False
) -> None:
    """Every slot is free or taken once; a request holds just the blocks that it needs, or with guesses more."""
    slots = sorted([*free_slots, *(request.slot for request in running)])
    _require(slots == list(range(config.max_num_seqs)), f"slots are lost or taken twice: {slots}")
    for request in running:
        name = f"running request {request.request_id!r}"
        _require(request.status is RequestStatus.RUNNING, f"{name} has status {request.status}")
        _require(len(set(request.blocks)) == len(request.blocks), f"{name} holds a block twice: {request.blocks}")
        needed = -(-request.num_computed // config.block_size)
        held = len(request.blocks)
        as_needed = held >= needed if guesses else held == needed
        _require(as_needed, f"{name} holds {held} blocks for {request.num_computed} tokens; it needs {needed}")
        _require(
            0 < request.num_computed < request.length <= request.max_length,
            f"{name} has {request.num_computed} tokens computed of {request.length}, and may have {request.max_length}",
        )
        _require(
            request.num_registered <= len(request.block_hashes) and request.num_registered <= held,
            f"{name} has registered {request.num_registered} blocks of {held}",
        )


def check_queues(unfinished: Mapping[str, Request], waiting: Sequence[Request], running: Sequence[Request]) -> None:
    """Every unfinished request is in one queue, in order; those that wait hold nothing."""
    for queue in (waiting, running):
        orders = [request.order for request in queue]
        _require(all(a < b for a, b in pairwise(orders)), f"a queue is out of order: {orders}")
    queued = {request.request_id: request for request in (*waiting, *running)}
    _require(len(queued) == len(waiting) + len(running), "a request is queued twice")
    _require(queued == dict(unfinished), f"queued: {sorted(queued)}; unfinished: {sorted(unfinished)}")
    for request in waiting:
        name = f"waiting request {request.request_id!r}"
        _require(request.status is RequestStatus.WAITING, f"{name} has status {request.status}")
        _require(request.slot == NO_SLOT and not request.blocks, f"{name} holds slot {request.slot}, {request.blocks}")
        _require(request.num_computed == 0, f"{name} has {request.num_computed} tokens computed and no blocks")
    for request in unfinished.values():
        known = len(request.token_ids)
        _require(
            request.num_prompt_tokens <= known <= request.length <= request.max_length,
            f"request {request.request_id!r} has {known} known tokens of {request.length}",
        )
