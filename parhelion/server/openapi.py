"""The OpenAPI document: FastAPI's paths, with the schemas that msgspec derives from the bodies."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from parhelion.server.errors import ErrorBody

JsonObject = dict[str, Any]
_REF = "#/components/schemas/{name}"


def request_schema(body: type[msgspec.Struct], *examples: JsonObject) -> JsonObject:
    """The ``openapi_extra`` of a route that reads ``body``."""
    content: JsonObject = {"schema": _reference(body)}
    if examples:
        content["examples"] = {f"example_{index + 1}": {"value": value} for index, value in enumerate(examples)}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def response_schemas(body: type[msgspec.Struct], *errors: int) -> dict[int | str, JsonObject]:
    """The ``responses`` of a route: ``body`` for 200, and the error statuses that it may give."""
    documented: dict[int | str, JsonObject] = {200: _response("Success", body)}
    documented.update({status: _response("Error", ErrorBody) for status in errors})
    return documented


def install_openapi(app: FastAPI, bodies: tuple[type[msgspec.Struct], ...]) -> None:
    """Let ``app`` describe ``bodies`` in its document, which is made on first use."""

    def document() -> JsonObject:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, schemas = msgspec.json.schema_components((*bodies, ErrorBody), ref_template=_REF)
            made.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _reference(body: type[msgspec.Struct]) -> JsonObject:
    return {"$ref": _REF.format(name=body.__name__)}


def _response(description: str, body: type[msgspec.Struct]) -> JsonObject:
    return {"description": description, "content": {"application/json": {"schema": _reference(body)}}}
