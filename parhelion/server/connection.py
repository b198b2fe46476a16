"""The client's end of one request: whether it is still there, and how an answer is sent to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from parhelion.server.access_log import RequestRecord, record_of
from parhelion.server.errors import ClientDisconnectedError

_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy must not hold events back
]


class Connection:
    """Sends one answer, as JSON at once or as events."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self.record: RequestRecord = record_of(scope)

    async def run_while_connected(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` and cancel it as soon as the client goes away.

        Raises:
            ClientDisconnectedError: it went away first.
        """
        task = asyncio.create_task(work)
        watcher = asyncio.create_task(self._wait_disconnected())
        try:
            await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnectedError("the client went away")
        finally:
            task.cancel()
            watcher.cancel()
            await asyncio.gather(task, watcher, return_exceptions=True)
        task.result()

    async def _wait_disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send_json(self, body: bytes) -> None:
        """The whole answer, status 200."""
        await Response(body, media_type="application/json")(self._scope, self._receive, self._send)

    async def start_events(self) -> None:
        """Status 200 and the headers of an event stream."""
        await self._send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS})

    async def send_events(self, events: bytes) -> None:
        """Events, each ended by an empty line. Waits while the client is slower than the server."""
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end_events(self, events: bytes) -> None:
        """The last events."""
        await self._send({"type": "http.response.body", "body": events, "more_body": False})


class DeferredResponse(Response):
    """A response whose work is done while it is sent, so that it may choose its status late and watch the client.

    Args:
        answer: does the work and sends on the connection; what it raises before sending becomes an error answer.
    """

    def __init__(self, answer: Callable[[Connection], Awaitable[None]]) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(Connection(scope, receive, send))
        except ClientDisconnectedError:
            record_of(scope).disconnected = True
