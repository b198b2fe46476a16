"""Command-line options derived from the option dataclasses, so that each is defined and described once.

A command declares a parameter per record (``engine: EngineConfig, sampling: SamplingParams``) and ``record_options``
replaces it by one option per field: its name from the field (``kv_cache_memory`` is ``--kv-cache-memory``), its type
from the annotation, its help from the ``Attributes:`` section of the record's docstring. A field without a default is
the command's argument. Fields of the same name in two records are one option that goes to both.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import wraps
from types import NoneType, UnionType
from typing import Annotated, Any, ParamSpec, Union, get_args, get_origin, get_type_hints

import typer

from parhelion.config import EngineConfig, ServerConfig, parse_bytes
from parhelion.errors import ConfigError, ParhelionError
from parhelion.types import SamplingParams

P = ParamSpec("P")

RECORDS: Mapping[type, str] = {EngineConfig: "Engine", SamplingParams: "Sampling", ServerConfig: "Server"}
"""The records that may be a command's parameters, with the heading of their options in ``--help``."""

_SIZE_FIELD = re.compile(r"(_memory|_bytes)$")


@dataclass(frozen=True)
class FieldOption:
    """One option: the parameter that typer sees."""

    name: str
    annotation: Any
    required: bool


def record_options(
    *, exclude: Sequence[str] = (), defaults: Mapping[str, int | float | str | None] | None = None
) -> Callable[[Callable[P, None]], Callable[..., None]]:
    """Let a command take whole records; typer is shown their fields as options.

    Args:
        exclude: fields that make no sense for this command.
        defaults: values that this command uses, instead of the record's own, when an option is left out.
    """
    overrides = dict(defaults or {})

    def decorate(command: Callable[P, None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        signature = inspect.signature(command)
        records = {name: hint for name, hint in hints.items() if hint in RECORDS}
        options: dict[str, FieldOption] = {}
        for record in records.values():
            for option in options_of(record, exclude, overrides):
                options.setdefault(option.name, option)
        plain = [
            p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for p in signature.parameters.values()
            if p.name not in records
        ]
        derived = [
            inspect.Parameter(
                option.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if option.required else None,
                annotation=option.annotation,
            )
            for option in options.values()
        ]
        derived.sort(key=lambda parameter: parameter.default is None)

        @wraps(command)
        def run(*args: Any, **values: Any) -> None:
            given = overrides | {name: values.pop(name) for name in options if values[name] not in (None, [], ())}
            for name in options:
                values.pop(name, None)
            given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
            built = {name: build_record(record, given) for name, record in records.items()}
            command(*args, **values, **built)

        parameters = sorted([*derived, *plain], key=lambda p: p.default is not inspect.Parameter.empty)
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        del run.__wrapped__  # so that nobody looks through to the old signature
        return run

    return decorate


def options_of(record: type, exclude: Sequence[str], overrides: Mapping[str, Any]) -> list[FieldOption]:
    """The options of a record's fields, in order."""
    hints = get_type_hints(record)
    docs = attribute_docs(record)
    return [
        _field_option(field, hints[field.name], docs[field.name], RECORDS[record], overrides)
        for field in fields(record)
        if field.name not in exclude
    ]


def build_record(record: type, given: Mapping[str, Any]) -> Any:
    """The record with the given fields set; what it refuses is a usage error of the command line.

    Raises:
        typer.BadParameter: the record's own checks refuse a value.
    """
    names = {field.name for field in fields(record)}
    try:
        return record(**{name: value for name, value in given.items() if name in names})
    except ParhelionError as error:
        raise typer.BadParameter(str(error)) from error


def attribute_docs(record: type) -> dict[str, str]:
    """What the ``Attributes:`` section of the docstring says of each field.

    Raises:
        TypeError: a field is not described there.
    """
    docs: dict[str, str] = {}
    current: list[str] = []
    for line in inspect.getdoc(record).partition("Attributes:")[2].splitlines():  # type: ignore[union-attr]
        entry = re.match(r"    (\w[\w, ]*): (.*)", line)
        if entry:
            current = [name.strip() for name in entry[1].split(",")]
            docs |= dict.fromkeys(current, entry[2])
        elif line.startswith("     "):
            docs |= {name: f"{docs[name]} {line.strip()}" for name in current}
        elif line.strip():
            break
    missing = [field.name for field in fields(record) if field.name not in docs]
    if missing:
        raise TypeError(f"the docstring of {record.__name__} has no Attributes entry for {', '.join(missing)}")
    return docs


def _field_option(field: Field[Any], hint: Any, doc: str, panel: str, overrides: Mapping[str, Any]) -> FieldOption:
    text = _as_help(doc)
    if field.default is MISSING and field.default_factory is MISSING:
        argument = typer.Argument(help=text, show_default=False, metavar=field.name.upper())
        return FieldOption(field.name, Annotated[str, argument], True)
    form = _form_of(field.name, _without_none(hint))
    default = form.show(overrides.get(field.name, field.default))
    info = typer.Option(
        *form.flags,
        help=text + form.note + (f" \\[default: {default}]" if default else ""),
        show_default=False,
        rich_help_panel=f"{panel} options",
        parser=form.parser,
        metavar=form.metavar,
    )
    return FieldOption(field.name, Annotated[form.kind | None, info], False)


@dataclass(frozen=True)
class _Form:
    """How values of a type are written on the command line."""

    flags: tuple[str, ...]
    kind: Any
    note: str = ""
    parser: Callable[[str], Any] | None = None
    metavar: str | None = None
    show: Callable[[Any], str] = lambda default: "" if default in (None, "", ()) else str(default)


def _form_of(name: str, kind: Any) -> _Form:
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        return _Form((f"{flag}/--no-{flag[2:]}",), bool, show=lambda default: "on" if default else "off")
    if kind is int and _SIZE_FIELD.search(name):
        note = " A number of bytes, or with a unit, such as 512MiB."
        return _Form((flag,), str, note, _parse_size, "SIZE", _show_size)
    if get_origin(kind) is Mapping:
        return _Form((flag,), str, "", parse_token_map, "ID=VALUE,...")
    if get_origin(kind) in (tuple, Sequence):
        # A repeated option also answers to its singular: --api-keys and --api-key.
        flags = (flag, flag.removesuffix("s")) if flag.endswith("s") else (flag,)
        return _Form(flags, list[get_args(kind)[0]], " May be repeated.")  # type: ignore[misc]
    return _Form((flag,), kind)


def parse_token_map(text: str) -> dict[int, float]:
    """``"42=-100,7=1.5"`` to ``{42: -100.0, 7: 1.5}``.

    Raises:
        typer.BadParameter: the text is not of that form.
    """
    try:
        pairs = [pair.split("=") for pair in text.split(",")]
        return {int(token): float(value) for token, value in pairs}
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not of the form TOKEN_ID=VALUE,TOKEN_ID=VALUE") from None


def _parse_size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


def _show_size(default: int | None) -> str:
    return "" if default is None else f"{default / (1 << 20):g}MiB"


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        rest = [arg for arg in get_args(hint) if arg is not NoneType]
        if len(rest) == 1:
            return rest[0]
    return hint


def _as_help(doc: str) -> str:
    """The sentence as typer prints it: no code marks, and brackets kept from being read as rich's markup."""
    text = doc.replace("``", "").replace("[", r"\[")
    return text if re.match(r"\w+, or |auto|dummy|fcfs", text) else text[:1].upper() + text[1:]


def arguments_of(record: Any) -> list[str]:
    """The command-line options that make this record, those at their default left out.

    For records whose values are plain: texts, numbers, booleans and tuples of them.
    """
    arguments: list[str] = []
    for field in fields(record):
        value = getattr(record, field.name)
        if field.default is MISSING or value == field.default:
            continue
        flag = "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag[2:]}")
        else:
            for item in value if isinstance(value, tuple) else (value,):
                arguments += [flag, str(item)]
    return arguments
