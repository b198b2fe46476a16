"""Fixtures of the tokenizer tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from parhelion.models.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Tokenizer:
    """The default model's tokenizer."""
    return load_tokenizer(smollm2_path)
