"""How often guesses are right, by request and by and large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_MEMORY = 0.95
"""What is left of a request's old observation after a new one: with less, one whose guesses pay would be given up too
often, for what was wrong by chance.
"""

_LONG_MEMORY = 0.99
"""The same for all requests together."""

_OTHERS = 8
"""Observations of its own that a request's beginning counts for, were all guesses of others right: where they are, a
few wrong ones do not end it, and where they are not, the first one does.
"""

_UNLIKELY = 1e-5
"""How likely it must have been that so many first guesses in a row are wrong, of all requests together, for what was
known to be given up: other texts have come. A share that only fades takes hundreds of guesses for that.
"""


@dataclass
class Shares:
    """Shares of guesses that are right, of those whose turn comes: behind a wrong one none is tried.

    A guess behind a right one is right more often, since where one is, the text is easy to guess.

    Attributes:
        first: of the first guesses of a step.
        later: of those behind right ones. Both begin with what one may hope for.
        times: how often any were checked.
        weight: observations that what they begin with counts for.
    """

    first: float = 0.6
    later: float = 0.75
    times: int = 0
    weight: float = 1.0

    def learn(self, guessed: int, accepted: int, memory: float) -> None:
        """So many guesses were right, up to the first that was wrong; ``memory`` is left of what was known, and less
        of what was only hoped for.
        """
        self.times += 1
        known = self.times + self.weight
        if known < memory * (known + 1):
            memory = known / (known + 1)
        if not accepted:
            self.first *= memory
            return
        self.first += (1 - memory) * (1 - self.first)
        if accepted > 1:
            self.later = 1 - (1 - self.later) * memory ** (accepted - 1)
        if accepted < guessed:
            self.later *= memory

    def expect(self, guessed: int) -> float:
        """How many of so many guesses are right."""
        right, chance = 0.0, self.first
        for _ in range(guessed):
            right += chance
            chance *= self.later
        return right

    def chances(self) -> Iterator[float]:
        """Of the first guess to count, of the second and so on, without end."""
        chance = self.first
        while True:
            yield chance
            chance *= self.later


class Acceptance:
    """What was right so far."""

    def __init__(self) -> None:
        self._overall = Shares()
        self._own: dict[str, Shares] = {}
        # Guessed and right ones that the shares of all requests do not count yet.
        self._news: list[tuple[int, int]] = []
        # First guesses that were wrong in a row, and the share of right ones that was known before them.
        self._num_wrong = 0
        self._share_before = 0.0

    def learn(self, request_id: str, guessed: int, accepted: int) -> None:
        """So many of a request's guesses were right, up to the first that was wrong."""
        own = self._own.get(request_id) or self._own.setdefault(request_id, self._expected())
        own.learn(guessed, accepted, _MEMORY)
        self._news.append((guessed, accepted))

    @property
    def overall(self) -> Shares:
        """Of all requests."""
        self.settle()
        return self._overall

    def settle(self) -> None:
        """Count what was learned of any request for all of them, which need not be done at once."""
        for guessed, accepted in self._news:
            self._doubt(self._overall, accepted)
            self._overall.learn(guessed, accepted, _LONG_MEMORY)
        self._news.clear()

    def _doubt(self, overall: Shares, accepted: int) -> None:
        """Give up what is known of all requests if so many wrong guesses in a row contradict it."""
        if accepted:
            self._num_wrong = 0
            return
        if not self._num_wrong:
            self._share_before = overall.first
        self._num_wrong += 1
        if (1 - self._share_before) ** self._num_wrong < _UNLIKELY:
            overall.first = min(overall.first, 1 / (2 + self._num_wrong))
            overall.later = min(overall.later, Shares().later)

    def of(self, request_id: str) -> Shares:
        """A request's own; before any guess was checked, between what one may hope for and what others had."""
        return self._own.get(request_id) or self._expected()

    def _expected(self) -> Shares:
        hope, overall = Shares(), self.overall
        weight = hope.weight + min(overall.times, _OTHERS) * overall.first
        return Shares((hope.first + overall.first) / 2, (hope.later + overall.later) / 2, weight=weight)

    def forget(self, request_id: str) -> None:
        """A request is over."""
        self._own.pop(request_id, None)

    def hope(self, weight: float) -> None:
        """Move those of all requests towards what one may hope for: nobody has guessed for a while."""
        hope, overall = Shares(), self.overall
        overall.first += weight * (hope.first - overall.first)
        overall.later += weight * (hope.later - overall.later)
