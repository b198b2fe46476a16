"""Open the engine for a command: fetch the model with a bar, then load it under a spinner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from parhelion.cli.output import spinner
from parhelion.cli.pull import fetch
from parhelion.config import EngineConfig

if TYPE_CHECKING:
    from parhelion.engine.llm import LLM


@contextmanager
def open_llm(config: EngineConfig) -> Iterator[LLM]:
    """An engine in this process, shut down at the end.

    Raises:
        ModelNotFoundError, CheckpointError, ConfigError, OutOfMemoryError: it cannot be opened.
    """
    path = fetch(config.model)
    with spinner(f"loading {config.model}"):
        from parhelion.engine.llm import LLM

        llm = LLM(**asdict(replace(config, model=str(path))))
    with llm:
        yield llm
