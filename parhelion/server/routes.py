"""Paths to their handlers."""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from parhelion import __version__
from parhelion.errors import ParhelionError
from parhelion.server.body import read_body
from parhelion.server.chat import answer_chat
from parhelion.server.completions import answer_completion
from parhelion.server.connection import DeferredResponse
from parhelion.server.context import ServingContext
from parhelion.server.errors import ModelNotServedError
from parhelion.server.health import health_of
from parhelion.server.openapi import request_schema, response_schemas
from parhelion.server.protocol import ChatCompletionRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from parhelion.server.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    DetokenizeResponse,
    Health,
    ModelCard,
    ModelList,
    TokenizeResponse,
    Version,
)
from parhelion.server.tokenization import detokenize, tokenize
from parhelion.types import EngineStats

BODIES: tuple[type[msgspec.Struct], ...] = (
    ChatCompletionRequest,
    CompletionRequest,
    TokenizeRequest,
    DetokenizeRequest,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    ModelCard,
    ModelList,
    TokenizeResponse,
    DetokenizeResponse,
    Health,
    Version,
)
"""Every body that the document describes."""

STATS_WAIT_S = 5.0
"""How long ``/metrics`` waits for the engine: Prometheus itself gives up after 10 s and then has nothing at all."""

_GENERATION_ERRORS = (400, 401, 404, 413, 429, 503)
_ERRORS = (400, 401, 404, 413)


def build_router(context: ServingContext) -> APIRouter:
    """All endpoints of the application."""
    router = APIRouter()
    _add_generation(router, context)
    _add_tokenization(router, context)
    _add_models(router, context)
    _add_operations(router, context)
    return router


def json_response(body: msgspec.Struct, status: int = 200) -> Response:
    """A body as an answer."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def _add_generation(router: APIRouter, context: ServingContext) -> None:
    @router.post(
        "/v1/chat/completions",
        responses=response_schemas(ChatCompletion, *_GENERATION_ERRORS),
        openapi_extra=request_schema(
            ChatCompletionRequest,
            {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 64},
            {"messages": [{"role": "user", "content": "Hello!"}], "stream": True, "temperature": 0},
        ),
    )
    async def create_chat_completion(request: Request) -> Response:
        """Answer a conversation, in one piece or, with ``stream``, as server-sent events."""
        body = await read_body(request, ChatCompletionRequest)
        return DeferredResponse(partial(answer_chat, context, body))

    @router.post(
        "/v1/completions",
        responses=response_schemas(Completion, *_GENERATION_ERRORS),
        openapi_extra=request_schema(
            CompletionRequest, {"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0.7, "seed": 1}
        ),
    )
    async def create_completion(request: Request) -> Response:
        """Continue one or more prompts, in one piece or, with ``stream``, as server-sent events."""
        body = await read_body(request, CompletionRequest)
        return DeferredResponse(partial(answer_completion, context, body))


def _add_tokenization(router: APIRouter, context: ServingContext) -> None:
    @router.post(
        "/tokenize",
        responses=response_schemas(TokenizeResponse, *_ERRORS),
        openapi_extra=request_schema(TokenizeRequest, {"prompt": "Hello, world"}),
    )
    async def create_tokens(request: Request) -> Response:
        """Token ids of a prompt or of messages."""
        return json_response(await tokenize(context, await read_body(request, TokenizeRequest)))

    @router.post(
        "/detokenize",
        responses=response_schemas(DetokenizeResponse, *_ERRORS),
        openapi_extra=request_schema(DetokenizeRequest, {"tokens": [1, 2, 3]}),
    )
    async def create_text(request: Request) -> Response:
        """Text of token ids."""
        return json_response(await detokenize(context, await read_body(request, DetokenizeRequest)))


def _add_models(router: APIRouter, context: ServingContext) -> None:
    def card() -> ModelCard:
        return ModelCard(context.model_name, context.created, context.engine.max_model_len)

    @router.get("/v1/models", responses=response_schemas(ModelList, 401))
    async def list_models() -> Response:
        """The served model."""
        return json_response(ModelList([card()]))

    @router.get("/v1/models/{model:path}", responses=response_schemas(ModelCard, 401, 404))
    async def get_model(model: str) -> Response:
        """The served model by its name."""
        if not context.serves(model):
            raise ModelNotServedError(
                f"The model {model[:200]!r} does not exist here; this server serves {context.model_name!r}"
            )
        return json_response(card())


def _add_operations(router: APIRouter, context: ServingContext) -> None:
    @router.head("/health", include_in_schema=False)
    @router.get("/health", responses=response_schemas(Health, 503))
    async def get_health() -> Response:
        """200 while requests are taken; 503 while no engine lives or once the server is shutting down."""
        health = health_of(context)
        return json_response(health, 200 if health.status in ("ok", "degraded") else 503)

    @router.get("/version", responses=response_schemas(Version, 401))
    async def get_version() -> Response:
        """The version of the software."""
        return json_response(Version(__version__))

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def get_metrics() -> Response:
        """Prometheus metrics."""
        stats = await _engine_stats(context)
        return Response(context.metrics.render(stats, alive=not context.engine.is_dead), media_type=CONTENT_TYPE_LATEST)


async def _engine_stats(context: ServingContext) -> EngineStats | None:
    """None if the engine is dead, or too busy to answer in time: the scrape must still tell what the server knows."""
    if context.engine.is_dead:
        return None
    try:
        return await asyncio.wait_for(context.engine.stats(), STATS_WAIT_S)
    except (ParhelionError, TimeoutError):
        return None
