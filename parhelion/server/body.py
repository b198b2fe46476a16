"""Bytes of a request to a typed body, or an error that names the field."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from starlette.requests import Request

from parhelion.errors import InvalidRequestError

BodyT = TypeVar("BodyT", bound=msgspec.Struct)

_FIELD = re.compile(r" - at (?P<key>`key` in )?`\$\.?(?P<path>.*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>[^`]{0,100})")
_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]*)`")
_MAX_NAMED = 10
_GZIP = b"\x1f\x8b"


async def read_body(request: Request, kind: type[BodyT]) -> BodyT:
    """The request's body as ``kind``, whatever its content type says: clients of this interface send only JSON.

    Raises:
        InvalidRequestError: it is no JSON, holds an unknown field, lacks one, or a field has the wrong type.
    """
    return decode_body(await request.body(), kind)


def decode_body(data: bytes, kind: type[BodyT]) -> BodyT:
    """As ``read_body``, from bytes. NaN, infinities, lone surrogates and nesting without end are refused as well.

    An unknown field is no error if it is null: many clients write every field that they know.
    """
    if not data:
        raise InvalidRequestError("The body is empty: send a JSON object", code="invalid_json")
    if data.startswith(_GZIP):
        raise InvalidRequestError(
            "The body is compressed, which is not supported: send it as it is", code="invalid_json"
        )
    try:
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.ValidationError:
            return msgspec.json.decode(msgspec.json.encode(_meant_fields(data, kind)), type=kind)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error), data, kind) from None
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"The body is not in UTF-8: {error.reason}", code="invalid_json") from None
    except msgspec.DecodeError as error:
        raise InvalidRequestError(f"The body is no valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise InvalidRequestError("The body is nested too deeply", code="invalid_json") from None


def _meant_fields(data: bytes, kind: type[msgspec.Struct]) -> dict[str, msgspec.Raw]:
    """All top-level fields but unknown ones that are null."""
    fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    known = frozenset(kind.__struct_fields__)
    return {name: raw for name, raw in fields.items() if name in known or bytes(raw) != b"null"}


def _invalid_field(message: str, data: bytes, kind: type[msgspec.Struct]) -> InvalidRequestError:
    found = _FIELD.search(message)
    path = found["path"] if found else ""
    reason = message[: found.start()] if found else message
    if unknown := _UNKNOWN.match(reason):
        names = [f"{path}.{unknown['name']}"] if path else _unknown_fields(data, kind)
        text = f"Unknown fields: {', '.join(names[:_MAX_NAMED])}"
        way_out = "put what it holds beside the other fields" if "extra_body" in names else "leave them out"
        return InvalidRequestError(
            f"{text}. They would have no effect here: {way_out}", names[0] if names else None, "unknown_parameter"
        )
    if missing := _MISSING.match(reason):
        name = f"{path}.{missing['name']}" if path else missing["name"]
        return InvalidRequestError(f"{name} is required", name, "missing_required_parameter")
    if not path:
        return InvalidRequestError(f"The body must be a JSON object: {reason}", code="invalid_type")
    where = f"a key of {path}" if found and found["key"] else path
    return InvalidRequestError(f"{where}: {reason[:1].lower()}{reason[1:]}", path, "invalid_type")


def _unknown_fields(data: bytes, kind: type[msgspec.Struct]) -> list[str]:
    """All top-level names that ``kind`` does not declare, as the decoder names only the first."""
    try:
        names = _meant_fields(data, kind)
    except (ValueError, RecursionError):
        return []
    known = frozenset(kind.__struct_fields__)
    return [name[:100] for name in names if name not in known]
