"""How many guesses each request's row checks, and whose."""

from __future__ import annotations

from collections.abc import Sequence

from parhelion.speculative.pace import Pace
from parhelion.speculative.proposer import Proposer

_MEMORY = 0.9
"""What is left of an old observation after a new one."""

_HOPE = 0.6
"""Share of guesses that are expected to be right before any was checked."""

_LEAST_GAIN = 1.03
"""Tokens a second with guesses over those without, at least: less is within what is known of either."""

_PATIENCE = 4
"""A request whose guesses do not pay, and would if they were better, tries one again when asked so many times."""

_REST = 16
"""Steps for which nobody is asked again once nobody's guesses pay."""


class Speculation:
    """Asks a proposer on behalf of the scheduler, and remembers how well it guesses.

    Args:
        proposer: guesses.
        most: tokens that are guessed for a request at once.
        pace: what steps take; with it, only as many guesses are checked as pay. None: as many as there are.

    Attributes:
        is_resting: nobody is asked for guesses now, so steps may be planned before the last one's tokens are known.
    """

    def __init__(self, proposer: Proposer, most: int, pace: Pace | None = None) -> None:
        self.pace = pace
        self._proposer = proposer
        self._most = most
        self._known: dict[str, int] = {}
        self._shares: dict[str, float] = {}
        self._skipped: dict[str, int] = {}
        self._num_rows = 0
        self._planned = 0
        self._asked = False
        self._pays = False
        self._rest = 0

    def begin_step(self, num_rows: int) -> None:
        """A step is planned in which so many requests decode."""
        if self._asked and not self._pays:
            self._rest = _REST
        elif self._rest:
            self._rest -= 1
        self._asked = self._pays = False
        self._num_rows = self._planned = max(1, num_rows)

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
        count = min(most, self._worth_checking(request_id))
        self._pays |= count > 0
        found = self._proposer.propose(request_id, count) if count > 0 else []
        self._planned += len(found)
        return found

    def learn(self, request_id: str, guessed: int, accepted: int) -> None:
        """So many of a request's guesses were right, up to the first that was wrong."""
        # Each guess up to there was one trial; what stands behind a wrong guess was never tried.
        trials = min(guessed, accepted + 1)
        share = self._shares.get(request_id, _HOPE)
        for trial in range(trials):
            share = _MEMORY * share + (1 - _MEMORY) * (trial < accepted)
        self._shares[request_id] = share

    def forget(self, request_id: str) -> None:
        """A request is over."""
        self._proposer.forget(request_id)
        for table in (self._known, self._shares, self._skipped):
            table.pop(request_id, None)

    def _worth_checking(self, request_id: str) -> int:
        """How many guesses of this request pay: with each more, the chance that it counts falls and the step grows."""
        if self.pace is None:
            return self._most
        self._asked = True
        best = self._best(self.pace, self._shares.get(request_id, _HOPE))
        if best:
            self._skipped[request_id] = 0
            return best
        self._skipped[request_id] = self._skipped.get(request_id, 0) + 1
        if self._skipped[request_id] < _PATIENCE:
            return 0
        self._skipped[request_id] = 0
        return min(1, self._best(self.pace, 1.0))

    def _best(self, pace: Pace, share: float) -> int:
        """The number of guesses with which most tokens a second are to be expected, if this share of them is right."""
        usual_s, planned_s = pace.seconds(self._num_rows), pace.seconds(self._planned)
        best, best_speed = 0, _LEAST_GAIN * self._num_rows / usual_s
        # What other rows' guesses gain is not counted: these must pay for what they add to the step by themselves.
        tokens, chance = float(self._num_rows), 1.0
        for count in range(1, self._most + 1):
            chance *= share
            tokens += chance
            speed = tokens / (usual_s + pace.seconds(self._planned + count) - planned_s)
            if speed > best_speed:
                best, best_speed = count, speed
        return best
