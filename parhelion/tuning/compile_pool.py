"""Building programs on all cores: processes that stay, each with the code that it has generated so far.

They outlive a compiler that hangs or crashes. Requests of one contract go to one process where that leaves no other
idle, since generating code takes longer than compiling it and what is bound to a contract's arguments is used again.
Triton's cache is common to all of them, so a program that several buckets share is built once.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from parhelion.ops.contract import Contract
from parhelion.platform.cores import usable_cores
from parhelion.tuning.jobs import no_more
from parhelion.tuning.matrix import prepare_worker
from parhelion.tuning.programs import Program
from parhelion.tuning.target import Target
from parhelion.tuning.workers import Worker, import_ahead

LIMIT_S = 120.0
"""Seconds that the programs of one request may take."""

_POLL_S = 0.1
"""Seconds after which further requests are asked for."""

_PRELOADED = ("parhelion.tuning.build_imports",)


def import_compilers() -> None:
    """Begin to import what the processes of a pool need, for a pool that is to come; returns at once."""
    import_ahead(_PRELOADED)


@dataclass(frozen=True)
class Request:
    """The programs of a contract for one bucket and config.

    Attributes:
        index: of the request among those that came together.
        config: the op's.
        num_processors: see ``CompilePool``.
    """

    index: int
    contract: Contract
    bucket: int
    config: Any
    target: Target
    num_processors: int | None


Compiled = tuple[int, tuple[Program, ...] | str, float]
"""Index of the request, its programs or why there are none, and processor seconds."""


class CompilePool:
    """A ``Compiler`` for one target. Close it, or use it in a ``with``.

    Args:
        target: what programs are built for.
        num_processors: of the device, which persistent programs are told; None refuses those.
        jobs: processes; None is one a core.
        limit_s: seconds that a request may take; then its process is killed and another one started.
    """

    def __init__(
        self,
        target: Target,
        *,
        num_processors: int | None = None,
        jobs: int | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._target = target
        self._num_processors = num_processors
        self._jobs = jobs or usable_cores()
        self._limit_s = limit_s
        self._folder = tempfile.TemporaryDirectory(prefix="parhelion-build-", ignore_cleanup_errors=True)
        self._workers: list[Worker[Request, Compiled]] = []
        self._met: list[set[Contract]] = []
        self._abandoned: set[int] = set()

    def __enter__(self) -> CompilePool:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def compile(
        self,
        requests: Sequence[tuple[Contract, int, Any]],
        more: Callable[[], Sequence[tuple[Contract, int, Any]]] = no_more,
    ) -> Iterator[Compiled]:
        """See ``Compiler``. If whoever reads this stops early, what waits is given up, and what processes are at is
        finished for nothing: they keep what they have generated so far.
        """
        waiting = [self._request(index, *request) for index, request in enumerate(requests)]
        given = len(waiting)
        try:
            while True:
                while len(self._workers) < min(self._jobs, len(waiting)):
                    prepare = functools.partial(prepare_worker, self._folder.name)
                    self._workers.append(Worker(compile_request, prepare, preloaded=_PRELOADED))
                    self._met.append(set())
                self._hand_out(waiting)
                busy = [number for number, worker in enumerate(self._workers) if worker.item is not None]
                if not waiting and self._abandoned.issuperset(busy):
                    return
                wait([self._workers[number].pipe for number in busy], timeout=_POLL_S)
                for number in busy:
                    for result in self._workers[number].results(_failed, self._limit_s):
                        self._workers[number].advance()
                        self._hand_out(waiting)
                        if number in self._abandoned:
                            self._abandoned.discard(number)
                        else:
                            yield result
                for request in more():
                    waiting.append(self._request(given, *request))
                    given += 1
        finally:
            self._abandoned = {number for number, worker in enumerate(self._workers) if worker.item is not None}

    def _request(self, index: int, contract: Contract, bucket: int, config: Any) -> Request:
        return Request(index, contract, bucket, config, self._target, self._num_processors)

    def close(self) -> None:
        """End the processes and remove what they wrote."""
        for worker in self._workers:
            worker.stop()
        self._workers.clear()
        self._met.clear()
        self._abandoned.clear()
        self._folder.cleanup()

    def _hand_out(self, waiting: list[Request]) -> None:
        """Give every idle process a request."""
        for number, worker in enumerate(self._workers):
            if worker.item is None and waiting:
                request = min(waiting, key=functools.partial(self._preference, number))
                waiting.remove(request)
                self._met[number].add(request.contract)
                worker.take([request])

    def _preference(self, number: int, request: Request) -> tuple[bool, bool, int]:
        """Process ``number`` takes the least: of a contract that it has met, else one that no other has."""
        return (
            request.contract not in self._met[number],
            any(request.contract in met for met in self._met),
            request.index,
        )


def compile_request(request: Request) -> Compiled:
    """Build a request here."""
    from parhelion.tuning.cross_compile import BuildError
    from parhelion.tuning.programs import programs_of

    before = _processor_seconds()
    code = _generated_code(request.num_processors)
    built: tuple[Program, ...] | str
    try:
        built = tuple(programs_of(request.contract, request.bucket, request.config, request.target, code))
    except BuildError as error:
        built = str(error)
    # A pool outlives whatever one request does to it.
    except Exception as error:
        built = f"{type(error).__name__}: {error}"
    return request.index, built, _processor_seconds() - before


@functools.cache
def _generated_code(num_processors: int | None) -> Any:
    """What this process has generated so far."""
    from parhelion.tuning.record import GeneratedCode

    return GeneratedCode(num_processors)


def _processor_seconds() -> float:
    """Of this process and of the assemblers that it started."""
    return sum(os.times()[:4])


def _failed(request: Request, reason: str) -> Compiled:
    return request.index, reason, 0.0
