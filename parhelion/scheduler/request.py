"""One request as the scheduler sees it: what was asked, and how far it has got."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

NO_SLOT = -1
"""The slot of a request that is not running."""

NO_STEP = -1
"""Stands for a step before the first one."""

NEVER = sys.maxsize
"""A position that no request reaches."""


class RequestStatus(Enum):
    """Where a request stands: in the queue (new or preempted), holding a slot and blocks, or over."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Request:
    """What the engine hands to ``Scheduler.add``. Two requests are equal only if they are the same object.

    Attributes:
        request_id: unique among unfinished requests.
        prompt_token_ids: at least one id.
        max_tokens: most tokens to generate; None means as many as the model's length and the storage allow.
        stop_token_ids: ids that end the text, end-of-sequence ids among them unless they are to be ignored.
        priority: lower runs first, under the ``priority`` policy.
        arrival: seconds on any clock that never runs backwards.
        use_prefix_cache_lookup: False computes every prompt token even if its KV are cached.

    The rest belongs to the scheduler, and others only read it:
        status: where it stands.
        order: its place in every queue; smaller is served first.
        token_ids: known tokens: the prompt and the outputs read back so far.
        length: known tokens plus those being sampled by steps in flight, as if all guesses in these were right.
        max_length: the length at which it ends.
        num_computed: tokens whose KV are written once all planned steps have run, if all guesses are right.
        slot: its row in the worker's tensors while it runs, else ``NO_SLOT``.
        blocks: its KV blocks in order of position.
        block_hashes: chained hashes of its first full blocks, as far as they were needed.
        num_registered: leading blocks whose content the prefix cache has been told of.
        next_registration: number of computed tokens at which the next block is full.
        admitted_step: the step that gave it its slot; rows of earlier steps belong to an earlier stay.
        planned_step: the last step that holds a row of it.
        num_guesses: that this row checks.
        num_unchecked: guesses that its rows in flight check.
        was_admitted: it has had a slot before.
        num_cached_tokens: prompt tokens found in the prefix cache when it was first admitted.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    max_tokens: int | None
    stop_token_ids: frozenset[int]
    priority: int = 0
    arrival: float = 0.0
    use_prefix_cache_lookup: bool = True

    status: RequestStatus = field(default=RequestStatus.WAITING, init=False)
    order: tuple[int, float, int] = field(default=(0, 0.0, 0), init=False)
    token_ids: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    length: int = field(init=False)
    max_length: int = field(default=0, init=False)
    num_computed: int = field(default=0, init=False)
    slot: int = field(default=NO_SLOT, init=False)
    blocks: list[int] = field(default_factory=list, init=False)
    block_hashes: list[bytes] = field(default_factory=list, init=False)
    num_registered: int = field(default=0, init=False)
    next_registration: int = field(default=NEVER, init=False)
    admitted_step: int = field(default=NO_STEP, init=False)
    planned_step: int = field(default=NO_STEP, init=False)
    num_guesses: int = field(default=0, init=False)
    num_unchecked: int = field(default=0, init=False)
    was_admitted: bool = field(default=False, init=False)
    num_cached_tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_token_ids)
        self.num_prompt_tokens = self.length = len(self.token_ids)

    @property
    def num_pending(self) -> int:
        """Tokens that steps in flight are sampling for it."""
        return self.length - len(self.token_ids)

    @property
    def fully_planned(self) -> bool:
        """Every token it may generate is known or in flight, whatever was guessed: it needs no further step."""
        return self.length - self.num_unchecked >= self.max_length

    @property
    def is_bounded(self) -> bool:
        """Its place is known but for the guesses of its last row: another row of it could stand behind these, and be
        put right by how many are wrong.
        """
        return self.num_unchecked == self.num_guesses
