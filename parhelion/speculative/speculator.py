"""What is common to all ways of guessing: what it costs, how often it is right, and what it gained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from parhelion.speculative.acceptance import Acceptance
from parhelion.speculative.pace import Pace

_MEMORY = 0.999
"""What is left of the seconds that the gain is measured by, after each step with guesses."""


class Speculator(ABC):
    """Guesses on behalf of the scheduler, which sees a ``Guesser``; the engine tells what its steps take.

    Args:
        most: tokens that are guessed for a request at once.
        pace: what steps take; with it, only as many guesses are made as pay. None: as many as there are.

    Attributes:
        most: see above.
        pace: what steps take, measured in any case.
        acceptance: how often guesses are right, if a pace was given.
    """

    def __init__(self, most: int, pace: Pace | None) -> None:
        self.most = most
        self.pace = pace or Pace()
        self.acceptance = Acceptance()
        self._auto = pace is not None
        self._plain_s = 0.0
        self._guessing_s = 0.0

    @property
    def follows(self) -> bool:
        """See ``Guesser``."""
        return False

    @property
    def num_ahead(self) -> int:
        """See ``Guesser``."""
        return 0

    def hear(self, request_id: str, num_known: int, token_ids: Sequence[int]) -> None:
        """A draft model has guessed these behind so many tokens of a request, at the end of its last step."""
        return

    @property
    def needs_tokens(self) -> bool:
        """See ``Guesser``."""
        return True

    @property
    def plans_ahead(self) -> bool:
        """Steps may be planned before the last one's tokens are known."""
        return self.is_resting or not self.needs_tokens

    @property
    @abstractmethod
    def is_resting(self) -> bool:
        """Nobody guesses now."""

    @abstractmethod
    def begin_step(self, num_decoding: int, num_running: int) -> None:
        """See ``Guesser``."""

    @abstractmethod
    def guesses(self, request_id: str, token_ids: Sequence[int], most: int) -> Sequence[int]:
        """See ``Guesser``."""

    def learn(self, request_id: str, guessed: int, accepted: int) -> None:
        """See ``Guesser``. What always guesses as much as it may need not know."""
        if self._auto:
            self.acceptance.learn(request_id, guessed, accepted)

    def forget(self, request_id: str) -> None:
        """See ``Guesser``."""
        self.acceptance.forget(request_id)

    def observe(
        self,
        num_rows: int,
        num_tokens: int,
        num_kept: int,
        seconds: float,
        drafted: tuple[int, float] | None = None,
        ahead: bool = False,
    ) -> None:
        """A step that only decoded is over. Better told while the next one runs than before that is handed over.

        Args:
            num_rows: requests in it.
            num_tokens: their last known tokens, and their guesses.
            num_kept: tokens that they gained.
            seconds: from the end of the step before it to its own.
            drafted: tokens that a draft model computed in it, and the seconds of that.
            ahead: it was handed over while the step before it ran.
        """
        self.acceptance.settle()
        target_s = seconds - (drafted[1] if drafted else 0.0)
        if drafted is not None and num_tokens > num_rows:
            self._observe_draft(num_rows, num_tokens - num_rows, *drafted)
        self.pace.observe(num_rows, num_tokens - num_rows, target_s, ahead)
        if num_tokens == num_rows or not self.pace.is_known:
            return
        # Without guesses the step would have been no slower; what was measured of such steps may be long ago.
        plain_s = min(self.pace.seconds(num_rows), target_s)
        self._plain_s = _MEMORY * self._plain_s + plain_s * num_kept / num_rows
        self._guessing_s = _MEMORY * self._guessing_s + seconds

    def _observe_draft(self, num_rows: int, num_guesses: int, num_tokens: int, seconds: float) -> None:
        """So many guesses took a draft model so many tokens and seconds."""
        return

    @property
    def gain(self) -> float:
        """Tokens a second of steps with guesses over those that the same requests would have had without, measured over
        the last thousand steps or so; 1 if that is not known yet.
        """
        return self._plain_s / self._guessing_s if self._guessing_s else 1.0
