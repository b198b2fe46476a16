"""Whom the scheduler asks for guesses of the tokens to come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Guesser(Protocol):
    """Guesses on behalf of all requests; see ``parhelion.speculative``."""

    def begin_step(self, num_rows: int) -> None:
        """A step is planned in which so many requests decode."""
        ...

    def guesses(self, request_id: str, token_ids: Sequence[int], most: int) -> Sequence[int]:
        """What may follow a request's known tokens: at most so many."""
        ...

    def learn(self, request_id: str, guessed: int, accepted: int) -> None:
        """So many of a request's guesses were right, up to the first that was wrong."""
        ...

    def forget(self, request_id: str) -> None:
        """A request is over."""
        ...
