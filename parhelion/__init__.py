"""Parhelion: an LLM inference engine and server.

The public names below are imported lazily, so that ``import parhelion`` costs nothing and loads no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parhelion.config import EngineConfig
    from parhelion.engine.async_engine import AsyncEngine
    from parhelion.engine.llm import LLM
    from parhelion.types import CompletionOutput, RequestOutput, SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncEngine", "CompletionOutput", "EngineConfig", "RequestOutput", "SamplingParams", "__version__"]

_HOMES = {
    "LLM": "parhelion.engine.llm",
    "AsyncEngine": "parhelion.engine.async_engine",
    "EngineConfig": "parhelion.config",
    "CompletionOutput": "parhelion.types",
    "RequestOutput": "parhelion.types",
    "SamplingParams": "parhelion.types",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'parhelion' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
