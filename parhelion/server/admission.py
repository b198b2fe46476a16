"""Who may come in: the limit on requests at once, and the door that closes before the server ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from parhelion.errors import InvalidRequestError
from parhelion.server.errors import DrainingError, TooManyRequestsError


class Abandonable(Protocol):
    """Work in progress that can be told to end with an error."""

    def fail(self, error: Exception) -> None:
        """End now; the client is told ``error``."""


class Admission:
    """Counts the prompts in the server and refuses those above the limit.

    Args:
        limit: most prompts at once (a body with a list of prompts counts each).
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.active = 0
        self.draining = False
        self._work: set[Abandonable] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def admit(self, num_prompts: int) -> Iterator[None]:
        """Hold a place for each prompt while the block runs.

        Raises:
            InvalidRequestError: no free server could ever hold that many.
            TooManyRequestsError: too few places are free now.
            DrainingError: the server is about to end.
        """
        if self.draining:
            raise DrainingError(
                "This server is shutting down and takes no new requests; try another or try again later"
            )
        if num_prompts > self.limit:
            raise InvalidRequestError(
                f"prompt holds {num_prompts} prompts; this server takes {self.limit} at once: split the list", "prompt"
            )
        if self.active + num_prompts > self.limit:
            raise TooManyRequestsError(
                f"{self.active} requests are in progress and this server takes {self.limit} at once "
                "(max_concurrent_requests): try again shortly"
            )
        self.active += num_prompts
        self._empty.clear()
        try:
            yield
        finally:
            self.active -= num_prompts
            if not self.active:
                self._empty.set()

    @contextmanager
    def watched(self, work: Abandonable) -> Iterator[None]:
        """Let ``abandon_all`` reach this work while the block runs."""
        self._work.add(work)
        try:
            yield
        finally:
            self._work.discard(work)

    async def wait_empty(self, timeout_s: float) -> bool:
        """Wait for the last request to end; False if some are left after ``timeout_s`` seconds."""
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def abandon_all(self) -> None:
        """End every request in progress with an error, for the server must go."""
        for work in list(self._work):
            work.fail(DrainingError("The server shut down before this request had ended"))
