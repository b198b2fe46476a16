"""Compiling beside timing: a thread hands requests to the compiler's processes while the device is busy."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing import resource_tracker

from parhelion.tuning.jobs import Compiler, Request
from parhelion.tuning.programs import Program

Built = tuple[Program, ...] | str
"""A request's programs, or why there are none."""

Results = Mapping[Request, tuple[Built, float]]
"""What came of requests, and processor seconds."""


@dataclass(eq=False)
class _Order:
    """Requests that were handed in together, those that are still open, and what has come of the others."""

    open: dict[Request, None]
    future: Future[Results] = field(default_factory=Future)
    results: dict[Request, tuple[Built, float]] = field(default_factory=dict)


class CompileAhead:
    """The thread. All that is waiting goes to the compiler, also while that works, so that no core is idle.

    Args:
        compiler: used by this thread alone.
    """

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._waiting: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="compile ahead", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[Request]) -> Future[Results]:
        """Have requests built; returns at once. The future is cancelled if they are given up."""
        order = _Order(dict.fromkeys(requests))
        if order.open:
            self._waiting.put(order)
        else:
            order.future.set_result({})
        return order.future

    def cancel(self) -> None:
        """Give up what is not built yet; further requests may follow."""
        self._stop.set()
        idle = _Order({})
        self._waiting.put(idle)
        idle.future.result()
        self._stop.clear()

    def close(self) -> None:
        """Give up everything and end."""
        self._stop.set()
        self._waiting.put(None)
        self._thread.join()

    def _serve(self) -> None:
        _leave_interruptions_to_the_tuner()
        while orders := self._taken(wait=True):
            try:
                self._build(orders)
            except Exception as error:
                for order in orders:
                    if order.open and not order.future.done():
                        order.future.set_exception(error)
            for order in orders:
                if not order.future.done():
                    _end(order)

    def _taken(self, wait: bool) -> list[_Order]:
        """All orders that wait, with ``wait`` at least one; none at the end."""
        orders: list[_Order] = []
        try:
            order = self._waiting.get(block=wait)
            while order is not None:
                orders.append(order)
                order = self._waiting.get_nowait()
        except queue.Empty:
            return orders
        # The end: for whoever waits for more, and for those who have asked.
        self._waiting.put(None)
        for each in orders:
            each.future.cancel()
        return []

    def _build(self, orders: list[_Order]) -> None:
        """Have orders built, and those that come meanwhile, which are added."""
        asked: list[Request] = []
        open_requests: set[Request] = set()

        def new_requests(orders: Sequence[_Order]) -> list[Request]:
            wanted = dict.fromkeys(request for order in orders for request in order.open)
            found = [request for request in wanted if request not in open_requests]
            asked.extend(found)
            open_requests.update(found)
            return found

        def more() -> list[Request]:
            added = self._taken(wait=False)
            orders.extend(added)
            if self._stop.is_set():
                raise _GivenUp
            return new_requests(added)

        if self._stop.is_set():
            return
        try:
            for index, built, seconds in self._compiler.compile(new_requests(orders), more):
                open_requests.discard(asked[index])
                _deliver(orders, asked[index], built, seconds)
        except _GivenUp:
            return


class _GivenUp(Exception):
    """What is not built yet is not wanted."""


def _deliver(orders: Sequence[_Order], request: Request, built: Built, seconds: float) -> None:
    """To whoever waits for it."""
    for order in orders:
        if request in order.open:
            del order.open[request]
            order.results[request] = (built, seconds)
            if not order.open:
                order.future.set_result(order.results)


def _leave_interruptions_to_the_tuner() -> None:
    """Processes that this thread starts inherit that it blocks SIGINT: the tuner still needs them to write a pack."""
    if hasattr(signal, "pthread_sigmask"):
        # Starting it, which the first process would do, unblocks the signal.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _end(order: _Order) -> None:
    if order.open:
        order.future.cancel()
    else:
        order.future.set_result(order.results)
