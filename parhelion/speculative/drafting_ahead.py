"""How many guesses are checked that a draft model has made at the end of each request's last step."""

from __future__ import annotations

from collections.abc import Sequence

from parhelion.speculative.drafting import Drafting
from parhelion.speculative.pace import Pace


class DraftingAhead(Drafting):
    """Before a pipeline: the first stage must know the guesses of a step, and the last one, which samples, makes them.

    Args:
        most, cost, pace, needs_states: see ``Drafting``.
    """

    def __init__(self, most: int, cost: float, pace: Pace | None = None, needs_states: bool = False) -> None:
        super().__init__(most, cost, pace, needs_states)
        self._heard: dict[str, tuple[int, Sequence[int]]] = {}

    @property
    def num_ahead(self) -> int:
        """See ``Guesser``."""
        return self._count

    def hear(self, request_id: str, num_known: int, token_ids: Sequence[int]) -> None:
        """See ``Speculator``."""
        self._heard[request_id] = num_known, token_ids

    def guesses(self, request_id: str, token_ids: Sequence[int], most: int) -> Sequence[int]:
        """See ``Guesser.guesses``. What was heard before other steps made more tokens known is of no use."""
        num_wanted = len(super().guesses(request_id, token_ids, most))
        num_known, heard = self._heard.get(request_id, (0, ()))
        return heard[:num_wanted] if num_known == len(token_ids) else ()

    def forget(self, request_id: str) -> None:
        """A request is over."""
        super().forget(request_id)
        self._heard.pop(request_id, None)
