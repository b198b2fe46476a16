"""Fixtures that many tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from parhelion.models.resolve import resolve_model


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's GGUF file, pulled into the home folder unless it is there."""
    return resolve_model("smollm2-135m")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama with a tokenizer."""
    # transformers takes a second to import.
    from tests.e2e.tiny_models import TINY_MODELS, write_byte_tokenizer

    folder = tmp_path_factory.mktemp("tiny-llama")
    TINY_MODELS[0].write(folder)
    write_byte_tokenizer(folder)
    return folder
