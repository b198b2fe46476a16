"""How many guesses a draft model of the worker's makes for each request."""

from __future__ import annotations

from collections.abc import Sequence

from parhelion.scheduler import DRAFTED
from parhelion.speculative.pace import Pace
from parhelion.speculative.speculator import Speculator

_LEAST_GAIN = 1.03
"""Tokens a second with guesses over those without, at least: less is within what is known of either."""

_PLAIN_EVERY = 128
"""Of so many steps a few make no guesses, so that what they gain is measured and not supposed."""

_PLAIN_STEPS = 2
"""The second of them is handed over while the first one runs and knows where its rows begin, as all would without
guesses.
"""

_HOPE_WEIGHT = 0.02
"""How far a request that ends while nobody guesses moves the expected share of right guesses back to where it began."""


class Drafting(Speculator):
    """Decides how many guesses a step's rows get: the same number each, since the draft model computes them together.

    Args:
        most: tokens that are guessed for a request at once.
        cost: of a token that the draft model computes over one of the target's, before any was measured: as their
            weights' bytes.
        pace: what the target's steps take; with it, only as many guesses are made as pay. None: always ``most``.
        needs_states: it guesses from what the step before left of the target's hidden states, which is nothing unless
            it followed that step.
        on_device: it guesses where steps sample, so steps with guesses are planned ahead as others are.
    """

    def __init__(
        self, most: int, cost: float, pace: Pace | None = None, needs_states: bool = False, on_device: bool = False
    ) -> None:
        super().__init__(most, pace)
        self._on_device = on_device
        self.pace.guesses_ahead = on_device
        self._cost = cost
        self._draft_pace = Pace()
        self._count = most
        # The first of them come sooner, so that what guesses gain is known.
        self._num_steps = _PLAIN_EVERY // 2
        self._needs_states = needs_states
        self._is_blind = False
        self._is_plain = False

    @property
    def follows(self) -> bool:
        """See ``Guesser``: while no guesses pay, the draft model computes nothing at all."""
        return self._count > 0

    @property
    def needs_tokens(self) -> bool:
        """See ``Guesser``."""
        return not self._on_device

    @property
    def is_resting(self) -> bool:
        """See ``Speculator``."""
        return self._count == 0

    def begin_step(self, num_decoding: int, num_running: int) -> None:
        """See ``Guesser.begin_step``."""
        self._num_steps += num_decoding > 0
        self._is_blind = self._needs_states and self.is_resting
        self._is_plain = self._num_steps % _PLAIN_EVERY >= _PLAIN_EVERY - _PLAIN_STEPS
        # What always guesses goes on following the target, as a head loses what it does not follow.
        if not self._auto:
            self._count = self.most
        else:
            self._count = 0 if self._is_plain else self._best(max(1, num_running))

    def guesses(self, request_id: str, token_ids: Sequence[int], most: int) -> Sequence[int]:
        """See ``Guesser.guesses``."""
        nothing_known = self._auto and not self.pace.is_known
        return () if self._is_plain or self._is_blind or nothing_known else (DRAFTED,) * min(self._count, most)

    def forget(self, request_id: str) -> None:
        """A request is over."""
        super().forget(request_id)
        if self.is_resting:
            self.acceptance.hope(_HOPE_WEIGHT)

    def _observe_draft(self, num_rows: int, num_guesses: int, num_tokens: int, seconds: float) -> None:
        # A step in which the draft model caught up on a prompt says nothing of the others.
        if num_tokens <= 2 * num_guesses:
            self._draft_pace.observe(num_rows, 0, seconds * num_rows / num_guesses)

    def _best(self, num_rows: int) -> int:
        """The number of guesses with which most tokens a second are to be expected, as they were right so far."""
        costs = self.pace.of(num_rows)
        plain_s = costs.plain_s
        draft_s = self._draft_pace.seconds(num_rows) if self._draft_pace.is_known else self._cost * plain_s
        best, best_speed = 0, _LEAST_GAIN / plain_s
        tokens = 1.0
        for count, chance in zip(range(1, self.most + 1), self.acceptance.overall.chances(), strict=False):
            tokens += chance
            speed = tokens / (plain_s + costs.added(num_rows * count) + count * draft_s)
            if speed > best_speed:
                best, best_speed = count, speed
        return best
