"""Fixtures that many tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from parhelion.models.resolve import resolve_model


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's GGUF file, pulled into the home folder unless it is there."""
    return resolve_model("smollm2-135m")
