"""Server-sent events: an error before the first one has its own status, a later one ends the stream as an event."""

from __future__ import annotations

import logging
from typing import Protocol

import msgspec

from parhelion.server.access_log import note_error
from parhelion.server.connection import Connection
from parhelion.server.errors import ApiError, api_error
from parhelion.server.metrics import ServerMetrics
from parhelion.server.outputs import MergedOutputs
from parhelion.types import RequestOutput

logger = logging.getLogger("parhelion.server")

HEADER_WAIT_S = 10.0
"""How long the headers wait for the first token, so that an early error can still choose the status."""

DONE_EVENT = b"data: [DONE]\n\n"


class EventWriter(Protocol):
    """Turns outputs into events; it remembers what it has sent."""

    def first(self) -> bytes:
        """Events before any output."""

    def changed(self, prompt_index: int, output: RequestOutput) -> bytes:
        """Events for what an output adds; may be empty."""

    def last(self, outputs: MergedOutputs) -> bytes:
        """Events after all outputs, without the closing ``[DONE]``."""


def event(encoder: msgspec.json.Encoder, chunk: msgspec.Struct) -> bytes:
    """One chunk as an event."""
    return b"data: " + encoder.encode(chunk) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """An error as the stream's last event."""
    return b"event: error\ndata: " + error.body() + b"\n\n"


async def stream_outputs(
    outputs: MergedOutputs, writer: EventWriter, connection: Connection, metrics: ServerMetrics
) -> None:
    """Send events as the outputs grow, all that came while the client was slow in one piece.

    Raises:
        Exception: what the engine raised before the stream began.
    """
    await outputs.wait_first(HEADER_WAIT_S)
    await connection.start_events()
    try:
        await connection.send_events(writer.first())
        while changed := await outputs.next():
            if events := b"".join([writer.changed(index, output) for index, output in changed.items()]):
                await connection.send_events(events)
        closing = writer.last(outputs) + DONE_EVENT
    except Exception as error:
        failure = api_error(error)
        note_error(connection.record, metrics, failure)
        if failure.status == 500:
            logger.exception("request_id=%s failed in mid-stream", connection.record.request_id)
        closing = error_event(failure)
    await connection.end_events(closing)
