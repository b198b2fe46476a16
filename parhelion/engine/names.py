"""What a model is called when nobody names it, and who reads its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from parhelion.config import EngineConfig
from parhelion.models.ids_tokenizer import load_tokenizer_or_ids
from parhelion.models.tokenizer import Tokenizer, load_tokenizer


def model_name(model: str) -> str:
    """An alias or a hub id as it stands; a path by its last part, without ``.gguf``."""
    path = Path(model)
    if path.suffix == ".gguf":
        return path.stem
    return path.resolve().name if path.is_dir() else model


def tokenizer_loader(config: EngineConfig) -> Callable[[Path], Tokenizer]:
    """Reads the tokenizer of a model; dummy weights may come without one, and then text is spelled-out ids."""
    return load_tokenizer_or_ids if config.load_format == "dummy" else load_tokenizer
