"""Whom the scheduler asks for guesses of the tokens to come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Guesser(Protocol):
    """Guesses on behalf of all requests; see ``parhelion.speculative``."""

    @property
    def follows(self) -> bool:
        """The worker's draft model makes the guesses, and takes part in the step that is planned."""
        ...

    @property
    def num_ahead(self) -> int:
        """Guesses that the draft model makes at the end of the step, for the next one; 0: it makes a step's own."""
        ...

    @property
    def needs_tokens(self) -> bool:
        """Guesses follow a request's known tokens, so none are made while a step samples for it. Else the worker makes
        them where it has what was sampled, so that rows may be planned before guesses in flight are checked.
        """
        ...

    def begin_step(self, num_decoding: int, num_running: int) -> None:
        """A step is planned in which so many requests decode, of so many that run: the others' prompts are computed."""
        ...

    def guesses(self, request_id: str, token_ids: Sequence[int], most: int) -> Sequence[int]:
        """What may follow a request's known tokens: at most so many, each an id or ``DRAFTED``."""
        ...

    def learn(self, request_id: str, guessed: int, accepted: int) -> None:
        """So many of a request's guesses were right, up to the first that was wrong."""
        ...

    def forget(self, request_id: str) -> None:
        """A request is over."""
        ...
