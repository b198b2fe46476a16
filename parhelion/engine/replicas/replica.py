"""One of several engines behind one front end: started, heard, and started again after it has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from parhelion.config import EngineConfig
from parhelion.engine.connection import Connection
from parhelion.engine.messages import EngineFailed, EngineInfo, FromEngine, ReplicaStates, StatsReply, ToEngine
from parhelion.engine.replicas.stats import only_totals, with_totals
from parhelion.errors import first_line
from parhelion.types import EngineStats, ReplicaState, ReplicaStats


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """When an engine that has ended is started again.

    Attributes:
        first_s: seconds that it waits for that. They double with each end, up to most_s.
        most_s: see first_s.
        steady_s: seconds that it must have served for the wait to begin with first_s again.
        most_failed_starts: given up after so many in a row; None: never.
    """

    first_s: float = 1.0
    most_s: float = 60.0
    steady_s: float = 60.0
    most_failed_starts: int | None = 8


def restart_policy(config: EngineConfig) -> RestartPolicy:
    """What fits the options: a machine that is cut off may be away for long, and is back at any time."""
    return RestartPolicy(most_s=10.0, most_failed_starts=None) if config.executor == "ray" else RestartPolicy()


_MOST_DOUBLINGS = 100
"""Of the wait; more change nothing, and some day could not be computed."""


class ReplicaProcess(Connection, Protocol):
    """An engine in a process."""

    @property
    def pid(self) -> int:
        """Of the process."""
        ...


class Replica:
    """Keeps one engine running. Made in an event loop, which runs it until ``close``.

    Args:
        number: among the replicas.
        open_engine: starts the engine's process.
        hear: is told everything that the engine says, with ``EngineFailed`` as the last word of each start, and its own
            state (``ReplicaStates``) once it is started.
        policy: when it is started again. One that has never served is not.
    """

    def __init__(
        self,
        number: int,
        open_engine: Callable[[int], ReplicaProcess],
        hear: Callable[[Replica, FromEngine], None],
        policy: RestartPolicy,
    ) -> None:
        self.number = number
        self._open_engine = open_engine
        self._hear = hear
        self._policy = policy
        self._connection: ReplicaProcess | None = None
        self._state = ReplicaState(replica=number, status="starting")
        self._serving_since: float | None = None
        self._has_served = False
        self._num_ends = 0
        self._num_failed_starts = 0
        self._stats = EngineStats()
        self._past = EngineStats()
        self._task = asyncio.create_task(self._run(), name=f"replica-{number}")

    @property
    def state(self) -> ReplicaState:
        """As it is now."""
        return self._state

    @property
    def stats(self) -> ReplicaStats:
        """The last counts that it told, with the totals of those that ran before it."""
        return ReplicaStats(state=self._state, stats=with_totals(self._stats, self._past))

    def send(self, message: ToEngine) -> None:
        """Hand a message over; only to one that serves."""
        if self._connection is not None:
            self._connection.send(message)

    async def close(self) -> None:
        """End its engine, and start it no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        # Where it was cancelled while an engine was being ended, that is not done.
        await self._end_engine()

    async def _run(self) -> None:
        while True:
            failure = await self._until_it_ends()
            wait_s = self._wait_s()
            self._state = replace(
                self._state,
                status="given_up" if wait_s is None else "waiting",
                process=None,
                error=failure.message,
                retry_s=wait_s,
            )
            self._serving_since = None
            self._past, self._stats = with_totals(only_totals(self._stats), self._past), EngineStats()
            self._hear(self, failure)
            await self._end_engine()
            if wait_s is None:
                return
            await asyncio.sleep(wait_s)
            restarts = self._state.restarts + 1
            self._state = replace(self._state, status="starting", restarts=restarts, retry_s=None)

    async def _until_it_ends(self) -> EngineFailed:
        try:
            self._connection = connection = self._open_engine(self.number)
            self._state = replace(self._state, process=connection.pid)
            self._hear(self, ReplicaStates([self._state]))
            while True:
                message = await connection.receive()
                match message:
                    case EngineFailed():
                        return message
                    case EngineInfo():
                        self._serve()
                    case StatsReply():
                        self._stats = message.stats
                self._hear(self, message)
        except Exception as error:
            return EngineFailed("EngineDeadError", f"its messages cannot be read: {first_line(error)}")

    def _serve(self) -> None:
        self._state = replace(self._state, status="serving")
        self._serving_since = time.monotonic()
        self._has_served = True
        self._num_failed_starts = 0

    def _wait_s(self) -> float | None:
        """Seconds until it is started again, now that it has ended; None: never."""
        policy, since = self._policy, self._serving_since
        if since is None:
            self._num_failed_starts += 1
            most = policy.most_failed_starts
            if not self._has_served or (most is not None and self._num_failed_starts >= most):
                return None
        elif time.monotonic() - since >= policy.steady_s:
            self._num_ends = 0
        self._num_ends += 1
        return min(policy.most_s, policy.first_s * 2.0 ** min(self._num_ends - 1, _MOST_DOUBLINGS))

    async def _end_engine(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None
