"""A stand-in for the worker and the model: it checks on every row that the KV cache holds what it must."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

import msgspec

from parhelion.scheduler import (
    AWAITED,
    DRAFTED,
    KNOWN,
    Request,
    RequestUpdate,
    Row,
    Scheduler,
    SchedulerConfig,
    StepPlan,
)

VOCAB_SIZE = 5
"""Small, so that stop ids turn up and equal prefixes arise by chance as well."""

EOS = 0


def next_token(token_ids: Sequence[int]) -> int:
    """The fake model: a token that depends on all tokens before it."""
    return blake2b(bytes(token_ids), digest_size=2).digest()[0] % VOCAB_SIZE


def reference_output(config: SchedulerConfig, request: Request) -> tuple[list[int], str]:
    """Output and finish reason of a request that has the machine to itself."""
    limit = min(config.max_model_len, config.num_blocks * config.block_size)
    if request.max_tokens is not None:
        limit = min(limit, len(request.prompt_token_ids) + request.max_tokens)
    tokens = list(request.prompt_token_ids)
    while True:
        tokens.append(next_token(tokens))
        if tokens[-1] in request.stop_token_ids:
            return tokens[len(request.prompt_token_ids) :], "stop"
        if len(tokens) >= limit:
            return tokens[len(request.prompt_token_ids) :], "length"


def guesses_behind(token_ids: Sequence[int], count: int, chances: random.Random) -> list[int]:
    """So many guesses, most of which are right if all before them are."""
    tokens = list(token_ids)
    for _ in range(count):
        tokens.append(next_token(tokens) if chances.random() < 0.7 else chances.randrange(VOCAB_SIZE))
    return tokens[len(token_ids) :]


class Guesses:
    """A ``Guesser`` that rests now and then.

    Args:
        made: by whom: the guesser itself, the worker in the step that checks them, before that is planned if the
            worker is a device that knows by itself what it has sampled, or the worker one step before.
        most: for a request at once.
        chances: when it rests, how many guesses it makes and which are wrong.

    Attributes:
        follows, num_ahead, needs_tokens: see ``Guesser``.
    """

    def __init__(
        self, made: Literal["here", "drafted", "on device", "ahead"], most: int, chances: random.Random
    ) -> None:
        self.chances = chances
        self.follows = False
        self.num_ahead = 0
        self.needs_tokens = made != "on device"
        self._made = made
        self._most = most
        self._rests = False
        self._followed: set[str] = set()
        self._heard: dict[str, tuple[int, list[int]]] = {}

    @property
    def num_followed(self) -> int:
        """Requests of which anything is remembered."""
        return len(self._followed | self._heard.keys())

    def begin_step(self, num_decoding: int, num_running: int) -> None:
        assert 0 <= num_decoding <= num_running
        self._rests = self.chances.random() < 0.3
        self.follows = self._made != "here" and not self._rests
        self.num_ahead = self._most if self._made == "ahead" and not self._rests else 0

    def guesses(self, request_id: str, token_ids: Sequence[int], most: int) -> Sequence[int]:
        assert most > 0
        count = 0 if self._rests else self.chances.randint(0, min(most, self._most))
        self._followed.add(request_id)
        if self._made == "here":
            return guesses_behind(token_ids, count, self.chances)
        if self._made in ("drafted", "on device"):
            return (DRAFTED,) * count
        num_known, heard = self._heard.get(request_id, (0, []))
        return heard[:count] if num_known == len(token_ids) else ()

    def hear(self, request_id: str, num_known: int, token_ids: list[int]) -> None:
        """The worker guesses these behind so many tokens."""
        self._heard[request_id] = num_known, token_ids

    def learn(self, request_id: str, guessed: int, accepted: int) -> None:
        assert 0 <= accepted <= guessed <= self._most
        self._followed.add(request_id)

    def forget(self, request_id: str) -> None:
        self._followed.discard(request_id)
        self._heard.pop(request_id, None)


@dataclass
class Computed:
    """What a step has computed.

    Attributes:
        sampled: row after row.
        drafted: guesses that stand for those that were ``DRAFTED``, row after row.
        proposals: guesses for the next steps of requests, and how many known tokens they come behind.
    """

    sampled: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    proposals: dict[str, tuple[int, list[int]]] = field(default_factory=dict)


@dataclass
class Slot:
    """A row of the worker's per-request tensors."""

    request_id: str
    tokens: list[int]
    num_prompt_tokens: int
    blocks: list[int]
    num_told: int
    num_guessed: int = 0
    num_wrong: int = 0


class SimulatedDevice:
    """Runs plans in order. A position's content is the prefix of tokens whose KV would lie there."""

    def __init__(self, config: SchedulerConfig, chances: random.Random) -> None:
        self.chances = chances
        self.block_size = config.block_size
        self.is_told = config.num_groups > 1
        self.content: dict[tuple[int, int], tuple[int, ...]] = {}
        self.slots: dict[int, Slot] = {}

    def run(self, plan: StepPlan, awaited: Mapping[str, int]) -> Computed:
        """Compute a step.

        Args:
            awaited: by request, what the step that the plan awaits has sampled.
        """
        for new in plan.admissions:
            tokens = list(new.token_ids)
            self.slots[new.slot] = Slot(new.request_id, tokens, new.num_prompt_tokens, list(new.block_ids), len(tokens))
        for added in plan.new_blocks:
            self.slots[added.slot].blocks.extend(added.block_ids)
        computed = Computed()
        for row in map(self._put_right, plan.rows):
            self._check_first_token(row, awaited)
            slot = self.slots[row.slot]
            guesses = list(row.guesses)
            if DRAFTED in guesses:
                assert plan.follows
                assert set(guesses) == {DRAFTED}
                guesses = guesses_behind(slot.tokens, len(guesses), self.chances)
                computed.drafted += guesses
            self._write_kv(row, guesses)
            if row.samples:
                computed.sampled += self._sample(row, guesses)
                if plan.num_ahead:
                    computed.proposals[row.request_id] = len(slot.tokens), self._guess_ahead(slot, plan.num_ahead)
            assert row.samples or not guesses
        return computed

    def _put_right(self, row: Row) -> Row:
        """A row where it belongs, if it was planned before guesses were checked."""
        slot = self.slots[row.slot]
        if not row.unchecked:
            return row
        assert row.unchecked == slot.num_guessed, "it must be known how far it may be off"
        off = slot.num_wrong
        return msgspec.structs.replace(row, start=row.start - off, output_index=row.output_index - off, unchecked=0)

    def _check_first_token(self, row: Row, awaited: Mapping[str, int]) -> None:
        """Where requests take turns, a device that does not sample is told what it cannot have from the admission."""
        slot = self.slots[row.slot]
        if row.first_token != KNOWN:
            assert self.is_told
            told = awaited[row.request_id] if row.first_token == AWAITED else row.first_token
            assert told == slot.tokens[row.start]
            slot.num_told = row.start + 1
        else:
            assert not self.is_told or row.start + row.num_tokens <= slot.num_told

    def _place(self, slot: Slot, position: int) -> tuple[int, int]:
        return slot.blocks[position // self.block_size], position % self.block_size

    def _write_kv(self, row: Row, guesses: Sequence[int]) -> None:
        slot = self.slots[row.slot]
        tokens = (*slot.tokens, *guesses)
        assert slot.request_id == row.request_id, "a row must name the request that holds its slot"
        assert row.num_tokens >= 1
        assert row.start + row.num_tokens <= len(tokens), "every input token must be known to the device"
        for position in range(row.start):
            found = self.content.get(self._place(slot, position))
            assert found == tokens[: position + 1], f"{row}: wrong KV at position {position}: {found}"
        for position in range(row.start, row.start + row.num_tokens):
            self.content[self._place(slot, position)] = tokens[: position + 1]

    def _sample(self, row: Row, guesses: Sequence[int]) -> list[int]:
        """A token behind the last known one and behind each guess; the slot goes on behind the first wrong guess."""
        slot = self.slots[row.slot]
        assert row.start + row.num_tokens == len(slot.tokens) + len(guesses), "only the last known token's row samples"
        assert not guesses or row.num_tokens == 1 + len(guesses)
        assert row.num_samples == 1 + len(guesses)
        assert row.output_index == len(slot.tokens) - slot.num_prompt_tokens
        tokens = [*slot.tokens, *guesses]
        sampled = [next_token(tokens[: len(slot.tokens) + number]) for number in range(row.num_samples)]
        wrong = (number for number, guess in enumerate(guesses) if guess != sampled[number])
        accepted = next(wrong, len(guesses))
        slot.num_guessed, slot.num_wrong = len(guesses), len(guesses) - accepted
        slot.tokens += sampled[: accepted + 1]
        return sampled

    def _guess_ahead(self, slot: Slot, most: int) -> list[int]:
        """Guesses for a slot's next step, as far as its blocks have room for what is computed of them."""
        room = len(slot.blocks) * self.block_size - len(slot.tokens) + 1
        return guesses_behind(slot.tokens, max(0, min(most, room)), self.chances)


@dataclass
class Result:
    """What the engine has heard of a request."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_token_id: int | None = None
    aborted: bool = False


class Simulation:
    """A scheduler, a device, and steps in flight between them; every call is followed by all checks."""

    def __init__(self, config: SchedulerConfig, guesses: Guesses | None = None) -> None:
        self.config = config
        self.guesses = guesses
        self.scheduler = Scheduler(config, guesses)
        self.device = SimulatedDevice(config, guesses.chances if guesses is not None else random.Random(0))
        self.in_flight: deque[tuple[StepPlan, Computed]] = deque()
        self.results: dict[str, Result] = {}
        self.plans: list[StepPlan] = []

    def add(self, request: Request) -> Request:
        self.scheduler.add(request)
        self.results[request.request_id] = Result(request)
        self.scheduler.check_integrity()
        return request

    def abort(self, request_id: str) -> bool:
        ended = self.scheduler.abort(request_id)
        if ended:
            self.results[request_id].aborted = True
        self.scheduler.check_integrity()
        return ended

    def schedule(self, ahead: bool = False) -> StepPlan | None:
        pending = {name for name, each in self.scheduler._unfinished.items() if each.num_pending}
        plan = self.scheduler.schedule(ahead)
        self.scheduler.check_integrity()
        awaited: dict[str, int] = {}
        if plan is not None and self.config.num_groups > 1:
            rows = {row.request_id for row in plan.rows if row.first_token != AWAITED}
            assert pending.isdisjoint(rows), "a token of it is being sampled"
            assert (plan.awaits is None) == (len(rows) == len(plan.rows))
        if plan is not None and plan.awaits is not None:
            assert ahead
            oldest, computed = self.in_flight[0]
            assert plan.awaits == oldest.step
            awaited = only_samples(oldest, computed)
        if plan is None:
            assert self.in_flight or not self.scheduler.has_unfinished, "nothing runs, nothing is in flight: stuck"
            return None
        assert plan.num_in_flight == len(self.in_flight)
        self._check_limits(plan)
        self.plans.append(plan)
        self.in_flight.append((plan, self.device.run(plan, awaited)))
        self._check_written_blocks_are_private(plan)
        return plan

    def update(self) -> list[RequestUpdate]:
        plan, computed = self.in_flight.popleft()
        updates = self.scheduler.update(plan, computed.sampled, computed.drafted)
        self.scheduler.check_integrity()
        for update in updates:
            result = self.results[update.request_id]
            assert result.finish_reason is None, "nothing may come after the last update"
            assert not result.aborted
            result.tokens.append(update.token_id)
            result.finish_reason = update.finish_reason
            result.stop_token_id = update.stop_token_id
        for request_id, proposal in computed.proposals.items():
            if self.guesses is not None and request_id in self.scheduler._unfinished:
                self.guesses.hear(request_id, *proposal)
        return updates

    def run_to_end(self, depth: int, max_steps: int = 5000) -> None:
        """Go on until every request has ended, with up to ``depth`` steps planned ahead of the one read back."""
        for _ in range(max_steps):
            while len(self.in_flight) <= depth and (self.schedule() or self.schedule(ahead=True)) is not None:
                pass
            if not self.in_flight:
                break
            self.update()
        self.check_all_ended()

    def check_all_ended(self) -> None:
        """Everyone has ended with the reference's tokens, and no block is held."""
        assert not self.scheduler.has_unfinished
        assert not self.in_flight
        stats = self.scheduler.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_blocks_in_use) == (0, 0, 0)
        assert self.guesses is None or self.guesses.num_followed == 0, "requests that are over must be forgotten"
        for result in self.results.values():
            expected, reason = reference_output(self.config, result.request)
            if result.aborted:
                assert result.finish_reason is None
                assert result.tokens == expected[: len(result.tokens)]
                continue
            assert result.tokens == expected
            assert result.finish_reason == reason
            assert result.stop_token_id == (expected[-1] if reason == "stop" else None)

    def _check_limits(self, plan: StepPlan) -> None:
        assert 1 <= plan.num_tokens <= self.config.max_num_batched_tokens
        slots = [row.slot for row in plan.rows]
        assert len(set(slots)) == len(slots) <= self.config.max_num_seqs
        assert all(0 <= slot < self.config.max_num_seqs for slot in slots)
        assert all(is_decode(row, plan) for row in plan.rows[: num_decodes(plan)]), "decode rows come first"

    def _check_written_blocks_are_private(self, plan: StepPlan) -> None:
        for row in plan.rows:
            blocks = self.device.slots[row.slot].blocks
            first, last = row.start, row.start + row.num_tokens - 1
            for block_id in blocks[first // self.config.block_size : last // self.config.block_size + 1]:
                assert self.scheduler._kv.pool.num_holders(block_id) == 1, f"{row} writes into shared block {block_id}"


def only_samples(plan: StepPlan, computed: Computed) -> dict[str, int]:
    """By request, what a step sampled for rows that sample one token."""
    sampled = iter(computed.sampled)
    each = {row.request_id: [next(sampled) for _ in range(row.num_samples)] for row in plan.rows}
    return {request_id: tokens[0] for request_id, tokens in each.items() if len(tokens) == 1}


def is_decode(row: Row, plan: StepPlan) -> bool:
    """The row continues a request with the one token that the step before it sampled."""
    admitted = {admission.slot for admission in plan.admissions}
    return row.samples and row.num_tokens == 1 + len(row.guesses) and row.output_index > 0 and row.slot not in admitted


def num_decodes(plan: StepPlan) -> int:
    return sum(is_decode(row, plan) for row in plan.rows)


def make_config(
    num_blocks: int = 64,
    block_size: int = 4,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    max_model_len: int = 128,
    **others: object,
) -> SchedulerConfig:
    return SchedulerConfig(num_blocks, block_size, max_num_seqs, max_num_batched_tokens, max_model_len, **others)


def make_request(
    request_id: str,
    prompt: Sequence[int],
    max_tokens: int | None = 4,
    stop: Sequence[int] = (),
    **others: object,
) -> Request:
    return Request(request_id, list(prompt), max_tokens, frozenset(stop), **others)
