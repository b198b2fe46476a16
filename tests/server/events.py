"""Reads an event stream back."""

from __future__ import annotations

import json
from typing import Any


def chunks_of(body: str) -> list[dict[str, Any]]:
    """The chunks of a whole stream, which must end with ``[DONE]``."""
    events = body.strip().split("\n\n")
    assert events[-1] == "data: [DONE]", events[-1]
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
