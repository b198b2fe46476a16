"""What the engine asks of anything that guesses the next tokens of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Proposer(Protocol):
    """Follows the known tokens of running requests and guesses what comes behind them.

    A guess need not be right: the model checks each one, and a wrong one costs work but never changes a text.
    """

    def start(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Follow a request from here on; one that is followed already begins again, as after preemption.

        Args:
            request_id: unique among the requests that are followed.
            token_ids: all its known tokens, the prompt and any outputs.
        """
        ...

    def extend(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Take in tokens that became known behind those of a request.

        Args:
            request_id: a request that was started.
            token_ids: only the new tokens, in order.

        Raises:
            KeyError: the request is not followed.
        """
        ...

    def propose(self, request_id: str, count: int) -> list[int]:
        """Guess the tokens behind the known ones. Changes nothing: guesses become known only by ``extend``.

        Args:
            request_id: a request that was started.
            count: most tokens to guess.

        Returns:
            Between none and ``count`` token ids, in order.

        Raises:
            KeyError: the request is not followed.
        """
        ...

    def forget(self, request_id: str) -> None:
        """Drop what is known of a request that is over or has lost its place; an unknown id is ignored."""
        ...
