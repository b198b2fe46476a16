"""Work spread over spawned processes that outlive a failing item: a compiler may hang, or take its process with it."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_PATIENCE_S = 10.0
"""Seconds that an idle process may take to end."""


def map_in_workers(
    work: Callable[[Item], Result],
    groups: Sequence[Sequence[Item]],
    failed: Callable[[Item, str], Result],
    *,
    jobs: int,
    limit_s: float,
    prepare: Callable[[], None],
) -> Iterator[Result]:
    """``work`` applied to every item, in spawned processes; results come as they are ready.

    Args:
        work: a module's function.
        groups: the items; those of one group go to one process, in order, so that it may reuse what it made for them.
        failed: the result of an item whose process died or took longer than ``limit_s``, from the item and why.
        jobs: how many processes.
        limit_s: seconds that an item may take.
        prepare: called once in each process before anything else is imported there.
    """
    waiting = deque(deque(group) for group in groups if group)
    workers = [Worker(work, prepare) for _ in range(min(jobs, len(waiting)))]
    try:
        for worker in workers:
            worker.take(waiting.popleft())
        while busy := [worker for worker in workers if worker.item is not None]:
            wait([worker.pipe for worker in busy], timeout=1.0)
            for worker in busy:
                for result in worker.results(failed, limit_s):
                    if not worker.advance() and waiting:
                        worker.take(waiting.popleft())
                    yield result
    finally:
        for worker in workers:
            worker.stop()


class Worker(Generic[Item, Result]):
    """A process with the group that it works on.

    Args:
        work: a module's function, called there with each item.
        prepare: called there once, before anything else is imported.
        who: crashed, if it does.
        preloaded: modules that are imported once, for all processes; those of the first worker that names any.

    Attributes:
        pipe: ready when the process has sent a result, or has died.
        item: what it works on now; None if nothing.
        since: when it was given that, by the monotonic clock.
    """

    def __init__(
        self,
        work: Callable[[Item], Result],
        prepare: Callable[[], None],
        who: str = "the compiler",
        preloaded: Sequence[str] = (),
    ) -> None:
        self._context = _context(preloaded)
        self._work = work
        self._prepare = prepare
        self._who = who
        self._group: deque[Item] = deque()
        self.item: Item | None = None
        self.since = 0.0
        self._start()

    def _start(self) -> None:
        self.pipe, there = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(self._work, self._prepare, there), daemon=True)
        self._process.start()
        there.close()

    @property
    def has_ended(self) -> bool:
        """It has died. Its pipe may take an item all the same, as long as anybody else has the other end."""
        return not self._process.is_alive()

    def take(self, group: Iterable[Item]) -> None:
        """Begin with a group."""
        self._group = deque(group)
        self.advance()

    def advance(self) -> bool:
        """Begin with the group's next item; False if there is none."""
        self.item = self._group.popleft() if self._group else None
        if self.item is None:
            return False
        self.since = time.monotonic()
        self.pipe.send(self.item)
        return True

    def results(self, failed: Callable[[Item, str], Result], limit_s: float) -> Iterator[Result]:
        """The result of the item that is worked on, if there is one by now; a failure if that took too long."""
        assert self.item is not None
        if self.pipe.poll():
            yield self._received(failed)
        elif time.monotonic() - self.since > limit_s:
            self.restart()
            yield failed(self.item, f"took longer than {limit_s:g} s")

    def _received(self, failed: Callable[[Item, str], Result]) -> Result:
        """What the process sent or, if it died instead, a failure."""
        assert self.item is not None
        try:
            received: Result = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            reason = f"{self._who} crashed (exit status {self._process.exitcode})"
            self.restart()
            return failed(self.item, reason)
        return received

    def restart(self) -> None:
        """Replace the process, whatever it does; what it worked on is lost."""
        self._process.kill()
        self.stop()
        self._start()

    def stop(self) -> None:
        """Let the process end by itself: it sees its pipe closed. One that does not is killed."""
        self.pipe.close()
        self._process.join(_PATIENCE_S if self.item is None else 0)
        self._process.kill()
        self._process.join()


def _context(preloaded: Sequence[str]) -> Any:
    """How processes start: from nothing, or as copies of one that has imported what they need, where there is that."""
    if not preloaded or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preloaded))
    return context


def import_ahead(preloaded: Sequence[str]) -> None:
    """Begin to import for processes that are to come; returns at once."""
    if _context(preloaded).get_start_method() == "forkserver":
        forkserver.ensure_running()


def _serve(work: Callable[[Any], Any], prepare: Callable[[], None], pipe: Connection) -> None:
    prepare()
    while True:
        try:
            item = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        pipe.send(work(item))
