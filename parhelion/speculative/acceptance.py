"""How often guesses are right, by request and by and large."""

from __future__ import annotations

_MEMORY = 0.9
"""What is left of a request's old observation after a new one."""

_LONG_MEMORY = 0.99
"""The same for all requests together."""

_HOPE = 0.6
"""Share of guesses that are expected to be right before any was checked."""


class Acceptance:
    """Shares of guesses that were right, of those whose turn came: behind a wrong one none is tried.

    Attributes:
        share: of all requests.
    """

    def __init__(self) -> None:
        self.share = _HOPE
        self._shares: dict[str, float] = {}

    def learn(self, request_id: str, guessed: int, accepted: int) -> None:
        """So many of a request's guesses were right, up to the first that was wrong."""
        share = self.of(request_id)
        for trial in range(min(guessed, accepted + 1)):
            right = trial < accepted
            share = _MEMORY * share + (1 - _MEMORY) * right
            self.share = _LONG_MEMORY * self.share + (1 - _LONG_MEMORY) * right
        self._shares[request_id] = share

    def of(self, request_id: str) -> float:
        """A request's own share; before any was checked, what one may hope for."""
        return self._shares.get(request_id, _HOPE)

    def forget(self, request_id: str) -> None:
        """A request is over."""
        self._shares.pop(request_id, None)

    def hope(self, weight: float) -> None:
        """Move the share of all requests towards what one may hope for: nobody has guessed for a while."""
        self.share += weight * (_HOPE - self.share)
