"""How many guesses each request's row checks, and whose."""

from __future__ import annotations

from collections.abc import Sequence

from parhelion.speculative.acceptance import Shares
from parhelion.speculative.pace import Costs, Pace
from parhelion.speculative.proposer import Proposer
from parhelion.speculative.speculator import Speculator

_MARGIN = 1.1
"""What a guess must gain over what the time for it would gain otherwise: less is within what is known of either."""

_LEAST = 0.03
"""Tokens that a request's guesses must gain at least."""

_PLAIN_EVERY = 128
"""While guesses pay, behind so many steps there are a few without: what those take changes as texts grow. Behind twice
as many where it has not.
"""

_PLAIN_SELDOM = 512
"""Behind so many at most."""

_SAME = 0.05
"""Share by which it may have changed for that."""

_PLAIN_STEPS = 2
"""The second of them is handed over while the first one runs, as all would be without guesses."""

_SOON = 4
"""The first time they come behind so many, unless the first steps of all have shown it."""

_PATIENCE = 4
"""A request whose guesses do not pay, and would if they were better, tries one again when asked so many times."""

_REST = 48
"""Steps for which nobody is asked again once guesses do not pay, each time in a row twice as many; unless there are
half as many requests by then, or twice as many.
"""

_LONGEST_REST = 128

_TOLERATED = 0.03
"""Share of a step's tokens that asking may cost: less is within what is known of it."""


class Speculation(Speculator):
    """Asks a proposer on behalf of the scheduler, and remembers how well it guesses.

    Args:
        proposer: guesses.
        most: tokens that are guessed for a request at once.
        pace: what steps take; with it, only as many guesses are checked as pay. None: as many as there are.
    """

    def __init__(self, proposer: Proposer, most: int, pace: Pace | None = None) -> None:
        super().__init__(most, pace)
        self._proposer = proposer
        self._known: dict[str, int] = {}
        self._skipped: dict[str, int] = {}
        self._num_rows = 0
        self._most_each = most
        # Of the step that is planned; None: nothing is known, or nobody asks.
        self._costs: Costs | None = None
        self._planned = 0
        self._expected = 0.0
        self._asked = False
        self._pays = False
        self._rest = 0
        self._next_rest = _REST
        self._rested_rows = 0
        self._plain_every = _PLAIN_EVERY
        self._last_plain_s: float | None = None
        # Until some were made nobody knows what a step gains that is handed over ahead.
        self._since_plain = _PLAIN_EVERY - _SOON

    def begin_step(self, num_decoding: int, num_running: int) -> None:
        """See ``Guesser.begin_step``."""
        if not self._auto:
            return
        asked, costs = self._asked, self._costs
        has_paid = self._pays and costs is not None and self._is_paid(costs, self._planned, self._expected)
        self._asked = self._pays = False
        self._num_rows, self._planned, self._expected = max(1, num_decoding), 0, 0.0
        self._costs = costs = self.pace.of(self._num_rows) if self.pace.is_known else None
        # A few show what they add.
        self._most_each = self.most if self.pace.knows_guesses else max(1, self.most // self._num_rows)
        if asked:
            # If a rest begins now.
            self._rested_rows = num_decoding
        if asked and not has_paid:
            self._begin_rest()
        elif asked:
            self._next_rest = _REST
            if costs is not None and self._since_plain == 0:
                self._compare(costs.plain_s)
            self._since_plain += 1
            if self._since_plain >= self._plain_every:
                self._rest, self._since_plain = _PLAIN_STEPS, 0
        elif self._rest:
            self._go_on_resting(num_decoding)
        elif costs is None and num_decoding:
            # Steps without guesses are needed in any case.
            self._rest, self._rested_rows = _PLAIN_STEPS, num_decoding

    def _go_on_resting(self, num_decoding: int) -> None:
        self._rest -= 1
        if not self._rested_rows < 2 * num_decoding <= 4 * self._rested_rows:
            self._rest, self._next_rest = 0, _REST
        elif self._rest == 0:
            self._since_plain = 0
            if self._would_not_pay(num_decoding):
                self._begin_rest()

    def _compare(self, plain_s: float) -> None:
        """Steps without guesses have been measured: they take so long. Do so again later if they took that before."""
        if self._last_plain_s is not None:
            is_same = abs(plain_s - self._last_plain_s) < _SAME * plain_s
            self._plain_every = min(2 * self._plain_every, _PLAIN_SELDOM) if is_same else _PLAIN_EVERY
        self._last_plain_s = plain_s

    def _begin_rest(self) -> None:
        self._rest = self._next_rest
        self._next_rest = min(2 * self._next_rest, _LONGEST_REST)
        self.pace.hope(self._rest)

    def _would_not_pay(self, num_decoding: int) -> bool:
        """Whether asking is known to be in vain, by what every request's guesses have been. It costs, since what is
        asked for cannot be handed over ahead; it counts as if they had been asked.
        """
        costs = self._costs
        if costs is None or num_decoding > len(self._known):
            return False
        planned, expected = 0, 0.0
        for request_id in self._known:
            if self._skipped.get(request_id, 0) + 1 >= _PATIENCE:
                return False
            shares = self.acceptance.of(request_id)
            count = self._best(costs, shares)
            planned += count
            expected += shares.expect(count)
        if planned and self._is_paid(costs, planned, expected):
            return False
        for request_id in self._known:
            self._skipped[request_id] = self._skipped.get(request_id, 0) + 1
        return True

    def _is_paid(self, costs: Costs, planned: int, expected: float) -> bool:
        """Whether what so many guesses are expected to gain, all together, is worth what they cost."""
        rows = self._num_rows
        lost_s = costs.added(planned) if planned else costs.lost_s
        gained = expected - _MARGIN * lost_s * rows / costs.plain_s
        return gained > -_TOLERATED * rows

    @property
    def is_resting(self) -> bool:
        """See the class."""
        return self._rest > 0

    def guesses(self, request_id: str, token_ids: Sequence[int], most: int) -> list[int]:
        """What may follow a request's known tokens.

        Args:
            token_ids: all of them; they only ever grow.
            most: guesses that the step has room for.
        """
        if self._rest:
            return []
        known = self._known.get(request_id)
        if known is None:
            self._proposer.start(request_id, token_ids)
        elif known < len(token_ids):
            self._proposer.extend(request_id, token_ids[known:])
        self._known[request_id] = len(token_ids)
        if not self._auto:
            return self._proposer.propose(request_id, min(most, self.most))
        if self._costs is None:
            return []
        self._asked = True
        shares = self.acceptance.of(request_id)
        count = self._best(self._costs, shares)
        if count:
            self._skipped[request_id] = 0
        else:
            count = self._tried(self._costs, request_id)
        if count > most:
            count = most
        if count < 1:
            return []
        found = self._proposer.propose(request_id, count)
        num_found = len(found)
        self._pays = True
        self._planned += num_found
        self._expected += shares.expect(num_found)
        return found

    def forget(self, request_id: str) -> None:
        """A request is over."""
        super().forget(request_id)
        self._proposer.forget(request_id)
        self._known.pop(request_id, None)
        self._skipped.pop(request_id, None)

    def _tried(self, costs: Costs, request_id: str) -> int:
        """A guess of a request whose guesses do not pay, now and then, if it would pay were it right."""
        self._skipped[request_id] = self._skipped.get(request_id, 0) + 1
        if self._skipped[request_id] < _PATIENCE:
            return 0
        self._skipped[request_id] = 0
        return min(1, self._best(costs, Shares(1.0, 1.0)))

    def _best(self, costs: Costs, shares: Shares) -> int:
        """How many guesses of a request pay most, if these shares are right: with each more, the chance that it counts
        falls and the step grows. Counted are the tokens to expect, less those that the step would gain without guesses
        in the time that these add to it; what a step with guesses takes more however few they are, only where no others
        may guess as well: whether it pays them all shows afterwards.
        """
        speed = _MARGIN * self._num_rows / costs.plain_s
        each = speed * costs.each_s
        gained = -speed * (costs.lost_s + costs.first_s) if self._num_rows == 1 else 0.0
        count, chance = 0, shares.first
        while count < self._most_each and chance > each:
            gained += chance - each
            chance *= shares.later
            count += 1
        return count if gained > _LEAST else 0
