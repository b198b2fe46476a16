"""``parhelion pull``: fetch a model before it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from parhelion.cli.output import format_bytes, print_json, stdout, transfer_bar


def pull(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="An alias of --list, or a hub id such as org/name.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the aliases and what is here already.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Fetch a model and print where it lies. What is here already is only found.

    Example: [cyan]parhelion pull smollm2-135m[/]
    """
    if list_:
        _print_catalog(json_)
    elif name is None:
        raise typer.BadParameter("name a model to pull, or list the known ones with --list", param_hint="NAME")
    else:
        path = fetch(name)
        if json_:
            print_json({"name": name, "path": str(path.absolute())})
        else:
            print(path.absolute())


def fetch(name: str) -> Path:
    """The files of a model, with a progress bar while they are on their way.

    Raises:
        ModelNotFoundError: nothing answers to the name, or it cannot be fetched.
    """
    from parhelion.models.resolve import resolve_model

    with transfer_bar(f"pulling {name}") as bar:
        return resolve_model(name, progress=bar)


def _print_catalog(as_json: bool) -> None:
    from parhelion.models.catalog import CATALOG
    from parhelion.models.pull import pulled_path

    found = {entry.alias: pulled_path(entry) for entry in CATALOG}
    if as_json:
        print_json(
            [
                {
                    "name": entry.alias,
                    "description": entry.description,
                    "license": entry.license,
                    "bytes": entry.file_bytes,
                    "path": str(found[entry.alias]) if found[entry.alias].exists() else None,
                }
                for entry in CATALOG
            ]
        )
        return
    table = Table("name", "model", "licence", "size", "pulled")
    for entry in CATALOG:
        here = "yes" if found[entry.alias].exists() else "no"
        table.add_row(entry.alias, entry.description, entry.license, format_bytes(entry.file_bytes), here)
    stdout().print(table)
