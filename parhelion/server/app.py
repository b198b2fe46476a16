"""The application: the engine behind OpenAI's interface."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from parhelion import __version__
from parhelion.config import ServerConfig
from parhelion.errors import ParhelionError
from parhelion.server.access_log import AccessLogMiddleware, note_error, record_of
from parhelion.server.admission import Admission
from parhelion.server.context import ServingContext
from parhelion.server.engine_client import EngineClient
from parhelion.server.errors import ApiError, api_error
from parhelion.server.limits import ApiKeyMiddleware, BodyLimitMiddleware
from parhelion.server.metrics import ServerMetrics
from parhelion.server.openapi import install_openapi
from parhelion.server.root_path import RootPathMiddleware
from parhelion.server.routes import BODIES, build_router


def create_app(engine: EngineClient, config: ServerConfig) -> FastAPI:
    """An application that serves one engine. It neither starts nor ends the engine.

    Args:
        engine: a running engine.
        config: limits, keys and names.
    """
    return create_application(build_context(engine, config))


def build_context(engine: EngineClient, config: ServerConfig) -> ServingContext:
    """What the endpoints share."""
    return ServingContext(engine, config, ServerMetrics(), Admission(config.max_concurrent_requests), int(time.time()))


def create_application(context: ServingContext) -> FastAPI:
    """As ``create_app``, for a caller that keeps the context (to drain, for one)."""
    app = FastAPI(
        title="Parhelion",
        version=__version__,
        description="An LLM inference server under OpenAI's interface.",
    )
    app.include_router(build_router(context))
    _add_error_handlers(app, context.metrics)
    # The last one added is the outermost.
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=context.config.max_body_bytes, metrics=context.metrics)
    app.add_middleware(ApiKeyMiddleware, api_keys=context.config.api_keys, metrics=context.metrics)
    app.add_middleware(AccessLogMiddleware, metrics=context.metrics)
    app.add_middleware(RootPathMiddleware, root_path=context.config.root_path)
    install_openapi(app, BODIES)
    return app


def _add_error_handlers(app: FastAPI, metrics: ServerMetrics) -> None:
    async def answer_error(request: Request, error: Exception) -> Response:
        described = _describe(request, error)
        note_error(record_of(request.scope), metrics, described)
        return described.response()

    for kind in (ParhelionError, HTTPException):
        app.add_exception_handler(kind, answer_error)


def _describe(request: Request, error: Exception) -> ApiError:
    """Routing's own errors say too little: name the path and the method."""
    if isinstance(error, HTTPException) and error.status_code == 404:
        return api_error(HTTPException(404, f"There is no {request.url.path}; GET /openapi.json lists what there is"))
    if isinstance(error, HTTPException) and error.status_code == 405:
        headers: Any = error.headers
        allowed = (headers or {}).get("Allow", "another method")
        detail = f"{request.url.path} does not take {request.method}; use {allowed}"
        return api_error(HTTPException(405, detail, headers))
    return api_error(error)
