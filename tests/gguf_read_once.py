"""transformers reads a GGUF file several times, and gguf takes seconds each time; here it is read once."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import gguf
import pytest


@contextmanager
def gguf_read_once() -> Iterator[None]:
    """While it lasts, a file is read once and remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
        yield
