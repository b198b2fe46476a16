"""The programs of candidates: built ahead, kept while they may be wanted, built again if they are wanted after all."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from parhelion.errors import PackError
from parhelion.ops.tile_programs import provider_of
from parhelion.tuning.compile_ahead import CompileAhead, Results
from parhelion.tuning.jobs import Request
from parhelion.tuning.journal import Compiled, Journal
from parhelion.tuning.programs import Program, plain
from parhelion.tuning.prune import spilled_bytes, why_dropped
from parhelion.tuning.target import Target
from parhelion.tuning.timed_config import config_of


class BuiltPrograms:
    """Knows of every request whether it was built.

    Args:
        ahead: builds.
        journal: what is known there is not built again until its programs are wanted.
        target: what for.
        elapsed: seconds since the session began.
    """

    def __init__(self, ahead: CompileAhead, journal: Journal, target: Target, elapsed: Callable[[], float]) -> None:
        self._ahead = ahead
        self._journal = journal
        self._target = target
        self._elapsed = elapsed
        self._begun: dict[Request, Future[Results]] = {}
        self._prepared: dict[Request, Future[Results]] = {}
        self._programs: dict[Request, tuple[Program, ...]] = {}

    def begin(self, requests: Sequence[Request]) -> None:
        """Have built what nothing is known of."""
        unknown = [each for each in requests if each not in self._begun and self._known(each) is None]
        future = self._ahead.submit(unknown)
        self._begun |= dict.fromkeys(unknown, future)

    def finish(self, requests: Sequence[Request], timeout_s: float | None = None) -> None:
        """Wait for what was begun.

        Raises:
            TimeoutError: it takes longer.
            CancelledError: it was given up.
        """
        for request in requests:
            if request in self._begun:
                built, seconds = self._begun[request].result(timeout_s)[request]
                del self._begun[request]
                self._take(request, built, seconds)

    def first_finished(self, several: Sequence[Sequence[Request]], timeout_s: float) -> int:
        """Which of several lists of requests that were begun has none left that is open.

        Raises:
            TimeoutError: it takes longer.
        """
        end = time.monotonic() + timeout_s
        while True:
            waiting: set[Future[Results]] = set()
            for number, requests in enumerate(several):
                futures = {self._begun[each] for each in requests if each in self._begun}
                if all(future.done() for future in futures):
                    return number
                waiting |= {future for future in futures if not future.done()}
            if not wait(waiting, max(0.0, end - time.monotonic()), FIRST_COMPLETED).done:
                raise TimeoutError

    def problem(self, request: Request, spilling: bool) -> str | None:
        """Why a finished request is not worth timing; None if it is.

        Args:
            spilling: one that spills registers is.
        """
        known = self._known(request)
        assert known is not None
        if known.problem is None and known.stack_bytes and not spilling:
            return f"it spills {known.stack_bytes} bytes a thread"
        return known.problem

    def prepare(self, requests: Sequence[Request]) -> None:
        """Have what will be asked for built meanwhile, whatever is known of it; what was let go too."""
        missing = [each for each in requests if each not in self._programs and each not in self._prepared]
        self._prepared |= dict.fromkeys(missing, self._ahead.submit(missing))

    def programs(self, requests: Sequence[Request]) -> dict[Request, tuple[Program, ...]]:
        """The programs of requests that have no problem, built again where they were let go.

        Raises:
            PackError: what was built once cannot be built now.
        """
        found = {}
        for request, built in self.attempted(requests).items():
            if isinstance(built, str):
                raise PackError(f"{request[0].key()} with {request[2]} was built before and is not now: {built}")
            found[request] = built
        return found

    def attempted(self, requests: Sequence[Request]) -> dict[Request, tuple[Program, ...] | str]:
        """The programs of requests, or why they cannot be built."""
        self.prepare(requests)
        failed: dict[Request, str] = {}
        for request in dict.fromkeys(requests):
            if request in self._programs:
                continue
            built, _ = self._prepared.pop(request).result()[request]
            if isinstance(built, str):
                failed[request] = built
            else:
                self._programs[request] = built
        return {each: failed[each] if each in failed else self._programs[each] for each in requests}

    def let_go(self, requests: Collection[Request], keep: Collection[Request]) -> None:
        """Forget the programs of requests, but for some."""
        for each in set(requests) - set(keep):
            self._programs.pop(each, None)

    def cancel(self) -> None:
        """Give up what was begun and is not finished."""
        self._ahead.cancel()
        self._begun.clear()
        self._prepared.clear()

    def _known(self, request: Request) -> Compiled | None:
        contract, bucket, named = request
        return self._journal.compiled(contract.key(), bucket, plain(config_of(named)))

    def _take(self, request: Request, built: Any, seconds: float) -> None:
        contract, bucket, named = request
        problem = built if isinstance(built, str) else why_dropped(built, self._target)
        if problem is None:
            self._programs[request] = built
        spilled = 0 if isinstance(built, str) else spilled_bytes(built)
        at_s = self._elapsed()
        config = config_of(named)
        provider = provider_of(contract.name, config)
        self._journal.add(Compiled(contract.key(), bucket, plain(config), problem, spilled, seconds, at_s, provider))
