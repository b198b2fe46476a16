"""Notices that an engine has work and does not proceed: no step ends, whoever is to blame.

A process that computes gives signs of life whatever it computes, so heartbeats do not tell. Nor does a kernel that
waits for another rank, or a collective before its own limit.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

from parhelion.config import EngineConfig
from parhelion.errors import EngineDeadError

logger = logging.getLogger("parhelion.engine")

TIMEOUT_S = 120.0
"""On a GPU a step takes milliseconds."""

LONG_TIMEOUT_S = 600.0
"""Where no pack serves, the first step of a size compiles; and on few cores a chunk of a prompt takes minutes."""

CHECK_S = 0.25
"""How often it looks."""

GRACE_S = 5.0
"""How long the engine gets to end by itself once what it waits for has been ended."""


class WatchedRanks(Protocol):
    """The other ranks of the engine."""

    @property
    def names(self) -> Sequence[str]:
        """Of each its number, host and process."""
        ...

    def give_up(self, why: EngineDeadError) -> None:
        """Let them show where they are, and end what this rank waits for with that error."""
        ...

    def abandon(self) -> None:
        """End them and leave no file, whatever this rank does."""
        ...


def step_timeout(config: EngineConfig, is_quick: bool) -> float:
    """Seconds that a step may take; 0: for ever.

    Args:
        is_quick: on a GPU where nothing compiles.
    """
    asked = config.step_timeout_s
    return asked if asked is not None else TIMEOUT_S if is_quick else LONG_TIMEOUT_S


class StepWatch:
    """Watches the steps of an engine core, each of which runs ``with`` it, in a thread of its own.

    Args:
        timeout_s: that a step may take; 0: for ever.
        others: the other ranks; None: there are none.
    """

    def __init__(self, timeout_s: float, others: WatchedRanks | None = None) -> None:
        self._timeout_s = timeout_s
        self._others = others
        self._turn = 0
        self._runs = False
        self._force: Callable[[str], None] | None = None
        self._closed = threading.Event()
        if timeout_s > 0:
            threading.Thread(target=self._run, name="steps", daemon=True).start()

    def __enter__(self) -> None:
        self._turn += 1
        self._runs = True

    def __exit__(self, *_: object) -> None:
        self._runs = False

    def end_by(self, force: Callable[[str], None]) -> None:
        """What ends the engine, given the reason, if it does not end by itself."""
        self._force = force

    def close(self) -> None:
        """The engine has ended, or will be waited for no more."""
        self._closed.set()

    def _run(self) -> None:
        turn, waited_s, looked = 0, 0.0, time.monotonic()
        while not self._closed.wait(CHECK_S):
            now = time.monotonic()
            # Where this process was stopped for a while, so that it did not look, the step did not get that time.
            waited_s = waited_s + min(now - looked, 2 * CHECK_S) if self._runs and self._turn == turn else 0.0
            turn, looked = self._turn, now
            if waited_s >= self._timeout_s:
                self._end()
                return

    def _end(self) -> None:
        own = f"on {os.uname().nodename} (process {os.getpid()})"
        late = f"no step has ended for {self._timeout_s:g} s"
        if self._others is None:
            why = EngineDeadError(f"{late}: the engine {own} runs and does not proceed")
        else:
            names = ", ".join([f"rank 0 {own}", *self._others.names])
            why = EngineDeadError(f"{late}: one of these runs and does not proceed: {names}")
        logger.error("%s; its threads:\n%s", why, _stacks())
        if self._others is not None:
            self._others.give_up(why)
            if self._closed.wait(GRACE_S):
                return
            self._others.abandon()
        if self._force is not None:
            self._force(str(why))


def _stacks() -> str:
    """Where the threads of this process are, but for the one that asks."""
    names = {each.ident: each.name for each in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    )
