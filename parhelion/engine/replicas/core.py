"""Replicas as the offline API drives an engine: requests in, and step by step tokens out."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from parhelion.config import EngineConfig
from parhelion.engine.connect import connect, wait_until_ready
from parhelion.engine.connection import Connection
from parhelion.engine.messages import (
    AbortRequests,
    AddRequest,
    EngineFailed,
    EngineInfo,
    FromEngine,
    GetStats,
    Outputs,
    RequestRejected,
    RequestsLost,
    StatsReply,
    ToEngine,
    TokenOutput,
)
from parhelion.engine.replicas.replica import RestartPolicy
from parhelion.errors import ConfigError, EngineDeadError, InvalidRequestError, RequestsLostError
from parhelion.types import EngineStats

STATS_TIMEOUT_S = 30.0

_Result = TypeVar("_Result")


class ReplicaCore:
    """Several engines, each in a process of its own. One thread of the caller's drives it; see ``EngineCore``.

    Args:
        config: all options; its replicas, of which there may be one, are started again when they end.
        model_path: a folder or a ``.gguf`` file.
        model_name: for people.
        progress: called with tensors read so far and how many there are, from another thread.
        restarts: when a replica that has ended is started again.

    Attributes:
        info: what the first of them has become.

    Raises:
        ParhelionError: one of them cannot start.
    """

    info: EngineInfo

    def __init__(
        self,
        config: EngineConfig,
        model_path: Path,
        model_name: str,
        progress: Callable[[int, int], None] | None = None,
        restarts: RestartPolicy | None = None,
    ) -> None:
        self._messages: queue.SimpleQueue[FromEngine] = queue.SimpleQueue()
        self._stats: dict[int, Future[EngineStats]] = {}
        self._numbers = count()
        self._failure: EngineFailed | None = None
        # A loop of its own hears of replicas that end, and starts them again, whatever the caller does meanwhile.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="replicas", daemon=True)
        self._thread.start()
        try:
            self._connection = self._run(self._connect(config, model_path, restarts))
        except BaseException:
            self._stop_loop()
            raise
        try:
            self.info = self._run(wait_until_ready(self._connection, progress))
            self._reader = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
        except BaseException:
            self._end()
            raise

    def add(self, request: AddRequest) -> None:
        """Queue a request; what becomes of it is told by ``step``."""
        self._send(request)

    def abort(self, request_id: str) -> bool:
        """Forget a request."""
        if self._failure is None:
            self._send(AbortRequests([request_id]))
        return self._failure is None

    def step(self) -> list[TokenOutput]:
        """Wait for the next message of a replica; returns the tokens that came, maybe none.

        Raises:
            RequestsLostError: a replica has ended.
            EngineDeadError: all of them are given up.
            InvalidRequestError: a replica refused a request.
        """
        match self._messages.get():
            case Outputs(tokens):
                return tokens
            case RequestsLost(request_ids, message, others_serve):
                raise RequestsLostError(message, request_ids, others_serve)
            case RequestRejected(_, _, message, param):
                raise InvalidRequestError(message, param)
            case EngineFailed() as failure:
                # The last message, which whoever asks again shall find.
                self._messages.put(failure)
                self._check_alive()
        return []

    def stats(self) -> EngineStats:
        """Sums over all replicas, and each of them.

        Raises:
            EngineDeadError: all of them are given up, or one does not answer.
        """
        self._check_alive()
        number = next(self._numbers)
        answer: Future[EngineStats] = Future()
        self._stats[number] = answer
        try:
            self._send(GetStats(number))
            return answer.result(STATS_TIMEOUT_S)
        except TimeoutError:
            raise EngineDeadError(f"a replica has not answered for {STATS_TIMEOUT_S:g} s") from None
        finally:
            del self._stats[number]

    def check_integrity(self) -> None:
        """Raises ConfigError: schedulers in other processes cannot be looked into."""
        raise ConfigError("the schedulers of replicas are in processes of their own: take dp 1 to look into one")

    def close(self) -> None:
        """End all replicas."""
        self._reader.cancel()
        self._failure = self._failure or EngineFailed("EngineDeadError", "the replicas were shut down")
        self._end()

    def _send(self, message: ToEngine) -> None:
        self._loop.call_soon_threadsafe(self._connection.send, message)

    def _run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Let the loop do this, and wait for it."""
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()
            raise

    def _end(self) -> None:
        self._run(self._connection.close())
        self._stop_loop()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise EngineDeadError(f"{self._failure.message}: start it again")

    async def _connect(self, config: EngineConfig, model_path: Path, restarts: RestartPolicy | None) -> Connection:
        return connect(config, model_path, False, restarts)

    async def _read(self) -> None:
        while self._failure is None:
            message = await self._connection.receive()
            if isinstance(message, StatsReply):
                if (answer := self._stats.get(message.number)) is not None:
                    answer.set_result(message.stats)
                continue
            if isinstance(message, EngineFailed):
                self._failure = message
            self._messages.put(message)
