"""``parhelion serve``: the OpenAI-compatible server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from parhelion.cli.options import record_options
from parhelion.cli.output import format_bytes, print_json, print_note, stdout
from parhelion.cli.pull import fetch
from parhelion.config import EngineConfig, ServerConfig, read_environment

if TYPE_CHECKING:
    from parhelion.server.run import ReadyInfo


@record_options()
def serve(
    engine: EngineConfig,
    server: ServerConfig,
    json_: Annotated[bool, typer.Option("--json", help="Print one line of JSON once the server is ready.")] = False,
) -> None:
    """Serve a model over HTTP under OpenAI's interface, until SIGTERM or Ctrl-C; running requests are let finish.

    Example: [cyan]parhelion serve smollm2-135m --port 8000 --kv-cache-memory 512MiB[/]
    """
    from parhelion.server.run import serve as run_server
