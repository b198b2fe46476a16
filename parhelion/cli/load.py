"""Open the engine for a command: fetch the model, then load it, each with a bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from parhelion.cli.output import count_bar
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
    fetch(config.model)
    with count_bar(f"loading {config.model}") as bar:
        from parhelion.engine.llm import LLM

        llm = LLM(load_progress=bar, **asdict(config))
    with llm:
        yield llm
