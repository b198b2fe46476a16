"""Outermost layer: names each request, logs it in one line, and turns an unforeseen exception into a clean 500."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parhelion.server.errors import ApiError, ErrorDetail, api_error
from parhelion.server.metrics import ServerMetrics
from parhelion.server.root_path import route_path

logger = logging.getLogger("parhelion.access")

CLIENT_CLOSED_REQUEST = 499
"""What the log shows where the client left before it was answered (nginx's number)."""

_HEADER = b"x-request-id"
_MAX_ID_CHARS = 128
_MAX_MESSAGE_CHARS = 300
_PROBED = ("/health", "/metrics")
"""Asked for every few seconds by balancers and Prometheus: not told of, unless they fail, below the level DEBUG."""
_RECORD_KEY = "parhelion.record"


@dataclass
class RequestRecord:
    """What becomes known of a request on its way, for its line in the log.

    Attributes:
        request_id: the client's ``X-Request-Id`` where it is usable, or a fresh one.
        arrival: ``time.perf_counter()`` when it came.
        prompt_tokens, completion_tokens: counts so far.
        disconnected: whether the client left early.
        status: what was answered; None before.
        error: what the client was told, in an answer or at the end of a stream.
    """

    request_id: str
    arrival: float = field(default_factory=time.perf_counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    disconnected: bool = False
    status: int | None = None
    error: ErrorDetail | None = None


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request that this scope belongs to; a fresh one outside the middleware."""
    record: RequestRecord = scope.setdefault(_RECORD_KEY, RequestRecord(uuid.uuid4().hex))
    return record


def note_error(record: RequestRecord, metrics: ServerMetrics, failure: ApiError) -> None:
    """Count an error that a client is told, and keep it for the request's line in the log."""
    metrics.errors.labels(failure.detail.type).inc()
    record.error = failure.detail


class AccessLogMiddleware:
    """Pure ASGI, so that streams pass through untouched.

    Args:
        app: what lies inside.
        metrics: told of failures.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_client_request_id(scope) or uuid.uuid4().hex)
        scope[_RECORD_KEY] = record

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = record.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except ClientDisconnect:
            record.disconnected = True  # while it sent its body
        except Exception as error:
            logger.exception("request_id=%s failed", record.request_id)
            failure = api_error(error)
            note_error(record, self._metrics, failure)
            if record.status is not None:
                raise  # half an answer is out: only closing the connection tells the client so
            await failure.response()(scope, receive, send_named)
        finally:
            _log(scope, record)


def _client_request_id(scope: Scope) -> str | None:
    """The client's own name for its request, if it can be repeated in a header and in a line of the log."""
    for name, value in scope["headers"]:
        if name == _HEADER:
            text: str = value.decode("latin-1")
            usable = 0 < len(text) <= _MAX_ID_CHARS and text.isascii() and text.isprintable() and " " not in text
            return text if usable else None
    return None


def _log(scope: Scope, record: RequestRecord) -> None:
    status = CLIENT_CLOSED_REQUEST if record.disconnected or record.status is None else record.status
    path = "".join(c if c.isascii() and c.isprintable() else "?" for c in scope["path"][:200])
    probed = route_path(scope) in _PROBED and status == 200
    logger.log(
        logging.DEBUG if probed else logging.INFO,
        "request_id=%s %s %s %d prompt_tokens=%d completion_tokens=%d duration_s=%.3f client=%s%s",
        record.request_id,
        scope["method"],
        path,
        status,
        record.prompt_tokens,
        record.completion_tokens,
        time.perf_counter() - record.arrival,
        ":".join(map(str, scope.get("client") or ())),
        _described(record.error),
    )


def _described(error: ErrorDetail | None) -> str:
    """The end of the line of a request that failed. A message may quote the client, so it is escaped."""
    if error is None:
        return ""
    return f" error={error.code or error.type} param={error.param} message={error.message[:_MAX_MESSAGE_CHARS]!a}"
