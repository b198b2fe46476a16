"""Which tokens run in each step: continuous batching over paged KV blocks, planned ahead of the device.

Decode rows come first, then chunks of prompts under what is left of the token budget (Sarathi-Serve, Agrawal et al.,
2024), then new requests. A step may be planned before earlier ones are back: ``num_computed`` counts planned steps, and
a request's ``length`` counts the tokens that they are sampling. Steps run in the order of their planning, so a block
or a slot can be given away as soon as no later step of its holder is planned. Where running requests take turns, as
before a pipeline, a step is one group's.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from parhelion.errors import InvalidRequestError, QueueFullError
from parhelion.scheduler.config import SchedulerConfig
from parhelion.scheduler.guesser import Guesser
from parhelion.scheduler.integrity import check_blocks, check_queues, check_running
from parhelion.scheduler.kv_blocks import KVBlocks
from parhelion.scheduler.plan import AWAITED, DRAFTED, KNOWN, Admission, NewBlocks, RequestUpdate, Row, StepPlan
from parhelion.scheduler.policy import group_size, insert_in_order, order_of, remove_in_order, turns
from parhelion.scheduler.request import NO_SLOT, Request, RequestStatus
from parhelion.scheduler.totals import Totals
from parhelion.types import EngineStats, FinishReason


@dataclass(slots=True)
class _Draft:
    """A step in the making. ``requests`` runs along ``rows``."""

    step: int
    budget: int
    rows: list[Row] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    admissions: list[Admission] = field(default_factory=list)
    new_blocks: list[NewBlocks] = field(default_factory=list)
    gave_up_blocks: bool = False


class Scheduler:
    """Plans steps (``schedule``) and learns from them (``update``), any number of steps apart.

    Not thread-safe: one loop calls it.

    Args:
        config: limits.
        guesser: guesses what requests will say, for rows that check several tokens at once. Where it needs a request's
            tokens for that, one with guesses in flight is not planned again before they are back. None: no guesses.
    """

    def __init__(self, config: SchedulerConfig, guesser: Guesser | None = None) -> None:
        self.config = config
        self._guesser = guesser
        self._needs_tokens = guesser is None or guesser.needs_tokens
        self._kv = KVBlocks(config.num_blocks, config.block_size, config.enable_prefix_caching)
        self._unfinished: dict[str, Request] = {}
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        self._free_slots = list(range(config.max_num_seqs))
        self._in_flight: deque[tuple[StepPlan, list[Request]]] = deque()
        self._num_added = 0
        self._num_planned = 0
        self._totals = Totals()

    # Requests come and go

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: it can never run.
            QueueFullError: too many are waiting.
        """
        limit = self._check_can_ever_run(request)
        if len(self._waiting) >= self.config.max_queue_len:
            raise QueueFullError(
                f"{len(self._waiting)} requests are waiting and max_queue_len is {self.config.max_queue_len}: "
                "try again later, or start the engine with a larger max_queue_len"
            )
        if request.max_tokens is not None:
            limit = min(limit, request.num_prompt_tokens + request.max_tokens)
        request.max_length = limit
        request.order = order_of(request, self.config.policy, self._num_added)
        self._num_added += 1
        self._unfinished[request.request_id] = request
        insert_in_order(self._waiting, request)

    def abort(self, request_id: str) -> bool:
        """End a request and free its blocks at once; whether there was such an unfinished request.

        Tokens of it that are in flight are dropped when they arrive.
        """
        request = self._unfinished.get(request_id)
        if request is None:
            return False
        if request.status is RequestStatus.RUNNING:
            remove_in_order(self._running, request)
        self._finish(request)
        return True

    def _check_can_ever_run(self, request: Request) -> int:
        """The most tokens that this request could have, were max_tokens no limit."""
        if request.request_id in self._unfinished:
            raise InvalidRequestError(f"request_id {request.request_id!r} is in use: choose another", "request_id")
        if request.num_prompt_tokens < 1:
            raise InvalidRequestError("the prompt has no tokens: it needs at least one", "prompt")
        if request.max_tokens is not None and request.max_tokens < 1:
            raise InvalidRequestError(f"max_tokens is {request.max_tokens}; it must be at least 1", "max_tokens")
        if request.num_prompt_tokens >= self.config.max_model_len:
            raise InvalidRequestError(
                f"the prompt has {request.num_prompt_tokens} tokens, and prompt and output together may have "
                f"max_model_len = {self.config.max_model_len}: shorten the prompt",
                "prompt",
                "context_length_exceeded",
            )
        if request.num_prompt_tokens >= self.config.num_storable_tokens:
            raise InvalidRequestError(
                f"the prompt has {request.num_prompt_tokens} tokens, and the KV cache holds "
                f"{self.config.num_storable_tokens} of prompt and output together: shorten the prompt, or start the "
                "engine with more kv_cache_memory",
                "prompt",
                "context_length_exceeded",
            )
        return min(self.config.max_model_len, self.config.num_storable_tokens)

    # Planning

    def schedule(self, ahead: bool = False) -> StepPlan | None:
        """Plan the next step; None when nothing can run before a step in flight is back, or at all.

        Args:
            ahead: of several groups, tokens that the oldest step in flight is sampling may be ``AWAITED``.
        """
        draft = _Draft(self._num_planned, self.config.max_num_batched_tokens)
        awaited = self._in_flight[0][0].step if ahead and self._in_flight else None
        for turn in turns(self._running, self.config.num_groups, awaited):
            prefills = self._plan_decodes(draft, turn)
            self._plan_prefills(draft, prefills)
            if draft.rows:
                break
        if draft.gave_up_blocks:
            self._running = [request for request in self._running if request.slot != NO_SLOT]
        else:
            # Blocks just taken from a running request are not for a newcomer.
            self._admit(draft)
        if not draft.rows:
            return None
        guesser = self._guesser
        follows, num_ahead = (guesser.follows, guesser.num_ahead) if guesser is not None else (False, 0)
        if num_ahead:
            self._leave_room(draft, num_ahead)
        awaits = awaited if awaited is not None and any(row.first_token == AWAITED for row in draft.rows) else None
        tables = tuple(draft.admissions), tuple(draft.new_blocks)
        plan = StepPlan(draft.step, tuple(draft.rows), *tables, follows, num_ahead, awaits, len(self._in_flight))
        self._in_flight.append((plan, draft.requests))
        self._num_planned += 1
        return plan

    def _plan_decodes(self, draft: _Draft, turn: Sequence[Request]) -> list[Request]:
        """A row for every one of these requests whose next token is its last output; returns those with more to
        compute."""
        step = draft.step
        block_size = self.config.block_size
        prefills: list[Request] = []
        rows, requests = draft.rows, draft.requests
        spare = draft.budget - len(turn)
        if self._guesser is not None:
            num_decoding = sum([request.num_computed >= request.num_prompt_tokens for request in turn])
            self._guesser.begin_step(num_decoding, len(turn))
            if num_decoding < len(turn) or (self._waiting and self._free_slots):
                # However much there is to guess, prompts get on.
                spare //= 2
        tells = self.config.num_groups > 1
        for request in turn:
            position = request.num_computed
            length = request.length
            # The last token of a prompt may stand alone in its chunk; it is no decode for that.
            if length - position != 1 or position < request.num_prompt_tokens:
                # A request that an older one has just preempted has nothing computed and ends up here.
                if request.slot != NO_SLOT:
                    prefills.append(request)
                continue
            # Of guesses in flight it counts all: it may end with them, or turn out to need a row in the next step.
            if length >= request.max_length:
                continue
            unchecked = request.num_unchecked
            if unchecked and (self._needs_tokens or not request.is_bounded):
                continue
            # Blocks are taken just as they are needed: at a block's end, all that it holds are full.
            if position == len(request.blocks) * block_size:
                # Nobody gives up blocks for a place that may turn out to lie before.
                if (unchecked and not self._kv.pool.num_free) or not self._make_room(draft, request):
                    continue
                draft.new_blocks.append(NewBlocks(request.slot, self._kv.grow(request, length)))
            output_index = length - request.num_prompt_tokens
            guesses: tuple[int, ...] = ()
            if self._guesser is not None and not (self._needs_tokens and request.num_pending):
                guesses = self._guesses(self._guesser, draft, request, spare)
                length += len(guesses)
                spare -= len(guesses)
            token = KNOWN if not tells else AWAITED if request.num_pending else request.token_ids[position]
            count = 1 + len(guesses)
            row = Row(request.request_id, request.slot, position, count, True, output_index, guesses, token, unchecked)
            rows.append(row)
            requests.append(request)
            request.num_guesses = len(guesses)
            request.num_unchecked = unchecked + len(guesses)
            request.num_computed = length
            request.length = length + 1
            request.planned_step = step
            draft.budget -= count
        return prefills

    def _guesses(self, guesser: Guesser, draft: _Draft, request: Request, spare: int) -> tuple[int, ...]:
        """Guesses of what follows a request's tokens, as far as its length, the step's budget and free blocks allow:
        nobody gives up blocks for a guess, and one stays for each request that runs.
        """
        room = self._kv.room(request, len(self._running))
        most = min(request.max_length - request.length - 1, spare, room - request.length)
        if most < 1:
            return ()
        guesses = tuple(guesser.guesses(request.request_id, request.token_ids, most))
        added = self._kv.grow(request, request.length + len(guesses))
        if added:
            draft.new_blocks.append(NewBlocks(request.slot, added))
        return guesses

    def _leave_room(self, draft: _Draft, ahead: int) -> None:
        """Take blocks for what a draft model guesses behind rows at the end of the step, as far as any are to spare."""
        for row, request in zip(draft.rows, draft.requests, strict=True):
            if row.samples:
                wanted = min(row.start + row.num_tokens + ahead, request.max_length)
                added = self._kv.grow(request, min(wanted, self._kv.room(request, len(self._running))))
                if added:
                    draft.new_blocks.append(NewBlocks(request.slot, added))

    def _plan_prefills(self, draft: _Draft, prefills: list[Request]) -> None:
        """Go on with prompts that are partly computed, as far as budget and blocks allow."""
        for request in prefills:
            if draft.budget < 1:
                return
            if request.slot == NO_SLOT:
                continue
            room = len(request.blocks) * self.config.block_size - request.num_computed
            if room == 0 and not self._make_room(draft, request):
                continue
            room += self._kv.pool.num_free * self.config.block_size
            num_tokens = min(draft.budget, room, request.length - request.num_computed)
            added = self._kv.grow(request, request.num_computed + num_tokens)
            if added:
                draft.new_blocks.append(NewBlocks(request.slot, added))
            self._plan_chunk(draft, request, num_tokens)

    def _plan_chunk(self, draft: _Draft, request: Request, num_tokens: int) -> None:
        """A row of known tokens; it samples if it reaches the last one."""
        start = request.num_computed
        output_index = request.length - request.num_prompt_tokens
        samples = start + num_tokens == request.length
        draft.rows.append(Row(request.request_id, request.slot, start, num_tokens, samples, output_index))
        draft.requests.append(request)
        draft.budget -= num_tokens
        request.num_computed = start + num_tokens
        request.length += samples
        request.num_guesses = 0
        request.planned_step = draft.step

    # Giving up blocks

    def _make_room(self, draft: _Draft, request: Request) -> bool:
        """See that a block is free. False if only requests before this one could give some: it waits in place."""
        while self._kv.pool.num_free == 0:
            victim = self._victim(draft.step)
            if victim is request:
                return False
            if not victim.fully_planned:
                self._totals.preemptions += 1
            self._stop_running(victim)
            insert_in_order(self._waiting, victim)
            draft.gave_up_blocks = True
        return True

    def _victim(self, step: int) -> Request:
        """Whose blocks to take: of one that needs no further step, else of the last one without a row in this step."""
        last: Request | None = None
        for request in reversed(self._running):
            if request.slot == NO_SLOT:
                continue
            if request.fully_planned and request.planned_step != step:
                return request
            if last is None and request.planned_step != step:
                last = request
        assert last is not None, "the request that lacks a block has no row yet, so it is a candidate itself"
        return last

    def _stop_running(self, request: Request) -> None:
        """Take slot and blocks; the caller takes it from the list of running ones."""
        self._kv.release(request)
        heapq.heappush(self._free_slots, request.slot)
        request.slot = NO_SLOT
        request.status = RequestStatus.WAITING

    # Admission

    def _admit(self, draft: _Draft) -> None:
        """Give slots to waiting requests in order, until one finds no room.

        One that was preempted with tokens in flight is passed over: it goes on once they are known.
        """
        if draft.budget < 1 or not self._free_slots or not self._waiting:
            return
        reserved = sum(map(self._expected_growth, self._running))
        passed_over = 0
        most = min(self.config.max_num_seqs, len(self._running) + len(self._waiting))
        room = group_size(most, self.config.num_groups) - len(draft.rows)
        while draft.budget and self._free_slots and passed_over < len(self._waiting) and room > 0:
            request = self._waiting[passed_over]
            if request.num_pending:
                passed_over += 1
                continue
            prefix = self._kv.find_prefix(request)
            lacking = self._kv.blocks_for(request.length) - len(prefix)
            if lacking + reserved > self._kv.num_free_beside(prefix):
                return
            del self._waiting[passed_over]
            self._start_running(draft, request, prefix)
            room -= 1
            reserved += self._expected_growth(request)

    def _expected_growth(self, request: Request) -> int:
        """Blocks that a running request will need soon: for its known tokens and the next block_size - 1 of them.

        Newcomers leave these free. Else they would be preempted at once, and their prompts computed in vain.
        """
        soon = min(request.max_length, request.length + self.config.block_size - 1)
        # It may hold more than that, for guesses.
        return max(0, self._kv.blocks_for(soon) - len(request.blocks))

    def _start_running(self, draft: _Draft, request: Request, prefix: list[int]) -> None:
        """Give a slot, the cached prefix and a first chunk."""
        request.slot = heapq.heappop(self._free_slots)
        request.status = RequestStatus.RUNNING
        request.admitted_step = draft.step
        self._kv.start(request, prefix)
        num_cached = request.num_computed
        if not request.was_admitted:
            self._count_first_admission(request)
        num_tokens = min(draft.budget, request.length - num_cached)
        self._kv.grow(request, num_cached + num_tokens)
        draft.admissions.append(
            Admission(
                request_id=request.request_id,
                slot=request.slot,
                token_ids=tuple(request.token_ids),
                num_prompt_tokens=request.num_prompt_tokens,
                block_ids=tuple(request.blocks),
                num_cached_tokens=num_cached,
            )
        )
        self._plan_chunk(draft, request, num_tokens)
        insert_in_order(self._running, request)

    def _count_first_admission(self, request: Request) -> None:
        request.was_admitted = True
        request.num_cached_tokens = request.num_computed
        self._totals.prompt_tokens += request.num_prompt_tokens
        if self._kv.looks_up(request):
            self._totals.queried_tokens += request.num_prompt_tokens
            self._totals.hit_tokens += request.num_computed

    # Learning

    def update(self, plan: StepPlan, sampled: Sequence[int], drafted: Sequence[int] = ()) -> list[RequestUpdate]:
        """Take in what a step sampled: the ids of each row that samples, in the order of the rows.

        Of a row with guesses those count that were sampled as they were guessed, and the first one that was not.

        Args:
            plan: the step.
            sampled: ``num_samples`` ids for each row.
            drafted: what the draft model guessed for the rows whose guesses are ``DRAFTED``, row after row.

        Steps come back in the order of their planning. Requests that ended since the step was planned, by a stop id or
        by ``abort``, get no update.

        Raises:
            ValueError: the plan is not the oldest one in flight, or the ids do not match its rows.
        """
        requests = self._take_from_flight(plan, sampled)
        self._totals.steps += 1
        end = end_of_drafts = 0
        updates: list[RequestUpdate] = []
        any_finished = False
        for row, request in zip(plan.rows, requests, strict=True):
            guesses: Sequence[int] = row.guesses
            first, end = end, end + row.samples + len(guesses)
            if guesses and guesses[0] == DRAFTED:
                first_draft, end_of_drafts = end_of_drafts, end_of_drafts + len(guesses)
                guesses = drafted[first_draft:end_of_drafts]
            if request.status is RequestStatus.FINISHED:
                continue
            is_same_stay = request.slot != NO_SLOT and request.admitted_step <= plan.step
            rejected = self._rejected(request, guesses, sampled[first:end], is_same_stay) if guesses else 0
            request_id, token_ids, num_cached = request.request_id, request.token_ids, request.num_cached_tokens
            # A row that samples begins with the last known token, wherever it was planned.
            num_computed = len(token_ids) + len(guesses) - rejected if row.samples else row.start + row.num_tokens
            reason: FinishReason | None = None
            for sample in range(first, end - rejected):
                token_id = sampled[sample]
                token_ids.append(token_id)
                if token_id in request.stop_token_ids:
                    reason = "stop"
                elif len(token_ids) >= request.max_length:
                    reason = "length"
                stop_token_id = token_id if reason == "stop" else None
                updates.append(RequestUpdate(request_id, token_id, reason, stop_token_id, num_cached, sample))
                if reason is not None:
                    break
            num_computed = min(num_computed, len(token_ids))
            # A request preempted since then has other blocks now, or none.
            if is_same_stay and num_computed >= request.next_registration:
                self._kv.register_computed(request, num_computed)
            if reason is not None:
                self._finish(request)
                any_finished = True
        if any_finished:
            self._running = [request for request in self._running if request.slot != NO_SLOT]
        self._totals.generation_tokens += len(updates)
        return updates

    def _rejected(self, request: Request, guesses: Sequence[int], sampled: Sequence[int], is_same_stay: bool) -> int:
        """How many of a row's guesses were wrong; the request goes on behind the others."""
        count, accepted = len(guesses), 0
        while accepted < count and sampled[accepted] == guesses[accepted]:
            accepted += 1
        rejected = count - accepted
        totals = self._totals
        totals.guessed_tokens += count
        totals.accepted_tokens += accepted
        totals.checked_rows += 1
        if self._guesser is not None:
            self._guesser.learn(request.request_id, count, accepted)
        request.num_unchecked -= count
        request.length -= rejected
        if is_same_stay:
            request.num_computed -= rejected
        return rejected

    def _take_from_flight(self, plan: StepPlan, sampled: Sequence[int]) -> list[Request]:
        """The requests of the plan's rows."""
        if not self._in_flight or self._in_flight[0][0] is not plan:
            oldest = f"step {self._in_flight[0][0].step}" if self._in_flight else "none"
            raise ValueError(f"step {plan.step} came back and the oldest step in flight is {oldest}: keep the order")
        num_samples = sum([row.samples + len(row.guesses) for row in plan.rows])
        if len(sampled) != num_samples:
            raise ValueError(f"step {plan.step} samples {num_samples} tokens, and {len(sampled)} ids came back")
        return self._in_flight.popleft()[1]

    def _finish(self, request: Request) -> None:
        """End a request; the caller takes it from the list of running ones."""
        if request.status is RequestStatus.RUNNING:
            self._stop_running(request)
        else:
            remove_in_order(self._waiting, request)
        request.status = RequestStatus.FINISHED
        del self._unfinished[request.request_id]
        if self._guesser is not None:
            self._guesser.forget(request.request_id)

    # Looking in from outside

    @property
    def has_unfinished(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._unfinished)

    def stats(self) -> EngineStats:
        """Counts at this moment."""
        return self._totals.stats(len(self._running), len(self._waiting), self._kv.pool)

    def check_integrity(self) -> None:
        """Look for broken invariants, between two calls; slow, for tests and debugging.

        Raises:
            IntegrityError: something is broken; the message says what.
        """
        check_blocks(self._kv, self._running)
        check_running(self._running, self._free_slots, self.config, self._guesser is not None)
        check_queues(self._unfinished, self._waiting, self._running)
