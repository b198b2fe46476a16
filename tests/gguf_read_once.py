"""transformers reads a GGUF file several times, and maps the names of its tensors hundreds of times, for each of which
gguf takes long; here it does so once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import gguf
import pytest


@contextmanager
def gguf_read_once() -> Iterator[None]:
    """While it lasts, a file that was read is remembered, and so is a model's map of names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
        yield
