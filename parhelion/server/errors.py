"""Errors as a client sees them: the status, and OpenAI's ``{"error": {...}}`` body."""

from __future__ import annotations

from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from parhelion.errors import EngineDeadError, InvalidRequestError, ParhelionError, QueueFullError

MAX_MESSAGE_CHARS = 1000
"""Longer messages (they may quote the client's own values) are cut."""

RETRY_AFTER_S = 1
"""What a refused client is told to wait: a request's usual time to give its place away, not a promise."""


class ModelNotServedError(ParhelionError):
    """The body names a model that this server does not serve (HTTP 404)."""


class AuthenticationError(ParhelionError):
    """No accepted API key came with the request (HTTP 401)."""


class BodyTooLargeError(ParhelionError):
    """The body exceeds ``max_body_bytes`` (HTTP 413)."""


class TooManyRequestsError(ParhelionError):
    """The server holds as many requests as it was told to (HTTP 429)."""


class DrainingError(ParhelionError):
    """The server is about to end and takes nothing new (HTTP 503)."""


class ClientDisconnectedError(ParhelionError):
    """The client went away: there is nobody to answer."""


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong: a sentence, a class of error, the offending parameter and a short code."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is no success, and the data of an ``error`` event in a stream."""

    error: ErrorDetail


class ApiError(msgspec.Struct, frozen=True):
    """An error with its HTTP status and extra headers."""

    status: int
    detail: ErrorDetail
    headers: tuple[tuple[str, str], ...] = ()

    def body(self) -> bytes:
        """The JSON body."""
        return msgspec.json.encode(ErrorBody(self.detail))

    def response(self) -> Response:
        """The answer to send."""
        return Response(self.body(), self.status, dict(self.headers), media_type="application/json")


_RETRY_LATER = (("Retry-After", str(RETRY_AFTER_S)),)
_HTTP_TYPES = {HTTPStatus.NOT_FOUND: "not_found_error", HTTPStatus.METHOD_NOT_ALLOWED: "invalid_request_error"}


def api_error(error: BaseException) -> ApiError:
    """How an exception is told to the client. Anything not foreseen becomes a 500 that says nothing of the inside."""
    message = _presentable(str(error))
    match error:
        case InvalidRequestError():
            return ApiError(400, ErrorDetail(message, "invalid_request_error", error.param, error.code))
        case AuthenticationError():
            detail = ErrorDetail(message, "authentication_error", None, "invalid_api_key")
            return ApiError(401, detail, (("WWW-Authenticate", "Bearer"),))
        case ModelNotServedError():
            return ApiError(404, ErrorDetail(message, "not_found_error", "model", "model_not_found"))
        case BodyTooLargeError():
            return ApiError(413, ErrorDetail(message, "invalid_request_error", None, "body_too_large"))
        case TooManyRequestsError():
            return ApiError(429, ErrorDetail(message, "rate_limit_error", None, "too_many_requests"), _RETRY_LATER)
        case QueueFullError():
            return ApiError(429, ErrorDetail(message, "rate_limit_error", None, "queue_full"), _RETRY_LATER)
        case DrainingError():
            return ApiError(503, ErrorDetail(message, "service_unavailable_error", None, "draining"), _RETRY_LATER)
        case EngineDeadError():
            return ApiError(503, ErrorDetail(message, "service_unavailable_error", None, "engine_dead"))
        case HTTPException():
            return _http_error(error)
    message = "The server failed on this request; its log says why under the request's X-Request-Id."
    return ApiError(500, ErrorDetail(message, "internal_error", None, "internal_error"))


def _http_error(error: HTTPException) -> ApiError:
    kind = _HTTP_TYPES.get(HTTPStatus(error.status_code), "invalid_request_error")
    headers = tuple((error.headers or {}).items())
    return ApiError(error.status_code, ErrorDetail(_presentable(str(error.detail)), kind), headers)


def _presentable(message: str) -> str:
    """Short enough, and free of what UTF-8 cannot hold."""
    if len(message) > MAX_MESSAGE_CHARS:
        message = message[:MAX_MESSAGE_CHARS] + "…"
    return message.encode("utf-8", "replace").decode("utf-8")
