"""The engine loop: take messages, run steps, send what came of them. The same in a thread and in a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from parhelion.engine.core import EngineCore
from parhelion.engine.messages import (
    AbortRequests,
    AddRequest,
    EngineFailed,
    FromEngine,
    GetStats,
    Outputs,
    RequestRejected,
    Shutdown,
    StatsReply,
    ToEngine,
)
from parhelion.errors import InvalidRequestError, QueueFullError


class Channel(Protocol):
    """The engine's end of the road to the front end."""

    def receive(self, block: bool, check: Callable[[], None]) -> ToEngine | None:
        """The next message; None if there is none (``block`` waits, and returns None only if the front end is gone).

        ``check`` is called about once a second while it waits, and what it raises ends the wait.
        """
        ...

    def send(self, message: FromEngine) -> None: ...


def run_loop(core: EngineCore, channel: Channel) -> None:
    """Serve until the front end says ``Shutdown`` or is gone; sends ``EngineFailed`` if the worker fails."""
    try:
        while True:
            message = channel.receive(not core.has_work, core.check)
            if message is None and not core.has_work:
                return
            while message is not None:
                if isinstance(message, Shutdown):
                    return
                _handle(core, channel, message)
                message = channel.receive(False, core.check)
            if tokens := core.step():
                channel.send(Outputs(tokens))
    except Exception as error:
        channel.send(failure(error))
        raise
    finally:
        core.close()


def failure(error: Exception) -> EngineFailed:
    """An error as the front end will report it."""
    lines = str(error).splitlines()
    return EngineFailed(type(error).__name__, lines[0][:500] if lines else type(error).__name__)


def _handle(core: EngineCore, channel: Channel, message: AddRequest | AbortRequests | GetStats) -> None:
    match message:
        case AddRequest():
            try:
                core.add(message)
            except (QueueFullError, InvalidRequestError) as error:
                full = isinstance(error, QueueFullError)
                channel.send(RequestRejected(message.request_id, full, str(error), getattr(error, "param", None)))
        case AbortRequests():
            for request_id in message.request_ids:
                core.abort(request_id)
        case GetStats():
            channel.send(StatsReply(message.number, core.stats()))
