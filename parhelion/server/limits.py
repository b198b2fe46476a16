"""Checks that come before any route: the API key and the size of the body. Pure ASGI: streams pass untouched."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parhelion.server.access_log import note_error, record_of
from parhelion.server.errors import AuthenticationError, BodyTooLargeError, api_error
from parhelion.server.metrics import ServerMetrics
from parhelion.server.root_path import route_path

OPEN_PATHS = frozenset({"/health"})
"""Paths that need no key: a load balancer has none."""


class ApiKeyMiddleware:
    """Refuses requests without an accepted ``Authorization: Bearer`` key (401).

    Args:
        app: what lies inside.
        api_keys: the accepted keys; every one is compared, in constant time, so that timing tells nothing.
        metrics: told of refusals.
    """

    def __init__(self, app: ASGIApp, api_keys: Sequence[str], metrics: ServerMetrics) -> None:
        self._app = app
        self._keys = [key.encode() for key in api_keys]
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keys or route_path(scope) in OPEN_PATHS or self._accepts(scope):
            await self._app(scope, receive, send)
            return
        why = (
            "The API key of this request is not accepted"
            if _bearer_token(scope)
            else "No API key came with this request"
        )
        error = api_error(
            AuthenticationError(f"{why}: send the header 'Authorization: Bearer KEY' with a key of this server")
        )
        note_error(record_of(scope), self._metrics, error)
        await error.response()(scope, receive, send)

    def _accepts(self, scope: Scope) -> bool:
        given = _bearer_token(scope)
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        return bool(given) and any(matches)


def _bearer_token(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            return bytes(token.strip()) if scheme.lower() == b"bearer" else b""
    return b""


class BodyLimitMiddleware:
    """Refuses bodies above ``max_body_bytes`` (413), by their declared length or, sent in chunks, while they come in.

    Args:
        app: what lies inside; it must answer ``BodyTooLargeError`` with 413.
        max_body_bytes: the limit.
        metrics: told of refusals.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, metrics: ServerMetrics) -> None:
        self._app = app
        self._limit = max_body_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (declared := _content_length(scope)) is not None and declared > self._limit:
            error = api_error(self._too_large(declared))
            note_error(record_of(scope), self._metrics, error)
            await error.response()(scope, receive, send)
            return
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._limit:
                    raise self._too_large(received)
            return message

        await self._app(scope, receive_limited, send)

    def _too_large(self, num_bytes: int) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"The body has {num_bytes} bytes or more; this server takes {self._limit} (max_body_bytes): send less"
        )


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return None
