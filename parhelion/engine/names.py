"""What a model is called by the API when nobody names it."""

from __future__ import annotations

from pathlib import Path


def model_name(model: str) -> str:
    """An alias or a hub id as it stands; a path by its last part, without ``.gguf``."""
    path = Path(model)
    if path.suffix == ".gguf":
        return path.stem
    return path.resolve().name if path.is_dir() else model
